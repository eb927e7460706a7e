"""Palanisamy, Singhania, Yao, "Rethinking CNN Models for Audio Classification", 2020.

Networks pretrained on images, fine-tuned on mel spectrograms: their table of accuracies, single and
as ensembles of five, and their analysis of why it works: random weights instead, ImageNet weights
or frozen blocks up to some block only, and networks cut after a block.

The paper's networks are DenseNet-201, ResNet-50 and Inception-v3; any network of timm can be named
instead. A corpus that is not the paper's gets the settings of its ESC-50 column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stapes.config import Recipe, TimmConfig, load_recipe
from stapes.data import Dataset, fold_names, load_dataset
from stapes.errors import ConfigError, StapesError, UnknownNameError
from stapes.evaluation.bootstrap import Interval
from stapes.models.weights import file_sha256
from stapes.studies.figures import Series, draw_series, save_figure
from stapes.studies.points import Bench, Measured, differences, open_bench
from stapes.studies.study import Study, StudyResult, changes, thousands, verdict, write_tables
from stapes.studies.transfer_points import ChosenNetwork, Way, block_names, transfer_point
from stapes.training.reporter import Reporter

__all__ = ["STUDY", "reproduce"]

_NAME = "palanisamy2020"
_ITEMS = MappingProxyType(
    {
        "table1": "accuracy of three networks, single and as an ensemble of seeds",
        "pretrained": "accuracy from ImageNet weights and from random ones",
        "fusing": "accuracy with ImageNet weights up to a block, and random ones behind it",
        "freezing": "accuracy with ImageNet weights that are frozen up to a block",
        "truncation": "accuracy of pretrained networks cut after a block",
    }
)
_ROWS = ("fusing", "freezing", "truncation")  # that go over the blocks
_EPOCHS, _STEP_EPOCHS, _MEMBERS = 70, 30, 5  # of the paper
_QUICK_MEMBERS = 3


@dataclass(frozen=True)
class _Published:
    """What the paper says of a network on one corpus, in percent.

    Attributes:
        accuracy: of single networks, their mean.
        spread: over runs, as the paper prints it behind the plus-minus sign.
        ensemble: of five runs; none where our source is not clear.
    """

    accuracy: float
    spread: float
    ensemble: float | None = None

    def single(self) -> str:
        return f"{self.accuracy:.2f} ± {self.spread:.2f} %"


@dataclass(frozen=True)
class _Column:
    """A corpus of the paper.

    Attributes:
        title: of the corpus.
        corpus: its name here.
        random_costs: points that random weights lose, as the paper says it in words.
        published: by the networks' names.
    """

    title: str
    corpus: str
    random_costs: float
    published: Mapping[str, _Published]

    @property
    def recipe(self) -> str:
        return f"{_NAME}-{self.corpus}"


_DENSENET, _RESNET, _INCEPTION = "DenseNet-201", "ResNet-50", "Inception-v3"
_COLUMNS = (
    _Column(
        "ESC-50",
        "esc50",
        20,
        MappingProxyType(
            {
                _DENSENET: _Published(91.16, 0.36, 92.89),
                _RESNET: _Published(90.65, 0.28, 92.64),
                _INCEPTION: _Published(87.34, 0.74, 89.70),
            }
        ),
    ),
    _Column(
        "UrbanSound8K",
        "urbansound8k",
        10,
        MappingProxyType(
            {
                _DENSENET: _Published(85.14, 0.17, 87.42),
                _RESNET: _Published(84.76, 0.33, 87.35),
                _INCEPTION: _Published(84.37, 0.50, 86.34),
            }
        ),
    ),
    _Column(
        "GTZAN",
        "gtzan",
        3,
        MappingProxyType(
            {
                _DENSENET: _Published(91.39, 0.37),
                _RESNET: _Published(91.09, 0.86),
                _INCEPTION: _Published(90.00, 0.70),
            }
        ),
    ),
)
# timm's names of the paper's networks, and of those that are near enough to stand beside one.
_PAPERS = MappingProxyType(
    {"densenet201": _DENSENET, "resnet50": _RESNET, "inception_v3": _INCEPTION}
)
_STAND_INS = MappingProxyType({"densenet121": _DENSENET, "resnet50_v1": _RESNET})
_QUICK_NETWORK = "tf_efficientnet_lite0"
# The recipe that is best today, shorter. Layers learn at one rate: a smaller one near the input
# would hold back weights that are random there.
_QUICK = ("training.epochs=10", "training.layer_decay=1")


def reproduce(
    item: str,
    data: str | Path | Dataset,
    *,
    corpus: str | None = None,
    out: str | Path | None = None,
    quick: bool = False,
    epochs: int | None = None,
    networks: Sequence[str] | None = None,
    weights: Sequence[str | Path] = (),
    blocks: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    fold: str | None = None,
    seeds: int | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    command: str = "",
) -> StudyResult:
    """Train what an item needs, show it beside the paper's numbers, and write it to files.

    Every way to train is a run in a folder of its own below ``out``, shared by all items; what is
    trained is not trained again, and what was stopped continues.

    Args:
        item: ``"table1"``, ``"pretrained"``, ``"fusing"``, ``"freezing"`` or ``"truncation"``.
        data: folder, manifest, or a dataset that was already read.
        corpus: name of a known corpus, see :func:`stapes.data.load_dataset`.
        out: the study's folder; none: ``runs/palanisamy2020-<data>``, ``-quick`` appended.
        quick: a smaller version for two cores; the result's notes say what it changes.
        epochs: shrink the paper's schedule to this many, in proportion; none: 70.
        networks: names in timm; none: the paper's three, for the items that go over the blocks
            its DenseNet-201, and EfficientNet-Lite0 alone if quick.
        weights: files of their ImageNet weights, in the same order; none: timm's hub.
        blocks: places of an item that goes over the blocks; none: all.
        overrides: ``section.field=value`` on top of the recipe.
        fold: test on this declared fold only; none: on all, or on the first if quick.
        seeds: train every network this often; none: once, and five times for ``"table1"`` (three
            times if quick).
        cache: folder of the feature cache; none: the user's.
        workers: threads that read recordings; none: all cores.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        reporter: told about progress.
        command: the command line, kept with the results.

    Raises:
        UnknownNameError: no such item, network, corpus or fold.
        ConfigError: a setting that the study itself decides, or one out of range.
        ModelFileError: weights that are missing, damaged or of another network.
        DataError: the data cannot be used.
        StapesError: ``out`` holds a study with other settings, or cannot be written; weights that
            are not on this machine and cannot be fetched.
    """
    if item not in _ITEMS:
        raise UnknownNameError(f"item of {_NAME}", item, _ITEMS)
    if seeds is None:
        seeds = (_QUICK_MEMBERS if quick else _MEMBERS) if item == "table1" else 1
    if seeds < 1:
        raise StapesError(f"--seeds {seeds}: must be at least 1.")
    if epochs is not None and epochs < 1:
        raise StapesError(f"--epochs {epochs}: must be at least 1.")
    if isinstance(data, Dataset) and corpus is not None:
        raise ValueError("corpus goes with a folder or manifest, not with a Dataset")
    _refuse_decided(overrides)
    chosen = _networks(item, quick, networks, weights)
    places = {one: _places(item, one, blocks) for one in chosen}
    dataset = data if isinstance(data, Dataset) else load_dataset(data, corpus=corpus)
    by_corpus = {column.corpus: column for column in _COLUMNS}
    column = by_corpus.get(dataset.name, _COLUMNS[0])
    theirs = dataset.name == column.corpus
    recipe = _recipe(column, theirs, quick, epochs, chosen[0], overrides)
    if quick and fold is None and dataset.has_folds and not dataset.has_splits:
        fold = fold_names(dataset)[0]
    folder = Path(out) if out is not None else _default_folder(dataset, quick)
    bench = open_bench(
        dataset,
        recipe,
        out=folder,
        fold=fold,
        seeds=seeds,
        cache=cache,
        workers=workers,
        device=device,
        reporter=reporter,
        command=command,
    )
    plan = _Plan(bench, column, theirs, item, chosen, quick, epochs, fold, command)
    ways = {one: _ways(item, places[one]) for one in chosen}
    points = [transfer_point(bench, _NAME, one, way) for one in chosen for way in ways[one]]
    with bench.locked():
        found = iter(bench.measure(points))
        measured = {one: [next(found) for _ in ways[one]] for one in chosen}
        if item == "table1":
            return _table(plan, measured)
        if item == "pretrained":
            return _pretrained(plan, measured)
        return _over_blocks(plan, measured, places)


STUDY = Study(
    name=_NAME,
    citation=(
        "Palanisamy, Singhania, Yao: Rethinking CNN Models for Audio Classification, 2020, "
        "arXiv:2007.11154"
    ),
    items=_ITEMS,
    reproduce=reproduce,
    options=frozenset({"networks", "weights", "blocks"}),
)


# Settings


def _refuse_decided(overrides: Iterable[str]) -> None:
    instead = {
        "model.name": "the study is about networks of timm; choose one with --network",
        "model.architecture": "give it with --network",
        "initialization.file": "give it with --weights",
    }
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field in instead:
            raise ConfigError(f"--set {override}: {instead[field]}.")
        if field == "model.blocks" or field.startswith("initialization."):
            raise ConfigError(
                f"--set {override}: {_NAME} sets {field} itself, another value for each network; "
                "leave it out."
            )


def _networks(
    item: str, quick: bool, names: Sequence[str] | None, weights: Sequence[str | Path]
) -> tuple[ChosenNetwork, ...]:
    if names is None:
        names = tuple(_PAPERS)[: 1 if item in _ROWS else None]
        names = (_QUICK_NETWORK,) if quick else names
    if not names:
        raise ConfigError("--network: give one or more names of timm.")
    if len(set(names)) < len(names):
        raise ConfigError(f"--network {' '.join(names)}: each name once.")
    if weights and len(weights) != len(names):
        raise ConfigError(
            f"--weights: {len(weights)} file(s) for {len(names)} network(s) "
            f"({', '.join(names)}); give one for each, in the same order, or none."
        )
    if not weights:
        return tuple(ChosenNetwork(name) for name in names)
    return tuple(ChosenNetwork(n, Path(file)) for n, file in zip(names, weights, strict=True))


def _places(item: str, network: ChosenNetwork, blocks: Sequence[int] | None) -> tuple[int, ...]:
    """Blocks along a figure's axis; none for the other items."""
    if item not in _ROWS:
        if blocks is not None:
            raise ConfigError(f"--blocks: {item} does not go over the blocks; leave it out.")
        return ()
    last = len(block_names(network.architecture))
    first = 1 if item == "truncation" else 0
    if blocks is None:
        return tuple(range(first, last + 1))
    if not blocks or any(not first <= k <= last for k in blocks):
        raise ConfigError(
            f"--blocks {','.join(map(str, blocks))}: {item} of '{network.architecture}' goes from "
            f"{first} to {last}; give whole numbers, such as {first},{last}."
        )
    return tuple(sorted(set(blocks)))


