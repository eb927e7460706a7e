"""One table: every way to run a model, and whether they give one answer.

The same recordings go through torch, ONNX Runtime, compiled C and the stream of any chunk sizes;
differences, decisions, accuracy, time and memory stand side by side.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stapes.audio import read
from stapes.bundle import Bundle, load_bundle, save_bundle
from stapes.data import Clip, Dataset, load_dataset
from stapes.deploy.c99.compiled import CompiledClassifier, can_compile
from stapes.deploy.c99.folder import write_c
from stapes.deploy.export import in_eight_bits
from stapes.deploy.onnx import onnx_model
from stapes.deploy.recordings import calibration_windows, clip_windows, clips_of_run, spread
from stapes.deploy.replay import compare
from stapes.errors import AudioError, ConfigError, DataError, StapesError
from stapes.evaluation.ensemble import members_of_run
from stapes.evaluation.evaluate import refuse_unknown_labels
from stapes.evaluation.metrics import Interval, score
from stapes.evaluation.predict import Classifier
from stapes.inference.classifier import BaseClassifier
from stapes.inference.settings import AudioSettings
from stapes.runtime import OnnxClassifier

__all__ = ["Parity", "ParityRow", "parity"]

_TIMED_WINDOWS = 8
_REPEATS = 7
_STREAMED_SECONDS = 60.0
# What each row is compared with: the model of the same precision in torch.
_TWINS = {
    "ONNX float32": "torch float32",
    "C float32": "torch float32",
    "ONNX int8": "torch int8",
    "C int8": "torch int8",
    "streaming": "ONNX float32",
}
_ORDER = ("torch float32", "ONNX float32", "C float32", "torch int8", "ONNX int8", "C int8",
          "streaming")  # fmt: skip

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class ParityRow:
    """One way to run the models.

    Attributes:
        name: of the way.
        twin: the row that it is compared with; none for the first.
        difference: largest difference of a window's probabilities from the twin's.
        decisions: share of clips decided as by the twin.
        decisions_float: share of clips decided as by torch in float32.
        accuracy: with its 95 % interval over sources.
        milliseconds: for a second of audio, one thread, from samples to probabilities: the median
            of the repeats.
        size: bytes of the file; of C, its constants.
        ram: bytes: of C, its state and the window of samples; of the others, the whole process at
            its peak; none where it could not be measured.
    """

    name: str
    twin: str | None
    difference: float | None
    decisions: float | None
    decisions_float: float
    accuracy: Interval
    milliseconds: float
    size: int
    ram: int | None


@dataclass(frozen=True)
class Parity:
    """The table and what it was made of.

    Attributes:
        rows: in a fixed order.
        n_clips: clips that every way answered.
        n_models: networks (folds times seeds) behind the rows.
        notes: what was left out, and why: ways, and clips that cannot be read.
    """

    rows: tuple[ParityRow, ...]
    n_clips: int
    n_models: int
    notes: tuple[str, ...]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows as text."""
        header = ["way", "against", "largest difference", "same decisions", "as torch float32",
                  "accuracy (95 %)", "ms per s", "bytes", "RAM"]  # fmt: skip
        rows = [
            [
                row.name,
                row.twin or "",
                "" if row.difference is None else f"{row.difference:.1e}",
                "" if row.decisions is None else f"{100 * row.decisions:.1f} %",
                f"{100 * row.decisions_float:.1f} %",
                row.accuracy.percent(),
                f"{row.milliseconds:.2f}",
                f"{row.size:,}",
                "" if row.ram is None else _bytes(row.ram),
            ]
            for row in self.rows
        ]
        return header, rows

    def markdown(self) -> str:
        """The table as markdown."""
        header, rows = self.cells()
        right = ["---"] * 2 + ["---:"] * (len(header) - 2)
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, right, *rows)]
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([*lines, *notes]) + "\n"


