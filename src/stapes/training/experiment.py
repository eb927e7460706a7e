"""From labelled recordings to models and an honest score: what ``stapes train`` does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stapes.bundle import Bundle, save_bundle
from stapes.config import Recipe, resolve
from stapes.data import (
    Dataset,
    Scan,
    Split,
    groups_of,
    hold_out,
    load_dataset,
    make_splits,
    scan,
    shared_sources,
)
from stapes.data.impulse_responses import pin_impulse_responses
from stapes.data.loader import FeatureStore
from stapes.errors import ConfigError, DataError, StapesError
from stapes.evaluation.crossval import (
    CrossValidation,
    FoldPredictions,
    SeedSummary,
    pool,
    summarise_seeds,
)
from stapes.evaluation.ensemble import EnsembleScore, ensemble, score_ensemble
from stapes.evaluation.metrics import Score
from stapes.features import create_frontend, default_cache_folder
from stapes.files import write_text
from stapes.training.devices import make_accelerator
from stapes.training.distillation import Teaching
from stapes.training.initialization import (
    pin_weights,
    read_parent,
)
from stapes.training.members import Member, Run
from stapes.training.reporter import Reporter, Silent
from stapes.training.start import chosen_recipe, default_start, leaves_start_open, start_settings
from stapes.training.teachers import check_teachers, pin_teachers, taught_by
from stapes.training.tensorboard import require_tensorboard

__all__ = ["TrainResult", "carry_out", "everything", "open_run", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run gives.

    Attributes:
        folder: the run folder.
        model: the model file to use.
        report: the HTML report.
        dataset: the recordings used.
        scans: what was found in each of them.
        groups: (M,) source numbers.
        recipe: resolved.
        members: the models that were scored, by split, then seed.
        folds: scores by fold and all clips together; with several seeds, of all of them.
        seeds: spread over seeds, none for one seed.
        notes: what a reader of the score must know.
        ensemble: of the seeds' models, averaged; none unless that was asked for. The model to use
            is then an ensemble, too.
    """

    folder: Path
    model: Path
    report: Path
    dataset: Dataset
    scans: list[Scan]
    groups: NDArray[np.int64]
    recipe: Recipe
    members: list[Member]
    folds: CrossValidation
    seeds: SeedSummary | None
    notes: tuple[str, ...]
    ensemble: EnsembleScore | None = None

    @property
    def score(self) -> Score:
        """Metrics of the single models over all test clips, with intervals."""
        return self.folds.pooled


