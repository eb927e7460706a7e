"""Koutini, Henkel, Eghbal-zadeh, Widmer, "Low-Complexity Models for Acoustic Scene Classification
Based on Receptive Field Regularization and Frequency Damping", DCASE 2020 Workshop.

Table 1 and the four figures, trained on any labelled recordings. Every network of the paper is the
damped CP-ResNet of width 128 with something changed: damping taken away, a smaller width, weights
pruned to a number that is left, or decomposed convolutions. Another ``model.width`` stands for the
paper's 128: half and a quarter of it for 64 and 32, and pruning leaves the same part of the
network as in the paper.

The counts of Table 1 are those of rho 3 and stereo for DCASE 2020 task 1B and of rho 7 and mono
for DCASE 2018 task 1A, although its caption says rho 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stapes.config import Recipe, load_recipe, parse_recipe
from stapes.data import Dataset, load_dataset
from stapes.errors import ConfigError
from stapes.models import create_model, published_receptive_field, receptive_field
from stapes.studies.figures import Series, draw_series, save_figure
from stapes.studies.points import Bench, Measured, Point, differences, open_bench
from stapes.studies.study import (
    Published,
    Study,
    StudyResult,
    change_notes,
    check_request,
    default_folder,
    seed_notes,
    tested_fold,
    thousands,
    verdict,
    write_tables,
)
from stapes.training.reporter import Reporter

__all__ = ["STUDY", "reproduce"]

_NAME = "koutini2020"
_ITEMS = MappingProxyType(
    {
        "table1": "size and accuracy of CP-ResNet, damped, narrower, pruned and decomposed",
        "figure1": "accuracy against receptive field, with and without frequency damping",
        "figure2": "accuracy against receptive field, damped networks of three widths",
        "figure3": "accuracy against receptive field, damped networks pruned to four sizes",
        "figure4": "accuracy against receptive field, damped networks with decomposed convolutions",
    }
)
_WIDTH, _EPOCHS, _RAMP_EPOCHS = 128, 350, 100  # of the paper


@dataclass(frozen=True)
class _Variant:
    """What a row of the table, or a line of a figure, changes in the damped network.

    Attributes:
        name: key of the published numbers.
        damped: or without damping.
        part: of the width, 1 over this.
        target: non-zero parameters left by pruning, at the paper's width.
        decomposition: Z.
    """

    name: str
    damped: bool = True
    part: int = 1
    target: int | None = None
    decomposition: int | None = None


_PLAIN, _DAMPED = _Variant("plain", damped=False), _Variant("damped")
_HALF, _QUARTER = _Variant("half", part=2), _Variant("quarter", part=4)
_DECOMPOSED = _Variant("decomposed", decomposition=4)


def _pruned(target: int) -> _Variant:
    return _Variant(f"pruned-{target}", target=target)


@dataclass(frozen=True)
class _Column:
    """A column of Table 1, and what the paper sets for its data.

    Attributes:
        title: of the data.
        corpora: their names here.
        rho: receptive field of the table's networks.
        channels: of the audio.
        target: parameters left by pruning.
        published: by the variants' names.
    """

    title: str
    corpora: tuple[str, ...]
    rho: int
    channels: int
    target: int
    published: Mapping[str, Published]

    def rows(self) -> tuple[_Variant, ...]:
        return (_PLAIN, _DAMPED, _HALF, _pruned(self.target), _DECOMPOSED)


_DCASE2020 = _Column(
    "DCASE 2020 task 1B, three classes",
    ("dcase2020b",),
    rho=3,
    channels=2,
    target=250_000,
    published=MappingProxyType(
        {
            "plain": Published(1_061_600, 0.9726),
            "damped": Published(1_061_600, 0.9745),
            "half": Published(268_600, 0.9722),
            "pruned-250000": Published(250_000, 0.9745),
            "decomposed": Published(361_000, 0.9700),
        }
    ),
)
_DCASE2018 = _Column(
    "DCASE 2018 task 1A, ten classes",
    ("dcase2018",),
    rho=7,
    channels=1,
    target=400_000,
    published=MappingProxyType(
        {
            "plain": Published(1_715_600, 0.7852),
            "damped": Published(1_715_600, 0.7915),
            "half": Published(431_800, 0.7701),
            "pruned-400000": Published(400_000, 0.7854),
            "decomposed": Published(417_000, 0.7696),
        }
    ),
)
_FIGURES: Mapping[str, tuple[_Variant, ...]] = MappingProxyType(
    {
        "figure1": (_PLAIN, _DAMPED),
        "figure2": (_DAMPED, _HALF, _QUARTER),
        "figure3": (_DAMPED, *(_pruned(n) for n in (250_000, 300_000, 400_000, 500_000))),
        "figure4": (_DAMPED, _DECOMPOSED),
    }
)
_RHOS = tuple(range(3, 13))
# The points of figure 3 are the most, and each costs as much as a whole network.
_QUICK_RHOS = MappingProxyType({"figure3": (3, 7, 12)})
_QUICK_RHOS_ELSE = (3, 5, 7, 9, 12)

# About a minute a network for a fold of ESC-50 on two cores: a quarter of the width, a fifteenth
# of the spectrogram's size, and a schedule that gets far in few epochs.
_QUICK = (
    "features.name=log_mel", "features.n_mels=64", "model.width=32", "training.epochs=auto",
    "training.batch_size=32", "training.optimizer=adamw", "training.learning_rate=1e-2",
    "training.weight_decay=1e-2", "training.schedule=one_cycle", "training.constant_epochs=0",
    "training.decay_end_epoch=none", "training.final_rate_fraction=0", "training.averaging=ema",
    "training.averaging_start_epoch=0", "training.averaging_every_epochs=1",
)  # fmt: skip


def reproduce(
    item: str,
    data: str | Path | Dataset,
    *,
    corpus: str | None = None,
    out: str | Path | None = None,
    quick: bool = False,
    epochs: int | None = None,
    rhos: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    fold: str | None = None,
    seeds: int = 1,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    command: str = "",
) -> StudyResult:
    """Train what a table or figure needs, compare it with the paper, and write it to files.

    Every network is a run in a folder of its own below ``out``, shared by all items; what is
    trained is not trained again, and what was stopped continues.

    Args:
        item: ``"table1"`` or ``"figure1"`` to ``"figure4"``.
        data: folder, manifest, or a dataset that was already read.
        corpus: name of a known corpus, see :func:`stapes.data.load_dataset`. Other data than the
            paper's gets the settings of its DCASE 2018 column.
        out: the study's folder; none: ``runs/koutini2020-<data>``, ``-quick`` appended.
        quick: a smaller version for two cores; the result's notes say what it changes.
        epochs: shrink the paper's schedule to this many, in proportion; none: 350.
        rhos: of a figure, 0 to 21; none: 3 to 12, and fewer if quick.
        overrides: ``section.field=value`` on top of the recipe. ``model.width`` sets the width
            that the paper's 128 becomes.
        fold: test on this declared fold only; none: on all, or on the first if quick.
        seeds: train every network this often.
        cache: folder of the feature cache; none: the user's.
        workers: threads that read recordings; none: all cores.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        reporter: told about progress.
        command: the command line, kept with the results.

    Raises:
        UnknownNameError: no such item, corpus or fold.
        ConfigError: a setting that the study itself decides, or one out of range.
        DataError: the data cannot be used.
        StapesError: ``out`` holds a study with other settings, or cannot be written.
    """
    check_request(_NAME, _ITEMS, item, data=data, corpus=corpus, seeds=seeds, epochs=epochs)
    _refuse_decided(overrides)
    places = _places(item, rhos, quick, overrides)
    dataset = data if isinstance(data, Dataset) else load_dataset(data, corpus=corpus)
    column = _DCASE2020 if dataset.name in _DCASE2020.corpora else _DCASE2018
    theirs = dataset.name in column.corpora
    recipe = _recipe(column, theirs, quick, epochs, overrides)
    fold = tested_fold(dataset, fold, quick)
    bench = open_bench(
        dataset,
        recipe,
        out=Path(out) if out is not None else default_folder(_NAME, dataset, quick),
        fold=fold,
        seeds=seeds,
        cache=cache,
        workers=workers,
        device=device,
        reporter=reporter,
        command=command,
    )
    # Where the user did not say otherwise, the paper's 100 of 350 epochs.
    ramp = None if recipe.pruning.ramp_epochs == "auto" else recipe.pruning.ramp_epochs
    plan = _Plan(bench, column, theirs, ramp)
    variants = _FIGURES.get(item, column.rows())
    points = [
        plan.point(v, rho) for rho in places or (recipe.cp_resnet(_NAME).rho,) for v in variants
    ]
    with bench.locked():
        measured = bench.measure(points)
        notes = [*plan.notes(quick, epochs, fold), *bench.notes]
        if item == "table1":
            return _table(plan, variants, measured, notes, command)
        return _figure(item, plan, variants, places, measured, notes, command)


STUDY = Study(
    name=_NAME,
    citation=(
        "Koutini, Henkel, Eghbal-zadeh, Widmer: Low-Complexity Models for Acoustic Scene "
        "Classification Based on Receptive Field Regularization and Frequency Damping, DCASE 2020"
    ),
    items=_ITEMS,
    reproduce=reproduce,
    options=frozenset({"rhos"}),
)


# Settings


def _refuse_decided(overrides: Iterable[str]) -> None:
    decided = {"model.decomposition", "pruning.method", "pruning.keep", "pruning.keep_parameters"}
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field in decided:
            raise ConfigError(
                f"--set {override}: {_NAME} sets {field} itself, another value for each network; "
                "leave it out."
            )


def _places(
    item: str, rhos: Sequence[int] | None, quick: bool, overrides: Iterable[str]
) -> tuple[int, ...]:
    """Values of rho along a figure's axis; none for the table."""
    if item == "table1":
        if rhos is not None:
            raise ConfigError("--rho: table1 has one rho; give it with --set model.rho=5.")
        return ()
    if any(override.partition("=")[0].strip() == "model.rho" for override in overrides):
        raise ConfigError(
            f"--set model.rho: {item} goes over rho; choose values with --rho 3,7,12."
        )
    if rhos is None:
        return _QUICK_RHOS.get(item, _QUICK_RHOS_ELSE) if quick else _RHOS
    if not rhos or any(not 0 <= rho <= 21 for rho in rhos):
        raise ConfigError(
            f"--rho {','.join(map(str, rhos))}: give whole numbers from 0 to 21, such as 3,7,12."
        )
    return tuple(sorted(set(rhos)))


