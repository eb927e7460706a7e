"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Device",
    "Overrides",
    "Release",
    "Smoothing",
    "Teachers",
    "Threads",
    "Workers",
    "check_hop",
    "check_release",
]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe field, e.g. training.epochs=30; repeatable."),
]
Teachers = Annotated[
    list[Path] | None,
    typer.Option(
        "--teacher",
        help="Model or run folder to learn from besides the labels; repeatable, their answers are "
        "averaged. Of a cross-validated run each fold's models teach that fold.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Workers = Annotated[
    int | None, typer.Option(help="Threads that read recordings [all cores].", min=1)
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of the network's arithmetic [all cores].", min=1)
]
Release = Annotated[
    float | None,
    typer.Option(help="An event goes on down to this probability [threshold].", min=0, max=1),
]
Smoothing = Annotated[
    int, typer.Option(help="Windows of a timeline or stream that are averaged.", min=1)
]


def check_hop(hop: float | None, classifier: Any) -> None:
    """Refuse a hop that the model's windows cannot have.

    Raises:
        StapesError: not above 0 and at most a window.
    """
    from stapes.errors import StapesError

    audio = classifier.audio
    if hop is not None and not 1 / audio.sample_rate <= hop <= audio.window_seconds:
        raise StapesError(
            f"--hop {hop:g}: must be above 0 and at most the model's window of "
            f"{audio.window_seconds:g} s."
        )


def check_release(release: float | None, threshold: float) -> None:
    """Refuse an event that ends above where it begins.

    Raises:
        StapesError: the release is above the threshold.
    """
    from stapes.errors import StapesError

    if release is not None and release > threshold:
        raise StapesError(
            f"--release {release:g}: must be at most --threshold, which is {threshold:g}."
        )
