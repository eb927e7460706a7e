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
from stapes.deploy.c99.compiled import CompiledClassifier, c_compiler
from stapes.deploy.c99.folder import write_c
from stapes.deploy.export import in_eight_bits
from stapes.deploy.onnx import onnx_model
from stapes.deploy.recordings import clip_windows, clips_of_run, spread
from stapes.deploy.replay import compare
from stapes.errors import ConfigError, DataError, StapesError
from stapes.evaluation.ensemble import members_of_run
from stapes.evaluation.metrics import Interval, score
from stapes.evaluation.predict import Classifier
from stapes.inference.classifier import BaseClassifier
from stapes.runtime import OnnxClassifier

__all__ = ["Parity", "ParityRow", "parity"]

_CALIBRATED = 128  # windows
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
        notes: what was left out, and why.
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
        DataError: no test clips, or labels that the model does not know.
        StapesError: no models of folds and seeds.
    """
    pairs = _pairs(Path(model), None if int8 is None else Path(int8), data is not None)
    tally = _Tally()
    notes: list[str] = []
    done = 0
    told = progress or (lambda stage, done, total: None)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for number, (path, path8) in enumerate(pairs):
            place = Path(name) / str(number)
            place.mkdir()
            bundle = load_bundle(path)
            if bundle.precision == "int8":
                raise ConfigError(f"{path}: is int8 already; name the run it was made of.")
            clips = _clips(path, data, bundle, limit)
            ways = _ways(bundle, _int8_of(path, path8, bundle), place, notes)
            groups = [f"{clip.group or clip.path}" for clip in clips]
            targets = [bundle.labels.index(clip.label) for clip in clips]
            tally.targets += targets
            tally.groups += groups
            for clip_number, clip in enumerate(clips):
                tally.add(_answers(ways, clip))
                done += 1
                told("Answering", number + (clip_number + 1) / len(clips), len(pairs))
            light = ways["ONNX float32"].classifier
            tally.widen("streaming", _stream_difference(light, clips))
            if number == 0:
                told("Timing", 0, 1)
                timed = _milliseconds(ways, clips)
                sizes = {name: way.size for name, way in ways.items()}
                sizes["streaming"] = sizes["ONNX float32"]
                memory = _memory(ways, clips[0])
                told("Timing", 1, 1)
            labels = bundle.labels
    rows = []
    for name in _ORDER:
        if name not in tally.clips:
            continue
        twin = _TWINS.get(name)
        found = np.stack(tally.clips[name])
        alike = None if twin is None else compare(np.stack(tally.clips[twin]), found)
        rows.append(
            ParityRow(
                name=name,
                twin=twin,
                difference=None if twin is None else tally.difference[name],
                decisions=None if alike is None else alike.decisions,
                decisions_float=compare(np.stack(tally.clips["torch float32"]), found).decisions,
                accuracy=score(found, tally.targets, tally.groups, labels).accuracy,
                milliseconds=timed[name],
                size=sizes[name],
                ram=memory[name],
            )
        )
    return Parity(tuple(rows), len(tally.targets), len(pairs), tuple(dict.fromkeys(notes)))


@dataclass
class _Tally:
    """Answers of all models, by way."""

    clips: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    targets: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def add(self, answers: dict[str, NDArray[np.float32]]) -> None:
        """One clip's windows, (W, K) by way."""
        for name, rows in answers.items():
            self.clips.setdefault(name, []).append(rows.mean(0, dtype=np.float64))
            if (twin := _TWINS.get(name)) is not None:
                self.widen(name, compare(answers[twin], rows).difference)

    def widen(self, name: str, difference: float) -> None:
        self.difference[name] = max(self.difference.get(name, 0.0), difference)


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
    windows = clip_windows(clips_of_run(path).train, bundle.audio, _CALIBRATED)
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
        clips = clips_of_run(path).test
        if not clips:
            raise DataError(
                f"{path}: no test clips lie beside it (test.csv and its recordings); name labelled "
                "recordings with --data."
            )
    else:
        dataset = data if isinstance(data, Dataset) else load_dataset(data, min_classes=1)
        clips = dataset.clips
    unknown = sorted({clip.label for clip in clips} - set(bundle.labels))
    if unknown:
        raise DataError(f"The model does not know the label(s) {', '.join(unknown[:5])}.")
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
        if c_compiler() is None:
            notes.append("C: not run, there is no C compiler here.")
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
    samples = read(clip.path, channels=way.audio.channels, sample_rate=way.audio.sample_rate,
                   start=clip.start or 0.0, end=clip.end)  # fmt: skip
    return way.listen(
        _chunks(samples),
        sample_rate=way.audio.sample_rate,
        hop_seconds=way.audio.hop / way.audio.sample_rate,
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
    joined = [
        read(clip.path, channels=audio.channels, sample_rate=audio.sample_rate)
        for clip in clips[:enough]
    ]
    samples = np.concatenate(joined, axis=1)
    hop = audio.window_seconds / 4
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "long.wav"
        soundfile.write(path, samples.T, audio.sample_rate, subtype="FLOAT")
        whole = np.stack([w.probabilities for w in way.windows(path, hop_seconds=hop)])
    streamed = way.listen(_chunks(samples), sample_rate=audio.sample_rate, hop_seconds=hop)
    return compare(whole, np.stack([w.probabilities for w in streamed])).difference


# --- time, size and memory --------------------------------------------------------------------


def _milliseconds(ways: dict[str, _Way], clips: Sequence[Clip]) -> dict[str, float]:
    light = ways["ONNX float32"].classifier
    audio = light.audio
    windows = clip_windows(clips, audio, _TIMED_WINDOWS)
    if windows is None:
        raise DataError("No test clip can be read.")
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