def _ways(item: str, places: Sequence[int]) -> tuple[Way, ...]:
    if item == "table1":
        return (Way(),)
    if item == "pretrained":
        return (Way(pretrained=0), Way())
    if item == "fusing":
        return tuple(Way(pretrained=k) for k in places)
    if item == "freezing":
        return tuple(Way(frozen=k) for k in places)
    return tuple(Way(kept=k) for k in places)


def _default_folder(dataset: Dataset, quick: bool) -> Path:
    return Path("runs") / f"{_NAME}-{dataset.name}{'-quick' if quick else ''}"


def _recipe(
    column: _Column,
    theirs: bool,
    quick: bool,
    epochs: int | None,
    network: ChosenNetwork,
    overrides: Sequence[str],
) -> Recipe:
    """Recipe of a pretrained network, not resolved yet."""
    settings = () if quick else _settings(theirs)
    if quick:
        settings += _QUICK
        settings += (f"training.epochs={epochs}",) if epochs is not None else ()
    elif epochs is not None:
        step = max(1, round(_STEP_EPOCHS * epochs / _EPOCHS))
        settings += (f"training.epochs={epochs}", f"training.step_epochs={step}")
    settings += (f"model.architecture={network.architecture}",)
    recipe = load_recipe("transfer" if quick else column.recipe, [*settings, *overrides])
    file = None if network.file is None else str(network.file)
    start = recipe.initialization.model_copy(update={"file": file})
    return recipe.model_copy(update={"name": _NAME, "initialization": start})


