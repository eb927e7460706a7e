"""``stapes export``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stapes.cli.terminal import Terminal

if TYPE_CHECKING:
    from stapes.web import Page

__all__ = ["export"]


def export(
    model: Annotated[Path, typer.Argument(help="Model file, run folder or shipped model.")],
    to: Annotated[
        Literal["onnx", "c", "web"],
        typer.Option(help="onnx: one file, waveform to probabilities; c: a folder of C99; web: a "
                     "page for the browser, which also takes an exported .onnx."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File or folder to write [beside the model]."),
    ] = None,
    precision: Annotated[
        Literal["float32", "int8"] | None,
        typer.Option(help="Of the network [the model's own]; int8 quantises a float model."),
    ] = None,
    replay: Annotated[
        list[Path] | None,
        typer.Option(help="Recordings to check the export with [the run's test clips, else "
                     "made-up signals]; repeatable."),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Recordings that set the ranges of int8 [the run's training clips]; "
                     "repeatable."),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(help="Of C: columns of the spectrogram that the network takes at once, "
                     "1 to 4096; more is faster and takes more RAM."),
    ] = None,
) -> None:  # fmt: skip
    """Write a model for where it runs: features, network and labels together.

    Recordings are replayed through the model and through what is to be written; where the answers
    differ, nothing is written. 'stapes predict MODEL.onnx FILES' needs no training packages.
    """
    if to == "web" and chunk is None:
        from stapes.deploy.page import page_of_exported  # needs no training packages

        page = page_of_exported(model, out, precision, replay, calibrate)
        if page is not None:
            sys.stdout.write("\n".join(_page_lines(page)) + "\n")
            return
    from stapes.deploy.export import export as write

    with Terminal():
        made = write(
            model, to, out, precision=precision, replay=replay or [], calibrate=calibrate or [],
            chunk=chunk,
        )  # fmt: skip
    lines = [f"written    {made.path} ({made.precision})"]
    if made.page is not None:
        lines = _page_lines(made.page)
    elif made.c is None:
        lines.append(f"bytes      {made.size:,}")
    else:
        code = "the program" if made.c.code is None else f"a program of {made.c.code:,}"
        lines.append(f"flash      {made.c.flash:,} bytes of constants, and {code}")
        lines.append(
            f"RAM        {made.c.ram_plain:,} bytes ({made.c.ram:,} on processors with vectors), "
            "and the window"
        )
        lines.append(f"window     {made.c.window:,} bytes of samples as float, the caller's")
    lines.append(f"replayed   {made.replayed}")
    if made.agreement is not None:
        found = made.agreement
        lines.append(
            f"agreement  {100 * found.decisions:.1f} % of the decisions, probabilities within "
            f"{found.difference:.1e}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


def _page_lines(page: Page) -> list[str]:
    return [
        f"written    {page.path} ({page.precision})",
        f"bytes      {page.size:,}, {page.gzip_size:,} from a server that compresses; the model is "
        f"{page.model_size:,} of them",
        f"open       python -m http.server --bind 127.0.0.1 -d {shlex.quote(str(page.path))}, "
        "then http://127.0.0.1:8000",
    ]
