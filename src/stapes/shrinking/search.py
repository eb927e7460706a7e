"""The search: candidates inside the limits, trained and compared, and the best one delivered."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stapes.bundle import Bundle, save_bundle
from stapes.config import InitializationConfig, Recipe, load_recipe, parse_recipe
from stapes.data import Split, hold_out, write_manifest
from stapes.errors import ConfigError, DataError, StapesError
from stapes.evaluation.evaluate import store_probabilities
from stapes.evaluation.metrics import Score, score
from stapes.files import write_text
from stapes.shrinking.candidates import Space, Unfit, describe, fit_recipe, tighten
from stapes.shrinking.costs import Cost, Gauge
from stapes.shrinking.limits import (
    Limits,
    format_macs,
    format_size,
    parse_macs,
    parse_size,
)
from stapes.shrinking.tradeoff import draw_tradeoff, trials_table
from stapes.shrinking.trials import Trial, in_vain, next_choice, read_trials, write_trials
from stapes.training.experiment import open_run
from stapes.training.finished import read_run
from stapes.training.members import Run, with_groups
from stapes.training.reporter import Reporter, Silent
from stapes.training.teachers import check_teachers, taught_by

__all__ = ["ShrinkResult", "shrink"]

# Of the training clips, where the run has no validation part.
_VALIDATION_PART = 0.25
# Choices in a row that give nothing new before the search is over.
_MOST_IN_VAIN = 60
# How often the delivered model may be trained again because it came out too large.
_MOST_REFITS = 3


@dataclass(frozen=True)
class ShrinkResult:
    """What a search gives.

    Attributes:
        folder: where everything is.
        model: the model file, inside the limits.
        limits: that were asked for.
        cost: of the model file; ``file_bytes`` is its size on disk.
        recipe: that the model was trained with.
        trials: all attempts, the reference first.
        winner: the trial that the model comes from.
        score: on the test part, measured once; none: the run has no test part.
        table: CSV of the trials.
        figures: the trade-off plot, as SVG and PNG.
        notes: what a reader of the score must know.
    """

    folder: Path
    model: Path
    limits: Limits
    cost: Cost
    recipe: Recipe
    trials: tuple[Trial, ...]
    winner: Trial
    score: Score | None
    table: Path
    figures: tuple[Path, Path]
    notes: tuple[str, ...]


def shrink(
    run: str | Path,
    *,
    size: str | int | None = None,
    macs: str | int | None = None,
    teachers: Sequence[str | Path] = (),
    trials: int = 16,
    out: str | Path | None = None,
    fold: str | None = None,
    seed: int = 0,
    refit: bool = True,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    command: str = "",
) -> ShrinkResult:
    """Find the most accurate model inside a budget, starting from a finished run.

    Candidates (narrower, shallower, pruned, decomposed, with weights of one or two bytes) are
    sized to the limits before any training, trained on a part of the run's training clips and
    compared on the rest of them; the best one is trained on both and tested once. Called again
    with the same arguments it continues where it was stopped, at any moment.

    Args:
        run: a run folder; of a cross-validated one the first fold is used.
        size: largest model file on disk, in bytes or such as ``"128kB"``; none: any.
        macs: most multiply-accumulates per second of audio, such as ``"30M"``, zeros counted;
            none: any.
        teachers: that every candidate learns from, as for :func:`stapes.train`; none: those of the
            run, if it had any.
        trials: models to train and compare, besides the run's own recipe as the reference.
        out: folder for the search; none: beside the run, named after it and the limits.
        fold: of a cross-validated run, the fold to use.
        seed: of the validation part, the choices, initial weights and training.
        refit: train the best one again, on training and validation clips together.
        cache: folder of the feature cache; none: the user's.
        workers: threads that read recordings; none: all cores.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        reporter: told about progress.
        command: the command line, for the model file.

    Raises:
        StapesError: no limit or one that cannot be read; no run folder; nothing fits; the output
            folder holds something else.
        DataError: recordings are missing, or cannot be divided; a teacher has heard what is tested.
    """
    limits = Limits(
        None if size is None else parse_size(size), None if macs is None else parse_macs(macs)
    )
    if trials < 1:
        raise StapesError(f"--trials {trials}: must be at least 1.")
    reporter = reporter or Silent()
    folder = Path(out) if out is not None else _default_folder(Path(run), limits)
    dataset, recipe = read_run(run)
    recipe = taught_by(recipe, teachers)
    if recipe.initialization.weights != "random":
        recipe = _from_random_weights(recipe)
        reporter.note(
            f"Note: {run} started from trained weights, which fit no other network; here all "
            "networks start from random ones and are trained as by the recipe 'small', the "
            "reference as well."
        )
    opened, splits, notes = open_run(
        dataset,
        recipe,
        out=folder,
        fold=fold,
        seed=seed,
        force=True,  # the run has accepted its split
        cache=cache,
        workers=workers,
        device=device,
        reporter=reporter,
        command=command,
    )
    if opened.accelerator.num_processes > 1:
        raise StapesError("'stapes shrink' runs in one process; start it without torchrun.")
    # Its own teachers have been accepted with the run, others have not.
    for note in check_teachers(opened.recipe, opened.dataset, splits[:1], force=not teachers):
        notes.append(note)
        opened.reporter.note(f"Note: {note}")
    search = _Search(opened, splits[0], limits, n_trials=trials, seed=seed, refit=refit)
    with opened.locked():
        return search.carry_out(workers=workers, notes=notes)


def _from_random_weights(recipe: Recipe) -> Recipe:
    """A recipe that started from trained weights, for networks that cannot."""
    # What is enough to go on from those is too little to start from none.
    small = load_recipe("small")
    training = small.training.model_copy(update={"precision": recipe.training.precision})
    update = {
        "initialization": InitializationConfig(),
        "training": training,
        "augment": small.augment,
    }
    return recipe.model_copy(update=update)


class _Search:
    """One search and its folder."""

    def __init__(
        self, run: Run, split: Split, limits: Limits, *, n_trials: int, seed: int, refit: bool
    ) -> None:
        self.run, self.split, self.limits = run, split, limits
        self.n_trials, self.seed = n_trials, seed
        nobody = np.array([], dtype=np.int64)
        train, validation = _parts(run, split, seed)
        self.part = Split(split.name, train, validation, nobody)
        # With early stopping somebody has to say when.
        self.refit = refit and run.recipe.training.early_stopping_epochs is None
        self.whole = Split(split.name, np.union1d(train, validation), nobody, nobody)
        self.gauge = Gauge(run, split, limits, run.command)
        self.space = Space(run.recipe.cp_resnet("stapes shrink"), limits)
        self.trials: list[Trial] = []
        self.folder = run.folder

    def carry_out(self, *, workers: int | None, notes: Sequence[str]) -> ShrinkResult:
        """Everything, or what is left of it."""
        self._claim()
        self.trials = read_trials(self.folder / "trials.json")
        if (self.folder / "result.json").is_file():
            return self._finished(notes)
        self._refuse_hopeless()
        self.run.store.prepare(
            range(len(self.run.dataset)),
            workers=workers,
            progress=lambda done, total: self.run.reporter.progress(
                "Computing features", done, total
            ),
        )
        self._compare()
        return self._deliver(notes)

    # --- the folder ---------------------------------------------------------------------------

    def _claim(self) -> None:
        """Make the folder this search's own, or refuse one that holds something else."""
        plan = {
            "size": self.limits.file_bytes,
            "macs": self.limits.macs_per_second,
            "seed": self.seed,
            "refit": self.refit,
            "search": self.run.fingerprint(self.part, self.seed),
            "test": self.run.fingerprint(self.split, self.seed),
        }
        path = self.folder / "plan.json"
        if path.is_file():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                old = None
            if old == plan:
                return
            other = "something else than a search"
            if isinstance(old, dict) and {"size", "macs"} <= old.keys():
                budget = Limits(old["size"], old["macs"])
                other = "a search with another run, split, seed, --teacher or --refit"
                if budget != self.limits:
                    other = f"the search for {budget}"
            raise StapesError(
                f"{self.folder}: holds {other}; choose another --out or delete that folder."
            )
        if self.folder.is_dir() and any(p.name[0] != "." for p in self.folder.iterdir()):
            raise StapesError(
                f"{self.folder}: this folder is not empty and holds no search; choose another "
                "--out."
            )
        write_text(path, json.dumps(plan, indent=1))

    def _save(self, trial: Trial) -> None:
        """Add a trial to the table, or replace its last state."""
        if self.trials and self.trials[-1].number == trial.number:
            self.trials[-1] = trial
        else:
            self.trials.append(trial)
        write_trials(self.folder / "trials.json", self.trials)

    # --- the trials ---------------------------------------------------------------------------

    def _refuse_hopeless(self) -> None:
        """Say before anything is trained that nothing can be inside."""
        if self.trials:
            return
        least: list[Cost] = []
        for blocks in self.space.blocks:
            for rho in (self.space.rhos[0], self.space.rhos[-1]):
                guess = replace(self.space.first_guesses()[0], blocks=blocks, rho=rho)
                found = fit_recipe(guess, self.run.recipe, self.gauge, self.limits)
                if isinstance(found, Recipe):
                    return
                if found.least is not None:
                    least.append(found.least)
        raise _nothing_fits(self.limits, least)

    def _compare(self) -> None:
        """Train the reference and the candidates."""
        self.run.reporter.note(
            f"Models within {self.limits}: trained on {len(self.part.train)} clips, compared on "
            f"{len(self.part.validation)}; {len(self.split.test)} test clips wait for the best one."
        )
        if not self.trials:
            self._train(Trial(0, "training", recipe=self.run.recipe))
        elif self.trials[-1].state == "training":  # killed meanwhile: its checkpoint is there
            self._train(self.trials[-1])
        asked, start = self.trials[-1].asked + 1, time.monotonic()
        while self._n_done() < self.n_trials and in_vain(self.trials, asked) < _MOST_IN_VAIN:
            choice = next_choice(
                self.trials,
                self.space,
                asked=asked,
                seed=self.seed,
                n_clips=len(self.part.validation),
            )
            found = fit_recipe(choice, self.run.recipe, self.gauge, self.limits)
            trial = Trial(self.trials[-1].number + 1, "training", asked, choice)
            if isinstance(found, Unfit):
                if all(choice != other.choice for other in self.trials):
                    self._save(replace(trial, state="unfit", cost=found.least, reason=found.reason))
            elif all(found != other.recipe for other in self.trials):
                self._train(replace(trial, recipe=found), start)
                start = time.monotonic()
            asked += 1
        if self._n_done() < self.n_trials:
            self.run.reporter.note(
                f"Ended after {self._n_done()} trials: nothing else fits that was not tried."
            )

    def _n_done(self) -> int:
        """Candidates that were trained."""
        return sum(t.number > 0 and t.state in ("inside", "over", "failed") for t in self.trials)

    def _train(self, trial: Trial, start: float | None = None) -> None:
        """Train a trial and enter its score; a loss that is no number ends the trial only.

        Args:
            trial: with its recipe.
            start: when the search for it began, on the monotonic clock; none: now.
        """
        assert trial.recipe is not None
        self._save(trial)
        number = self._n_done() + 1
        title = f"Trial {number} of {self.n_trials}" if trial.number else "Reference"
        start = time.monotonic() if start is None else start
        try:
            bundle = self._model(trial.recipe, self.part, self._trial_folder(trial), title)
        except StapesError as error:
            if not trial.number or "finite" not in str(error):
                raise
            trial = replace(trial, state="failed", reason=str(error))
        else:
            held = self.part.validation
            found = score(
                store_probabilities(bundle, self.run.store, held),
                self.run.dataset.targets[held],
                self.run.groups[held],
                self.run.dataset.labels,
                n_resamples=1000,
            )
            cost = self.gauge.measure(bundle)
            inside = self.limits.allow(cost.file_bytes, cost.macs_per_second)
            trial = replace(
                trial,
                state="inside" if inside else "over",
                cost=cost,
                accuracy=found.accuracy,
                log_loss=found.log_loss.value,
            )
        self._save(replace(trial, seconds=time.monotonic() - start))
        self.run.reporter.note(f"{title}: {_line(self.trials[-1])}{self._time_left()}")

    def _trial_folder(self, trial: Trial) -> Path:
        return self.folder / "trials" / f"{trial.number:03d}"

    def _model(self, recipe: Recipe, split: Split, folder: Path, title: str) -> Bundle:
        """Train one model into a folder of its own, or take it from there."""
        run = replace(
            self.run, folder=folder, recipe=recipe, reporter=_Titled(self.run.reporter, title)
        )
        run.claim([(split, self.seed)])
        return run.member(split, self.seed).bundle

    def _time_left(self) -> str:
        times = [t.seconds for t in self.trials if t.number and t.seconds]
        left = self.n_trials - self._n_done() + (4 / 3 if self.refit else 0)
        if not times or left <= 0:
            return ""
        seconds = left * sum(times) / len(times)
        return f"; about {_duration(seconds)} left"

    # --- the model ----------------------------------------------------------------------------

    def _deliver(self, notes: Sequence[str]) -> ShrinkResult:
        """Train the best trial on everything, check it, test it once, and write it."""
        ranked = sorted(
            (t for t in self.trials if t.state == "inside" and t.number),
            key=lambda t: t.rank,
            reverse=True,
        )
        if not ranked:
            over = [t.cost for t in self.trials if t.number and t.cost is not None]
            failed = [t for t in self.trials if t.state == "failed"]
            if not over and failed:
                raise StapesError(f"No candidate could be trained. {failed[-1].reason}")
            raise _nothing_fits(self.limits, over)
        for winner in ranked:
            delivered = self._refitted(winner)
            if delivered is not None:
                break
        else:
            raise _nothing_fits(self.limits, [t.cost for t in ranked if t.cost is not None])
        bundle, recipe = delivered

        self.run.reporter.progress("Testing", 0, 1)
        found: Score | None = None
        part = self.split.test
        if part.size:
            found = score(
                store_probabilities(bundle, self.run.store, part),
                self.run.dataset.targets[part],
                self.run.groups[part],
                self.run.dataset.labels,
            )
            clips = with_groups(self.run.dataset, self.run.groups, part)
            write_manifest(self.folder / "test.csv", clips)
        self.run.reporter.progress("Testing", 1, 1)
        path = self.folder / "model.safetensors"
        self._write_model(bundle, path, found, winner)
        cost = replace(self.gauge.measure(bundle), file_bytes=path.stat().st_size)
        if not self.limits.allow(cost.file_bytes, cost.macs_per_second):
            path.unlink()
            raise RuntimeError(f"{path}: {cost} is beyond {self.limits} after all")
        result = {
            "n_trials": self.n_trials,
            "winner": winner.number,
            "recipe": recipe.model_dump(mode="json"),
            "cost": asdict(cost),
            "score": found.to_json() if found else None,
        }
        # Last of all but the pictures, which can be drawn again: with it the search is finished.
        write_text(self.folder / "result.json", json.dumps(result, indent=1))
        return self._finished(notes)

    def _refitted(self, winner: Trial) -> tuple[Bundle, Recipe] | None:
        """The model to deliver and its recipe; none if training failed or left it outside."""
        recipe = winner.recipe
        assert recipe is not None
        if not self.refit:
            return self._model(recipe, self.part, self._trial_folder(winner), "Best"), recipe
        for attempt in range(_MOST_REFITS):
            name = f"{winner.number:03d}" + (f"-{attempt + 1}" if attempt else "")
            try:
                bundle = self._model(
                    recipe, self.whole, self.folder / "final" / name, "Best, on all"
                )
            except StapesError as error:
                # A loss that is no number, or less left than the network needs: the next best.
                if "finite" not in str(error) and not isinstance(error, ConfigError):
                    raise
                self.run.reporter.note(f"Best, on all: {error}")
                return None
            cost = self.gauge.measure(bundle)
            if self.limits.allow(cost.file_bytes, cost.macs_per_second):
                return bundle, recipe
            smaller = tighten(recipe, cost, self.limits)
            if smaller is None:
                return None
            recipe = smaller
        return None

    def _write_model(self, bundle: Bundle, path: Path, found: Score | None, winner: Trial) -> None:
        """Write the model with its score; what does not fit of the score stays out."""
        assert winner.accuracy is not None
        told = {
            "file_bytes": self.limits.file_bytes,
            "macs_per_second": self.limits.macs_per_second,
            "trials": self._n_done(),
            "trial": winner.number,
            "validation_clips": len(self.part.validation),
            "validation_accuracy": [
                winner.accuracy.value,
                winner.accuracy.low,
                winner.accuracy.high,
            ],
        }
        facts = self.gauge.metadata(bundle.metadata, found, told)
        for leaner in (facts, {**facts, "score": None}, {"shrink": facts["shrink"]}):
            save_bundle(replace(bundle, metadata=leaner), path)
            limit = self.limits.file_bytes
            if limit is None or path.stat().st_size <= limit:
                return

    def _finished(self, notes: Sequence[str]) -> ShrinkResult:
        """What the folder of a finished search holds; draws what a kill left undrawn."""
        path = self.folder / "result.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            found = Score.from_json(tree["score"]) if tree["score"] else None
            winner = next(t for t in self.trials if t.number == tree["winner"])
            recipe, cost = parse_recipe(tree["recipe"]), Cost(**tree["cost"])
        except (OSError, ValueError, KeyError, TypeError, StopIteration, StapesError) as error:
            raise StapesError(
                f"{path}: damaged ({error}); delete it and run the same command again."
            ) from None
        if self.n_trials > tree["n_trials"]:
            raise StapesError(
                f"--trials {self.n_trials}: the search in {self.folder} ended after "
                f"{tree['n_trials']} and its model has met the test part, so it cannot go on; "
                "choose another --out."
            )
        figures = (self.folder / "tradeoff.svg", self.folder / "tradeoff.png")
        table = self.folder / "trials.csv"
        write_text(table, trials_table(self.trials, winner))
        draw_tradeoff(self.trials, winner, self.limits, len(self.part.validation), figures)
        return ShrinkResult(
            folder=self.folder,
            model=self.folder / "model.safetensors",
            limits=self.limits,
            cost=cost,
            recipe=recipe,
            trials=tuple(self.trials),
            winner=winner,
            score=found,
            table=table,
            figures=figures,
            notes=tuple(notes),
        )


