"""The report of a training run: one HTML file that needs nothing else.

No scripts, no requests (the page's own content policy forbids both), light and dark, readable on
a phone and by a screen reader. Everything shown comes in as plain values, so that the report
knows nothing of training, data or networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stapes.evaluation.crossval import SeedSummary, Spread
from stapes.evaluation.ensemble import EnsembleScore
from stapes.evaluation.figures import (
    EpochRecord,
    TrainingRun,
    audio_uri,
    draw_curves,
    draw_reliability,
    draw_spectrogram,
)
from stapes.evaluation.metrics import Interval, Score, predicted_classes
from stapes.files import write_bytes

__all__ = [
    "DataSummary",
    "EpochRecord",
    "FoldScore",
    "Mistake",
    "ModelSummary",
    "ReportData",
    "TrainingRun",
    "render_report",
    "worst_mistakes",
    "write_report",
]


@dataclass(frozen=True)
class DataSummary:
    """The whole dataset, training and test parts together."""

    name: str
    n_clips: int
    n_groups: int
    label_counts: Mapping[str, int]  # clips per label
    hours: float
    sample_rates: Mapping[int, int]  # Hz -> clips
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()  # what the check of the data found, one sentence each


@dataclass(frozen=True)
class ModelSummary:
    """The network and what it costs.

    Counted as in :class:`stapes.models.Complexity`. Sparse bytes store zeros as one bit each
    wherever that is smaller.
    """

    name: str
    precision: str  # of the stored weights
    parameters: int  # zeros count: the rule of DCASE since 2022
    nonzero_parameters: int  # the rule of DCASE 2020
    bytes_float32: int
    bytes_float32_sparse: int
    bytes_float16: int
    bytes_float16_sparse: int
    bytes_int8: int
    bytes_int8_sparse: int
    macs_per_second: float  # multiply-accumulates per second of audio, those with zeros too
    nonzero_macs_per_second: float  # without those with zeros
    peak_activation_bytes: int  # of one window, at four bytes a value
    receptive_field_bins: int | None  # none: unknown, as of networks with attention
    receptive_field_frames: int | None
    receptive_field_seconds: float | None
    receptive_field_hz: tuple[float, float] | None  # what the middle of the spectrogram sees
    sample_rate: int  # Hz
    window_seconds: float
    front_end: str  # in words
    global_context: bool = False  # a pooling over the whole window gates the maps, too


@dataclass(frozen=True)
class FoldScore:
    """One fold, one line."""

    name: str
    score: Score


@dataclass(frozen=True, eq=False)
class Mistake:
    """One clip that was named wrong."""

    name: str
    label: str
    predicted: str
    probability: float  # of the predicted label, 0 to 1
    spectrogram: NDArray[np.floating[Any]]  # (F, T), any scale
    frequencies: NDArray[np.floating[Any]]  # (F,) Hz, rising
    seconds: float  # that the spectrogram spans
    audio: NDArray[np.floating[Any]]  # (N,) mono in [-1, 1]; the first 10 s are kept
    sample_rate: int  # Hz, of the audio


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that a report shows. Strings may hold anything: the page escapes them."""

    title: str
    created: str  # a date, as it should read
    command: str
    recipe: str  # TOML
    data: DataSummary
    split: str  # how training and test parts were made, in words
    score: Score  # of all test clips together
    model: ModelSummary
    folds: tuple[FoldScore, ...] = ()
    n_seeds: int = 1
    seeds: SeedSummary | None = None
    ensemble: EnsembleScore | None = None  # of the seeds' models, averaged
    runs: tuple[TrainingRun, ...] = ()
    mistakes: tuple[Mistake, ...] = ()  # some 100 to 250 kB each: a dozen is a good number
    versions: Mapping[str, str] = field(default_factory=dict)