def parity(
    model: str | Path,
    data: Dataset | str | Path | None = None,
    *,
    int8: str | Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Parity:
    """Run one set of recordings through every way to run a model.

    Args:
        model: a run folder, each of whose models answers its own test clips; or, with ``data``, a
            model file or the run's one model.
        data: labelled recordings that the model was not trained on; none: the run's test clips.
        int8: a run of the same folds and seeds in int8, or an int8 model; none: the model's
            networks, calibrated on training clips of the run.
        limit: clips of each model, evenly spread; none: all.
        progress: called with (stage, done, total).

    Raises:
        ModelFileError: a model file that cannot be used.
        ConfigError: a model that is int8 already, or that cannot be exported at all.
        DataError: no test clips, none that can be read, or labels that the model does not know.
        StapesError: no models of folds and seeds.
    """
    pairs = _pairs(Path(model), None if int8 is None else Path(int8), data is not None)
    tally = _Tally()
    notes: list[str] = []
    unreadable: list[str] = []
    costs: dict[str, _Cost] = {}
    n_models = 0
    told = progress or (lambda stage, done, total: None)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for number, (path, path8) in enumerate(pairs):
            place = Path(folder) / str(number)
            place.mkdir()
            bundle = load_bundle(path)
            if bundle.precision == "int8":
                raise ConfigError(f"{path}: is int8 already; name the run it was made of.")
            clips = _clips(path, data, bundle, limit)
            ways = _ways(bundle, _int8_of(path, path8, bundle), place, notes)
            answered = []
            for clip_number, clip in enumerate(clips):
                try:
                    tally.add(clip, bundle.labels, _answers(ways, clip))
                    answered.append(clip)
                except AudioError as error:
                    unreadable.append(str(error))
                told("Answering", number + (clip_number + 1) / len(clips), len(pairs))
            if not answered:
                continue
            n_models += 1
            light = ways["ONNX float32"].classifier
            tally.widen("streaming", _stream_difference(light, answered))
            if not costs:
                told("Timing", 0, 1)
                costs = _costs(ways, answered)
                told("Timing", 1, 1)
    if not n_models:
        raise DataError(f"{model}: can answer none of the recordings: {unreadable[0]}")
    rows = _rows(tally, bundle.labels, costs)
    notes += [f"Left out: {reason}" for reason in unreadable]
    return Parity(rows, len(tally.targets), n_models, tuple(dict.fromkeys(notes)))


@dataclass
class _Tally:
    """Answers of all models, by way."""

    clips: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    targets: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def add(
        self, clip: Clip, labels: tuple[str, ...], answers: dict[str, NDArray[np.float32]]
    ) -> None:
        """One clip's windows, (W, K) by way, from a model of these labels."""
        self.targets.append(labels.index(clip.label))
        self.groups.append(str(clip.group or clip.path))
        for name, rows in answers.items():
            self.clips.setdefault(name, []).append(rows.mean(0, dtype=np.float64))
            if (twin := _TWINS.get(name)) is not None:
                self.widen(name, compare(answers[twin], rows).difference)

    def widen(self, name: str, difference: float) -> None:
        self.difference[name] = max(self.difference.get(name, 0.0), difference)


@dataclass(frozen=True)
class _Cost:
    """What a way takes; see :class:`ParityRow`."""

    milliseconds: float
    size: int
    ram: int | None


def _rows(tally: _Tally, labels: tuple[str, ...], costs: dict[str, _Cost]) -> tuple[ParityRow, ...]:
    clips = {name: np.stack(tally.clips[name]) for name in _ORDER if name in tally.clips}
    rows = []
    for name, found in clips.items():
        twin = _TWINS.get(name)
        rows.append(
            ParityRow(
                name=name,
                twin=twin,
                difference=None if twin is None else tally.difference[name],
                decisions=None if twin is None else compare(clips[twin], found).decisions,
                decisions_float=compare(clips["torch float32"], found).decisions,
                accuracy=score(found, tally.targets, tally.groups, labels).accuracy,
                milliseconds=costs[name].milliseconds,
                size=costs[name].size,
                ram=costs[name].ram,
            )
        )
    return tuple(rows)


def _pairs(model: Path, int8: Path | None, one: bool) -> list[tuple[Path, Path | None]]:
    if one or not model.is_dir():
        return [(model, int8)]
    floats = members_of_run(model)
    if int8 is None:
        return [(path, None) for path in floats]
    by_place = {path.relative_to(int8): path for path in members_of_run(int8)}
    missing = [path for path in floats if path.relative_to(model) not in by_place]
    if missing:
        raise StapesError(f"{int8}: has no int8 model for {missing[0]}.")
    return [(path, by_place[path.relative_to(model)]) for path in floats]


def _int8_of(path: Path, path8: Path | None, bundle: Bundle) -> Bundle:
    if path8 is not None:
        other = load_bundle(path8)
        if other.precision != "int8" or other.labels != bundle.labels:
            raise ConfigError(f"{path8}: is not {path} in int8.")
        return other
    windows = calibration_windows(path, bundle.audio)
    if windows is None:
        raise ConfigError(
            f"{path}: the recordings of its training, which set the ranges of int8, are not at "
            "hand; name an int8 model with --int8."
        )
    return in_eight_bits(bundle, windows)


def _clips(
    path: Path, data: Dataset | str | Path | None, bundle: Bundle, limit: int | None
) -> tuple[Clip, ...]:
    if data is None:
        name, clips = str(path), clips_of_run(path).test
        if not clips:
            raise DataError(
                f"{path}: no test clips lie beside it (test.csv and its recordings); name labelled "
                "recordings with --data."
            )
    else:
        dataset = data if isinstance(data, Dataset) else load_dataset(data, min_classes=1)
        name, clips = dataset.name, dataset.clips
    refuse_unknown_labels(name, clips, bundle.labels)
    return clips if limit is None else tuple(spread(clips, limit))


@dataclass(frozen=True)
class _Way:
    """One way to run a model, and what it takes.

    ``file``: what the command line runs; none for C, whose bytes of state and samples are known.
    """

    classifier: BaseClassifier
    size: int
    file: Path | None = None
    state: int = 0


def _ways(bundle: Bundle, eight: Bundle, place: Path, notes: list[str]) -> dict[str, _Way]:
    ways: dict[str, _Way] = {}
    for precision, model in (("float32", bundle), ("int8", eight)):
        file = place / f"{precision}.safetensors"
        save_bundle(model, file)
        torch_way = Classifier(model)
        ways[f"torch {precision}"] = _Way(torch_way, file.stat().st_size, file)
        exported = file.with_suffix(".onnx")
        exported.write_bytes(onnx_model(model))
        ways[f"ONNX {precision}"] = _Way(
            OnnxClassifier(exported, threads=1), exported.stat().st_size, exported
        )
        if not can_compile():
            notes.append("C: not run, there is no C compiler here, or no make.")
            continue
        folder = place / f"{precision}-c"
        try:
            made = write_c(model, folder, measure=False)
        except ConfigError as error:
            notes.append(f"C: not run. {error}")
            continue
        compiled = CompiledClassifier(folder, model.labels, torch_way.audio, made.ram)
        ways[f"C {precision}"] = _Way(compiled, made.flash, state=made.ram + made.window)
    return ways


def _answers(ways: dict[str, _Way], clip: Clip) -> dict[str, NDArray[np.float32]]:
    """Probabilities of a clip's windows, (W, K), by way."""
    light = ways["ONNX float32"].classifier
    audio = light.audio
    cut = audio.cut(clip.path, start=clip.start or 0.0, end=clip.end)
    windows = np.stack([window for _, window in cut])
    answers = {
        name: np.concatenate([way.classifier.probabilities(window[None]) for window in windows])
        for name, way in ways.items()
    }
    if audio.longer == "window":
        answers["streaming"] = np.stack([scores.probabilities for scores in _listened(light, clip)])
    return answers


def _listened(way: BaseClassifier, clip: Clip) -> Iterator[Any]:
    """What a stream of the clip gives, in chunks of random sizes."""
    return way.listen(
        _chunks(_samples(way.audio, clip)),
        sample_rate=way.audio.sample_rate,
        hop_seconds=way.audio.hop / way.audio.sample_rate,
    )


def _samples(audio: AudioSettings, clip: Clip) -> NDArray[np.float32]:
    """A clip as the model listens to it, (C, N)."""
    return read(
        clip.path,
        channels=audio.channels,
        sample_rate=audio.sample_rate,
        start=clip.start or 0.0,
        end=clip.end,
    )


def _chunks(samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    first = 0
    while first < samples.shape[1]:
        size = int(rng.integers(1, 1 + max(1, samples.shape[1] // 5)))
        yield samples[:, first : first + size]
        first += size


def _stream_difference(way: BaseClassifier, clips: Sequence[Clip]) -> float:
    """Largest difference between the overlapping windows of a long file and of its stream."""
    import soundfile

    audio = way.audio
    enough = max(1, int(_STREAMED_SECONDS / audio.window_seconds))
    samples = np.concatenate([_samples(audio, clip) for clip in clips[:enough]], axis=1)
    hop = audio.window_seconds / 4
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "long.wav"
        soundfile.write(path, samples.T, audio.sample_rate, subtype="FLOAT")
        whole = np.stack([w.probabilities for w in way.windows(path, hop_seconds=hop)])
    streamed = way.listen(_chunks(samples), sample_rate=audio.sample_rate, hop_seconds=hop)
    return compare(whole, np.stack([w.probabilities for w in streamed])).difference


# --- time, size and memory --------------------------------------------------------------------


def _costs(ways: dict[str, _Way], clips: Sequence[Clip]) -> dict[str, _Cost]:
    times, memory = _milliseconds(ways, clips), _memory(ways, clips[0])
    sizes = {name: way.size for name, way in ways.items()}
    sizes["streaming"] = sizes["ONNX float32"]
    return {name: _Cost(times[name], sizes[name], memory[name]) for name in times}


def _milliseconds(ways: dict[str, _Way], clips: Sequence[Clip]) -> dict[str, float]:
    light = ways["ONNX float32"].classifier
    audio = light.audio
    windows = clip_windows(clips, audio, _TIMED_WINDOWS)
    assert windows is not None  # these clips have been answered
    joined = np.concatenate(list(windows), axis=1)
    times: dict[str, list[float]] = {name: [] for name in (*ways, "streaming")}

    def streamed() -> None:
        for _ in light.listen(
            _chunks(joined),
            sample_rate=audio.sample_rate,
            hop_seconds=audio.window / audio.sample_rate,
        ):
            pass

    with _one_thread():
        for repeat in range(_REPEATS + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                for window in windows:
                    way.classifier.probabilities(window[None])
                times[name] += [time.perf_counter() - started] * bool(repeat)  # the first warms up
            started = time.perf_counter()
            streamed()
            times["streaming"] += [time.perf_counter() - started] * bool(repeat)
    seconds = len(windows) * audio.window_seconds
    return {name: 1000 * float(np.median(found)) / seconds for name, found in times.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _memory(ways: dict[str, _Way], clip: Clip) -> dict[str, int | None]:
    memory: dict[str, int | None] = {}
    for name, way in ways.items():
        memory[name] = (
            way.state if way.file is None else _peak(["predict", str(way.file), str(clip.path)])
        )
    streamed = ["listen", str(ways["ONNX float32"].file), str(clip.path)]
    return {**memory, "streaming": _peak(streamed)}


# A process that was started by a large one counts that one's memory as its own peak, so that a
# small one has to stand between.
_MEASURE = """
import resource, subprocess, sys
quiet = subprocess.DEVNULL
done = subprocess.run(sys.argv[1:], stdout=quiet, stderr=quiet)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def _peak(arguments: list[str]) -> int | None:
    """Most memory that a command held at once; none where the system does not tell."""
    command = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "stapes", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.startswith("0 "):
        return None
    # Kilobytes on Linux, bytes on macOS.
    return int(found.stdout.split()[1]) * (1 if sys.platform == "darwin" else 1024)


def _bytes(n: int) -> str:
    return f"{n / 1e6:.0f} MB" if n >= 10_000_000 else f"{n / 1e3:.0f} kB"
