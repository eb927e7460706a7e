"""Pictures of what a network listens to, as files that stand alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stapes.errors import StapesError
from stapes.explain.effective_field import Axis, EffectiveField, FieldOnRecordings, Floats
from stapes.features.axis import frequency_label, frequency_ticks
from stapes.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FIGURE_SUFFIXES",
    "GRID",
    "INK",
    "MUTED",
    "check_figure_name",
    "draw_receptive_field",
    "plain_axes",
    "write_figure",
]

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")

INK, MUTED, GRID = "#22262b", "#6b7280", "#d5d9df"
_NOW, _BEFORE = "#0b6e99", "#c8553d"  # told apart by the colour-blind too, and by line style


def check_figure_name(path: str | Path) -> Path:
    """The path, if its ending is one that figures are written in.

    Raises:
        StapesError: another ending.
    """
    path = Path(path)
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise StapesError(
            f"{path}: a figure's name must end in {', '.join(FIGURE_SUFFIXES[:-1])} or "
            f"{FIGURE_SUFFIXES[-1]}."
        )
    return path


def draw_receptive_field(found: FieldOnRecordings, path: str | Path, *, title: str = "") -> None:
    """Draw an effective receptive field over frequency and time, and write it atomically.

    One map without damping, two with it: before and after. Colours are the size of the gradient
    (the root of the energy) against each map's own largest; the dashed box is the theoretical
    field. Above and beside are the energies along either axis, with the stretch that holds 95 %.

    Args:
        found: what was measured.
        path: ``.png``, ``.svg`` or ``.pdf``.
        title: over the figure, such as the model's name.

    Raises:
        StapesError: another ending, or the place cannot be written to.
    """
    from matplotlib.figure import Figure  # the object API: no pyplot, no state of its own

    path = check_figure_name(path)
    maps = [("effective receptive field", found.field, _NOW)]
    if found.undamped is not None:
        maps = [
            ("before damping (same weights)", found.undamped, _BEFORE),
            (f"with damping {found.damping:g}", found.field, _NOW),
        ]
    figure = Figure(figsize=(2.6 + 3.5 * len(maps), 5.2), layout="constrained")
    grid = figure.add_gridspec(
        2, len(maps) + 1, height_ratios=[1, 3.6], width_ratios=[3.5] * len(maps) + [1.9]
    )
    bins, frames = _view(found.field, "frequency"), _view(found.field, "time")
    middle = found.field.centre("time")
    image = None
    for column, (name, field, colour) in enumerate(maps):
        top = figure.add_subplot(grid[0, column])
        axes = figure.add_subplot(grid[1, column])
        image = axes.imshow(
            np.sqrt(field.energy / field.energy.max()),
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=0,
            vmax=1,
            extent=(
                (-0.5 - middle) / found.frame_rate,
                (field.energy.shape[1] - 0.5 - middle) / found.frame_rate,
                -0.5,
                field.energy.shape[0] - 0.5,
            ),
            interpolation="none",
        )
        axes.set_xlim((frames[0] - middle) / found.frame_rate,
                      (frames[1] - middle) / found.frame_rate)  # fmt: skip
        axes.set_ylim(*bins)
        _box(axes, found)
        _frequency_axis(axes, found, named=column == 0)
        axes.set_xlabel("seconds from the unit's middle", color=MUTED)
        _time_profile(top, field, found, colour)
        top.set_xlim(axes.get_xlim())
        top.set_title(name, color=colour, fontsize=11, loc="left")
        for part in (axes, top):
            plain_axes(part)
    side = figure.add_subplot(grid[1, -1])
    for place, (_, field, colour) in zip((0.98, 0.02), maps, strict=False):
        _frequency_profile(side, field, found, colour, place)
    side.set_xlim(0, 1.05 * max(field.profile("frequency").max() for _, field, _ in maps))
    side.set_ylim(*bins)
    _frequency_axis(side, found, named=False)
    plain_axes(side)
    corner = figure.add_subplot(grid[0, -1])
    corner.axis("off")
    assert image is not None
    bar = figure.colorbar(
        image, cax=corner.inset_axes((0.05, 0.55, 0.9, 0.12)), orientation="horizontal"
    )
    bar.set_label("gradient, largest = 1", color=MUTED, fontsize=9)
    bar.ax.tick_params(labelsize=9, labelcolor=MUTED, color=GRID)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, color=INK, fontsize=12)
    write_figure(figure, path)


def write_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically; equal figures give equal files.

    Raises:
        StapesError: another ending than :func:`check_figure_name` takes, or the place cannot be
            written to.
    """
    import matplotlib

    path = check_figure_name(path)
    buffer = io.BytesIO()
    # Ids that depend on the content alone and no date, so that equal figures are equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stapes"}):
        kind = path.suffix.lower()[1:]
        dated: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(buffer, format=kind, dpi=160, metadata=dated[kind])
    write_bytes(path, buffer.getvalue())