def _settings(theirs: bool) -> tuple[str, ...]:
    """Other recordings than the paper's keep their own length."""
    return () if theirs else ("audio.window_seconds=auto", "audio.longer=window")


@dataclass(frozen=True)
class _Plan:
    """An item of the study on one corpus.

    Attributes:
        bench: with the resolved recipe of the first network, pretrained.
        column: whose numbers stand beside ours.
        theirs: whether the corpus is that column's.
        item: what is shown.
        networks: in order.
        quick, epochs, fold: as they were asked for.
        command: that was typed.
    """

    bench: Bench
    column: _Column
    theirs: bool
    item: str
    networks: tuple[ChosenNetwork, ...]
    quick: bool
    epochs: int | None
    fold: str | None
    command: str

    def published(self, network: ChosenNetwork) -> tuple[str, _Published] | None:
        """The paper's name of a network, or of what it stands in for, and the paper's numbers."""
        plain = network.architecture.partition(".")[0]
        name = _PAPERS.get(plain) or _STAND_INS.get(plain)
        return None if name is None else (name, self.column.published[name])

    def notes(self) -> list[str]:
        bench, recipe = self.bench, self.bench.recipe
        notes = [f"{bench.data_text()}; 95 % intervals over sources."]
        if not self.theirs:
            notes.append(
                f"Published numbers are of other data, {self.column.title}: their differences can "
                "be compared with ours, their accuracies cannot."
            )
        for network in self.networks:
            plain = network.architecture.partition(".")[0]
            if plain in _STAND_INS:
                notes.append(
                    f"{network.architecture} stands in for {_STAND_INS[plain]} and is not it."
                )
            elif plain not in _PAPERS:
                notes.append(f"{network.architecture} is not one of the paper's networks.")
            if network.file is not None:
                digest = file_sha256(network.file)
                notes.append(
                    f"ImageNet weights of {network.architecture}: {network.file.name}, SHA-256 "
                    f"{digest[:16]}...; the paper used those of torchvision."
                )
        paper = load_recipe(self.column.recipe, _settings(self.theirs))
        # The networks and their weights are told above.
        ours = recipe.model_copy(
            update={"model": paper.model, "initialization": paper.initialization}
        )
        changed = changes(paper, ours)
        if self.quick:
            changed = ["a small version (--quick)", *changed]
        elif self.epochs is not None:
            changed = [f"the schedule shrunk to {self.epochs} of {_EPOCHS} epochs", *changed]
        if changed:
            notes.append(f"Changed in the paper's recipe: {'; '.join(changed)}.")
        if self.quick and self.fold is not None:
            notes.append(f"Only fold {self.fold} is tested.")
        notes.append(
            "The authors' program keeps the best epoch on the test part; here the last one counts."
        )
        if len(bench.seeds) == 1:
            notes.append(
                "One seed: the intervals do not hold what another seed would change; --seeds 3 "
                "shows it."
            )
        return [*notes, *bench.notes]

    def result(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        text_columns: Iterable[int],
        records: Sequence[Mapping[str, Any]],
        statements: Sequence[str],
        figure: Any,
    ) -> StudyResult:
        """Write the tables and the figure, and hand them back."""
        title = f"{_NAME}, {self.item}: {_ITEMS[self.item]}"
        folder, notes = self.bench.run.folder, self.notes()
        numeric = frozenset(range(len(header))) - set(text_columns)
        files: tuple[Path, ...] = ()
        if self.bench.run.accelerator.is_main_process:
            files = write_tables(
                folder, self.item, title, header, rows, numeric, records,
                below=[*statements, *notes], command=self.command,
                figure=None if figure is None else f"{self.item}.svg",
            )  # fmt: skip
            if figure is not None:
                files = (*files, *save_figure(figure, folder / self.item))
        return StudyResult(
            _NAME, self.item, title, folder, tuple(header), tuple(tuple(row) for row in rows),
            numeric, tuple(records), tuple(statements), tuple(notes), files,
        )  # fmt: skip


