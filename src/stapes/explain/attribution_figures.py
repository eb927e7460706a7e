"""Pictures of attributions over frequency and time, and of how faithful they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stapes.explain.attribution import Floats
from stapes.explain.explanation import Explanation
from stapes.explain.faithfulness import Faithfulness
from stapes.explain.figures import GRID, INK, MUTED, check_figure_name, plain_axes, write_figure
from stapes.features.axis import frequency_label, frequency_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

__all__ = ["draw_attribution"]

_TRUE, _MOVED, _RANDOM = "#0b6e99", "#c8553d", "#8a8f98"
_FULL = 99.5  # percentile of the places that the colours reach: a few bright dots hide all else


def draw_attribution(
    explained: Explanation,
    path: str | Path,
    *,
    faithfulness: Faithfulness | None = None,
    mask: NDArray[np.bool_] | None = None,
    title: str = "",
) -> None:
    """Draw a spectrogram and what in it spoke for a label, and write it atomically.

    Above the spectrogram (the mean of its channels, where it has several), below the attribution:
    of Integrated Gradients red for, blue against the label; of Grad-CAM the brighter the more.
    Colours are full for one place in two hundred. Both axes are those of the recording, in Hz and
    seconds. At the right, if given, the curves of deletion and insertion.

    Args:
        explained: window of a recording.
        path: ``.png``, ``.svg`` or ``.pdf``.
        faithfulness: of the attribution.
        mask: (F, T) places to put a line around, such as those of a sound that was made of them.
        title: over the figure; none: recording and label.

    Raises:
        StapesError: another ending, or the place cannot be written to.
    """
    from matplotlib.figure import Figure  # the object API: no pyplot, no state of its own

    path = check_figure_name(path)
    figure = Figure(figsize=(7.6 if faithfulness is None else 10.6, 6.2), layout="constrained")
    grid = figure.add_gridspec(
        2, 1 if faithfulness is None else 2, width_ratios=None if faithfulness is None else [2.4, 1]
    )
    top, below = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    levels = explained.spectrogram.double().mean(0).numpy()
    image = _map(top, explained, levels, "magma", float(levels.min()), float(levels.max()))
    _bar(figure, top, image, "level, as the front end gives it")
    top.set_title("spectrogram", color=INK, fontsize=11, loc="left")
    top.tick_params(labelbottom=False)
    largest = float(np.percentile(np.abs(explained.values), _FULL)) or float(
        np.abs(explained.values).max()
    )
    signed = explained.gradients is not None
    low = -largest if signed else 0.0
    image = _map(below, explained, explained.values, "RdBu_r" if signed else "viridis", low,
                 largest or 1.0)  # fmt: skip
    _bar(figure, below, image, "share of the logit's change" if signed else "Grad-CAM")
    below.set_title(_caption(explained), color=INK, fontsize=11, loc="left")
    below.set_xlabel("seconds in the recording", color=MUTED)
    if mask is not None and mask.any() and not mask.all():
        rows, columns = np.arange(mask.shape[0]), explained.start + explained.times
        below.contour(columns, rows, mask.astype(float), [0.5], colors=INK, linewidths=0.5)
        below.set_title("outlined: left in the sound", color=MUTED, fontsize=9, loc="right")
    if faithfulness is not None:
        _curves(figure.add_subplot(grid[0, 1]), faithfulness, "deletion")
        _curves(figure.add_subplot(grid[1, 1]), faithfulness, "insertion")
    figure.suptitle(title or f"{explained.source}: {explained.label}", color=INK, fontsize=12)
    write_figure(figure, path)


def _caption(explained: Explanation) -> str:
    if explained.gradients is None:
        where = f" at {explained.block}" if explained.block else ""
        return f"Grad-CAM{where} for {explained.label}"
    return f"Integrated Gradients: red for {explained.label}, blue against"


def _map(
    axes: Axes, explained: Explanation, values: Floats, colours: str, low: float, high: float
) -> AxesImage:
    times = explained.start + explained.times
    half = (times[1] - times[0]) / 2 if len(times) > 1 else 0.5
    image = axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        cmap=colours,
        vmin=low,
        vmax=high,
        extent=(times[0] - half, times[-1] + half, -0.5, len(values) - 0.5),
        interpolation="none",
    )
    ticks = frequency_ticks(explained.frequencies)
    axes.set_yticks(
        np.interp(ticks, explained.frequencies, np.arange(len(values))),
        [frequency_label(tick) for tick in ticks],
    )
    axes.set_ylabel("Hz", color=MUTED)
    plain_axes(axes)
    return image


def _bar(figure: Figure, axes: Axes, image: AxesImage, name: str) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    bar.set_label(name, color=MUTED, fontsize=9)
    bar.ax.tick_params(labelsize=8.5, labelcolor=MUTED, color=GRID)
    bar.outline.set_visible(False)


def _curves(axes: Axes, found: Faithfulness, kind: str) -> None:
    for name, colour, style, curve in (
        ("random order", _RANDOM, ":", getattr(found, f"random_{kind}")),
        ("moved elsewhere", _MOVED, "--", getattr(found, f"moved_{kind}")),
        ("attribution", _TRUE, "-", getattr(found, kind)),
    ):
        axes.plot(
            100 * curve.shares, curve.probabilities, color=colour, linestyle=style, linewidth=1.6,
            label=f"{name}, area {curve.area:.2f}",
        )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.02, 1.02)
    good = "lower is better" if kind == "deletion" else "higher is better"
    axes.set_title(f"{kind}: {good}", color=INK, fontsize=11, loc="left")
    axes.set_ylabel("probability of the label", color=MUTED)
    verb = "taken away" if kind == "deletion" else "brought in"
    axes.set_xlabel(f"% of the places {verb}", color=MUTED)
    axes.legend(framealpha=0.85, edgecolor="none", fontsize=8.5, labelcolor=INK, loc="best")
    plain_axes(axes)
