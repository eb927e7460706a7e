"""``stapes predict``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from stapes.cli.options import Release, Smoothing, check_hop, check_release
from stapes.cli.rows import Format, row_writer
from stapes.cli.terminal import Terminal

if TYPE_CHECKING:
    from stapes.archive import Progress

__all__ = ["predict"]


def predict(
    model: Annotated[
        Path,
        typer.Argument(help="Shipped model, model file, exported model (.onnx) or run folder."),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Recordings, folders of recordings, or - for names on standard input."),
    ],
    format: Annotated[
        Literal["table", "csv", "jsonl", "parquet"] | None,
        typer.Option(help="Of the result [table; of an archive parquet, csv can be]."),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", help="Labels per recording.", min=1)] = 1,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Events with start and end instead of one answer.")
    ] = False,
    hop: Annotated[
        float | None,
        typer.Option(help="Seconds between the timeline's windows [half a window]."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Least probability of a timeline's event.", min=0, max=1)
    ] = 0.0,
    release: Release = None,
    smoothing: Smoothing = 1,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Write to this file instead of standard output; or to this folder."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute: cpu, cuda or mps; of .onnx, cpu.")
    ] = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="Of an archive: processes [all cores].", min=1)
    ] = None,
    engine: Annotated[
        Literal["local", "ray"] | None,
        typer.Option(help="Of an archive: this machine, or a Ray cluster [local]."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster [RAY_ADDRESS; else one on this machine]."),
    ] = None,
) -> None:
    """Classify recordings of any length and format.

    A recording that cannot be read is reported on standard error, the others are done, and the
    exit status is 1.

    A whole archive goes into a folder: MODEL ARCHIVE --out FOLDER/, where ARCHIVE is one folder
    of recordings. --out is a folder if it ends in /, if it is one already, or if one folder of
    recordings is given and it has no suffix. Its rows are in FOLDER/rows, recordings that cannot
    be read in FOLDER/errors. Stopped at any moment, the same command goes on from there.
    """
    from stapes.errors import StapesError

    if not timeline:
        given = {
            "hop": hop is not None, "threshold": threshold > 0, "release": release is not None,
            "smoothing": smoothing > 1,
        }  # fmt: skip
        for name in given:
            if given[name]:
                raise StapesError(f"--{name} goes with --timeline.")
    if timeline and top != 1:
        raise StapesError("--top does not go with --timeline: an event has one label.")
    check_release(release, threshold)
    if out is not None and _is_folder(out, inputs):
        if device != "cpu":
            raise StapesError(f"--device {device}: an archive is swept on the CPU; leave it out.")
        settings = {
            "top": top, "timeline": timeline, "hop_seconds": hop, "threshold": threshold,
            "release": release, "smoothing": smoothing,
        }  # fmt: skip
        _sweep(model, inputs, out, settings, format, workers, engine, ray_address)
        return
    options = {"workers": workers, "engine": engine, "ray-address": ray_address}
    for name, value in options.items():
        if value is not None:
            raise StapesError(f"--{name} goes with an archive: --out FOLDER/.")
    if format == "parquet":
        raise StapesError("--format parquet goes with an archive: --out FOLDER/.")
    format = format or "table"
    paths = list(_paths(inputs))
    if not paths:
        raise StapesError(f"{', '.join(inputs)}: no recordings found.")
    from stapes import load
    from stapes.audio import quiet_decoders

    with quiet_decoders():  # ONNX Runtime may speak of hardware that it looks for and does not find
        classifier = load(model, device)
    check_hop(hop, classifier)
    events = None
    if timeline:
        events = {
            "hop_seconds": hop, "threshold": threshold, "release": release, "smoothing": smoothing,
        }  # fmt: skip
    if out is None:
        failed = _run(classifier, paths, sys.stdout, format, top, events)
    else:
        from stapes.files import atomic_path

        with atomic_path(Path(out)) as aside, _open(aside) as file:
            failed = _run(classifier, paths, file, format, top, events)
    if failed:
        sys.stderr.write(f"{failed} of {len(paths)} recordings could not be read.\n")
        raise typer.Exit(1)


def _is_folder(out: str, inputs: list[str]) -> bool:
    """Whether a name is that of a folder to write, which need not exist."""
    path = Path(out)
    if out.endswith(("/", os.sep)) or path.is_dir():
        return True
    return not path.suffix and not path.exists() and len(inputs) == 1 and Path(inputs[0]).is_dir()


def _sweep(
    model: Path,
    inputs: list[str],
    out: str,
    settings: dict[str, Any],
    format: str | None,
    workers: int | None,
    engine: Literal["local", "ray"] | None,
    ray_address: str | None,
) -> None:
    from stapes.archive import Settings, sweep
    from stapes.archive.parts import FORMATS
    from stapes.errors import StapesError
    from stapes.runtime import load as load_exported

    if len(inputs) != 1 or not Path(inputs[0]).is_dir():
        raise StapesError(
            f"--out {out}: into a folder goes an archive, which is one folder of recordings; for "
            "single recordings name a file, such as --out answers.csv."
        )
    if format not in (None, *FORMATS):
        raise StapesError(f"--format {format}: an archive is written as {' or '.join(FORMATS)}.")
    if ray_address is not None and engine != "ray":
        raise StapesError("--ray-address goes with --engine ray.")
    written: Literal["parquet", "csv"] = "csv" if format == "csv" else "parquet"
    with Terminal() as terminal:
        told = _Told(terminal)
        model = _exported(model)
        if settings["hop_seconds"] is not None:
            check_hop(settings["hop_seconds"], load_exported(model))
        try:
            result = sweep(
                model,
                inputs[0],
                out,
                Settings(**settings),
                format=written,
                workers=workers,
                engine=engine or "local",
                ray_address=ray_address,
                on_progress=told,
                on_note=terminal.note,
            )
        except KeyboardInterrupt:
            told.stopped()
            raise
        terminal.note(
            f"{result.folder / 'rows'}: {result.rows} rows in {result.parts} "
            f"{'file' if result.parts == 1 else 'files'}, of {result.recordings} recordings with "
            f"{_hours(result.audio_seconds)} of audio."
        )
        left_out = result.changes.unreadable
        if result.failed:
            terminal.note(
                f"{result.failed} of {result.recordings} recordings could not be read to the end; "
                f"{result.folder / 'errors'} says why."
            )
    if result.failed or left_out:
        raise typer.Exit(1)


def _exported(model: Path) -> Path:
    """Refuse a model that was not exported, with the command that exports it."""
    from stapes.catalogue import find_model
    from stapes.errors import StapesError

    found = find_model(model, "onnx")
    if found.suffix == ".safetensors" or (
        (found / "model.safetensors").is_file() and not (found / "model.onnx").is_file()
    ):
        raise StapesError(
            f"{model}: an archive is swept with an exported model: stapes export {model} --to "
            "onnx, and name what that writes."
        )
    return model


class _Told:
    """Tells how far a sweep is: a bar that moves, or a line in a log every ten seconds."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._last = time.monotonic()
        self._progress: Progress | None = None

    def stopped(self) -> None:
        """Say how far it has come."""
        if self._progress is not None:
            self._terminal.note(f"Classifying: {_so_far(self._progress)}")

    def __call__(self, progress: Progress) -> None:
        if self._progress is None:
            self._last = time.monotonic()  # until the first answer there was nothing to tell
        self._progress = progress
        over = progress.done == progress.recordings
        now = time.monotonic()
        if not over and now - self._last < (0.2 if self._terminal.watched else 10.0):
            return
        self._last = now
        if self._terminal.watched:
            self._terminal.progress("Classifying", progress.bytes_done, progress.bytes)
        self._terminal.status(f"Classifying: {_so_far(progress)}")