_Found = Mapping[ChosenNetwork, Sequence[Measured]]


# What is shown


def _table(plan: _Plan, found: _Found) -> StudyResult:
    n_seeds = len(plan.bench.seeds)
    header = ("network", "parameters", "single published", "ours", f"ensemble of {_MEMBERS} "
              "published", f"ours of {n_seeds}", "gain, points")  # fmt: skip
    rows, records, statements = [], [], []
    for network, (one,) in found.items():
        published = plan.published(network)
        rows.append(
            (
                network.architecture,
                thousands(one.parameters),
                _beside(plan, network, None if published is None else published[1].single()),
                _with_spread(one),
                ""
                if published is None or published[1].ensemble is None
                else f"{published[1].ensemble:.2f} %",
                one.ensemble_accuracy.percent() if n_seeds > 1 else "",
                one.ensemble_gain.points() if n_seeds > 1 else "",
            )
        )
        records.append(_record(plan, network, one, None))
        if n_seeds > 1:
            statements.append(
                f"{network.architecture}: the mean of {n_seeds} networks' probabilities against "
                f"single ones: {one.ensemble_gain.points()} points, {verdict(one.ensemble_gain)}."
            )
    return plan.result(header, rows, {0}, records, statements, None)


def _pretrained(plan: _Plan, found: _Found) -> StudyResult:
    header = ("network", "weights", "published", "accuracy", "cost of random weights published",
              "ours, points", "seconds")  # fmt: skip
    costs = plan.column.random_costs
    rows, records, statements = [], [], []
    for network, (drawn, taken) in found.items():
        gap = differences([drawn], [taken], plan.bench.groups)
        published = plan.published(network)
        shown = _beside(plan, network, None if published is None else published[1].single())
        rows.append((network.architecture, "ImageNet", shown, _with_spread(taken), "", "",
                     _seconds(taken)))  # fmt: skip
        rows.append((network.architecture, "random", "", _with_spread(drawn), f"about {costs:g}",
                     gap.points(), _seconds(drawn)))  # fmt: skip
        records += [_record(plan, network, taken, gap), _record(plan, network, drawn, None)]
        statements.append(
            f"{network.architecture}: ImageNet weights against random ones: {gap.points()} points, "
            f"{verdict(gap)}; the paper: about {costs:g} on {plan.column.title}."
        )
    figure = draw_series(
        [
            Series(network.architecture, (0.0, 1.0), tuple(one.accuracy for one in ones))
            for network, ones in found.items()
        ],
        title="Accuracy from random and from ImageNet weights",
        caption=f"{plan.bench.data_text()}; bars: 95 % intervals over sources",
        x_label="weights that training starts from",
        ticks={0.0: "random", 1.0: "ImageNet"},
    )
    return plan.result(header, rows, {0, 1}, records, statements, figure)


