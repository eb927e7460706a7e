"""Palanisamy, Singhania, Yao, "Rethinking CNN Models for Audio Classification", 2020.

Networks pretrained on images, fine-tuned on mel spectrograms: their table of accuracies, single and
as ensembles of five, and their analysis of why it works: random weights instead, ImageNet weights
or frozen blocks up to some block only, networks cut after a block, how far training moves the
weights, and how alike what the blocks answer is before and after it.

The paper's networks are DenseNet-201, ResNet-50 and Inception-v3; any network of timm can be named
instead. A corpus that is not the paper's gets the settings of its ESC-50 column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from stapes.config import Recipe, TimmConfig, load_recipe
from stapes.data import Dataset, load_dataset
from stapes.errors import ConfigError
from stapes.models.weights import file_sha256
from stapes.studies.points import Bench, open_bench
from stapes.studies.study import (
    Study,
    StudyResult,
    change_notes,
    check_request,
    default_folder,
    seed_notes,
    tested_fold,
)
from stapes.studies.transfer_points import ChosenNetwork, Way, block_names, transfer_point
from stapes.studies.transfer_tables import (
    PublishedNetwork,
    Shown,
    show_blocks,
    show_pretrained,
    show_similarity,
    show_table,
    show_weights,
)
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
        "weights": "how far training moves the weights of each layer",
        "similarity": "what blocks make of recordings, before and after fine-tuning",
    }
)
_ROWS = ("fusing", "freezing", "truncation")  # that go over the blocks
_ONE_NETWORK = (*_ROWS, "weights", "similarity")  # unless more are named
_EPOCHS, _STEP_EPOCHS, _MEMBERS = 70, 30, 5  # of the paper
_QUICK_MEMBERS = 3


@dataclass(frozen=True)
class _Column:
    """A corpus of the paper.

    Attributes:
        title: of the corpus.
        corpus: its name here.
        random_costs: points that random weights lose, as the paper says it in words.
        published: the three networks.
    """

    title: str
    corpus: str
    random_costs: float
    published: tuple[PublishedNetwork, ...]

    @property
    def recipe(self) -> str:
        return f"{_NAME}-{self.corpus}"


_DENSENET, _RESNET, _INCEPTION = "DenseNet-201", "ResNet-50", "Inception-v3"
_COLUMNS = (
    _Column(
        "ESC-50",
        "esc50",
        20,
        (
            PublishedNetwork(_DENSENET, 91.16, 0.36, 92.89),
            PublishedNetwork(_RESNET, 90.65, 0.28, 92.64),
            PublishedNetwork(_INCEPTION, 87.34, 0.74, 89.70),
        ),
    ),
    _Column(
        "UrbanSound8K",
        "urbansound8k",
        10,
        (
            PublishedNetwork(_DENSENET, 85.14, 0.17, 87.42),
            PublishedNetwork(_RESNET, 84.76, 0.33, 87.35),
            PublishedNetwork(_INCEPTION, 84.37, 0.50, 86.34),
        ),
    ),
    _Column(
        "GTZAN",
        "gtzan",
        3,
        (
            PublishedNetwork(_DENSENET, 91.39, 0.37),
            PublishedNetwork(_RESNET, 91.09, 0.86),
            PublishedNetwork(_INCEPTION, 90.00, 0.70),
        ),
    ),
)
# timm's names of the paper's networks, and of those that are near enough to stand beside one.
_PAPERS = MappingProxyType(
    {"densenet201": _DENSENET, "resnet50": _RESNET, "inception_v3": _INCEPTION}
)
_STAND_INS = MappingProxyType({"densenet121": _DENSENET, "resnet50_v1": _RESNET})
_QUICK_NETWORK = "tf_efficientnet_lite0"
# The recipe that is best today, shorter, and on the recordings as they are. Layers learn at one
# rate: a smaller one near the input would hold back weights that are random there.
_QUICK = (
    "training.epochs=15",
    "training.batch_size=32",
    "training.layer_decay=1",
    "augment.pitch_semitones=0",
    "augment.time_stretch=[1.0, 1.0]",
    "augment.waveform_variants=0",
)


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
        item: ``"table1"``, ``"pretrained"``, ``"fusing"``, ``"freezing"``, ``"truncation"``,
            ``"weights"`` or ``"similarity"``.
        data: folder, manifest, or a dataset that was already read.
        corpus: name of a known corpus, see :func:`stapes.data.load_dataset`.
        out: the study's folder; none: ``runs/palanisamy2020-<data>``, ``-quick`` appended.
        quick: a smaller version for two cores; the result's notes say what it changes.
        epochs: shrink the paper's schedule to this many, in proportion; none: 70.
        networks: names in timm; none: the paper's three for ``"table1"`` and ``"pretrained"``,
            its DenseNet-201 for the others, and EfficientNet-Lite0 alone if quick.
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
    if seeds is None:
        seeds = (_QUICK_MEMBERS if quick else _MEMBERS) if item == "table1" else 1
    check_request(_NAME, _ITEMS, item, data=data, corpus=corpus, seeds=seeds, epochs=epochs)
    _refuse_decided(overrides)
    chosen = _networks(item, quick, networks, weights)
    places = {one: _places(item, one, blocks) for one in chosen}
    dataset = data if isinstance(data, Dataset) else load_dataset(data, corpus=corpus)
    by_corpus = {column.corpus: column for column in _COLUMNS}
    column = by_corpus.get(dataset.name, _COLUMNS[0])
    theirs = dataset.name == column.corpus
    recipe = _recipe(column, theirs, quick, epochs, chosen[0], overrides)
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
    published = _beside(column, chosen)
    shown = Shown(
        study=_NAME,
        item=item,
        title=_ITEMS[item],
        bench=bench,
        corpus=column.title,
        published=published,
        exact=frozenset(one for one in chosen if _plain(one) in _PAPERS),
        members=_MEMBERS,
        random_costs=column.random_costs,
        notes=(
            *_notes(bench, column, theirs, quick, epochs, fold),
            *_network_notes(published, chosen),
            *bench.notes,
        ),
        command=command,
    )
    ways = {one: _ways(item, places[one]) for one in chosen}
    points = [transfer_point(bench, _NAME, one, way) for one in chosen for way in ways[one]]
    with bench.locked():
        found = iter(bench.measure(points))
        measured = {one: [next(found) for _ in ways[one]] for one in chosen}
        if item == "table1":
            return show_table(shown, measured)
        if item == "pretrained":
            return show_pretrained(shown, measured)
        if item == "weights":
            return show_weights(shown, measured)
        if item == "similarity":
            return show_similarity(shown, measured)
        return show_blocks(shown, measured, places)


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
        names = tuple(_PAPERS)[: 1 if item in _ONE_NETWORK else None]
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
    if item in ("pretrained", "weights", "similarity"):
        return (Way(pretrained=0), Way())
    if item == "fusing":
        return tuple(Way(pretrained=k) for k in places)
    if item == "freezing":
        return tuple(Way(frozen=k) for k in places)
    return tuple(Way(kept=k) for k in places)


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


# What a reader must know


def _plain(network: ChosenNetwork) -> str:
    """timm's name without the tag of a training."""
    return network.architecture.partition(".")[0]