class _Titled:
    """Passes progress on under a trial's name, without the lines of every epoch."""

    def __init__(self, reporter: Reporter, title: str) -> None:
        self._reporter, self._title = reporter, title

    def progress(self, stage: str, done: float, total: float) -> None:
        """See :class:`stapes.training.reporter.Reporter`."""
        title = self._title if stage == "Training" else f"{self._title}: {stage.lower()}"
        self._reporter.progress(title, done, total)

    def status(self, text: str) -> None:
        """See :class:`stapes.training.reporter.Reporter`."""

    def note(self, text: str) -> None:
        """See :class:`stapes.training.reporter.Reporter`."""
        self._reporter.note(f"{self._title}: {text}")


def _parts(run: Run, split: Split, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clips to train candidates on, and clips to compare them on."""
    if split.validation.size:
        return split.train, split.validation
    targets, groups = run.dataset.targets[split.train], run.groups[split.train]
    try:
        rest, held = hold_out(targets, groups, _VALIDATION_PART, seed, labels=run.dataset.labels)
    except DataError as error:
        raise DataError(f"The training clips cannot be divided for the search: {error}") from None
    return split.train[rest], split.train[held]


def _default_folder(run: Path, limits: Limits) -> Path:
    words = []
    if limits.file_bytes is not None:
        words.append(format_size(limits.file_bytes))
    if limits.macs_per_second is not None:
        words.append(f"{format_macs(limits.macs_per_second)}macs")
    run = run if run.name else run.resolve()
    return run.with_name("-".join([run.name, *words]))


def _nothing_fits(limits: Limits, found: Sequence[Cost]) -> StapesError:
    parts = []
    if limits.file_bytes is not None:
        parts.append(f"{min(c.file_bytes for c in found):,} bytes")
    if limits.macs_per_second is not None:
        most = min(c.macs_per_second for c in found)
        parts.append(f"{most:,.0f} multiply-accumulates per second of audio")
    options = " or ".join(
        option
        for option, limit in (("--size", limits.file_bytes), ("--macs", limits.macs_per_second))
        if limit is not None
    )
    return StapesError(
        f"Nothing fits into {limits}: the least found is {' and '.join(parts)}; raise {options}, "
        "or start from a run with shorter windows, fewer bands or a longer hop."
    )


def _line(trial: Trial) -> str:
    """A trial that has ended, in a line."""
    assert trial.recipe is not None
    if trial.accuracy is None or trial.cost is None:
        return f"{describe(trial.recipe)}: {trial.reason}"
    accuracy, cost = trial.accuracy, trial.cost
    over = "" if trial.number == 0 or trial.state == "inside" else " (over the limit)"
    return (
        f"{describe(trial.recipe)}: {100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} to "
        f"{100 * accuracy.high:.1f}) on validation, {cost.file_bytes:,} bytes, "
        f"{cost.macs_per_second / 1e6:.1f}M MACs/s{over}"
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
