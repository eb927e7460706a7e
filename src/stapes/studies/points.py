"""Points of a study: trained where they are missing, all judged on the same test clips.

A point is one way to train. Its models lie in a run folder of its own below the study's folder
and are shared by every table and figure that shows the point, so that nothing is trained twice and
a study that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stapes.bundle import Bundle, load_bundle
from stapes.config import Recipe, to_toml
from stapes.data import Dataset, Split
from stapes.evaluation.bootstrap import Interval
from stapes.evaluation.compare import paired_accuracy
from stapes.evaluation.crossval import Spread
from stapes.evaluation.ensemble import member_agreement
from stapes.files import write_text
from stapes.models import count_complexity
from stapes.studies.study import Published
from stapes.training.experiment import open_run
from stapes.training.initialization import starting_network
from stapes.training.members import Member, Run
from stapes.training.reporter import Reporter

__all__ = ["Bench", "Measured", "Point", "differences", "open_bench"]


@dataclass(frozen=True)
class Point:
    """One way to train.

    Attributes:
        key: folder name, the same for the same recipe.
        label: what a reader calls it.
        recipe: resolved.
        published: what the paper says of it, if it does.
    """

    key: str
    label: str
    recipe: Recipe
    published: Published | None = None


@dataclass(frozen=True)
class Measured:
    """A point with all of its models trained.

    Attributes:
        point: what was trained.
        parameters: of one model.
        nonzero_parameters: those that are not zero, the most of any of its models.
        macs_per_second: multiply-accumulate operations a second of audio, zeros included.
        seconds: that training one model took, the mean of all; 0 where it is not known.
        right: (M,) part of the seeds that answered each test clip right, 0 to 1.
        accuracy: over clips and seeds, sources resampled.
        by_seed: accuracy over all test clips of each seed's models.
        ensemble: (M,) whether the mean of the seeds' probabilities is right, 0 or 1.
        ensemble_accuracy: over clips.
        ensemble_gain: over ``accuracy``, -1 to 1.
        agreement: part of the test clips that two seeds name alike, mean over the pairs of seeds;
            none for one seed.
    """

    point: Point
    parameters: int
    nonzero_parameters: int
    macs_per_second: int
    seconds: float
    right: NDArray[np.float64]
    accuracy: Interval
    by_seed: Spread
    ensemble: NDArray[np.float64]
    ensemble_accuracy: Interval
    ensemble_gain: Interval
    agreement: float | None


@dataclass(frozen=True)
class Bench:
    """Data, features and device that all points of a study share.

    Attributes:
        run: of the study's own recipe; its folder is the study's.
        splits: that every point is trained and tested on; their test parts share no clip.
        seeds: that every point is trained with.
        notes: on the data, for the reader of a score.
        workers: threads that read recordings; none: all cores.
    """

    run: Run
    splits: tuple[Split, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...]
    workers: int | None = None

    @property
    def recipe(self) -> Recipe:
        """Resolved: what the points are variations of."""
        return self.run.recipe

    @property
    def tested(self) -> NDArray[np.int64]:
        """(M,) test clips of all splits, ascending."""
        return np.sort(np.concatenate([split.test for split in self.splits]))

    @property
    def groups(self) -> list[str]:
        """(M,) source of each test clip."""
        return [str(group) for group in self.run.groups[self.tested]]

    def data_text(self) -> str:
        """The data and how much of it the numbers rest on."""
        names = [split.name for split in self.splits]
        if len(names) == 1 and names[0] in ("official", "held-out"):
            part = f"{names[0]} test part"
        else:
            part = f"fold{'s' if len(names) > 1 else ''} {', '.join(names)}"
        n_seeds = len(self.seeds)
        n_sources = len(set(self.groups))
        return (
            f"{self.run.dataset.name}, {part}: {len(self.tested)} clips from {n_sources} "
            f"source{'s' if n_sources > 1 else ''}, {n_seeds} seed{'s' if n_seeds > 1 else ''}"
        )

    def variant(self, key: str, recipe: Recipe) -> Run:
        """A run with another recipe on the same features, in a folder of its own."""
        return replace(self.run, folder=self.run.folder / key, recipe=recipe)

    def trained(self, point: Point, split: Split, seed: int) -> Bundle:
        """One model of a point that is measured."""
        folder = self.variant(point.key, point.recipe).member_folder(split, seed)
        return load_bundle(folder / "model.safetensors")

    def untrained(self, point: Point, split: Split, seed: int) -> Bundle:
        """The same model with the weights that its training started from."""
        after = self.trained(point, split, seed)
        channels = after.frontend.out_channels(after.recipe.audio.channels)
        network = starting_network(point.recipe, after.labels, in_channels=channels, seed=seed)
        return replace(after, network=network)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study's folder.

        Raises:
            StapesError: another process works in it, or it cannot be written to.
        """
        with self.run.locked():
            yield

    def measure(self, points: Sequence[Point]) -> list[Measured]:
        """Train what is missing and score everything; call inside :meth:`locked`.

        Raises:
            ConfigError: a point that cannot be trained, before any is.
            ModelFileError: weights that do not fit a point's network, before any is trained.
            StapesError: a point's folder holds a run with other settings.
        """
        found = [self._stored(point) for point in points]
        missing = [i for i, one in enumerate(found) if one is None]
        for i in missing:
            # Not after an hour of training the others.
            self.variant(points[i].key, points[i].recipe).refuse_misfit()
        reporter = self.run.reporter
        if len(missing) < len(points):
            reporter.note(f"{len(points) - len(missing)} of {len(points)} points are trained.")
        if missing:
            with self.run.accelerator.main_process_first():
                self.run.store.prepare(
                    range(len(self.run.dataset)),
                    workers=self.workers,
                    progress=partial(reporter.progress, "Computing features"),
                )
        started = time.monotonic()
        for number, i in enumerate(missing, 1):
            one = self._train(points[i], f"{number} of {len(missing)}, {points[i].label}")
            found[i] = one
            left = (time.monotonic() - started) / number * (len(missing) - number)
            line = f"{number} of {len(missing)}, {points[i].label}: {one.accuracy.percent()}"
            reporter.note(
                line + (f"; about {_minutes(left)} to go" if number < len(missing) else "")
            )
        return [one for one in found if one is not None]

    def _plan(self, run: Run) -> dict[str, str]:
        return {
            f"{split.name}/seed-{seed}": run.fingerprint(split, seed)
            for split in self.splits
            for seed in self.seeds
        }

    def _stored(self, point: Point) -> Measured | None:
        """A point whose models are all there and were scored before."""
        run = self.variant(point.key, point.recipe)
        tree = _read_json(run.folder / "point.json")
        models = (
            run.member_folder(split, seed) / "model.safetensors"
            for split in self.splits
            for seed in self.seeds
        )
        if tree.get("plan") != self._plan(run) or not all(path.is_file() for path in models):
            return None
        if "agreement" not in tree:  # of a version that did not score the seeds together
            return None
        return self._measured(point, tree)

    def _measured(self, point: Point, tree: dict[str, Any]) -> Measured:
        right = np.array(tree["right"], dtype=np.float64) / len(self.seeds)
        together = np.array(tree["ensemble"], dtype=np.float64)
        (accuracy, _), (ensemble_accuracy, gain) = paired_accuracy([right, together], self.groups)
        assert gain is not None
        return Measured(
            point=point,
            parameters=int(tree["parameters"]),
            nonzero_parameters=int(tree["nonzero_parameters"]),
            macs_per_second=int(tree["macs_per_second"]),
            seconds=float(tree["seconds"]),
            right=right,
            accuracy=accuracy,
            by_seed=Spread.of(tree["by_seed"]),
            ensemble=together,
            ensemble_accuracy=ensemble_accuracy,
            ensemble_gain=gain,
            agreement=tree["agreement"],
        )

    def _train(self, point: Point, label: str) -> Measured:
        run = self.variant(point.key, point.recipe)
        run = replace(run, reporter=_Labelled(self.run.reporter, label))
        tasks = [(split, seed) for split in self.splits for seed in self.seeds]
        self._widen(run)
        run.claim(tasks)
        # One after the other: many large networks would not fit into memory together.
        members = (run.member(split, s, i, len(tasks)) for i, (split, s) in enumerate(tasks))
        tree = {"plan": self._plan(run), **self._facts(run, members)}
        if run.accelerator.is_main_process:
            write_text(run.folder / "point.json", json.dumps(tree))
        run.accelerator.wait_for_everyone()
        return self._measured(point, tree)

    def _facts(self, run: Run, members: Iterable[Member]) -> dict[str, Any]:
        """Counts and, for every test clip, which seeds were right, alone and together."""
        n_seeds = len(self.seeds)
        shape = (n_seeds, len(run.dataset), len(run.dataset.labels))
        probabilities = np.zeros(shape)
        channels = run.frontend.out_channels(run.recipe.audio.channels)
        window = (1, channels, run.frontend.n_bins, run.frontend.n_frames(run.store.window))
        costs, seconds = [], []
        for member in members:
            place = (self.seeds.index(member.seed), member.split.test)
            probabilities[place] = member.probabilities
            costs.append(count_complexity(member.bundle.network, window))
            seconds.append(member.history[-1].get("seconds", 0.0) if member.history else 0.0)
        probabilities, targets = probabilities[:, self.tested], run.dataset.targets[self.tested]
        right = probabilities.argmax(2) == targets
        together = probabilities.mean(0).argmax(1) == targets
        length = run.store.window / run.store.sample_rate
        return {
            "parameters": costs[0].parameters,
            "nonzero_parameters": max(cost.nonzero_parameters for cost in costs),
            "macs_per_second": round(costs[0].macs / length),
            "seconds": round(float(np.mean(seconds)), 1),
            "right": right.sum(0).tolist(),
            "by_seed": right.mean(1).tolist(),
            "ensemble": together.astype(int).tolist(),
            "agreement": member_agreement(probabilities).pairs if n_seeds > 1 else None,
        }

    def _widen(self, run: Run) -> None:
        """Let a point gain folds and seeds: its folder is claimed anew if all else is the same."""
        plan, recipe = run.folder / "plan.json", run.folder / "recipe.toml"
        old, new = _read_json(plan), self._plan(run)
        agrees = all(old[name] == new[name] for name in old.keys() & new.keys())
        # Anything else in the folder is judged by the claim itself.
        if old and old != new and agrees and _read_text(recipe) == to_toml(run.recipe):
            if run.accelerator.is_main_process:
                write_text(plan, json.dumps(new, indent=1))
            run.accelerator.wait_for_everyone()


