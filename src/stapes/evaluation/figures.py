"""Figures of the report: SVG that takes its colours from the page, and sound to listen to.

matplotlib draws each figure in marker colours that stand for roles (ink, grid, accent, ...). In
the finished SVG every marker becomes a CSS variable, so one figure serves light and dark pages,
and its text stays text in the page's own font.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stapes.evaluation.metrics import ReliabilityBin
from stapes.features.axis import frequency_label, frequency_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "EpochRecord",
    "TrainingRun",
    "audio_uri",
    "draw_curves",
    "draw_reliability",
    "draw_spectrogram",
]

# Marker colour -> CSS variable of report.html.jinja. Colours that no figure contains by chance.
_ROLES = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "accent": "#040404",
    "warm": "#050505",
    "page": "#060606",
}
# What libmp3lame takes. Every browser plays MP3; Ogg is what older libsndfile builds offer.
_MP3_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of training. Losses in nats, accuracies 0 to 1, None where not measured."""

    epoch: int  # counted from 1
    train_loss: float
    train_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    learning_rate: float | None = None

    @classmethod
    def from_log(cls, row: Mapping[str, Any]) -> EpochRecord:
        """From a line of a run's ``log.jsonl``; what a figure does not need is left out."""
        return cls(**{name: row[name] for name in cls.__slots__ if name in row})


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """The epochs of one training, such as one fold or one seed."""

    name: str
    epochs: tuple[EpochRecord, ...]


def draw_curves(runs: Sequence[TrainingRun], quantity: str) -> str | None:
    """Loss, accuracy or learning rate over the epochs.

    Several runs are thin lines with their mean drawn over them.

    Args:
        runs: in any number, of any length.
        quantity: ``"loss"``, ``"accuracy"`` or ``"learning_rate"``.

    Returns:
        An ``<svg>`` element, or None when no run has measured the quantity.
    """
    from matplotlib.ticker import MaxNLocator

    lines = (
        [("learning_rate", "learning rate", "ink", "-")]
        if quantity == "learning_rate"
        else [
            (f"train_{quantity}", "training", "muted", (0, (4, 2))),
            (f"validation_{quantity}", "validation", "accent", "-"),
        ]
    )
    figure, axes = _figure(4.6, 2.7)
    drawn = 0
    for field, label, role, style in lines:
        curves = [
            [(e.epoch, getattr(e, field)) for e in run.epochs if getattr(e, field) is not None]
            for run in runs
        ]
        curves = [curve for curve in curves if curve]
        if not curves:
            continue
        drawn += 1
        by_epoch: dict[int, list[float]] = {}
        for curve in curves:
            for epoch, value in curve:
                by_epoch.setdefault(epoch, []).append(value if np.isfinite(value) else np.nan)
            if len(curves) > 1:
                x, y = np.array(curve, dtype=float).T
                y[~np.isfinite(y)] = np.nan
                axes.plot(x, y, color=_ROLES[role], linewidth=0.7, alpha=0.35)
        epochs = sorted(epoch for epoch, values in by_epoch.items() if len(values) == len(curves))
        axes.plot(
            epochs,
            [np.mean(by_epoch[epoch]) for epoch in epochs],
            color=_ROLES[role],
            linestyle=style,
            linewidth=1.9,
            label=label,
            marker="o" if len(epochs) == 1 else None,
        )
    if not drawn:
        return None
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity == "accuracy":
        _percent(axes.yaxis)
    elif quantity == "loss":
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("linear")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    if drawn > 1:
        _legend(axes)
    return _svg(figure)


def draw_reliability(bins: Sequence[ReliabilityBin]) -> str:
    """Confidence against accuracy; a dot's area is the number of clips in its bin."""
    figure, axes = _figure(5.0, 3.5)
    points = [
        (b.confidence, b.accuracy, b.n_clips)
        for b in bins
        if b.confidence is not None and b.accuracy is not None
    ]
    x, y, n = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    axes.plot([0, 1], [0, 1], color=_ROLES["muted"], linewidth=1, linestyle=(0, (4, 3)))
    axes.vlines(x, x, y, color=_ROLES["warm"], linewidth=1.3, alpha=0.8)
    axes.plot(x, y, color=_ROLES["accent"], linewidth=1.2, alpha=0.6)
    sizes = 12 + 170 * n / n.max()
    axes.scatter(
        x,
        y,
        s=sizes,
        color=_ROLES["accent"],
        edgecolors=_ROLES["page"],
        linewidths=1,
        zorder=3,
        clip_on=False,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    return _svg(figure)


def draw_spectrogram(
    values: NDArray[np.floating[Any]], frequencies: NDArray[np.floating[Any]], seconds: float
) -> str:
    """A spectrogram with axes in Hz and seconds.

    Args:
        values: (F, T), any scale; its 1st to 99.8th percentile span the colours.
        frequencies: (F,) Hz, rising: the centre of each row, on whatever scale.
        seconds: what the T frames span.
    """
    values, frequencies = _small(np.asarray(values, dtype=np.float64), np.asarray(frequencies))
    n_bins = len(values)
    figure, axes = _figure(3.9, 2.3, grid=False, font=10.5)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [1, 99.8]) if len(finite) else (0.0, 1.0)
    axes.imshow(
        np.nan_to_num(values, nan=low, posinf=high, neginf=low),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=max(high, low + 1e-9),
        extent=(0, seconds, -0.5, n_bins - 0.5),
        interpolation="none",  # embeds the pixels as they are; the browser scales them
    )
    ticks = frequency_ticks(frequencies)
    axes.set_yticks(
        np.interp(ticks, frequencies, np.arange(n_bins)),
        [frequency_label(tick) for tick in ticks],
    )
    axes.set(xlabel="seconds", ylabel="Hz")
    return _svg(figure)