_AXES = MappingProxyType(
    {
        "fusing": "blocks from the input on with ImageNet weights; the others start at random",
        "freezing": "blocks from the input on that do not learn",
        "truncation": "blocks from the input on that the network keeps",
    }
)
_REFERENCES = MappingProxyType(
    {
        "fusing": "ImageNet weights in all blocks",
        "freezing": "no frozen block",
        "truncation": "the whole network",
    }
)


def _over_blocks(
    plan: _Plan, found: _Found, places: Mapping[ChosenNetwork, Sequence[int]]
) -> StudyResult:
    header = ("network", "blocks", "up to", "parameters", "accuracy",
              f"against {_REFERENCES[plan.item]}, points", "seconds")  # fmt: skip
    rows, records, statements = [], [], []
    for network, ones in found.items():
        names = ("", *block_names(network.architecture))
        whole = 0 if plan.item == "freezing" else len(names) - 1
        by_place = dict(zip(places[network], ones, strict=True))
        for k, one in by_place.items():
            gap = None
            if whole in by_place and k != whole:
                gap = differences([by_place[whole]], [one], plan.bench.groups)
            rows.append(
                (
                    network.architecture,
                    str(k),
                    names[k],
                    thousands(one.parameters),
                    _with_spread(one),
                    gap.points() if gap else "",
                    _seconds(one),
                )
            )
            records.append(_record(plan, network, one, gap, k, names[k]))
        statements += _steps(plan, network, by_place)
    ticks = sorted({k for ks in places.values() for k in ks})
    figure = draw_series(
        [
            Series(network.architecture, tuple(places[network]), tuple(o.accuracy for o in ones))
            for network, ones in found.items()
        ],
        title=_ITEMS[plan.item].capitalize().replace("imagenet", "ImageNet"),
        caption=f"{plan.bench.data_text()}; bars: 95 % intervals over sources",
        x_label=_AXES[plan.item],
        ticks={float(k): str(k) for k in ticks},
    )
    return plan.result(header, rows, {0, 2}, records, statements, figure)


