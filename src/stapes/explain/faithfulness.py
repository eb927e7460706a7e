"""Does an attribution tell the truth? Deletion and insertion curves.

Reference:
    Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018, section 4.2.

Deletion replaces the places of a spectrogram by the baseline, those with the largest attribution
first, and follows the label's probability: the faster it falls, the better the attribution found
what the network goes by. Insertion starts from the baseline and brings the places back in the same
order: the faster the probability rises, the better. (Petsiuk et al. insert into a blurred image;
here both curves go between the same two spectrograms.)

An area means little by itself, so it comes with two yardsticks: the places in random order, and the
same attribution moved elsewhere, circularly along both axes. The latter is the stricter one:
replacing scattered places makes a texture that no recording has, which hurts a network whatever the
places mean, and a moved attribution is as scattered or as smooth as the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stapes.explain.attribution import label_probabilities

__all__ = ["Curve", "Faithfulness", "faithfulness"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """The label's probability against the share of places that were replaced or brought back.

    Attributes:
        shares: (S + 1,) of all places, 0 to 1.
        probabilities: (S + 1,)
    """

    shares: Floats
    probabilities: Floats

    @property
    def area(self) -> float:
        """Under the curve, by trapezia: the mean probability, 0 to 1."""
        return float(np.trapezoid(self.probabilities, self.shares))


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Deletion and insertion of one attribution and of its yardsticks.

    Attributes:
        deletion: small areas are good.
        insertion: large areas are good.
        random_deletion: the mean curve of random orders.
        random_insertion: the same.
        moved_deletion: the mean curve of the attribution moved elsewhere.
        moved_insertion: the same.
    """

    deletion: Curve
    insertion: Curve
    random_deletion: Curve
    random_insertion: Curve
    moved_deletion: Curve
    moved_insertion: Curve

    def summary(self) -> dict[str, dict[str, float]]:
        """The areas, as plain JSON values."""
        return {
            kind: {
                "area": getattr(self, kind).area,
                "random": getattr(self, f"random_{kind}").area,
                "moved": getattr(self, f"moved_{kind}").area,
            }
            for kind in ("deletion", "insertion")
        }


def faithfulness(
    network: nn.Module,
    x: Tensor,
    baseline: Tensor,
    values: NDArray[np.floating],
    label: int,
    *,
    steps: int = 32,
    draws: int = 4,
    seed: int = 0,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Faithfulness:
    """Delete and insert the places of a spectrogram in the order of an attribution.

    Places with equal attribution come in random order. The network is run in evaluation mode and is
    not changed.

    Args:
        network: (B, C, F, T) to logits (B, K).
        x: (C, F, T).
        baseline: (C, F, T).
        values: (F, T), the attribution; a place is replaced in all channels.
        label: whose probability, 0 to K - 1.
        steps: S; each replaces the same number of places, to one.
        draws: random orders, and moves of the attribution, to take the mean of.
        seed: of both.
        batch: spectrograms at once.
        progress: called with (curves done, curves in all).

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a number out of range.
    """
    if x.ndim != 3 or x.shape != baseline.shape or x.shape[1:] != values.shape:
        raise ValueError(
            "x and baseline are (C, F, T) and values (F, T), not "
            f"{tuple(x.shape)}, {tuple(baseline.shape)} and {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    if min(steps, draws, batch) < 1:
        raise ValueError(f"steps = {steps}, draws = {draws}, batch = {batch}: each 1 or more")
    rng = np.random.default_rng(seed)
    orders = [values]
    orders += [rng.random(values.shape) for _ in range(draws)]
    for _ in range(draws):
        shift = [int(rng.integers(n // 4, n - n // 4)) if n > 1 else 0 for n in values.shape]
        orders.append(np.roll(values, shift, (0, 1)))
    curves: list[list[Curve]] = []
    for number, order in enumerate(orders):
        # Last key first: by value, downwards; equal ones in random order.
        places = np.lexsort((rng.random(values.size), -order.reshape(-1)))
        rank = np.empty(values.size, dtype=np.int64)
        rank[places] = np.arange(values.size)
        ranks = torch.from_numpy(rank.reshape(values.shape))
        curves.append(
            [_curve(network, x, baseline, ranks, label, steps, batch),
             _curve(network, baseline, x, ranks, label, steps, batch)]
        )  # fmt: skip
        if progress is not None:
            progress(number + 1, len(orders))

    def mean(of: slice, kind: int) -> Curve:
        drawn = [pair[kind] for pair in curves[of]]
        return Curve(drawn[0].shares, np.mean([curve.probabilities for curve in drawn], axis=0))

    scattered, moved = slice(1, 1 + draws), slice(1 + draws, None)
    return Faithfulness(
        deletion=curves[0][0],
        insertion=curves[0][1],
        random_deletion=mean(scattered, 0),
        random_insertion=mean(scattered, 1),
        moved_deletion=mean(moved, 0),
        moved_insertion=mean(moved, 1),
    )


def _curve(
    network: nn.Module, x: Tensor, other: Tensor, rank: Tensor, label: int, steps: int, batch: int
) -> Curve:
    """Replace places of ``x`` by those of ``other``, in the order of their rank (F, T)."""
    counts = np.linspace(0, rank.numel(), steps + 1).round().astype(np.int64)
    found = []
    for first in range(0, len(counts), batch):
        few = torch.from_numpy(counts[first : first + batch])
        replaced = rank < few[:, None, None]  # (B, F, T)
        inputs = torch.where(replaced[:, None], other, x)
        found.append(label_probabilities(network, inputs, batch)[:, label])
    return Curve(counts / rank.numel(), np.concatenate(found))
