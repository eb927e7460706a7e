"""Figures of a study, as files: SVG for pages and papers, PNG for everything else."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from stapes.evaluation.bootstrap import Interval
from stapes.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Series", "draw_series", "save_figure"]

# Okabe and Ito, "Color Universal Design" (2008): told apart by colour-blind readers too.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Series:
    """One line: values with their intervals over the horizontal axis.

    Attributes:
        label: in the legend.
        x: places, rising.
        values: as many, such as accuracies from 0 to 1.
    """

    label: str
    x: tuple[float, ...]
    values: tuple[Interval, ...]


def draw_series(
    series: Sequence[Series],
    *,
    title: str,
    caption: str,
    x_label: str,
    ticks: Mapping[float, str],
    top_label: str = "",
    top_ticks: Mapping[float, str] | None = None,
    y_label: str = "accuracy",
    percent: bool = True,
) -> Figure:
    """Values over one quantity, a line a series, their intervals as bars.

    Args:
        series: one or more.
        title: in bold above it.
        caption: under the title, such as the data and the number of clips.
        x_label: of the horizontal axis.
        ticks: place to text.
        top_label: of a second horizontal axis above, for the same places.
        top_ticks: place to text; none: no such axis.
        y_label: of the vertical axis.
        percent: show a value of 1 as 100 %.
    """
    from matplotlib.figure import Figure  # the object API: no pyplot, no state of its own

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    places = sorted({x for one in series for x in one.x})
    unit = 100 if percent else 1
    gaps = [b - a for a, b in pairwise(places)]
    # Points of one place stand side by side, so that their intervals can be told apart.
    step = min(0.35 * min(gaps, default=1.0) / max(1, len(series) - 1), 0.012 * _span(places))
    for i, one in enumerate(series):
        shift = step * (i - (len(series) - 1) / 2)
        x = [place + shift for place in one.x]
        y = [unit * a.value for a in one.values]
        low = [unit * (a.value - a.low) for a in one.values]
        high = [unit * (a.high - a.value) for a in one.values]
        colour = _COLOURS[i % len(_COLOURS)]
        axes.errorbar(
            x, y, yerr=[low, high], fmt="none", ecolor=colour, elinewidth=1.1, alpha=0.45, capsize=2
        )
        axes.plot(
            x,
            y,
            color=colour,
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=5 if len(places) < 30 else 3,
            linewidth=1.7 if len(places) < 30 else 1.0,
            label=one.label,
        )
    if len(places) == 1:
        axes.set_xlim(places[0] - 0.1, places[0] + 0.1)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if top_ticks is not None:
        top = axes.secondary_xaxis("top")
        top.set_xticks(list(top_ticks), list(top_ticks.values()))
        top.set_xlabel(top_label, color="#555555")
        top.tick_params(colors="#555555", length=0)
        top.spines["top"].set_visible(False)
    longest = max(len(one.label) for one in series)
    columns = 3 if longest < 24 else 2 if longest < 44 else 1
    figure.legend(
        loc="outside lower center", ncols=min(columns, len(series)), frameon=False, fontsize=9
    )
    axes.set_title(caption, loc="left", fontsize=9, color="#555555", pad=8)
    heading = figure.suptitle(title, ha="left", fontweight="bold", fontsize=12)
    figure.draw_without_rendering()  # where the axes begin is known only then
    heading.set_x(axes.get_position().x0)
    return figure


def _span(places: Sequence[float]) -> float:
    return places[-1] - places[0] if len(places) > 1 else 1.0


def save_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write ``path`` with the suffixes ``.svg`` and ``.png``; equal figures give equal files.

    Raises:
        StapesError: the disk is full or the place cannot be written to.
    """
    import matplotlib

    files = path.with_suffix(".svg"), path.with_suffix(".png")
    svg, png = io.BytesIO(), io.BytesIO()
    # Text stays text; ids depend on the content alone, and no date is kept.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stapes"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    for file, buffer in zip(files, (svg, png), strict=True):
        write_bytes(file, buffer.getvalue())
    return files
