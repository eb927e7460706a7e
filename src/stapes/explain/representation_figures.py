"""Pictures of what training did to a network: to its weights and to its representations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stapes.explain.figures import GRID, INK, MUTED, check_figure_name, plain_axes, write_figure
from stapes.explain.representations import Floats, PairSimilarity, Representations
from stapes.explain.weight_change import LayerChange, WeightChange

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

__all__ = ["draw_similarity", "draw_weight_change"]

# Told apart by the colour-blind too, and by marker.
_COLOURS = ("#0b6e99", "#c8553d", "#6a8f3c", "#7a5195", "#b8860b", "#4a4e57")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MATRICES = 6  # pairs whose matrices are drawn
_WRITTEN = 8  # blocks up to which the numbers are written into a matrix


def draw_weight_change(found: WeightChange, path: str | Path, *, title: str = "") -> None:
    """Draw the relative change of every layer, in the order of depth, and write it atomically.

    Above convolutions and linear layers, with the mean of each block as a line; below, if there are
    any, normalisation and other layers, which change on another scale. A cross marks a layer that
    was all zeros before, which has no relative change.

    Args:
        found: what changed.
        path: ``.png``, ``.svg`` or ``.pdf``.
        title: over the figure, such as the model's name.

    Raises:
        StapesError: another ending, or the place cannot be written to.
    """
    from matplotlib.figure import Figure

    check_figure_name(path)
    weights = [x for x in found.layers if x.kind in ("convolution", "linear")]
    others = [x for x in found.layers if x.kind not in ("convolution", "linear")]
    parts = [
        ("convolutions and linear layers", weights, found.by_block(), _COLOURS[0]),
        ("normalisation and other layers", others, None, _COLOURS[1]),
    ]
    parts = [part for part in parts if part[1]]
    figure = Figure(figsize=(9.0, 1.2 + 2.9 * len(parts)), layout="constrained")
    for row, (name, layers, means, colour) in enumerate(parts):
        axes = figure.add_subplot(len(parts), 1, row + 1)
        _layers(axes, layers, means, colour)
        _blocks_below(axes, layers, [*found.blocks, "head"])
        axes.set_ylabel("|after - before| / |before|", color=MUTED)
        axes.set_title(name, color=colour, fontsize=11, loc="left")
        plain_axes(axes)
        axes.tick_params(axis="x", length=0)
    if title:
        figure.suptitle(title, color=INK, fontsize=12)
    write_figure(figure, path)


def _layers(
    axes: Axes,
    layers: Sequence[LayerChange],
    means: Sequence[float | None] | None,
    colour: str,
) -> None:
    places = np.arange(len(layers))
    heights = [layer.relative for layer in layers]
    axes.bar(places, [height or 0 for height in heights], width=0.8, color=colour, alpha=0.75)
    zero = [place for place, height in zip(places, heights, strict=True) if height is None]
    if zero:
        # At the foot of the axes: they have no height.
        axes.plot(
            zero, [0.03] * len(zero), "x", color=MUTED, markersize=5, clip_on=False,
            transform=axes.get_xaxis_transform(), label="all zeros before",
        )  # fmt: skip
    if means:
        spans = [_span(layers, block) for block, mean in enumerate(means) if mean is not None]
        axes.hlines(
            [mean for mean in means if mean is not None],
            [first - 0.5 for first, _ in spans], [last + 0.5 for _, last in spans],
            color=INK, linewidth=1.6, label="root mean square of a block",
        )  # fmt: skip
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9, labelcolor=MUTED, loc="upper left")
    axes.set_xlim(-0.7, len(layers) - 0.3)
    top = max((height for height in heights if height is not None), default=0)
    axes.set_ylim(0, 1.15 * top or 1)


def _span(layers: Sequence[LayerChange], block: int) -> tuple[int, int]:
    """First and last place of a block's layers, which stand side by side."""
    places = [place for place, layer in enumerate(layers) if layer.block == block]
    return places[0], places[-1]


def _blocks_below(axes: Axes, layers: Sequence[LayerChange], names: Sequence[str]) -> None:
    """Bands behind the layers of each block, and its name under them."""
    ticks, labels = [], []
    short = _short(names)
    for block in sorted({layer.block for layer in layers}):
        first, last = _span(layers, block)
        if block % 2:
            axes.axvspan(first - 0.5, last + 0.5, color=GRID, alpha=0.35, linewidth=0, zorder=0)
        ticks.append((first + last) / 2)
        labels.append(short[block])
    axes.set_xticks(ticks, labels, rotation=30, ha="right", rotation_mode="anchor")


