"""What training did to the networks of a study of transfer: to weights and to representations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stapes.evaluation.bootstrap import Interval
from stapes.explain.representations import compare_representations
from stapes.explain.weight_change import LayerChange, WeightChange, weight_change
from stapes.studies.points import Bench, Point

__all__ = [
    "SIMILARITY_MEASURES",
    "ComparedPair",
    "MovedLayer",
    "MovedWeights",
    "Similarities",
    "similarities",
    "weight_changes",
]

SIMILARITY_MEASURES = ("svcca", "svcca_by_chance", "linear_cka", "linear_cka_by_chance")
_MOST_RECORDINGS = 400


@dataclass(frozen=True)
class MovedLayer:
    """One convolution or linear layer before and after training, over several models.

    Attributes:
        name, kind, block, parameters: see :class:`stapes.explain.weight_change.LayerChange`.
        relative: mean, lowest and highest of ``|after - before| / |before|``.
        cosine: mean; none where it is not defined.
        mean_absolute: mean.
    """

    name: str
    kind: str
    block: int
    parameters: int
    relative: Interval
    cosine: float | None
    mean_absolute: float


@dataclass(frozen=True)
class MovedWeights:
    """How far training moved the weights of a network.

    Attributes:
        layers: convolutions and linear layers from input to output, less the new head.
        blocks: mean, lowest and highest of each block; none where it has no such layer.
    """

    layers: tuple[MovedLayer, ...]
    blocks: tuple[Interval | None, ...]


def weight_changes(bench: Bench, point: Point) -> MovedWeights:
    """Compare every model of a point with the weights that its training started from."""
    found: list[WeightChange] = []
    for split in bench.splits:
        for seed in bench.seeds:
            before = bench.untrained(point, split, seed).network
            found.append(weight_change(before, bench.trained(point, split, seed).network))
    head = len(found[0].blocks)
    by_name: dict[str, list[LayerChange]] = {}
    for change in found:
        for layer in change.layers:
            known = layer.kind in ("convolution", "linear") and layer.relative is not None
            if known and layer.block < head:
                by_name.setdefault(layer.name, []).append(layer)
    layers = tuple(
        MovedLayer(
            name=name,
            kind=same[0].kind,
            block=same[0].block,
            parameters=same[0].parameters,
            relative=_range([x.relative for x in same if x.relative is not None]),
            cosine=_mean([x.cosine for x in same if x.cosine is not None]),
            mean_absolute=float(np.mean([x.mean_absolute for x in same])),
        )
        for name, same in by_name.items()
    )
    each = [change.by_block() for change in found]
    blocks = []
    for k in range(head):
        values = [row[k] for row in each]
        known_values = [value for value in values if value is not None]
        blocks.append(_range(known_values) if known_values else None)
    return MovedWeights(layers, tuple(blocks))


def _range(values: Sequence[float]) -> Interval:
    return Interval(float(np.mean(values)), min(values), max(values))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


@dataclass(frozen=True, eq=False)
class ComparedPair:
    """Two networks, block by block; NaN where a block answers the same to everything.

    Attributes:
        text: which two.
        svcca, svcca_by_chance, linear_cka, linear_cka_by_chance: (K,), see
            :mod:`stapes.explain.similarity`.
    """

    text: str
    svcca: NDArray[np.float64]
    svcca_by_chance: NDArray[np.float64]
    linear_cka: NDArray[np.float64]
    linear_cka_by_chance: NDArray[np.float64]


@dataclass(frozen=True)
class Similarities:
    """What was compared, on how much.

    Attributes:
        pairs: of networks.
        n_recordings: that all of them heard.
        split: whose test part these are of, and whose networks were taken.
        seed: of the networks.
    """

    pairs: tuple[ComparedPair, ...]
    n_recordings: int
    split: str
    seed: int


def similarities(bench: Bench, drawn: Point, taken: Point) -> Similarities:
    """Compare a network before and after training, from ImageNet weights and from random ones.

    The networks of the first split and seed answer to its test recordings, at most 400 of them,
    evenly spread. With two seeds or more, the fine-tuned networks of the first two are compared,
    too: what only the seed changes.

    Args:
        bench: on which both points are measured.
        drawn: the point of random weights.
        taken: the point of ImageNet weights.
    """
    split, seed = bench.splits[0], bench.seeds[0]
    models = {
        "ImageNet weights": bench.untrained(taken, split, seed),
        "fine-tuned": bench.trained(taken, split, seed),
        "random weights": bench.untrained(drawn, split, seed),
        "trained from random": bench.trained(drawn, split, seed),
    }
    wanted = {
        ("ImageNet weights", "fine-tuned"): "fine-tuned and before",
        ("random weights", "trained from random"): "from random weights and before",
        ("fine-tuned", "trained from random"): "fine-tuned and from random weights",
        ("ImageNet weights", "random weights"): "ImageNet and random weights, untrained",
    }
    if len(bench.seeds) > 1:
        models["other seed"] = bench.trained(taken, split, bench.seeds[1])
        wanted["fine-tuned", "other seed"] = "fine-tuned from two seeds"
    n = min(_MOST_RECORDINGS, len(split.test))
    chosen = split.test[np.linspace(0, len(split.test) - 1, n).round().astype(int)]
    reporter = bench.run.reporter
    found = compare_representations(
        models,
        [bench.run.dataset.clips[i] for i in chosen],
        progress=lambda done, total: reporter.progress("Comparing networks", done, total),
    )
    by_names = {(pair.first, pair.second): pair for pair in found.pairs}
    pairs = tuple(
        ComparedPair(text, *(getattr(by_names[names], key).diagonal() for key in
                             SIMILARITY_MEASURES))
        for names, text in wanted.items()
    )  # fmt: skip
    return Similarities(pairs, found.n_recordings, split.name, seed)
