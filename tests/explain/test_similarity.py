"""SVCCA and linear CKA: against their definitions written out, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stapes.explain.similarity import (
    ConstantError,
    Representation,
    compare,
    linear_cka,
    svcca,
)

Floats = NDArray[np.float64]


def kept(x: Floats, variance: float) -> Floats:
    """The fewest principal components of x that hold this share of the variance, one by one."""
    x = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)  # rising
    for k in range(1, len(values) + 1):
        if values[-k:].sum() >= variance * values.sum():
            break
    return x @ vectors[:, -k:]


def svcca_by_definition(x: Floats, y: Floats, variance: float) -> float:
    """Mean canonical correlation from the covariances: roots of the eigenvalues of
    Sxx^-1 Sxy Syy^-1 Syx."""
    x, y = kept(x, variance), kept(y, variance)
    if x.shape[1] > y.shape[1]:
        x, y = y, x
    whole = np.cov(np.hstack([x, y]).T)
    p = x.shape[1]
    product = (
        np.linalg.inv(whole[:p, :p]) @ whole[:p, p:] @ np.linalg.inv(whole[p:, p:]) @ whole[p:, :p]
    )
    return float(np.sqrt(np.clip(np.linalg.eigvals(product).real, 0, 1)).mean())


def cka_by_definition(x: Floats, y: Floats) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of kernel matrices (Kornblith, equations 2, 3)."""
    n = len(x)
    centre = np.eye(n) - 1 / n

    def hsic(a: Floats, b: Floats) -> float:
        return float(np.trace(a @ centre @ b @ centre)) / (n - 1) ** 2

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def related(n: int, p: int, q: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Two representations that share some of what they say, with uneven variances and offsets."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 6))
    scales = np.exp(rng.normal(0, 1.5, 6))
    x = (common * scales) @ rng.normal(size=(6, p)) + rng.normal(size=(n, p)) + 3
    y = np.tanh(common) @ rng.normal(size=(6, q)) + 0.5 * rng.normal(size=(n, q)) - 20
    return x, y


SHAPES = [(200, 12, 12), (200, 12, 30), (60, 30, 9), (300, 1, 5), (40, 25, 80)]


@pytest.mark.parametrize(("n", "p", "q"), SHAPES)
@pytest.mark.parametrize("variance", [0.6, 0.9, 0.99])
def test_svcca_is_the_definition(n: int, p: int, q: int, variance: float) -> None:
    x, y = related(n, p, q)
    assert svcca(x, y, variance=variance) == pytest.approx(
        svcca_by_definition(x, y, variance), abs=1e-6
    )
    assert svcca(y, x, variance=variance) == pytest.approx(
        svcca(x, y, variance=variance), abs=1e-12
    )


@pytest.mark.parametrize(("n", "p", "q"), SHAPES)
def test_cka_is_the_definition(n: int, p: int, q: int) -> None:
    x, y = related(n, p, q)
    assert linear_cka(x, y) == pytest.approx(cka_by_definition(x, y), abs=1e-9)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), abs=1e-12)
    # Not the same as SVCCA, and not something trivial.
    assert 0.02 < linear_cka(x, y) < 0.98


@pytest.mark.parametrize(("n", "p"), [(100, 20), (20, 100), (2, 3), (30, 30)])
def test_the_same_is_one_and_so_is_the_same_turned_scaled_and_moved(n: int, p: int) -> None:
    x = related(n, p, 2)[0]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(p, p)))[0]
    for y in (x, x @ turn, 1e-6 * x @ turn + 4, -1e4 * x):
        assert svcca(x, y) == pytest.approx(1, abs=1e-6)
        assert linear_cka(x, y) == pytest.approx(1, abs=1e-6)


def test_svcca_forgets_scales_of_directions_and_cka_does_not() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 2))
    stretched = x * [1, 3]
    assert svcca(x, stretched, variance=1) == pytest.approx(1, abs=1e-9)
    # Of exactly uncorrelated x of variance 1: (1 + 9) / (sqrt(2) sqrt(1 + 81)) = 0.781.
    white = np.linalg.qr(x - x.mean(axis=0))[0]
    assert linear_cka(white, white * [1, 3]) == pytest.approx(10 / np.sqrt(2 * 82), abs=1e-9)


