"""Confidence intervals by resampling whole groups.

Clips cut from one source recording, or spoken by one person, are not independent: resampling
single clips would promise more than the data can hold. Here whole groups are drawn with
replacement and every statistic is computed from sums, so that a resample is one row of a matrix
product and thousands of them take a fraction of a second.

Two corrections to the plain percentile bootstrap, both without effect on large test sets:

- **Few groups.** The percentile bootstrap of ``G`` groups is too narrow by about
  ``sqrt((G - 1) / G)`` and takes the normal's tails where Student's are due. Its percentiles are
  moved out to ``Phi(-sqrt(G / (G - 1)) * t(G - 1))``, the *expanded percentile* interval of
  Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69
  (2015), section 5.3. With two or three groups this is the whole range of the resamples.
- **No variation.** When all resamples agree (every clip right, every clip wrong, one group) the
  percentiles collapse to a point, which is no statement about new recordings. A proportion then
  gets Wilson's score interval with the number of groups as the number of trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Interval",
    "bootstrap_interval",
    "group_indices",
    "percentile_interval",
    "resample_sums",
    "wilson_interval",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval, ``low <= value <= high``."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """As a part of the whole, such as ``87.5 % (84.1 to 90.3)``."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"

    def points(self) -> str:
        """As a difference in percentage points, such as ``+0.8 (-1.2 to +2.9)``."""
        value, low, high = (f"{100 * v:+.1f}" for v in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def group_indices(groups: ArrayLike) -> tuple[NDArray[np.int64], int]:
    """Groups renumbered 0..G-1 in sorted order, and their number G. Any sortable labels do."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return index.reshape(-1).astype(np.int64), len(names)


def resample_sums(sums: Floats, *, seed: int = 0, n: int = 2000) -> Floats:
    """Totals of ``n`` resamples of the groups.

    Args:
        sums: (G, S), each group's sum of S additive columns.
        seed: the same seed draws the same groups.
        n: number of resamples.

    Returns:
        (n, S): row i is the sum over G groups drawn with replacement.
    """
    n_groups = len(sums)
    rng = np.random.default_rng(seed)
    totals = np.empty((n, sums.shape[1]))
    rows_at_once = max(1, 2_000_000 // n_groups)  # keeps the counts below some 16 MB
    for first in range(0, n, rows_at_once):
        rows = min(rows_at_once, n - first)
        drawn = rng.integers(n_groups, size=(rows, n_groups))
        drawn += n_groups * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_groups).reshape(rows, n_groups)
        totals[first : first + rows] = counts.astype(np.float64) @ sums
    return totals


def percentile_interval(
    value: float, draws: Floats, n_groups: int, *, level: float = 0.95
) -> Interval:
    """The expanded percentile interval of resampled values.

    Args:
        value: the statistic of the whole sample. The interval is widened to hold it, which
            matters for statistics that resampling biases (a macro F1 of tiny classes).
        draws: (n,) the resampled statistic; NaN where it is not defined, left out.
        n_groups: how many groups were resampled, at least 2.
        level: such as 0.95.
    """
    quantile = _student_quantile(level, n_groups - 1)
    tail = NormalDist().cdf(-math.sqrt(n_groups / (n_groups - 1)) * quantile)
    low, high = np.quantile(draws[~np.isnan(draws)], [tail, 1 - tail])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def wilson_interval(value: float, n: float, *, level: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of a proportion.

    Args:
        value: observed proportion, 0 to 1; ``value * n`` need not be whole.
        n: number of independent trials, above 0.
        level: such as 0.95.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = value + z * z / (2 * n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not put the ends of 0 and 1 a hair off.
    low = 0.0 if value == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if value == 1 else min(1.0, (centre + half) / scale)
    return Interval(value, low, high)


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike,
    statistic: Callable[[Floats], Floats] | None = None,
    *,
    seed: int = 0,
    n: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Confidence interval of a proportion-like statistic (0 to 1), groups resampled.

    Args:
        values: (M,) or (M, S) columns that add up over clips, such as 1 for a right answer.
        groups: (M,) group of each clip.
        statistic: maps totals (R, S) to values (R,). Default: the mean of the single column.
        seed: of the resampling.
        n: number of resamples.
        level: such as 0.95.

    Raises:
        ValueError: no clips, or lengths that differ.

    >>> bootstrap_interval([1, 1, 0, 1], groups=[0, 0, 1, 2]).value
    0.75
    """
    columns = np.asarray(values, dtype=np.float64)
    if statistic is None:
        if columns.ndim != 1:
            raise ValueError("several columns need a statistic")
        columns = np.stack([columns, np.ones_like(columns)], axis=1)
        statistic = _ratio
    elif columns.ndim == 1:
        columns = columns[:, None]
    index, n_groups = group_indices(groups)
    if len(index) != len(columns) or not len(index):
        raise ValueError(f"{len(columns)} values and {len(index)} groups: need as many, above 0")
    sums = np.zeros((n_groups, columns.shape[1]))
    np.add.at(sums, index, columns)
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    draws = statistic(resample_sums(sums, seed=seed, n=n))
    return proportion_interval(value, draws, n_groups, level=level)


def proportion_interval(
    value: float,
    draws: Floats,
    n_groups: int,
    *,
    n_independent: int | None = None,
    level: float = 0.95,
) -> Interval:
    """Percentile interval, or Wilson's where the resamples do not vary.

    Args:
        value: the statistic, 0 to 1.
        draws: (n,) resampled statistic, NaN where not defined.
        n_groups: how many groups the statistic rests on.
        n_independent: trials for Wilson's interval, when fewer than the groups.
        level: such as 0.95.
    """
    defined = draws[~np.isnan(draws)]
    if n_groups < 2 or not len(defined) or np.ptp(defined) < 1e-12:
        trials = n_groups if n_independent is None else n_independent
        return wilson_interval(min(1.0, max(0.0, value)), trials, level=level)
    return percentile_interval(value, defined, n_groups, level=level)


def _ratio(totals: Floats) -> Floats:
    ratio: Floats = totals[:, 0] / totals[:, 1]
    return ratio


def _student_quantile(level: float, degrees: int) -> float:
    """t with ``P(|T| < t) = level`` for Student's T, by bisection on theta = atan(t / sqrt(nu)).

    The probability is the finite trigonometric series of Abramowitz and Stegun 26.7.3 (odd nu)
    and 26.7.4 (even nu).
    """
    odd = degrees % 2
    # Ratios of consecutive coefficients: 2/3, 4/5, ... (odd) or 1/2, 3/4, ... (even).
    top = np.arange(1, (degrees - odd) // 2) * 2.0 - (1 - odd)
    coefficients = np.cumprod(np.concatenate([[1.0], top / (top + 1)]))
    powers = 2.0 * np.arange(len(coefficients)) + odd

    def inside(theta: float) -> float:
        if degrees == 1:
            return 2 * theta / math.pi
        series = math.sin(theta) * float(coefficients @ np.cos(theta) ** powers)
        return 2 / math.pi * (theta + series) if odd else series

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)