def _recipe(
    column: _Column, theirs: bool, quick: bool, epochs: int | None, overrides: Sequence[str]
) -> Recipe:
    """Recipe of the damped network at the table's rho, not resolved yet."""
    settings = _settings(column, theirs)
    if quick:
        settings += _QUICK
        if theirs:
            # About as many frames as for five seconds; the FFT must reach from frame to frame.
            settings += ("features.hop_length=1102",)
        else:
            settings += ("features.n_fft=auto", "features.hop_length=auto")
        settings += (f"training.epochs={epochs}",) if epochs is not None else ()
    elif epochs is not None:
        training = load_recipe(_NAME).training
        shrunk = epochs / _EPOCHS
        assert training.decay_end_epoch is not None
        settings += (
            f"training.epochs={epochs}",
            f"training.constant_epochs={training.constant_epochs * shrunk!r}",
            f"training.decay_end_epoch={training.decay_end_epoch * shrunk!r}",
            f"training.averaging_start_epoch={int(training.averaging_start_epoch * shrunk)}",
            "training.averaging_every_epochs="
            f"{max(1, round(training.averaging_every_epochs * shrunk))}",
        )
    recipe = load_recipe(_NAME, [*settings, *overrides])
    if recipe.cp_resnet(_NAME).damping is None:
        raise ConfigError(
            "--set model.damping: the study compares damped networks with undamped ones; give a "
            "number from 0 to 1, such as 0.1."
        )
    return recipe