def test_half_of_the_directions_shared() -> None:
    """Of four uncorrelated directions of equal variance two are shared: the mean is 1/2."""
    white = np.linalg.qr(np.random.default_rng(3).normal(size=(64, 7)))[0]
    white = np.linalg.qr(white - white.mean(axis=0))[0]
    x, y = white[:, :4], white[:, [0, 1, 4, 5]]
    assert svcca(x, y) == pytest.approx(0.5, abs=1e-9)
    assert linear_cka(x, y) == pytest.approx(0.5, abs=1e-9)
    assert svcca(x, white[:, 4:]) == pytest.approx(0, abs=1e-6)


def test_variance_decides_how_many_directions_are_kept() -> None:
    white = np.linalg.qr(np.random.default_rng(4).normal(size=(50, 4)))[0]
    white = np.linalg.qr(white - white.mean(axis=0))[0]
    x = white * np.sqrt([0.5, 0.3, 0.15, 0.05])
    counts = {v: Representation(x, variance=v).directions for v in (0.4, 0.5, 0.79, 0.8, 0.9, 1.0)}
    assert counts == {0.4: 1, 0.5: 1, 0.79: 2, 0.8: 2, 0.9: 3, 1.0: 4}
    # A column that repeats another gives no direction of its own.
    assert Representation(np.hstack([x, x]), variance=1).directions == 4


@pytest.mark.parametrize(("n", "p", "q"), [(40, 6, 8), (40, 30, 35), (12, 50, 60)])
def test_by_chance_is_the_mean_over_orders_of_the_examples(n: int, p: int, q: int) -> None:
    x, y = related(n, p, q)
    rng = np.random.default_rng(5)
    orders = [rng.permutation(n) for _ in range(400)]
    found = compare(Representation(x), Representation(y))
    assert (found.svcca, found.linear_cka) == (svcca(x, y), linear_cka(x, y))
    cka = np.mean([linear_cka(x, y[order]) for order in orders])
    assert found.linear_cka_by_chance == pytest.approx(cka, rel=0.05)
    cca = np.mean([svcca(x, y[order]) for order in orders[:100]])
    assert found.svcca_by_chance == pytest.approx(cca, abs=0.03)
    assert compare(Representation(x), Representation(y)) == found


def test_with_as_many_directions_as_examples_allow_chance_says_that_svcca_says_nothing() -> None:
    rng = np.random.default_rng(6)
    found = compare(
        Representation(rng.normal(size=(10, 50)), variance=1),
        Representation(rng.normal(size=(10, 50)), variance=1),
    )
    assert found.svcca == pytest.approx(1, abs=1e-9)
    assert found.svcca_by_chance == pytest.approx(1, abs=1e-9)


def test_sizes_of_numbers_do_not_matter() -> None:
    x, y = related(50, 8, 9)
    expected = svcca(x, y), linear_cka(x, y)
    for scale in (1e-200, 1e200):
        assert (svcca(scale * x, y), linear_cka(scale * x, y)) == pytest.approx(expected, abs=1e-9)


def test_lists_tensors_and_whole_numbers_are_taken() -> None:
    x = [[0, 1], [1, 0], [2, 5], [4, 4]]
    y = torch.tensor(x, dtype=torch.float32)
    assert svcca(x, y) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("function", [svcca, linear_cka])
def test_what_cannot_be_compared_is_explained(function: type[svcca]) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(ValueError, match=r"y must be \(examples, features\), not \(5,\)"):
        function(x, x[:, 0])
    with pytest.raises(ValueError, match="x has 1 examples: similarity needs two or more"):
        function(x[:1], x[:1])
    with pytest.raises(ValueError, match="5 and 4 examples"):
        function(x, x[:4])
    with pytest.raises(ValueError, match="y holds values that are not finite"):
        function(x, np.where(x > 0, np.nan, x))
    with pytest.raises(ConstantError, match="x is the same for all examples"):
        function(np.full((5, 3), 7.3), x)
    with pytest.raises(ConstantError):
        function(np.zeros((5, 3)), x)
    # Rounding of a constant is not an answer: float32 values that differ in the last place.
    constant = np.full((5, 3), 7.3, np.float32)
    constant[2, 1] = np.nextafter(constant[2, 1], np.float32(8))
    with pytest.raises(ConstantError):
        function(constant, x)


@pytest.mark.parametrize("variance", [0.0, 1.01, -1.0])
def test_a_share_out_of_range(variance: float) -> None:
    with pytest.raises(ValueError, match="variance = "):
        svcca([[0], [1]], [[0], [1]], variance=variance)
