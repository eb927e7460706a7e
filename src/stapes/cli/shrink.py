"""``stapes shrink``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stapes.cli.options import Device, Teachers, Threads, Workers
from stapes.cli.terminal import Terminal, interval_text, print_table

if TYPE_CHECKING:
    from stapes.shrinking import ShrinkResult

__all__ = ["shrink"]


def shrink(
    run: Annotated[Path, typer.Argument(help="Run folder that 'stapes train' wrote.")],
    size: Annotated[
        str | None,
        typer.Option(
            help="Largest model file: 128kB is 128,000 bytes, 128KiB is 131,072, 0.5MB, ..."
        ),
    ] = None,
    macs: Annotated[
        str | None,
        typer.Option(
            help="Most multiply-accumulates per second of audio, e.g. 30M (million); products with "
            "zeros count, as in the challenges since 2022."
        ),
    ] = None,
    teachers: Teachers = None,
    trials: Annotated[int, typer.Option(help="Models to train and compare.", min=1)] = 16,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the search [RUN-SIZE-MACS].")
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="Of a cross-validated run, the fold to use [the first].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search and of training.", min=0)] = 0,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit",
            help="Train the best one once more, on training and validation clips together (never "
            "where the recipe stops early).",
        ),
    ] = True,
    device: Device = "auto",
    workers: Workers = None,
    threads: Threads = None,
) -> None:
    """Find the most accurate model inside a budget, starting from a finished run.

    Tries narrower, shallower, pruned and decomposed networks with weights of one or two bytes,
    trained on a part of the run's training clips and compared on the rest; trains the best one on
    both and tests it once. Stopped at any moment, the same command continues where it was.
    """
    import torch

    from stapes.cli.process import keep_freed_memory
    from stapes.shrinking import shrink as search

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    with Terminal() as terminal:
        result = search(
            run,
            size=size,
            macs=macs,
            teachers=teachers or (),
            trials=trials,
            out=out,
            fold=fold,
            seed=seed,
            refit=refit,
            device=device,
            workers=workers,
            reporter=terminal,
            command="stapes " + shlex.join(sys.argv[1:]),
        )
    _print(result)


def _print(result: ShrinkResult) -> None:
    from stapes.shrinking.candidates import describe

    rows = []
    for trial in result.trials:
        if not trial.trained:
            continue
        assert trial.recipe is not None
        assert trial.cost is not None
        assert trial.accuracy is not None
        mark = "chosen" if trial.number == result.winner.number else ""
        if trial.number and trial.state == "over":
            mark = "over the limit"
        rows.append(
            [
                str(trial.number) if trial.number else "run",
                describe(trial.recipe),
                f"{trial.cost.file_bytes:,}",
                f"{trial.cost.macs_per_second / 1e6:.2f}",
                interval_text(trial.accuracy),
                f"{trial.log_loss:.3f}",
                mark,
            ]
        )
    print_table(
        ["trial", "network", "bytes", "M MACs/s", "validation accuracy", "log loss", ""],
        rows,
        right={0, 2, 3},
    )
    write = sys.stdout.write
    left_out = sum(not trial.trained for trial in result.trials)
    if left_out:
        write(f"{left_out} more could not be inside the limits or failed; see the table\n")
    cost = result.cost
    write(
        f"\nlimit     {result.limits}\n"
        f"file      {cost.file_bytes:,} bytes, {cost.parameters:,} parameters, "
        f"{cost.nonzero_parameters:,} not zero\n"
        f"macs      {cost.macs_per_second / 1e6:.2f} million multiply-accumulates per second of "
        "audio, zeros counted\n"
        f"network   {describe(result.recipe)}\n"
    )
    if result.score is not None:
        write(
            f"accuracy  {interval_text(result.score.accuracy)}, 95 % interval, "
            f"{result.score.n_clips} test clips from {result.score.n_groups} sources, tested "
            "once\n"
        )
    for note in result.notes:
        write(f"note      {note}\n")
    write(
        f"model     {result.model}\ntrials    {result.table}\n"
        f"plot      {result.figures[0]}\n"
        f"next      stapes inspect {shlex.quote(str(result.model))}\n"
    )
    if result.score is not None:
        test = shlex.quote(str(result.folder / "test.csv"))
        write(f"          stapes evaluate {shlex.quote(str(result.model))} {test}\n")