def _settings(column: _Column, theirs: bool) -> tuple[str, ...]:
    """What the paper sets for a column's data; other recordings keep their own length."""
    settings = (f"audio.channels={column.channels}", f"model.rho={column.rho}")
    return settings if theirs else (*settings, "audio.window_seconds=auto", "audio.longer=window")


@dataclass(frozen=True)
class _Plan:
    """Points of the study on one corpus.

    Attributes:
        bench: with the resolved recipe of the damped network.
        column: whose settings are used.
        theirs: whether the corpus is that column's.
        ramp_epochs: of pruning; none: as the paper, in proportion.
    """

    bench: Bench
    column: _Column
    theirs: bool
    ramp_epochs: float | None

    @property
    def width(self) -> int:
        return self.bench.recipe.cp_resnet(_NAME).width

    def label(self, variant: _Variant) -> str:
        if not variant.damped:
            return "CP-ResNet"
        if variant.part > 1:
            return f"damped, width {self.width // variant.part}"
        if variant.decomposition is not None:
            return f"damped, decomposed Z = {variant.decomposition}"
        if variant.target is None:
            return "damped"
        target = f"{variant.target // 1000}K"
        return (
            f"damped, pruned to {target}"
            if self.width == _WIDTH
            else f"damped, pruned as {target} of width {_WIDTH}"
        )

    def point(self, variant: _Variant, rho: int) -> Point:
        base = self.bench.recipe
        width = max(1, self.width // variant.part)
        model: dict[str, Any] = {
            "rho": rho,
            "width": width,
            "damping": base.model.damping if variant.damped else None,
            "decomposition": variant.decomposition,
        }
        key = f"rho-{rho:02d}-width-{width:03d}" + ("-damped" if variant.damped else "")
        pruning: dict[str, Any] = {}
        if variant.decomposition is not None:
            key += f"-z{variant.decomposition}"
        if variant.target is not None:
            target = self._target(variant.target, rho)
            key += f"-keep-{target}"
            pruning = {"method": "magnitude", "keep_parameters": target}
            epochs = base.training.epochs
            assert not isinstance(epochs, str)
            pruning["ramp_epochs"] = (
                epochs * _RAMP_EPOCHS / _EPOCHS if self.ramp_epochs is None else self.ramp_epochs
            )
        tree = base.model_dump()
        tree["name"] = f"{_NAME}-{key}"
        tree["description"] = f"{self.label(variant)}, rho {rho}: of the study {_NAME}"
        tree["model"].update(model)
        tree["pruning"].update(pruning)
        label = f"{self.label(variant)}, rho {rho}"
        published = self.column.published.get(variant.name) if rho == self.column.rho else None
        return Point(key, label, parse_recipe(tree, tree["name"]), published)

    def _target(self, target: int, rho: int) -> int:
        """The same part of our network as of the paper's."""
        model = self.bench.recipe.cp_resnet(_NAME)
        paper = load_recipe(_NAME).cp_resnet(_NAME)
        ours, whole = (self._parameters(rho, m.width, m.blocks) for m in (model, paper))
        return round(target * ours / whole)

    def _parameters(self, rho: int, width: int, blocks: Sequence[int]) -> int:
        run = self.bench.run
        network = create_model(
            "cp_resnet",
            n_classes=len(run.dataset.labels),
            in_channels=run.frontend.out_channels(run.recipe.audio.channels),
            rho=rho,
            width=width,
            blocks=blocks,
        )
        return sum(parameter.numel() for parameter in network.parameters())

    def field(self, rho: int) -> int:
        """What a unit sees of the input, in bins and frames."""
        return _seen(rho, self.bench.recipe.cp_resnet(_NAME).blocks)

    def notes(self, quick: bool, epochs: int | None, fold: str | None) -> list[str]:
        bench, recipe = self.bench, self.bench.recipe
        notes = [f"{bench.data_text()}; 95 % intervals over sources."]
        if not self.theirs:
            notes.append(
                f"Published numbers are of other data, {self.column.title}: their sizes and "
                "differences can be compared with ours, their accuracies cannot."
            )
            notes.append(
                f"Settings of that column: rho {self.column.rho}, "
                f"{'mono' if self.column.channels == 1 else 'stereo'}; the window is that of the "
                f"recordings, {recipe.audio.window_seconds:g} s."
            )
        paper = load_recipe(_NAME, _settings(self.column, self.theirs))
        notes += change_notes(paper, recipe, quick=quick, epochs=epochs, of_epochs=_EPOCHS)
        if self.width != _WIDTH:
            widths = ", ".join(f"{self.width // n} for {_WIDTH // n}" for n in (1, 2, 4))
            notes.append(
                f"Widths are {widths}; pruning leaves the same part of the parameters as in the "
                "paper."
            )
        if quick and fold is not None:
            notes.append(f"Only fold {fold} is tested.")
        notes.append(
            "The paper gives the mean accuracy of its last ten epochs; here the averaged weights "
            "are scored once, after the last epoch."
        )
        return notes + seed_notes(bench.seeds)


@cache
def _seen(rho: int, blocks: tuple[int, int, int]) -> int:
    network = create_model("cp_resnet", n_classes=2, in_channels=1, rho=rho, width=1, blocks=blocks)
    return receptive_field(network).frequency.size


# What is shown


def _table(
    plan: _Plan,
    variants: Sequence[_Variant],
    measured: Sequence[Measured],
    notes: Sequence[str],
    command: str,
) -> StudyResult:
    first = measured[0]
    header = ("network", "parameters published", "ours", "accuracy published", "ours",
              f"against {plan.label(variants[0])}, points")  # fmt: skip
    rows, records, statements = [], [], []
    for variant, one in zip(variants, measured, strict=True):
        gap = None if one is first else differences([first], [one], plan.bench.groups)
        published = one.point.published
        rows.append(
            (
                plan.label(variant),
                thousands(published.parameters) if published else "",
                thousands(one.nonzero_parameters),
                f"{100 * published.accuracy:.2f} %" if published else "",
                one.accuracy.percent(),
                gap.points() if gap else "",
            )
        )
        records.append(_record(plan, variant, one, gap))
        if gap is not None:
            statements.append(
                f"{plan.label(variant)} against {plan.label(variants[0])}: {gap.points()} "
                f"points, {verdict(gap)}."
            )
    title = f"{_NAME}, Table 1: {_ITEMS['table1']}"
    folder = plan.bench.run.folder
    notes = [
        f"Parameters that are not zero, at rho {plan.bench.recipe.cp_resnet(_NAME).rho}.",
        *notes,
    ]
    numeric = frozenset(range(1, len(header)))
    files: tuple[Path, ...] = ()
    if plan.bench.run.accelerator.is_main_process:
        files = write_tables(
            folder, "table1", title, header, rows, numeric, records,
            below=[*statements, *notes], command=command,
        )  # fmt: skip
    return StudyResult(
        _NAME, "table1", title, folder, header, tuple(rows), numeric, tuple(records),
        tuple(statements), tuple(notes), files,
    )  # fmt: skip


def _figure(
    item: str,
    plan: _Plan,
    variants: Sequence[_Variant],
    places: Sequence[int],
    measured: Sequence[Measured],
    notes: Sequence[str],
    command: str,
) -> StudyResult:
    groups = plan.bench.groups
    # By rho, then by variant, as they were measured.
    by_place = [measured[i : i + len(variants)] for i in range(0, len(measured), len(variants))]
    lines = list(zip(*by_place, strict=True))
    reference = plan.label(variants[0])
    any_published = any(one.point.published for one in measured)
    header = ("rho", "field", "seen", "network", "parameters",
              *(("published",) if any_published else ()), "accuracy",
              f"against {reference}, points")  # fmt: skip
    rows, records = [], []
    for rho, ones in zip(places, by_place, strict=True):
        for variant, one in zip(variants, ones, strict=True):
            gap = None if one is ones[0] else differences([ones[0]], [one], groups)
            published = one.point.published
            rows.append(
                (
                    str(rho),
                    str(published_receptive_field(rho)),
                    str(plan.field(rho)),
                    plan.label(variant),
                    thousands(one.nonzero_parameters),
                    *((f"{100 * published.accuracy:.2f} %" if published else "",)
                      if any_published else ()),
                    one.accuracy.percent(),
                    gap.points() if gap else "",
                )
            )  # fmt: skip
            records.append(_record(plan, variant, one, gap))
    statements = []
    for variant, line in zip(variants[1:], lines[1:], strict=True):
        gap = differences(lines[0], line, groups)
        higher = sum(b.right.mean() > a.right.mean() for a, b in zip(lines[0], line, strict=True))
        where, count = f"at rho {places[0]}", ""
        if len(places) > 1:
            where = f"mean over {len(places)} values of rho"
            count = f"; higher at {higher} of {len(places)}"
        statements.append(
            f"{plan.label(variant)} against {reference}, {where}: {gap.points()} points, "
            f"{verdict(gap)}{count}."
        )
    notes = [
        "field: maximum receptive field in bins and frames as the authors count it, the axis of "
        "their figures; seen: what a unit's gradient reaches.",
        *notes,
    ]
    fields = {rho: published_receptive_field(rho) for rho in places}
    title = f"{_NAME}, Figure {item[-1]}: {_ITEMS[item]}"
    folder = plan.bench.run.folder
    numeric = frozenset(set(range(len(header))) - {3})
    files: tuple[Path, ...] = ()
    if plan.bench.run.accelerator.is_main_process:
        figure = draw_series(
            [
                Series(
                    plan.label(variant),
                    tuple(fields.values()),
                    tuple(one.accuracy for one in line),
                )
                for variant, line in zip(variants, lines, strict=True)
            ],
            title=_ITEMS[item].partition(", ")[2].capitalize(),
            caption=f"{plan.bench.data_text()}; bars: 95 % intervals over sources",
            x_label="maximum receptive field as the authors count it, bins and frames",
            ticks={field: str(field) for field in fields.values()},
            top_label="rho",
            top_ticks={field: str(rho) for rho, field in fields.items()},
        )
        tables = write_tables(
            folder, item, title, header, rows, numeric, records,
            below=[*statements, *notes], figures=[f"{item}.svg"], command=command,
        )  # fmt: skip
        files = (*tables, *save_figure(figure, folder / item))
    return StudyResult(
        _NAME, item, title, folder, header, tuple(rows), numeric, tuple(records),
        tuple(statements), tuple(notes), files,
    )  # fmt: skip


def _record(plan: _Plan, variant: _Variant, one: Measured, gap: Any) -> dict[str, Any]:
    published, recipe = one.point.published, one.point.recipe
    model = recipe.cp_resnet(_NAME)
    return {
        "network": plan.label(variant),
        "run": one.point.key,
        "rho": model.rho,
        "maximum_receptive_field": published_receptive_field(model.rho),
        "receptive_field": plan.field(model.rho),
        "width": model.width,
        "parameters": one.parameters,
        "nonzero_parameters": one.nonzero_parameters,
        "published_parameters": published.parameters if published else None,
        "macs_per_second": one.macs_per_second,
        "published_accuracy": published.accuracy if published else None,
        "accuracy": one.accuracy.value,
        "accuracy_low": one.accuracy.low,
        "accuracy_high": one.accuracy.high,
        "difference": gap.value if gap else None,
        "difference_low": gap.low if gap else None,
        "difference_high": gap.high if gap else None,
        "clips": len(plan.bench.tested),
        "sources": len(set(plan.bench.groups)),
        "folds": len(plan.bench.splits),
        "seeds": len(plan.bench.seeds),
    }