def train(
    data: str | Path | Dataset,
    *,
    recipe: str | Path | Recipe | None = None,
    overrides: Sequence[str] = (),
    init: str | Path | None = "auto",
    teachers: Sequence[str | Path] = (),
    out: str | Path | None = None,
    corpus: str | None = None,
    group_by: str | None = None,
    folds: int | None = None,
    fold: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    n_seeds: int = 1,
    ensemble: bool = False,
    final: bool = True,
    force: bool = False,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> TrainResult:
    """Train on labelled recordings, score on recordings that were held out, and report.

    Data with declared parts or folds use them (all folds, each tested once); else a stratified
    fifth of the sources is held out. Called again with the same arguments it continues where it
    was stopped, at any moment, and ends with the same weights.

    Args:
        data: folder, manifest, or a dataset that was already read.
        recipe: name, TOML file or recipe; none: ``small``, or ``finetune`` with ``init``.
        overrides: ``section.field=value``, on top of the recipe.
        init: model file, run folder or shipped model to start from, for the same labels, others,
            or both: classes that it knows go on from what it learnt. Its audio (but for the
            windows), features, normalisation and model stand in place of the recipe's; weights
            that were pruned stay zero. ``"auto"``: the nearest shipped model where there are at
            most :data:`stapes.training.start.FEW_CLIPS` recordings, and neither the recipe nor
            ``overrides`` say what to train; none or ``"none"``: what the recipe says.
        teachers: model files or run folders to learn from besides the labels, with the recipe's
            ``distillation`` section; their probabilities are averaged. Of a cross-validated run,
            each fold's models teach the same fold.
        out: run folder; none: ``runs/<data>-<recipe>``.
        corpus: name of a known corpus, see :func:`stapes.data.load_dataset`.
        group_by: how to tell sources, see :func:`stapes.data.load_dataset`.
        folds: make this many folds instead of the declared parts.
        fold: test on this declared fold only.
        test_fraction: part held out where nothing is declared, in (0, 1).
        seed: of splits, initial weights and training.
        n_seeds: train every split with this many seeds, ``seed``, ``seed + 1``, ...
        ensemble: also score the ensemble of the seeds' models, whose probabilities are the mean of
            theirs, and make it the model to use: of the models of the only split, or, after a
            cross-validation, of as many that are trained on everything.
        final: after a cross-validation, train one more model on everything for use.
        force: train although a source is on both sides of a split.
        cache: folder of the feature cache; none: the user's.
        workers: threads that read recordings; none: all cores.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        tensorboard: also write curves for TensorBoard, into the members' folders.
        reporter: told about progress.
        command: the command line, for the report.

    Raises:
        DataError: the data cannot be used, a split shares a source, or a teacher has heard what is
            tested.
        ConfigError: the recipe is wrong, or a teacher does not know all classes.
        ModelFileError: a teacher or the weights to start from cannot be used.
        StapesError: the output folder belongs to another run, or cannot be written.
    """
    if isinstance(data, Dataset) and (corpus is not None or group_by is not None):
        raise ValueError("corpus and group_by go with a folder or manifest, not with a Dataset")
    if isinstance(data, Dataset):
        dataset = data
    else:
        dataset = load_dataset(data, corpus=corpus, group_by=group_by)
    started = None
    if init == "auto" and recipe is None and leaves_start_open(overrides):
        started = default_start(dataset)
    if started is not None:
        init, overrides = started.name, [*start_settings(dataset), *overrides]
    elif init in ("auto", "none"):
        init = None
    recipe = taught_by(chosen_recipe(recipe, overrides, init), teachers)
    if n_seeds < 1:
        raise StapesError(f"--seeds {n_seeds}: must be at least 1.")
    if ensemble and n_seeds < 2:
        raise StapesError("--ensemble averages over seeds: give --seeds 2 or more.")
    if ensemble and recipe.quantization.precision == "int8":
        raise ConfigError(
            "--ensemble and quantization.precision = 'int8': int8 networks cannot be members of an "
            "ensemble; use float32 or float16."
        )
    if not 0 <= seed < 2**63 - n_seeds:
        raise StapesError(f"--seed {seed}: must be 0 or more, and below 2**63.")
    if not 0 < test_fraction < 1:
        raise StapesError(f"--test-fraction {test_fraction:g}: must be above 0 and below 1.")
    if tensorboard:
        require_tensorboard()
    run, splits, notes = open_run(
        dataset,
        recipe,
        out=out,
        folds=folds,
        fold=fold,
        test_fraction=test_fraction,
        seed=seed,
        force=force,
        cache=cache,
        workers=workers,
        device=device,
        tensorboard=tensorboard,
        reporter=reporter,
        command=command,
    )
    if run.recipe.distillation.teachers:
        names = ", ".join(run.recipe.distillation.teachers)
        notes.append(f"Taught by {names} besides the labels; what their use owes, this one owes.")
    for note in check_teachers(run.recipe, run.dataset, splits, force=force):
        notes.append(note)
        run.reporter.note(f"Note: {note}")
    if started is not None:
        note = (
            f"Training started from {started.name}, which comes with stapes and owes its data's "
            f"licence ({started.facts['licence']}); --init none starts from random weights."
        )
        notes.append(note)
        run.reporter.note(f"Note: {note}")
    seeds = range(seed, seed + n_seeds)
    tasks = [(split, s) for split in splits for s in seeds]
    if final and len(splits) > 1:
        for s in seeds if ensemble else (seed,):
            tasks.append((everything(run.dataset, run.groups, run.recipe, s), s))
    with run.locked():
        return carry_out(run, tasks, notes, workers=workers, ensemble=ensemble)


def open_run(
    dataset: Dataset,
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    folds: int | None = None,
    fold: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    force: bool = False,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    trained: Path | None = None,
    reporter: Reporter | None = None,
    command: str = "",
) -> tuple[Run, list[Split], list[str]]:
    """Listen to the recordings, make or take the splits and fill in the recipe; train nothing yet.

    Args and errors: as for :func:`train`, and ``trained``, a run folder whose networks are taken
    instead of training.

    Returns:
        What all members of the run share, the splits, and notes for the reader of a score.
    """
    reporter = reporter or Silent()
    accelerator = make_accelerator(device, recipe.training.precision)
    reporter = reporter if accelerator.is_main_process else Silent()
    parent = None
    if trained is None:  # else nothing starts from them: they may be gone
        with accelerator.main_process_first():
            recipe = pin_impulse_responses(pin_teachers(pin_weights(recipe)))
            parent = read_parent(recipe)
    cache = Path(cache) if cache is not None else default_cache_folder()
    with accelerator.main_process_first():
        scans = scan(
            dataset,
            workers=workers,
            memo=cache / "scan.sqlite",
            progress=partial(reporter.progress, "Reading recordings"),
        )
    notes = list(dataset.notes)
    dataset, scans = _readable(dataset, scans, notes, reporter)
    groups = groups_of(dataset, scans)
    splits = make_splits(
        dataset,
        groups,
        folds=folds,
        fold=fold,
        test_fraction=test_fraction,
        validation_fraction=recipe.training.validation_fraction,
        seed=seed,
    )
    _refuse_shared_sources(dataset, groups, splits, force=force, notes=notes, reporter=reporter)
    for split in splits:
        for i in np.setdiff1d(dataset.targets[split.test], dataset.targets[split.train]):
            notes.append(
                f"Split {split.name}: '{dataset.labels[i]}' is tested but never trained, since no "
                "training clip has it."
            )
            reporter.note(f"Note: {notes[-1]}")
    recipe = resolve(
        recipe,
        sample_rates=(s.sample_rate for s in scans),
        durations=(s.duration for s in scans),
    )
    _note_same_data(dataset, parent, notes, reporter)
    assert not isinstance(recipe.audio.sample_rate, str)
    frontend = create_frontend(sample_rate=recipe.audio.sample_rate, **recipe.features.model_dump())
    store = FeatureStore(dataset.clips, scans, frontend, recipe.audio, cache)
    teaching = None
    if recipe.distillation.teachers:
        teaching = Teaching(recipe, dataset, scans, store, cache, workers, reporter)
    run = Run(
        folder=Path(out) if out is not None else Path("runs") / f"{dataset.name}-{recipe.name}",
        dataset=dataset,
        scans=scans,
        groups=groups,
        recipe=recipe,
        frontend=frontend,
        store=store,
        accelerator=accelerator,
        reporter=reporter,
        command=command,
        tensorboard=tensorboard,
        trained=trained,
        parent=parent,
        teaching=teaching,
    )
    if trained is None:
        run.refuse_misfit()
    return run, splits, notes


def carry_out(
    run: Run,
    tasks: Sequence[tuple[Split, int]],
    notes: Sequence[str],
    *,
    workers: int | None,
    ensemble: bool = False,
) -> TrainResult:
    """Train every member, or take it from disk; score, and write what the run leaves.

    Args:
        run: as :func:`open_run` gives it, its folder held.
        tasks: split and seed of every member.
        notes: for the reader of the score.
        workers: threads that read recordings; none: all cores.
        ensemble: as for :func:`train`.
    """
    dataset, groups, accelerator = run.dataset, run.groups, run.accelerator
    run.claim(tasks)
    with accelerator.main_process_first():
        run.store.prepare(
            range(len(dataset)),
            workers=workers,
            progress=partial(run.reporter.progress, "Computing features"),
        )
    members = [run.member(split, s, i, len(tasks)) for i, (split, s) in enumerate(tasks)]
    # The final model of a cross-validation comes last and has no test part.
    scored = members if len(members) == 1 else [m for m in members if m.split.test.size]
    seeds = sorted({member.seed for member in scored})
    targets = dataset.targets
    predictions = [
        FoldPredictions(
            name=m.split.name if len(seeds) == 1 else f"{m.split.name}, seed {m.seed}",
            probabilities=m.probabilities,
            targets=targets[m.split.test],
            groups=groups[m.split.test],
        )
        for m in scored
    ]
    cross = pool(predictions, dataset.labels)
    each_seed = [
        [
            replace(p, name=m.split.name)
            for p, m in zip(predictions, scored, strict=True)
            if m.seed == s
        ]
        for s in seeds
    ]
    by_seed, together = None, None
    if ensemble:
        together = score_ensemble(each_seed, dataset.labels)
        by_seed = summarise_seeds(together.members)
    elif len(seeds) > 1:
        by_seed = summarise_seeds([pool(one, dataset.labels).pooled for one in each_seed])
    # The models to use: those trained on everything, else the first split's.
    chosen = members[len(scored) :] or [m for m in scored if m.split is scored[0].split]
    result = TrainResult(
        folder=run.folder,
        model=run.folder / "model.safetensors",
        report=run.folder / "report.html",
        dataset=dataset,
        scans=run.scans,
        groups=groups,
        recipe=run.recipe,
        members=scored,
        folds=cross,
        seeds=by_seed,
        notes=tuple(notes),
        ensemble=together,
    )
    if accelerator.is_main_process:
        _conclude(result, chosen if ensemble else chosen[:1], run.command)
    accelerator.wait_for_everyone()
    return result


def _note_same_data(
    dataset: Dataset, parent: Bundle | None, notes: list[str], reporter: Reporter
) -> None:
    """Names are all that is known of the recordings that a model has heard."""
    if parent is None or parent.metadata.get("data", {}).get("name") != dataset.name:
        return
    notes.append(
        f"The model that training starts from was trained on recordings called '{dataset.name}', "
        "too; if recordings tested here are among them, the score is too good."
    )
    reporter.note(f"Note: {notes[-1]}")


def everything(dataset: Dataset, groups: NDArray[np.int64], recipe: Recipe, seed: int) -> Split:
    """All clips for training, less those that early stopping needs."""
    train, nobody = np.arange(len(dataset)), np.array([], dtype=np.int64)
    if recipe.training.early_stopping_epochs is None:
        return Split("all", train, nobody, nobody)
    fraction = recipe.training.validation_fraction
    train, held = hold_out(dataset.targets, groups, fraction, seed, labels=dataset.labels)
    return Split("all", train, held, nobody)


def _readable(
    dataset: Dataset, scans: list[Scan], notes: list[str], reporter: Reporter
) -> tuple[Dataset, list[Scan]]:
    """Leave out what cannot be read or holds no sound, and say so."""
    good = [i for i, found in enumerate(scans) if found.error is None]
    for clip, found in zip(dataset.clips, scans, strict=True):
        if found.error is not None:
            reporter.note(f"Left out: {clip.path}: {found.error}")
    if len(good) < len(scans):
        notes.append(f"{len(scans) - len(good)} recordings could not be used and were left out.")
    dataset = dataset.subset(good)
    empty = [label for label, count in dataset.class_counts().items() if count == 0]
    if empty:
        raise DataError(
            f"{dataset.name}: no readable recording of {', '.join(empty[:5])}; see "
            "'stapes data check'."
        )
    return dataset, [scans[i] for i in good]


def _refuse_shared_sources(
    dataset: Dataset,
    groups: NDArray[np.int64],
    splits: Iterable[Split],
    *,
    force: bool,
    notes: list[str],
    reporter: Reporter,
) -> None:
    found = [line for split in splits for line in shared_sources(split, groups, dataset)]
    if not found:
        return
    summary = (
        f"{len(found)} source(s) are on both sides of a split, so the score is too good: "
        f"{' '.join(found[:3])}"
    )
    if not force and not dataset.official:
        raise DataError(
            f"{dataset.name}: {summary} Mend the split or group column, let stapes make the "
            "folds (--folds 5), or train all the same with --force."
        )
    kept = "kept because the folds are the published ones" if dataset.official else "forced"
    notes.append(f"{summary} ({kept})")
    reporter.note(f"Note: {summary} ({kept}).")


def _conclude(result: TrainResult, chosen: Sequence[Member], command: str) -> None:
    """Write the chosen model, or the ensemble of several, the metrics and the report."""
    # Here and not at the top: drawing needs matplotlib, and most imports of this module do not.
    from stapes.evaluation.report import write_report
    from stapes.training.summary import report_data

    bundle, scored = chosen[0].bundle, result.folds
    facts: dict[str, Any] = {}
    n_seeds = len({member.seed for member in result.members})
    if result.ensemble is not None:
        bundle = ensemble([one.folder / "model.safetensors" for one in chosen], command=command)
        scored, n_seeds = result.ensemble.folds, 1
        facts = {"split": chosen[0].split.name, "score": scored.folds[0].to_json()}
    if not chosen[0].split.test.size:  # trained on everything: the others' score speaks for it
        facts = {
            **facts,
            "score": None,
            "cross_validated_score": scored.pooled.to_json(),
            "cross_validated_seeds": n_seeds,  # each clip counts that often in the score
        }
    save_bundle(replace(bundle, metadata={**bundle.metadata, **facts}), result.model)
    metrics = {
        "pooled": result.score.to_json(),
        "folds": {
            name: fold.to_json()
            for name, fold in zip(result.folds.names, result.folds.folds, strict=True)
        },
        "notes": list(result.notes),
    }
    if result.ensemble is not None:
        metrics["ensemble"] = result.ensemble.to_json()
    write_text(result.folder / "metrics.json", json.dumps(metrics, indent=1))
    write_report(result.report, report_data(result, command))
