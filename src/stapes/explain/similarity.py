"""How alike two representations of the same examples are: SVCCA and linear CKA.

A representation is an array (n, p): what p neurons answer to n examples. Both measures compare
what the two say about the examples, not neuron by neuron; they are 1 where one is a rotation of the
other, scaled as a whole or moved, and do not care which is named first.

References:
    Raghu, Gilmer, Yosinski, Sohl-Dickstein, "SVCCA: Singular Vector Canonical Correlation Analysis
    for Deep Learning Dynamics and Interpretability", NeurIPS 2017, section 2.
    Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML
    2019, equation 3 and section 4.

What n and p do to them: n centred examples span n - 1 directions. Two representations that each
keep k of these overlap by chance alone, in SVCCA by about the root of k / (n - 1); with k = n - 1
both keep everything and SVCCA is 1 whatever they are. Linear CKA, too, is far above 0 for unrelated
representations if n is not well above p. Both are therefore given beside their value by chance,
that of the same two arrays with the examples of one in another order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ConstantError",
    "Representation",
    "Similarity",
    "compare",
    "linear_cka",
    "svcca",
]

Floats = NDArray[np.float64]

_CORRELATIONS = 200  # that the value of SVCCA by chance is the mean of, from several orders


class ConstantError(ValueError):
    """A representation that is the same for all examples, so that it has nothing to compare."""


def svcca(x: ArrayLike, y: ArrayLike, *, variance: float = 0.99) -> float:
    """Mean canonical correlation of two representations without their weakest directions.

    Both are centred and reduced to the fewest singular directions that hold ``variance`` of their
    variance; of the correlations between the best matching pairs of directions in these two spaces
    the mean is taken, over as many as the smaller space has.

    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(svcca(x, 3 * x[:, ::-1] + 1), 6)
    1.0

    Args:
        x: (n, p) answers to n examples.
        y: (n, q) answers of others to the same examples in the same order. p and q may differ, and
            may be above n, but see above.
        variance: share to keep, above 0 and up to 1.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: other shapes, fewer than two examples, values that are not finite, or answers
            that are the same for all examples (a :class:`ConstantError`); ``variance`` out of
            range.
    """
    return Representation(x, variance=variance, name="x").svcca(
        Representation(y, variance=variance, name="y")
    )


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centred kernel alignment of two representations.

    ``|y' x|^2 / (|x' x| |y' y|)`` of the centred arrays, with Frobenius norms. Directions count by
    their variance, where SVCCA counts all alike that it keeps.

    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(linear_cka(x, 3 * x[:, ::-1] + 1), 6)
    1.0

    Args:
        x: (n, p) answers to n examples.
        y: (n, q) answers of others to the same examples in the same order.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: as :func:`svcca`.
    """
    return Representation(x, name="x").linear_cka(Representation(y, name="y"))


class Representation:
    """One representation, taken apart once to be compared with many.

    Attributes:
        n: examples.
        directions: singular directions that hold the wanted share of the variance.

    Args:
        activations: (n, p).
        variance: share of the variance that SVCCA keeps, above 0 and up to 1.
        name: for messages.

    Raises:
        ValueError: as :func:`svcca`.
    """

    def __init__(
        self, activations: ArrayLike, *, variance: float = 0.99, name: str = "activations"
    ) -> None:
        if not 0 < variance <= 1:
            raise ValueError(f"variance = {variance!r}: must be above 0 and up to 1")
        given = np.asarray(activations)
        if given.ndim != 2 or given.shape[1] < 1:
            raise ValueError(f"{name} must be (examples, features), not {given.shape}")
        if len(given) < 2:
            raise ValueError(f"{name} has {len(given)} examples: similarity needs two or more")
        precision = given.dtype if given.dtype.kind == "f" else np.dtype(np.float64)
        values: Floats = given.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that are not finite")
        largest = np.abs(values).max()
        if largest > 0:
            values /= largest  # neither overflow nor underflow in the squares
        values -= values.mean(axis=0)
        # What is left of a constant is rounding, which must not pass for an answer.
        if np.abs(values).max() <= 4 * float(np.finfo(precision).eps):
            raise ConstantError(f"{name} is the same for all examples: it has nothing to compare")
        self.n = len(values)
        # values = u s v': all that either measure asks for is u and s, at most n by n.
        u, s, _ = np.linalg.svd(values, full_matrices=False)
        held = np.cumsum(s**2) / np.sum(s**2)
        rank = int((s > s[0] * max(values.shape) * np.finfo(np.float64).eps).sum())
        self.directions = min(int((held < variance - 1e-12).sum()) + 1, rank)
        self._basis: Floats = u[:, : self.directions]
        self._scaled: Floats = (u * s)[:, :rank] / np.sqrt(np.sum(s**2))  # variances add up to 1
        self._norm = float(np.sqrt(np.sum(s**4)) / np.sum(s**2))  # of the kernel matrix then

    def svcca(self, other: Representation) -> float:
        """See :func:`svcca`; the share of the variance is each one's own."""
        self._check(other)
        return _mean_correlation(self._basis, other._basis)

    def linear_cka(self, other: Representation) -> float:
        """See :func:`linear_cka`."""
        self._check(other)
        shared = float(np.sum((other._scaled.T @ self._scaled) ** 2))
        return min(1.0, shared / (self._norm * other._norm))

    def svcca_by_chance(self, other: Representation, *, seed: int = 0) -> float:
        """SVCCA with the examples of the other in another order, mean over some orders."""
        self._check(other)
        rng = np.random.default_rng(seed)
        n_orders = math.ceil(_CORRELATIONS / min(self.directions, other.directions))
        orders = [rng.permutation(self.n) for _ in range(n_orders)]
        found = [_mean_correlation(self._basis, other._basis[order]) for order in orders]
        return float(np.mean(found))

    def linear_cka_by_chance(self, other: Representation) -> float:
        """Linear CKA's mean over all orders of the other's examples.

        Over all orders the mean of ``tr(K P L P')`` is ``tr(K) tr(L) / (n - 1)``, if K and L are
        kernel matrices of centred arrays; here both traces are 1.
        """
        self._check(other)
        return min(1.0, 1 / (self.n - 1) / (self._norm * other._norm))

    def _check(self, other: Representation) -> None:
        if self.n != other.n:
            raise ValueError(
                f"{self.n} and {other.n} examples: both must answer to the same examples"
            )


def _mean_correlation(a: Floats, b: Floats) -> float:
    # The columns of either are orthonormal, so the canonical correlations are the singular values.
    correlations = np.linalg.svd(a.T @ b, compute_uv=False)
    return float(np.minimum(correlations, 1).mean())


@dataclass(frozen=True)
class Similarity:
    """Two representations compared.

    Attributes:
        svcca: 0 to 1.
        linear_cka: 0 to 1.
        svcca_by_chance: of unrelated representations with as many directions.
        linear_cka_by_chance: of unrelated representations with the same variances.
    """

    svcca: float
    linear_cka: float
    svcca_by_chance: float
    linear_cka_by_chance: float


def compare(x: Representation, y: Representation) -> Similarity:
    """Both measures and what they are by chance.

    Raises:
        ValueError: not the same number of examples.
    """
    return Similarity(x.svcca(y), x.linear_cka(y), x.svcca_by_chance(y), x.linear_cka_by_chance(y))
