"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device", "Overrides", "Threads", "Workers"]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe field, e.g. training.epochs=30; repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Workers = Annotated[
    int | None, typer.Option(help="Threads that read recordings [all cores].", min=1)
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of the network's arithmetic [all cores].", min=1)
]