def open_bench(
    dataset: Dataset,
    recipe: Recipe,
    *,
    out: Path,
    fold: str | None = None,
    seeds: int = 1,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    command: str = "",
) -> Bench:
    """Listen to the recordings and take their parts; train nothing yet.

    Data with declared parts or folds use them; else a stratified fifth of the sources is tested.

    Args:
        dataset: labelled recordings.
        recipe: what all points are variations of.
        out: the study's folder.
        fold: test on this declared fold only.
        seeds: train every point with the seeds 0, 1, ..., this many.
        cache: folder of the feature cache; none: the user's.
        workers: threads that read recordings; none: all cores.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        reporter: told about progress.
        command: the command line, kept with each model.

    Raises:
        DataError: the data cannot be used, or a split shares a source.
        ConfigError: the recipe does not fit the data.
        UnknownNameError: no such fold.
    """
    run, splits, notes = open_run(
        dataset,
        recipe,
        out=out,
        fold=fold,
        cache=cache,
        workers=workers,
        device=device,
        reporter=reporter,
        command=command,
    )
    return Bench(run, tuple(splits), tuple(range(seeds)), tuple(notes), workers)


def differences(
    first: Sequence[Measured], other: Sequence[Measured], groups: Sequence[str]
) -> Interval:
    """How much more often the other points are right than the first ones, clip by clip.

    Args:
        first: points, such as one for each receptive field.
        other: as many, each compared with the one at its place.
        groups: source of each test clip; sources are resampled, the same ones for all points.

    Returns:
        Difference of the mean accuracies, -1 to 1.
    """
    means = [np.mean([one.right for one in side], axis=0) for side in (first, other)]
    gap = paired_accuracy(means, groups)[1][1]
    assert gap is not None
    return gap


class _Labelled:
    """Says which point a message is about."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        self._reporter = reporter
        self._label = label

    def progress(self, stage: str, done: float, total: float) -> None:
        self._reporter.progress(self._with(stage), done, total)

    def status(self, text: str) -> None:
        self._reporter.status(self._with(text))

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def _with(self, text: str) -> str:
        return f"{self._label}, {text[:1].lower()}{text[1:]}"


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing or damaged, since it can be made again."""
    try:
        tree = json.loads(_read_text(path))
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
