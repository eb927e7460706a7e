"""Paired differences against answers that are known and against a bootstrap written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stapes.errors import StapesError
from stapes.evaluation.compare import compare, paired_accuracy


def test_equal_answers_differ_by_nothing_for_certain() -> None:
    right = np.random.default_rng(0).integers(0, 2, 60).astype(float)
    groups = [str(i // 3) for i in range(60)]
    first, second = paired_accuracy([right, right], groups)
    assert first[1] is None
    assert second[1] is not None
    assert (second[1].value, second[1].low, second[1].high) == (0, 0, 0)
    assert first[0] == second[0]
    assert first[0].low < first[0].value < first[0].high


def test_a_sure_gain_is_seen_where_single_intervals_overlap() -> None:
    rng = np.random.default_rng(1)
    worse = (rng.random(200) < 0.8).astype(float)
    better = worse.copy()
    better[np.flatnonzero(worse == 0)[:14]] = 1  # right wherever the other one is, and more
    groups = [str(i) for i in range(200)]
    (a, _), (b, gap) = paired_accuracy([worse, better], groups)
    assert a.high > b.low, "the intervals overlap"
    assert gap is not None
    assert gap.value == pytest.approx(14 / 200)
    assert 0 < gap.low < gap.value < gap.high


def test_interval_of_the_difference_agrees_with_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(150) < 0.7, rng.random(150) < 0.75
    groups = rng.integers(0, 50, 150)
    gap = paired_accuracy([a.astype(float), b.astype(float)], groups.tolist())[1][1]
    names = np.unique(groups)
    members = [np.flatnonzero(groups == name) for name in names]
    draws = []
    for _ in range(4000):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))])
        draws.append(b[rows].mean() - a[rows].mean())
    assert gap is not None
    # The expanded percentile is a little wider than the plain one, by about 1 % at 50 groups.
    low, high = np.quantile(draws, [0.025, 0.975])
    assert gap.low == pytest.approx(low, abs=0.012)
    assert gap.high == pytest.approx(high, abs=0.012)


def test_one_source_proves_nothing() -> None:
    gap = paired_accuracy([np.array([0.0, 1]), np.array([1.0, 1])], ["a", "a"])[1][1]
    assert gap is not None
    assert (gap.low, gap.high) == (-1, 1)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same clips"):
        paired_accuracy([np.zeros(2), np.zeros(3)], ["a", "b"])
    with pytest.raises(StapesError, match="at least two"):
        compare([tmp_path])
    with pytest.raises(StapesError, match="no finished model"):
        compare([tmp_path, tmp_path])
