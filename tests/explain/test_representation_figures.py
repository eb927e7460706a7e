"""Figures of changes and similarities: what they show, for results of every kind."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from stapes.errors import StapesError
from stapes.explain import representation_figures
from stapes.explain.representation_figures import draw_similarity, draw_weight_change
from stapes.explain.representations import PairSimilarity, Representations
from stapes.explain.weight_change import LayerChange, WeightChange

BLOCKS = ("body.act1", "body.layer1", "body.layer2")


def layer(name: str, kind: Any, block: int, relative: float | None) -> LayerChange:
    return LayerChange(name, kind, block, 10, relative, 0.5, 0.1)


CHANGE = WeightChange(
    (
        layer("conv1", "convolution", 0, 0.1),
        layer("bn1", "normalization", 0, None),
        layer("a", "convolution", 1, 0.3),
        layer("b", "convolution", 1, 0.4),
        layer("bn2", "normalization", 1, 0.02),
        layer("fc", "linear", 3, 1.5),
    ),
    BLOCKS,
    {"x": "gone"},
)


def pair(first: str, second: str, rows: int, columns: int, seed: int) -> PairSimilarity:
    rng = np.random.default_rng(seed)
    return PairSimilarity(first, second, *rng.uniform(0, 1, (4, rows, columns)))


def similarities(n: int) -> Representations:
    """Networks a, b, ... of three blocks, and one of another kind."""
    names = [chr(ord("a") + i) for i in range(n)]
    pairs = [pair(a, b, 3, 3, i) for i, (a, b) in enumerate(pairwise(names))]
    pairs[0].svcca[1, 1] = np.nan
    return Representations(
        blocks={**dict.fromkeys(names, BLOCKS), "other": ("one", "two")},
        features={},
        directions={},
        pairs=(*pairs, pair("a", "other", 3, 2, 99)),
        n_recordings=5,
        n_examples=5,
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    figures: list[Figure] = []
    write = representation_figures.write_figure

    def kept(figure: Figure, path: Path) -> None:
        figures.append(figure)
        write(figure, path)

    monkeypatch.setattr(representation_figures, "write_figure", kept)
    return figures


def test_a_bar_for_every_layer_in_the_order_of_depth(drawn: list[Figure], tmp_path: Path) -> None:
    draw_weight_change(CHANGE, tmp_path / "change.png", title="mine")
    above, below = drawn[0].axes
    assert [bar.get_height() for bar in above.containers[0]] == [0.1, 0.3, 0.4, 1.5]
    assert [bar.get_height() for bar in below.containers[0]] == [0, 0.02]
    (means,) = [c for c in above.collections if c.get_label() == "root mean square of a block"]
    lines = means.get_segments()
    assert [line[0][1] for line in lines] == pytest.approx([0.1, 0.125**0.5, 1.5])
    assert [(line[0][0], line[1][0]) for line in lines] == [(-0.5, 0.5), (0.5, 2.5), (2.5, 3.5)]
    assert [t.get_text() for t in above.get_xticklabels()] == ["act1", "layer1", "head"]
    (cross,) = below.lines  # zeros before
    assert cross.get_xdata() == [0]
    assert cross.get_label() == "all zeros before"
    assert not above.lines


def test_without_normalisation_there_is_one_part(drawn: list[Figure], tmp_path: Path) -> None:
    layers = tuple(x for x in CHANGE.layers if x.kind != "normalization")
    draw_weight_change(replace(CHANGE, layers=layers), tmp_path / "change.svg")
    assert len(drawn[0].axes) == 1
    nothing = tuple(replace(x, relative=0.0) for x in layers)
    draw_weight_change(replace(CHANGE, layers=nothing), tmp_path / "change.svg")
    assert drawn[1].axes[0].get_ylim() == (0, 1)


def test_lines_of_matched_blocks_and_a_matrix_for_every_pair(
    drawn: list[Figure], tmp_path: Path
) -> None:
    found = similarities(3)
    draw_similarity(found, tmp_path / "similarity.png", title="mine")
    lines, matrices = drawn[0].subfigs
    for axes, measure in zip(lines.axes, ("svcca", "linear_cka"), strict=True):
        by_label = [line for line in axes.lines if str(line.get_label()).find(" and ") > 0]
        assert [line.get_label() for line in by_label] == ["a and b", "b and c"]
        for line, one in zip(by_label, found.pairs[:2], strict=True):
            np.testing.assert_array_equal(line.get_ydata(), np.diag(getattr(one, measure)))
    images = [axes.images[0].get_array() for axes in matrices.axes if axes.images]
    for k, one in enumerate(found.pairs):
        np.testing.assert_array_equal(np.ma.filled(images[2 * k], np.nan), one.svcca)
        np.testing.assert_array_equal(np.ma.filled(images[2 * k + 1], np.nan), one.linear_cka)


def test_networks_of_another_kind_have_matrices_only(drawn: list[Figure], tmp_path: Path) -> None:
    found = similarities(2)
    draw_similarity(replace(found, pairs=found.pairs[-1:]), tmp_path / "similarity.pdf")
    (matrices,) = drawn[0].subfigs
    assert sum(bool(axes.images) for axes in matrices.axes) == 2
    draw_similarity(similarities(9), tmp_path / "similarity.pdf")
    assert sum(bool(axes.images) for axes in drawn[1].subfigs[-1].axes) == 12


def test_equal_figures_are_equal_files_and_endings_are_checked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw_weight_change(CHANGE, tmp_path / f"w{name}.svg")
        draw_similarity(similarities(3), tmp_path / f"s{name}.svg")
    for kind in "ws":
        first, second = (tmp_path / f"{kind}{name}.svg" for name in "ab")
        assert first.read_bytes() == second.read_bytes()
    with pytest.raises(StapesError, match=r"must end in \.png"):
        draw_weight_change(CHANGE, tmp_path / "a.jpg")
    with pytest.raises(StapesError, match=r"must end in \.png"):
        draw_similarity(similarities(2), tmp_path / "a.gif")
