"""What a study of transfer shows: its table, its figures and its analyses, beside a paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stapes.config import TimmConfig
from stapes.evaluation.bootstrap import Interval
from stapes.studies.figures import Series, draw_series, save_figure
from stapes.studies.points import Bench, Measured, differences
from stapes.studies.study import StudyResult, thousands, verdict, write_tables
from stapes.studies.transfer_analysis import SIMILARITY_MEASURES, similarities, weight_changes
from stapes.studies.transfer_points import ChosenNetwork, block_names, folder_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Found",
    "PublishedNetwork",
    "Shown",
    "show_blocks",
    "show_pretrained",
    "show_similarity",
    "show_table",
    "show_weights",
]

Found = Mapping[ChosenNetwork, Sequence[Measured]]


@dataclass(frozen=True)
class PublishedNetwork:
    """What a paper says of a network on one corpus, in percent.

    Attributes:
        name: in the paper.
        accuracy: of single networks, their mean.
        spread: over runs, as the paper prints it behind the plus-minus sign.
        ensemble: of several runs; none where our source is not clear.
    """

    name: str
    accuracy: float
    spread: float
    ensemble: float | None = None


@dataclass(frozen=True)
class Shown:
    """One item of a study, about to be shown.

    Attributes:
        study: name.
        item: such as ``"table1"``.
        title: what the item shows.
        bench: that the networks were measured on.
        corpus: whose published numbers stand beside ours.
        published: by the networks here; a name other than the paper's stands in for one of its.
        exact: networks that are the paper's own.
        members: of the paper's ensembles.
        random_costs: points that random weights lose in the paper.
        notes: what a reader must know.
        command: that was typed.
    """

    study: str
    item: str
    title: str
    bench: Bench
    corpus: str
    published: Mapping[ChosenNetwork, PublishedNetwork]
    exact: frozenset[ChosenNetwork]
    members: int
    random_costs: float
    notes: tuple[str, ...]
    command: str

    def result(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        text_columns: Iterable[int],
        records: Sequence[Mapping[str, Any]],
        statements: Sequence[str],
        figures: Mapping[str, Figure],
    ) -> StudyResult:
        """Write the tables and the figures, by their files' stems, and hand them back."""
        title = f"{self.study}, {self.item}: {self.title}"
        folder = self.bench.run.folder
        numeric = frozenset(range(len(header))) - set(text_columns)
        files: tuple[Path, ...] = ()
        if self.bench.run.accelerator.is_main_process:
            files = write_tables(
                folder, self.item, title, header, rows, numeric, records,
                below=[*statements, *self.notes], command=self.command,
                figures=[f"{stem}.svg" for stem in figures],
            )  # fmt: skip
            for stem, figure in figures.items():
                files = (*files, *save_figure(figure, folder / stem))
        return StudyResult(
            self.study, self.item, title, folder, tuple(header), tuple(tuple(row) for row in rows),
            numeric, tuple(records), tuple(statements), self.notes, files,
        )  # fmt: skip


def show_table(shown: Shown, found: Found) -> StudyResult:
    """Single networks and their ensembles."""
    n_seeds = len(shown.bench.seeds)
    header = ("network", "parameters", "single published", "ours", f"ensemble of {shown.members} "
              "published", f"ours of {n_seeds}", "gain, points", "agreement")  # fmt: skip
    rows, records, statements = [], [], []
    for network, (one,) in found.items():
        published = shown.published.get(network)
        rows.append(
            (
                network.architecture,
                thousands(one.parameters),
                _published(shown, network),
                _with_spread(one),
                ""
                if published is None or published.ensemble is None
                else f"{published.ensemble:.2f} %",
                one.ensemble_accuracy.percent() if n_seeds > 1 else "",
                one.ensemble_gain.points() if n_seeds > 1 else "",
                "" if one.agreement is None else f"{100 * one.agreement:.1f} %",
            )
        )
        records.append(_record(shown, network, one, None))
        if n_seeds > 1:
            statements.append(
                f"{network.architecture}: the mean of {n_seeds} networks' probabilities against "
                f"single ones: {one.ensemble_gain.points()} points, {verdict(one.ensemble_gain)}."
            )
    if n_seeds > 1:
        statements.append(
            "Agreement: part of the clips that two networks of different seeds name alike, mean "
            "over the pairs."
        )
    return shown.result(header, rows, {0}, records, statements, {})