def _small(
    values: NDArray[np.float64], frequencies: NDArray[Any], bins: int = 160, frames: int = 400
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Means of neighbouring bins and frames, so that the picture has no more pixels than shown."""
    f, t = max(1, -(-values.shape[0] // bins)), max(1, -(-values.shape[1] // frames))
    edges_f, edges_t = np.arange(0, values.shape[0], f), np.arange(0, values.shape[1], t)
    sums = np.add.reduceat(np.add.reduceat(values, edges_f, axis=0), edges_t, axis=1)
    counts_f = np.diff(np.append(edges_f, values.shape[0]))
    counts_t = np.diff(np.append(edges_t, values.shape[1]))
    centres = np.add.reduceat(np.asarray(frequencies, dtype=np.float64), edges_f) / counts_f
    return sums / np.outer(counts_f, counts_t), centres


def audio_uri(
    waveform: NDArray[np.floating[Any]], sample_rate: int, longest: float = 10.0
) -> tuple[str, float]:
    """A waveform as a ``data:`` address that any browser plays, and the seconds it holds.

    Args:
        waveform: (N,) mono in [-1, 1]; louder samples are clipped, NaN becomes silence.
        sample_rate: Hz.
        longest: seconds kept, from the start.
    """
    import soundfile
    import soxr

    mono = np.nan_to_num(np.asarray(waveform, dtype=np.float32))[: int(longest * sample_rate)]
    rate = max((r for r in _MP3_RATES if r <= sample_rate), default=_MP3_RATES[0])
    if rate != sample_rate and len(mono):
        mono = soxr.resample(mono, sample_rate, rate, quality="HQ")
    mp3 = "MP3" in soundfile.available_formats()
    buffer = io.BytesIO()
    container, subtype = ("MP3", "MPEG_LAYER_III") if mp3 else ("OGG", "VORBIS")
    with soundfile.SoundFile(
        buffer,
        "w",
        samplerate=rate,
        channels=1,
        format=container,
        subtype=subtype,
        compression_level=0.6,
    ) as sound:
        # In pieces: libsndfile's Vorbis writer puts a whole call's samples on the stack.
        for start in range(0, len(mono), 65_536):
            sound.write(np.clip(mono[start : start + 65_536], -1, 1))
    kind = "audio/mpeg" if mp3 else "audio/ogg"
    return _data_uri(buffer.getvalue(), kind), len(mono) / rate


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


# Drawing in roles


def _figure(
    width: float, height: float, *, grid: bool = True, font: float = 10.5
) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # the object API: no pyplot, no state of its own

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_ROLES["grid"])
    axes.tick_params(colors=_ROLES["grid"], labelcolor=_ROLES["muted"], labelsize=font, length=3)
    axes.xaxis.label.set(color=_ROLES["muted"], fontsize=font)
    axes.yaxis.label.set(color=_ROLES["muted"], fontsize=font)
    if grid:
        axes.grid(axis="y", color=_ROLES["grid"], linewidth=0.6, alpha=0.7)
        axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
        frameon=False,
        fontsize=10.5,
        labelcolor=_ROLES["ink"],
    )


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Text as text; ids that depend on the content alone, so equal reports are equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stapes"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # no XML prologue inside HTML
    # Left out: metadata, a style that would rule the whole page, sizes and fonts (the page sets
    # them), and the names of groups, which would occur once in every figure.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # What is referred to (clip paths, tick marks) gets names that no other figure has.
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|"#|url\(#)(?=[mp])', rf"\g<1>{own}-", svg)
    svg = svg.replace("xlink:href", "href")
    # A reader hears the figure's own description instead of loose tick labels.
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    for role, colour in _ROLES.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg
