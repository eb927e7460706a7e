"""``stapes predict``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer

from stapes.cli.terminal import Terminal

__all__ = ["predict"]


def predict(
    model: Annotated[
        Path, typer.Argument(help="Model file, exported model (.onnx) or run folder.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Recordings, folders of recordings, or - for names on standard input."),
    ],
    format: Annotated[
        Literal["table", "csv", "jsonl"], typer.Option(help="Of the result.")
    ] = "table",
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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here instead of standard output.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute: cpu, cuda or mps; of .onnx, cpu.")
    ] = "cpu",
) -> None:
    """Classify recordings of any length and format.

    A recording that cannot be read is reported on standard error, the others are done, and the
    exit status is 1.
    """
    from stapes.errors import StapesError

    if hop is not None and not timeline:
        raise StapesError("--hop goes with --timeline.")
    if timeline and top != 1:
        raise StapesError("--top does not go with --timeline: an event has one label.")
    paths = list(_paths(inputs))
    if not paths:
        raise StapesError(f"{', '.join(inputs)}: no recordings found.")
    from stapes import load
    from stapes.audio import quiet_decoders

    with quiet_decoders():  # ONNX Runtime may speak of hardware that it looks for and does not find
        classifier = load(model, device)
    if (
        hop is not None
        and not 1 / classifier.audio.sample_rate <= hop <= classifier.audio.window_seconds
    ):
        raise StapesError(
            f"--hop {hop:g}: must be above 0 and at most the model's window of "
            f"{classifier.audio.window_seconds:g} s."
        )
    if out is None:
        failed = _run(classifier, paths, sys.stdout, format, top, timeline, hop, threshold)
    else:
        from stapes.files import atomic_path

        with atomic_path(out) as aside, _open(aside) as file:
            failed = _run(classifier, paths, file, format, top, timeline, hop, threshold)
    if failed:
        sys.stderr.write(f"{failed} of {len(paths)} recordings could not be read.\n")
        raise typer.Exit(1)


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
    format: str,
    top: int,
    timeline: bool,
    hop: float | None,
    threshold: float,
) -> int:
    """Write a row per answer as soon as it is known; gives the number of failures."""
    from stapes.errors import AudioError

    columns = ["path", "start", "end", "label", "score"] if timeline else ["path", "label", "score"]
    if not timeline and top > 1:
        columns = ["path", "rank", "label", "score"]
    # Rows are written as they come, so the first column's width is settled by the names alone.
    write = _writer(file, format, columns, max(len(str(path)) for path in paths))
    failed = 0
    with Terminal() as terminal:
        for number, path in enumerate(paths):
            try:
                if timeline:
                    events = classifier.timeline(path, hop_seconds=hop, threshold=threshold)
                    for e in events:
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


def _writer(file: IO[str], format: str, columns: list[str], name_width: int) -> Any:
    if format == "csv":
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        return rows.writerow
    if format == "jsonl":
        return lambda row: file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")

    def line(row: list[Any]) -> None:
        cells = [str(row[0]).ljust(name_width)]
        for name, value in zip(columns[1:], row[1:], strict=True):
            if name == "score":
                cells.append(f"{value:6.4f}" if value != name else " score")
            elif name in ("start", "end"):
                cells.append((f"{value:.2f}" if value != name else name).rjust(9))
            elif name == "rank":
                cells.append(str(value).rjust(4))
            else:
                cells.append(str(value).ljust(16))
        file.write("  ".join(cells).rstrip() + "\n")
        file.flush()

    line(columns)
    return line