def show_pretrained(shown: Shown, found: Found) -> StudyResult:
    """Random weights, then ImageNet weights, of each network."""
    header = ("network", "weights", "published", "accuracy", "cost of random weights published",
              "ours, points", "seconds")  # fmt: skip
    costs = shown.random_costs
    rows, records, statements = [], [], []
    for network, (drawn, taken) in found.items():
        gap = differences([drawn], [taken], shown.bench.groups)
        rows += [
            (network.architecture, "ImageNet", _published(shown, network), _with_spread(taken),
             "", "", _seconds(taken)),
            (network.architecture, "random", "", _with_spread(drawn), f"about {costs:g}",
             gap.points(), _seconds(drawn)),
        ]  # fmt: skip
        records += [_record(shown, network, taken, gap), _record(shown, network, drawn, None)]
        statements.append(
            f"{network.architecture}: ImageNet weights against random ones: {gap.points()} points, "
            f"{verdict(gap)}; the paper: about {costs:g} on {shown.corpus}."
        )
    figure = draw_series(
        [
            Series(network.architecture, (0.0, 1.0), tuple(one.accuracy for one in ones))
            for network, ones in found.items()
        ],
        title="Accuracy from random and from ImageNet weights",
        caption=f"{shown.bench.data_text()}; bars: 95 % intervals over sources",
        x_label="weights that training starts from",
        ticks={0.0: "random", 1.0: "ImageNet"},
    )
    return shown.result(header, rows, {0, 1}, records, statements, {shown.item: figure})


_TITLES = MappingProxyType(
    {
        "fusing": "ImageNet weights up to a block, random ones behind it",
        "freezing": "ImageNet weights, frozen up to a block",
        "truncation": "Pretrained networks cut after a block",
    }
)
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


def show_blocks(
    shown: Shown, found: Found, places: Mapping[ChosenNetwork, Sequence[int]]
) -> StudyResult:
    """Networks that are alike up to some block; ``places`` says which block of which network."""
    header = ("network", "blocks", "up to", "parameters", "accuracy",
              f"against {_REFERENCES[shown.item]}, points", "seconds")  # fmt: skip
    rows, records, statements = [], [], []
    for network, ones in found.items():
        names = ("", *block_names(network.architecture))
        whole = 0 if shown.item == "freezing" else len(names) - 1
        by_place = dict(zip(places[network], ones, strict=True))
        for k, one in by_place.items():
            gap = None
            if whole in by_place and k != whole:
                gap = differences([by_place[whole]], [one], shown.bench.groups)
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
            records.append(_record(shown, network, one, gap, k, names[k]))
        statements += _steps(shown, network, by_place)
    ticks = sorted({k for ks in places.values() for k in ks})
    figure = draw_series(
        [
            Series(network.architecture, tuple(places[network]), tuple(o.accuracy for o in ones))
            for network, ones in found.items()
        ],
        title=_TITLES[shown.item],
        caption=f"{shown.bench.data_text()}; bars: 95 % intervals over sources",
        x_label=_AXES[shown.item],
        ticks={float(k): str(k) for k in ticks},
    )
    return shown.result(header, rows, {0, 2}, records, statements, {shown.item: figure})


def _steps(shown: Shown, network: ChosenNetwork, by_place: Mapping[int, Measured]) -> list[str]:
    """The whole way from the first place to the last, and the largest step on it."""
    ks = list(by_place)
    if len(ks) < 2:
        return []

    def step(a: int, b: int) -> Interval:
        return differences([by_place[a]], [by_place[b]], shown.bench.groups)

    def say(a: int, b: int) -> str:
        gap = step(a, b)
        return f"from {a} to {b} blocks {gap.points()} points, {verdict(gap)}"

    text = f"{network.architecture}, {shown.item}: {say(ks[0], ks[-1])}"
    if len(ks) > 2:
        sizes = {(a, b): abs(step(a, b).value) for a, b in pairwise(ks)}
        text += f"; the largest step is {say(*max(sizes, key=lambda pair: sizes[pair]))}"
    return [f"{text}."]


def show_weights(shown: Shown, found: Found) -> StudyResult:
    """How far training moved each layer; both ways to start, as for :func:`show_pretrained`."""
    header = ("network", "block", "up to", "layers", "change from ImageNet weights",
              "from random ones")  # fmt: skip
    rows, records, statements, figures = [], [], [], {}
    n_models = len(shown.bench.splits) * len(shown.bench.seeds)
    for network, ones in found.items():
        drawn, taken = (weight_changes(shown.bench, one.point) for one in ones)
        names = (*block_names(network.architecture), "head")
        for k, name in enumerate(names[:-1]):
            counted = sum(layer.block == k for layer in taken.layers)
            texts = [_ranged(change.blocks[k], n_models) for change in (taken, drawn)]
            rows.append((network.architecture, str(k + 1), name, str(counted), *texts))
        for weights, change in (("imagenet", taken), ("random", drawn)):
            records += [
                {"network": network.architecture, "weights": weights, "layer": layer.name,
                 "kind": layer.kind, "block": layer.block + 1, "parameters": layer.parameters,
                 "relative": layer.relative.value, "relative_lowest": layer.relative.low,
                 "relative_highest": layer.relative.high, "cosine": layer.cosine,
                 "mean_absolute": layer.mean_absolute, "models": n_models}
                for layer in change.layers
            ]  # fmt: skip
        known = {k: block.value for k, block in enumerate(taken.blocks) if block is not None}
        most, least = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        statements.append(
            f"{network.architecture}: fine-tuning moves block {most + 1} the most "
            f"({100 * known[most]:.1f} %) and block {least + 1} the least "
            f"({100 * known[least]:.1f} %)."
        )
        starts: dict[int, int] = {}
        for number, layer in enumerate(taken.layers):
            starts.setdefault(layer.block, number)
        figures[f"weights-{folder_name(network)}"] = draw_series(
            [
                Series(f"from {weights} weights", tuple(float(i) for i in range(len(c.layers))),
                       tuple(layer.relative for layer in c.layers))
                for weights, c in (("ImageNet", taken), ("random", drawn))
            ],
            title=f"{network.architecture}: change of weights by training",
            caption=f"{shown.bench.data_text()}; bars: lowest and highest of {n_models} models",
            x_label="convolutions and linear layers from input to output; marked: where a block "
            "begins",
            ticks={float(start): f"{block + 1}" for block, start in starts.items()},
            y_label="norm of the change, part of the norm before",
        )  # fmt: skip
    statements.append(
        "The change is |after - before| / |before| of a layer's weights, of a block the root mean "
        "square over its convolutions and linear layers; the new head is left out."
    )
    return shown.result(header, rows, {0, 2}, records, statements, figures)