def worst_mistakes(probabilities: ArrayLike, targets: ArrayLike, n: int = 12) -> list[int]:
    """Indices of the clips that were named wrong with most confidence, the surest first.

    Args:
        probabilities: (M, K).
        targets: (M,) class indices.
        n: at most this many.
    """
    p, t = np.asarray(probabilities), np.asarray(targets)
    wrong = np.flatnonzero(predicted_classes(p) != t)
    order = np.argsort(-p[wrong].max(axis=1), kind="stable")
    return [int(i) for i in wrong[order][:n]]


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the report, whole or not at all.

    Raises:
        StapesError: the disk is full or the place cannot be written to.
    """
    # A file name that is not valid text (lone surrogates) becomes "?" instead of an error.
    write_bytes(path, render_report(data).encode("utf-8", errors="replace"))


def render_report(data: ReportData) -> str:
    """The report as HTML text. Equal data gives equal text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": _percent,
        "interval": _interval,
        "points": lambda interval: interval.points(),
        "count": lambda n: f"{n:,}",
        "plural": _plural,
        "breakable": _breakable,
        "si": _si,
        "bytes": _bytes,
        "hz": _hz,
        "seconds": _seconds,
    }
    score = data.score
    curves = [
        (quantity, title, Markup(svg))
        for quantity, title in (
            ("accuracy", "Accuracy"),
            ("loss", "Loss"),
            ("learning_rate", "Learning rate"),
        )
        if (svg := draw_curves(data.runs, quantity)) is not None
    ]
    source = resources.files("stapes.evaluation") / "report.html.jinja"
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(
        d=data,
        s=score,
        n_right=sum(score.confusion[k][k] for k in range(len(score.labels))),
        majority=max(c.n_clips for c in score.per_class) / score.n_clips,
        classes=sorted(score.per_class, key=_worst_first),
        matrix=_matrix(score),
        confusions=_confusions(score),
        fold_spread=Spread.of([f.score.accuracy.value for f in data.folds])
        if len(data.folds) > 1
        else None,
        reliability=Markup(draw_reliability(score.reliability)),
        curves=curves,
        mistakes=[_mistake(m) for m in data.mistakes],
        largest_label=max(data.data.label_counts.values(), default=1),
    )


def _worst_first(c: Any) -> tuple[float, str]:
    return (c.recall.value if c.recall else 2.0, c.label)


@dataclass(frozen=True)
class _Cell:
    """A cell of the confusion matrix: count, part of the row, opacity and the contrast class."""

    count: int
    share: float
    alpha: float
    tone: str  # "t1" deep enough on a dark page, "t2" on both, for the other colour of digits


def _matrix(score: Score) -> list[tuple[str, int, list[_Cell]]]:
    rows = []
    for label, counts in zip(score.labels, score.confusion, strict=True):
        total = sum(counts)
        cells = []
        for count in counts:
            share = count / total if total else 0.0
            # Not linear: one clip in forty must still be seen.
            alpha = round(0.1 + 0.9 * share**0.7, 2) if count else 0.0
            tone = "t2" if alpha >= 0.8 else "t1" if alpha >= 0.58 else ""
            cells.append(_Cell(count, share, alpha, tone))
        rows.append((label, total, cells))
    return rows


def _confusions(score: Score, n: int = 10) -> list[tuple[str, str, int, int]]:
    """The most frequent confusions: (true, predicted, clips, clips of the true label)."""
    found = [
        (label, score.labels[j], count, sum(counts))
        for k, (label, counts) in enumerate(zip(score.labels, score.confusion, strict=True))
        for j, count in enumerate(counts)
        if count and j != k
    ]
    return sorted(found, key=lambda c: (-c[2], -c[2] / c[3], c[0], c[1]))[:n]


def _mistake(mistake: Mistake) -> dict[str, Any]:
    from markupsafe import Markup

    audio, seconds = audio_uri(mistake.audio, mistake.sample_rate)
    svg = draw_spectrogram(mistake.spectrogram, mistake.frequencies, mistake.seconds)
    whole = len(mistake.audio) / mistake.sample_rate
    return {"m": mistake, "svg": Markup(svg), "audio": audio, "cut": whole > seconds + 0.1,
            "played": seconds}  # fmt: skip


# Numbers and names as people read them


def _breakable(name: str) -> Any:
    """A label that may break after an underscore: crackling_fire on a narrow screen."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _interval(interval: Interval, unit: str = "%") -> str:
    if unit == "%":
        return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _plural(n: int, word: str, words: str | None = None) -> str:
    return f"{n:,} {word if n == 1 else words or word + 's'}"


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}".strip()
        value /= 1000
    return f"{value:,.3g} {units[-1]}"


def _si(value: float) -> str:
    return _scaled(value, ("", "thousand", "million", "billion"))


def _bytes(value: int) -> str:
    return _scaled(value, ("bytes", "kB", "MB", "GB"))


def _hz(value: float) -> str:
    return f"{value:,.0f} Hz" if value < 1000 else f"{value / 1000:.3g} kHz"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.3g} s"