def _view(field: EffectiveField, axis: Axis) -> tuple[float, float]:
    """The theoretical field and a little around it, in bins or frames."""
    first, last = field.bounds(axis)
    margin = max(2.0, 0.06 * (last - first + 1))
    size = field.energy.shape[axis == "time"]
    return max(-0.5, first - 0.5 - margin), min(size - 0.5, last + 0.5 + margin)


def _box(axes: Axes, found: FieldOnRecordings) -> None:
    from matplotlib.patches import Rectangle

    (low, high), (start, end) = found.field.bounds("frequency"), found.field.bounds("time")
    axes.add_patch(
        Rectangle(
            ((start - 0.5 - found.field.centre("time")) / found.frame_rate, low - 0.5),
            (end - start + 1) / found.frame_rate,
            high - low + 1,
            fill=False,
            edgecolor="white",
            linestyle=(0, (4, 3)),
            linewidth=1.1,
        )
    )
    axes.text(
        (start - found.field.centre("time")) / found.frame_rate,
        high - 0.02 * (high - low),
        " theoretical",
        color="white", fontsize=9, va="top",
    )  # fmt: skip


def _frequency_axis(axes: Axes, found: FieldOnRecordings, *, named: bool) -> None:
    low, high = axes.get_ylim()
    rows = np.arange(len(found.frequencies))
    inside = found.frequencies[(rows >= low) & (rows <= high)]
    ticks = frequency_ticks(inside)
    axes.set_yticks(
        np.interp(ticks, found.frequencies, rows),
        [frequency_label(tick) if named else "" for tick in ticks],
    )
    if named:
        axes.set_ylabel("Hz", color=MUTED)


def _time_profile(axes: Axes, field: EffectiveField, found: FieldOnRecordings, colour: str) -> None:
    profile = field.profile("time")
    seconds = (np.arange(len(profile)) - field.centre("time")) / found.frame_rate
    first, last = field.interval("time", 0.95)
    axes.axvspan(
        seconds[first] - 0.5 / found.frame_rate,
        seconds[last] + 0.5 / found.frame_rate,
        color=colour,
        alpha=0.12,
        linewidth=0,
    )
    axes.fill_between(seconds, profile, step="mid", color=colour, alpha=0.3, linewidth=0)
    axes.plot(seconds, _smooth(profile), color=colour, linewidth=1.3)
    span = found.seconds((first, last))
    axes.text(
        0.02, 0.95, f"95 % in {last - first + 1} frames\n{span:.2f} s",
        transform=axes.transAxes, va="top", fontsize=9, color=INK,
    )  # fmt: skip
    axes.set_ylim(0, 1.15 * profile.max())
    axes.tick_params(labelbottom=False)
    axes.set_yticks([])


def _frequency_profile(
    axes: Axes, field: EffectiveField, found: FieldOnRecordings, colour: str, place: float
) -> None:
    profile = field.profile("frequency")
    rows = np.arange(len(profile))
    first, last = field.interval("frequency", 0.95)
    axes.axhspan(first - 0.5, last + 0.5, color=colour, alpha=0.12, linewidth=0)
    axes.fill_betweenx(rows, profile, step="mid", color=colour, alpha=0.3, linewidth=0)
    axes.plot(_smooth(profile), rows, color=colour, linewidth=1.3)
    low, high = found.hertz((first, last))
    axes.text(
        0.98, place, f"95 % in {last - first + 1} bins\n{low:.0f} to {high:.0f} Hz",
        transform=axes.transAxes, ha="right", va="top" if place > 0.5 else "bottom",
        fontsize=9, color=colour,
    )  # fmt: skip
    axes.set_xticks([])


def _smooth(profile: Floats) -> Floats:
    """Mean over four neighbours, which takes out the teeth of a network's steps of 2 and 4.

    A convolution of 5 taps and step 2 reads every other position through three of its taps and
    the rest through two.
    """
    smooth: Floats = np.convolve(profile, [0.125, 0.25, 0.25, 0.25, 0.125], mode="same")
    return smooth


def plain_axes(axes: Axes) -> None:
    """No frame but the two axes, in quiet colours."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(color=GRID, labelcolor=MUTED, labelsize=9.5, length=3)