def _ranged(value: Interval | None, n: int) -> str:
    if value is None:
        return ""
    text = f"{100 * value.value:.1f} %"
    return text if n == 1 else f"{text} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def show_similarity(shown: Shown, found: Found) -> StudyResult:
    """What blocks answer before and after training; as for :func:`show_pretrained`."""
    header = ("network", "compared", "block", "up to", "SVCCA", "by chance", "linear CKA",
              "by chance")  # fmt: skip
    rows, records, statements, figures = [], [], [], {}
    for network, (drawn, taken) in found.items():
        compared = similarities(shown.bench, drawn.point, taken.point)
        names = block_names(network.architecture)
        for pair in compared.pairs:
            for k, name in enumerate(names):
                values = {key: float(getattr(pair, key)[k]) for key in SIMILARITY_MEASURES}
                rows.append((network.architecture, pair.text, str(k + 1), name,
                             *(_number(v) for v in values.values())))  # fmt: skip
                records.append(
                    {"network": network.architecture, "compared": pair.text, "block": k + 1,
                     "up_to": name, **values, "recordings": compared.n_recordings}
                )  # fmt: skip
        statements.append(
            f"{network.architecture}: compared on {compared.n_recordings} test recordings of fold "
            f"{compared.split}, seed {compared.seed}; by chance: of unrelated representations "
            "of the same size, values near it say nothing."
        )
        for key, words in (("svcca", "SVCCA"), ("linear_cka", "linear CKA")):
            figures[f"similarity-{folder_name(network)}-{key}"] = draw_series(
                [
                    Series(pair.text, tuple(float(k + 1) for k, _ in seen),
                           tuple(Interval(v, v, v) for _, v in seen))
                    for pair in compared.pairs
                    if (seen := [(k, float(v)) for k, v in enumerate(getattr(pair, key))
                                 if v == v])
                ],
                title=f"{network.architecture}: similarity of representations, {words}",
                caption=f"{shown.bench.run.dataset.name}, {compared.n_recordings} recordings",
                x_label="block",
                ticks={float(k + 1): f"{k + 1}" for k in range(len(names))},
                y_label=words,
                percent=False,
            )  # fmt: skip
    return shown.result(header, rows, {0, 1, 3}, records, statements, figures)


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"


def _published(shown: Shown, network: ChosenNetwork) -> str:
    """The paper's number, with the name of its network where ours only stands in for that."""
    published = shown.published.get(network)
    if published is None:
        return ""
    text = f"{published.accuracy:.2f} ± {published.spread:.2f} %"
    return text if network in shown.exact else f"{text} ({published.name})"


def _with_spread(one: Measured) -> str:
    text = one.accuracy.percent()
    return text if one.by_seed.sd is None else f"{text} ± {100 * one.by_seed.sd:.2f}"


def _seconds(one: Measured) -> str:
    return f"{one.seconds:.0f}"


def _record(
    shown: Shown,
    network: ChosenNetwork,
    one: Measured,
    gap: Interval | None,
    k: int | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    published = shown.published.get(network)
    several = len(shown.bench.seeds) > 1
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
        "published_network": published.name if published else None,
        "published_accuracy": published.accuracy / 100 if published else None,
        "published_spread": published.spread / 100 if published else None,
        "published_ensemble": (
            published.ensemble / 100 if published and published.ensemble else None
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
        "agreement": one.agreement,
        "seconds": one.seconds,
        "clips": len(shown.bench.tested),
        "sources": len(set(shown.bench.groups)),
        "folds": len(shown.bench.splits),
        "seeds": len(shown.bench.seeds),
    }
