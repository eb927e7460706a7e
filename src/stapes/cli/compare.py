"""``stapes compare``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from stapes.cli.terminal import Terminal, interval_text, print_table

__all__ = ["compare"]


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of 'stapes train', quantize or shrink; the others are compared with the "
            "first."
        ),
    ],
    format: Annotated[Literal["table", "json"], typer.Option(help="Of the result.")] = "table",
    workers: Annotated[int | None, typer.Option(help="Threads [all cores].", min=1)] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda or mps.")] = "cpu",
) -> None:
    """Score runs on the same test clips and say how sure their difference is.

    The difference is taken clip by clip; its 95 % interval resamples sources once for all runs.
    """
    from stapes.evaluation.compare import compare as run

    with Terminal() as terminal:
        found = run(runs, workers=workers, device=device, progress=terminal.progress)
    if format == "json":
        sys.stdout.write(json.dumps([asdict(one) for one in found], indent=1) + "\n")
        return
    rows = []
    for one in found:
        gap = one.difference
        rows.append(
            [
                one.name,
                str(one.n_seeds),
                interval_text(one.accuracy),
                gap.points() if gap else "",
            ]
        )
    print_table(["run", "seeds", "accuracy", "against the first, points"], rows, right={1})
    sys.stdout.write(
        f"{found[0].n_clips} test clips from {found[0].n_groups} sources; 95 % intervals over "
        "sources, differences clip by clip\n"
    )