def _short(names: Sequence[str]) -> list[str]:
    # Of the networks of timm the outer modules, which hold all blocks.
    return [name.removeprefix("body.").removeprefix("features.") for name in names]


def draw_similarity(found: Representations, path: str | Path, *, title: str = "") -> None:
    """Draw how alike networks are, block by block, and write it atomically.

    Above, for pairs whose blocks have the same names, both measures over depth, with what chance
    alone gives as dotted lines. Below, every block against every block of each pair, the first six.

    Args:
        found: what was compared.
        path: ``.png``, ``.svg`` or ``.pdf``.
        title: over the figure.

    Raises:
        StapesError: another ending, or the place cannot be written to.
    """
    from matplotlib.figure import Figure

    check_figure_name(path)
    matched = [pair for pair in found.pairs if found.matched(pair)]
    drawn = found.pairs[:_MATRICES]
    # Squares of equal size, so a figure as wide as its pairs need.
    width = max(9.0, 1.2 + 3.4 * len(drawn))
    heights = ([3.6] if matched else []) + [6.6]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts: list[SubFigure] = list(
        figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    )
    if matched:
        _lines(parts[0], found, matched)
    _matrices(parts[-1], found, drawn)
    if title:
        figure.suptitle(title, color=INK, fontsize=12)
    write_figure(figure, path)


def _lines(
    figure: Figure | SubFigure, found: Representations, pairs: Sequence[PairSimilarity]
) -> None:
    longest = max((found.matched(pair) for pair in pairs), key=len)
    for column, (measure, name) in enumerate((("svcca", "SVCCA"), ("linear_cka", "linear CKA"))):
        axes = figure.add_subplot(1, 2, column + 1)
        for i, pair in enumerate(pairs):
            count = len(found.matched(pair))
            colour = _COLOURS[i % len(_COLOURS)]
            axes.plot(
                np.arange(count), np.diag(getattr(pair, measure))[:count],
                color=colour, marker=_MARKERS[i % len(_MARKERS)], markersize=5, linewidth=1.7,
                label=f"{pair.first} and {pair.second}",
            )  # fmt: skip
            axes.plot(
                np.arange(count), np.diag(getattr(pair, f"{measure}_by_chance"))[:count],
                color=colour, linestyle=(0, (1, 2)), linewidth=1.2,
                label="by chance" if i == len(pairs) - 1 else None,
            )  # fmt: skip
        axes.set_xticks(
            np.arange(len(longest)), _short(longest), rotation=30, ha="right",
            rotation_mode="anchor",
        )  # fmt: skip
        axes.set_xlim(-0.25, len(longest) - 0.75)
        axes.set_ylim(0, 1.03)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(name, color=INK, fontsize=11, loc="left")
        plain_axes(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9,
        labelcolor=MUTED,
    )  # fmt: skip


def _matrices(
    figure: Figure | SubFigure, found: Representations, pairs: Sequence[PairSimilarity]
) -> None:
    image = None
    for column, pair in enumerate(pairs):
        for row, (measure, name) in enumerate((("svcca", "SVCCA"), ("linear_cka", "linear CKA"))):
            axes = figure.add_subplot(2, len(pairs), row * len(pairs) + column + 1)
            image = _matrix(axes, getattr(pair, measure))
            down, across = _short(found.blocks[pair.first]), _short(found.blocks[pair.second])
            axes.set_xticks(
                np.arange(len(across)), across if row else [""] * len(across), rotation=30,
                ha="right", rotation_mode="anchor",
            )  # fmt: skip
            axes.set_yticks(np.arange(len(down)), down)
            axes.set_ylabel(pair.first, color=MUTED)
            if row:
                axes.set_xlabel(pair.second, color=MUTED)
            axes.set_title(name, color=INK, fontsize=10, loc="left")
            axes.tick_params(color=GRID, labelcolor=MUTED, labelsize=8.5, length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=figure.axes, shrink=0.6, pad=0.02)
        bar.ax.tick_params(labelsize=9, labelcolor=MUTED, color=GRID)
        bar.set_label("similarity", color=MUTED, fontsize=9)
        bar.outline.set_visible(False)


def _matrix(axes: Axes, values: Floats) -> AxesImage:
    axes.set_facecolor(GRID)  # shows where there is no number
    image = axes.imshow(values, cmap="magma", vmin=0, vmax=1, interpolation="none")
    if max(values.shape) <= _WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(
                    column, row, f"{value:.2f}".removeprefix("0") if value < 0.995 else "1",
                    ha="center", va="center", fontsize=8,
                    color="black" if value > 0.6 else "white",
                )  # fmt: skip
    return image
