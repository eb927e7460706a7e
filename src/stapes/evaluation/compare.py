"""Runs side by side: scores on the same test clips, and how sure their difference is.

Two scores whose intervals overlap may still differ for certain: both models hear the same hard
recordings. The difference is therefore taken clip by clip, and its interval resamples sources
once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stapes.errors import DataError, StapesError
from stapes.evaluation.bootstrap import (
    Interval,
    group_indices,
    percentile_interval,
    proportion_interval,
    resample_sums,
)
from stapes.evaluation.evaluate import evaluate

__all__ = ["ComparedRun", "compare", "paired_accuracy"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ComparedRun:
    """One run among others.

    Attributes:
        name: its folder.
        n_clips: test clips, each counted once.
        n_groups: their sources.
        n_seeds: models that judged each clip.
        accuracy: over clips and seeds.
        difference: accuracy less the first run's, from -1 to 1; none for the first run.
    """

    name: str
    n_clips: int
    n_groups: int
    n_seeds: int
    accuracy: Interval
    difference: Interval | None


def paired_accuracy(
    right: Sequence[Floats], groups: Sequence[str], *, seed: int = 0, n: int = 2000
) -> list[tuple[Interval, Interval | None]]:
    """Accuracy of several classifiers on the same clips, and differences to the first.

    >>> pairs = paired_accuracy([np.array([1.0, 0, 1, 1]), np.array([1.0, 1, 1, 1])], list("abcd"))
    >>> pairs[1][1].value
    0.25

    Args:
        right: for each classifier (M,), 1 for a right answer, or the part of its seeds that was.
        groups: (M,) source of each clip; sources are resampled, the same ones for all.
        seed: of the resampling.
        n: resamples.

    Returns:
        For each classifier its accuracy and the difference to the first (none for the first).

    Raises:
        ValueError: no clips, or lengths that differ.
    """
    index, n_groups = group_indices(groups)
    if not len(index) or any(len(one) != len(index) for one in right):
        raise ValueError("classifiers must have judged the same clips, one or more")
    sums = np.zeros((n_groups, len(right) + 1))
    np.add.at(sums, index, np.column_stack([*right, np.ones(len(index))]))
    totals = resample_sums(sums, seed=seed, n=n)
    draws = totals[:, :-1] / totals[:, -1:]
    values = [float(np.mean(one)) for one in right]
    pairs: list[tuple[Interval, Interval | None]] = []
    for i, value in enumerate(values):
        accuracy = proportion_interval(value, draws[:, i], n_groups)
        difference = None
        if i:
            gap = value - values[0]
            # With one source nothing can be resampled: anything is possible.
            difference = (
                percentile_interval(gap, draws[:, i] - draws[:, 0], n_groups)
                if n_groups > 1
                else Interval(gap, -1.0, 1.0)
            )
        pairs.append((accuracy, difference))
    return pairs


def compare(
    folders: Sequence[str | Path],
    *,
    cache: Path | None = None,
    workers: int | None = None,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[ComparedRun]:
    """Score every model of several runs on its test part, and compare clip by clip.

    Args:
        folders: run folders, or those of a search by :func:`stapes.shrinking.shrink`; the others
            are compared with the first.
        cache: folder of the feature cache; none: the user's.
        workers: threads; none: all cores.
        device: where the networks compute.
        progress: called with (stage, done, total).

    Raises:
        StapesError: fewer than two runs, or a folder without finished models.
        DataError: runs that were not tested on the same clips.
    """
    if len(folders) < 2:
        raise StapesError("Comparing needs at least two run folders.")
    runs = [
        _read(Path(folder), cache=cache, workers=workers, device=device, progress=progress)
        for folder in folders
    ]
    first = runs[0]
    for folder, run in zip(folders, runs, strict=True):
        if run.keys() != first.keys():
            raise DataError(
                f"{folder}: was tested on other clips than {folders[0]} ({len(run)} and "
                f"{len(first)}, {len(run.keys() & first.keys())} in common); compare runs on the "
                "same data and folds."
            )
    groups = [run_clip.group for run_clip in first.values()]
    right = [np.array([np.mean(run[key].right) for key in first]) for run in runs]
    return [
        ComparedRun(
            name=str(folder),
            n_clips=len(run),
            n_groups=len(set(groups)),
            n_seeds=min(len(clip.right) for clip in run.values()),
            accuracy=accuracy,
            difference=difference,
        )
        for folder, run, (accuracy, difference) in zip(
            folders, runs, paired_accuracy(right, groups), strict=True
        )
    ]


@dataclass(frozen=True)
class _Judged:
    group: str
    right: list[float]  # one a seed


_Key = tuple[Path, float | None, float | None]


def _read(
    folder: Path,
    *,
    cache: Path | None,
    workers: int | None,
    device: str,
    progress: Callable[[str, int, int], None] | None,
) -> dict[_Key, _Judged]:
    """What every model of a run said about its test clips."""
    tables = sorted(folder.glob("*/seed-*/test.csv"))
    # 'stapes shrink' leaves one model, beside its test part.
    tables = [
        table
        for table in tables or [folder / "test.csv"]
        if table.is_file() and (table.parent / "model.safetensors").is_file()
    ]
    if not tables:
        raise StapesError(f"{folder}: holds no finished model with a test part; give run folders.")
    judged: dict[_Key, _Judged] = {}
    for table in tables:
        result = evaluate(
            table.parent / "model.safetensors",
            table,
            cache=cache,
            workers=workers,
            device=device,
            progress=progress,
        )
        if result.unreadable:
            raise DataError(f"{table}: {result.unreadable[0]}")
        found = result.probabilities.argmax(1) == result.targets
        for clip, good in zip(result.dataset.clips, found, strict=True):
            key = (clip.path.resolve(), clip.start, clip.end)
            one = judged.setdefault(key, _Judged(clip.group or str(key), []))
            one.right.append(float(good))
    return judged
