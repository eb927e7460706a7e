"""``stapes parity``."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from stapes.cli.terminal import Terminal, print_table

__all__ = ["parity"]


def parity(
    model: Annotated[
        Path,
        typer.Argument(help="Run folder, whose models answer their own test clips; or, with "
                       "--data, a model file."),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled recordings that the model was not trained on: folder, "
                     "manifest or known corpus [the run's test clips]."),
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Read --data as this known corpus.")] = None,
    int8: Annotated[
        Path | None,
        typer.Option(help="The run in int8, of 'stapes quantize', or an int8 model [calibrated "
                     "here on the run's training clips]."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Clips of each model, evenly spread [all].", min=1)
    ] = None,
    format: Annotated[
        Literal["table", "markdown", "json"], typer.Option(help="Of the result.")
    ] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the table here too, as markdown.")
    ] = None,
) -> None:  # fmt: skip
    """Show that torch, ONNX Runtime, compiled C and streaming give one answer, and what each costs.

    Times are of one thread, from samples to probabilities.
    """
    from stapes.data import load_dataset
    from stapes.deploy.parity import parity as run
    from stapes.errors import StapesError
    from stapes.files import write_text

    if corpus is not None and data is None:
        raise StapesError("--corpus says how to read --data, which is not given.")
    dataset = None if data is None else load_dataset(data, corpus=corpus, min_classes=1)
    with Terminal() as terminal:
        found = run(model, dataset, int8=int8, limit=limit, progress=terminal.progress)
        for note in found.notes:
            terminal.note(note)
    behind = f"{found.n_clips} clips, {found.n_models} network(s)"
    if out is not None:
        command = "stapes " + shlex.join(sys.argv[1:])
        write_text(out, f"{found.markdown()}\n{behind}. `{command}`\n")
    if format == "json":
        tree = {**asdict(found), "command": shlex.join(sys.argv)}
        sys.stdout.write(json.dumps(tree, indent=1) + "\n")
    elif format == "markdown":
        sys.stdout.write(found.markdown())
    else:
        header, rows = found.cells()
        print_table(header, rows, right=set(range(2, len(header))))
        sys.stdout.write(f"\n{behind}\n")