def _beside(
    column: _Column, networks: Sequence[ChosenNetwork]
) -> dict[ChosenNetwork, PublishedNetwork]:
    """What the paper says of networks that are its own, or near enough to stand beside one."""
    by_name = {one.name: one for one in column.published}
    names = {one: _PAPERS.get(_plain(one)) or _STAND_INS.get(_plain(one)) for one in networks}
    return {one: by_name[name] for one, name in names.items() if name is not None}


def _network_notes(
    published: Mapping[ChosenNetwork, PublishedNetwork], networks: Sequence[ChosenNetwork]
) -> list[str]:
    notes = []
    for one in networks:
        if one not in published:
            notes.append(f"{one.architecture} is not one of the paper's networks.")
        elif _plain(one) not in _PAPERS:
            notes.append(f"{one.architecture} stands in for {published[one].name} and is not it.")
        if one.file is not None:
            notes.append(
                f"ImageNet weights of {one.architecture}: {one.file.name}, SHA-256 "
                f"{file_sha256(one.file)[:16]}...; the paper used those of torchvision."
            )
    return notes


def _notes(
    bench: Bench,
    column: _Column,
    theirs: bool,
    quick: bool,
    epochs: int | None,
    fold: str | None,
) -> list[str]:
    notes = [f"{bench.data_text()}; 95 % intervals over sources."]
    if not theirs:
        notes.append(
            f"Published numbers are of other data, {column.title}: their differences can be "
            "compared with ours, their accuracies cannot."
        )
    ours, paper = bench.recipe, load_recipe(column.recipe, _settings(theirs))
    # Networks and weights are told by themselves.
    assert isinstance(ours.model, TimmConfig)
    network = paper.model.model_copy(update={"architecture": ours.model.architecture})
    start = {"model": network, "initialization": ours.initialization}
    paper = paper.model_copy(update=start)
    notes += change_notes(paper, ours, quick=quick, epochs=epochs, of_epochs=_EPOCHS)
    if quick and fold is not None:
        notes.append(f"Only fold {fold} is tested.")
    notes.append(
        "The authors' program keeps the best epoch on the test part; here the last one counts."
    )
    return notes + seed_notes(bench.seeds)