def _so_far(progress: Progress) -> str:
    text = (
        f"{progress.done} of {progress.recordings} recordings, "
        f"{_hours(progress.audio_seconds)} of audio, {progress.speed:.0f} times real time"
    )
    if progress.failed:
        text += f", {progress.failed} with errors"
    left = progress.seconds_left
    if left is not None and progress.done < progress.recordings:
        minutes, seconds = divmod(round(left), 60)
        text += f", {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
    return text


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h"


def _open(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


def _paths(inputs: list[str]) -> Iterator[Path]:
    from stapes.audio import find_audio

    for given in inputs:
        if given == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        elif Path(given).is_dir():
            yield from find_audio(Path(given))
        else:
            yield Path(given)


def _run(
    classifier: Any,
    paths: list[Path],
    file: IO[str],
    format: Format,
    top: int,
    events: dict[str, Any] | None,
) -> int:
    """Write a row per answer as soon as it is known; gives the number of failures.

    ``events`` are the settings of a timeline, none for one answer.
    """
    from stapes.errors import AudioError

    columns = ["path", "label", "score"]
    if events is not None:
        columns = ["path", "start", "end", "label", "score"]
    elif top > 1:
        columns = ["path", "rank", "label", "score"]
    # Rows are written as they come, so the first column's width is settled by the names alone.
    write = row_writer(file, format, columns, path=max(len(str(path)) for path in paths))
    failed = 0
    with Terminal() as terminal:
        for number, path in enumerate(paths):
            try:
                if events is not None:
                    for e in classifier.timeline(path, **events):
                        write([str(path), round(e.start, 3), round(e.end, 3), e.label,
                               round(e.score, 4)])  # fmt: skip
                elif top > 1:
                    for rank, (label, score) in enumerate(classifier.classify(path).top(top), 1):
                        write([str(path), rank, label, round(score, 4)])
                else:
                    prediction = classifier.classify(path)
                    write([str(path), prediction.label, round(prediction.score, 4)])
            except AudioError as error:
                failed += 1
                terminal.note(f"Error: {error}")
            if len(paths) > 1 and file is not sys.stdout:
                terminal.progress("Classifying", number + 1, len(paths))
    return failed
