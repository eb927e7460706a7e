"""``stapes quantize``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from stapes.cli.options import Device, Threads, Workers
from stapes.cli.terminal import Terminal, interval_text

__all__ = ["quantize"]


def quantize(
    run: Annotated[Path, typer.Argument(help="Run folder of 'stapes train'.")],
    precision: Annotated[
        Literal["int8", "float16"], typer.Option(help="Of the stored and computed numbers.")
    ] = "int8",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New run folder [RUN-PRECISION].")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Such as quantization.aware=always; repeatable."),
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    threads: Threads = None,
) -> None:
    """Store a run's networks in eight or sixteen bits and score them again.

    int8: weights and activations, calibrated on training clips; where that costs more than half a
    point on the validation part (without one, on training clips), the network is fine-tuned with
    quantisation in the loop. 'stapes compare RUN RUN-int8' says what it cost on the test clips.
    """
    import torch

    from stapes.training.finished import quantize_run

    if threads is not None:
        torch.set_num_threads(threads)
    with Terminal() as terminal:
        result = quantize_run(
            run,
            precision,
            out=out,
            overrides=overrides or [],
            workers=workers,
            device=device,
            reporter=terminal,
            command="stapes " + shlex.join(sys.argv[1:]),
        )
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    n_test = len({int(i) for member in result.members for i in member.split.test})
    after = result.model.stat().st_size
    ratio = ""
    if (run / "model.safetensors").is_file():  # stopped after its last network, a run has none yet
        before = (run / "model.safetensors").stat().st_size
        ratio = f" ({after / before:.2f} of {before:,})"
    sys.stdout.write(
        f"\naccuracy  {interval_text(result.score.accuracy)}, 95 % interval over sources\n"
        f"          {n_test} test clips from {result.score.n_groups} sources\n"
        f"bytes     {after:,}{ratio}\n"
        f"model     {result.model}\nreport    {result.report}\n"
    )