def _steps(plan: _Plan, network: ChosenNetwork, by_place: Mapping[int, Measured]) -> list[str]:
    """The whole way from the first place to the last, and the largest step on it."""
    ks = list(by_place)
    if len(ks) < 2:
        return []

    def step(a: int, b: int) -> Interval:
        return differences([by_place[a]], [by_place[b]], plan.bench.groups)

    def say(a: int, b: int) -> str:
        gap = step(a, b)
        return f"from {a} to {b} blocks {gap.points()} points, {verdict(gap)}"

    text = f"{network.architecture}, {plan.item}: {say(ks[0], ks[-1])}"
    if len(ks) > 2:
        sizes = {(a, b): abs(step(a, b).value) for a, b in pairwise(ks)}
        text += f"; the largest step is {say(*max(sizes, key=lambda pair: sizes[pair]))}"
    return [f"{text}."]


def _beside(plan: _Plan, network: ChosenNetwork, text: str | None) -> str:
    """The paper's number, with the name of its network where ours only stands in for that."""
    published = plan.published(network)
    if text is None or published is None:
        return ""
    plain = network.architecture.partition(".")[0]
    return text if plain in _PAPERS else f"{text} ({published[0]})"


def _with_spread(one: Measured) -> str:
    text = one.accuracy.percent()
    return text if one.by_seed.sd is None else f"{text} ± {100 * one.by_seed.sd:.2f}"


def _seconds(one: Measured) -> str:
    return f"{one.seconds:.0f}"


def _record(
    plan: _Plan,
    network: ChosenNetwork,
    one: Measured,
    gap: Interval | None,
    k: int | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    published = plan.published(network)
    several = len(plan.bench.seeds) > 1
    model = one.point.recipe.model
    assert isinstance(model, TimmConfig)
    start = one.point.recipe.initialization
    record: dict[str, Any] = {"network": network.architecture, "run": one.point.key}
    if k is not None:
        record |= {"blocks": k, "up_to": name}
    return record | {
        "weights": start.weights,
        "pretrained_blocks": start.blocks,
        "frozen_blocks": start.frozen_blocks,
        "kept_blocks": model.blocks,
        "parameters": one.parameters,
        "macs_per_second": one.macs_per_second,
        "published_network": published[0] if published else None,
        "published_accuracy": published[1].accuracy / 100 if published else None,
        "published_spread": published[1].spread / 100 if published else None,
        "published_ensemble": (
            published[1].ensemble / 100 if published and published[1].ensemble else None
        ),
        "accuracy": one.accuracy.value,
        "accuracy_low": one.accuracy.low,
        "accuracy_high": one.accuracy.high,
        "accuracy_sd_over_seeds": one.by_seed.sd,
        "difference": gap.value if gap else None,
        "difference_low": gap.low if gap else None,
        "difference_high": gap.high if gap else None,
        "ensemble": one.ensemble_accuracy.value if several else None,
        "ensemble_low": one.ensemble_accuracy.low if several else None,
        "ensemble_high": one.ensemble_accuracy.high if several else None,
        "seconds": one.seconds,
        "clips": len(plan.bench.tested),
        "sources": len(set(plan.bench.groups)),
        "folds": len(plan.bench.splits),
        "seeds": len(plan.bench.seeds),
    }
