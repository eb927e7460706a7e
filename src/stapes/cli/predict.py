"""``stapes predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from stapes.cli.options import Release, Smoothing, check_hop, check_release
from stapes.cli.rows import Format, row_writer
from stapes.cli.terminal import Terminal

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
    format: Annotated[Format, typer.Option(help="Of the result.")] = "table",
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

    if not timeline:
        given = {"hop": hop is not None, "release": release is not None, "smoothing": smoothing > 1}
        for name in given:
            if given[name]:
                raise StapesError(f"--{name} goes with --timeline.")
    if timeline and top != 1:
        raise StapesError("--top does not go with --timeline: an event has one label.")
    check_release(release, threshold)
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

        with atomic_path(out) as aside, _open(aside) as file:
            failed = _run(classifier, paths, file, format, top, events)
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
