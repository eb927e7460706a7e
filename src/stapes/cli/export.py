"""``stapes export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from stapes.cli.terminal import Terminal

__all__ = ["export"]


def export(
    model: Annotated[Path, typer.Argument(help="Model file, run folder or shipped model.")],
    to: Annotated[
        Literal["onnx", "c"],
        typer.Option(help="onnx: one file, waveform to probabilities; c: a folder of C99."),
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
    from stapes.deploy.export import export as write

    with Terminal():
        made = write(
            model, to, out, precision=precision, replay=replay or [], calibrate=calibrate or [],
            chunk=chunk,
        )  # fmt: skip
    lines = [f"written    {made.path} ({made.precision})"]
    if made.c is None:
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
