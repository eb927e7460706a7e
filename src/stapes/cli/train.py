"""``stapes train``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from stapes.cli.ensemble import ensemble_lines
from stapes.cli.options import Device, Overrides, Teachers, Threads, Workers
from stapes.cli.terminal import Terminal, interval_text
from stapes.errors import ConfigError

__all__ = ["train"]


def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with a subfolder per class, a manifest (.csv, .tsv, .parquet), or a "
            "known corpus in its official layout."
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="Recipe name or TOML file; see 'stapes recipes' [small; finetune with --init].",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder [runs/DATA-RECIPE].")
    ] = None,
    overrides: Overrides = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="ImageNet weights for a timm network: .safetensors or a torch state dict "
            "[from timm's hub]."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Model file, run folder or shipped model ('stapes models') to start from, for the "
            "same labels or others; its audio, features and network come with it. none: random "
            "weights [few recordings and no --recipe: the nearest shipped model]."
        ),
    ] = None,
    teachers: Teachers = None,
    corpus: Annotated[
        str | None, typer.Option(help="Read DATA as this known corpus, e.g. esc10.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Which recordings share a source: 'folder' or a regular expression on the file "
            "name whose first parenthesis is the source."
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validate over this many made folds.", min=2),
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="Test on this declared fold only, train on the others.")
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Part held out for testing where none is declared.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of splits, initial weights and training.", min=0)] = 0,
    seeds: Annotated[
        int, typer.Option(help="Train with this many seeds and report the spread.", min=1)
    ] = 1,
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble",
            help="With --seeds: average the seeds' models, score the mean, and make the ensemble "
            "the run's model.",
        ),
    ] = False,
    final: Annotated[
        bool,
        typer.Option(
            "--final/--no-final",
            help="After a cross-validation, train a model on everything for use.",
        ),
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Train although a source is on both sides of a split.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write curves for TensorBoard.")
    ] = False,
    device: Device = "auto",
    workers: Workers = None,
    threads: Threads = None,
) -> None:
    """Train on labelled recordings, score on held-out ones, write a model and a report.

    Stopped at any moment, the same command continues where it was. Several processes:
    torchrun --nproc-per-node 2 -m stapes train ...
    """
    import torch

    from stapes.cli.process import keep_freed_memory
    from stapes.training import train as run

    keep_freed_memory()

    if threads is not None:
        torch.set_num_threads(threads)
    command = "stapes " + shlex.join(sys.argv[1:])
    settings = list(overrides or [])
    if weights is not None and init not in (None, "none"):
        raise ConfigError("--weights and --init: training starts from one of them; give only one.")
    if weights is not None:
        settings += [
            "initialization.weights=imagenet",
            f"initialization.file={json.dumps(str(weights))}",
        ]
    with Terminal() as terminal:
        result = run(
            data,
            recipe=recipe,
            overrides=settings,
            init="auto" if init is None else init,
            teachers=teachers or (),
            out=out,
            corpus=corpus,
            group_by=group_by,
            folds=folds,
            fold=fold,
            test_fraction=test_fraction,
            seed=seed,
            n_seeds=seeds,
            ensemble=ensemble,
            final=final,
            force=force,
            workers=workers,
            device=device,
            tensorboard=tensorboard,
            reporter=terminal,
            command=command,
        )
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    write = sys.stdout.write
    score = result.score
    write(f"\naccuracy  {interval_text(score.accuracy)}, 95 % interval over sources\n")
    write(f"balanced  {interval_text(score.balanced_accuracy)}\n")
    write(f"macro F1  {interval_text(score.macro_f1)}\n")
    n_test = len({int(i) for m in result.members for i in m.split.test})
    write(
        f"          {n_test} test clips from {score.n_groups} sources, "
        f"{len({m.split.name for m in result.members})} fold(s), {seeds} seed(s)\n"
    )
    if len(result.folds.names) > 1:
        spread = result.folds.accuracy
        values = ", ".join(f"{100 * v:.1f}" for v in spread.values)
        write(f"per fold  mean {100 * spread.mean:.1f} %, spread {100 * (spread.sd or 0):.1f}: ")
        write(values + "\n")
    if result.seeds is not None:
        by_seed = result.seeds.accuracy
        write(f"per seed  mean {100 * by_seed.mean:.1f} %, spread {100 * (by_seed.sd or 0):.1f}\n")
    if result.ensemble is not None:
        averaged = result.ensemble
        write(f"\nensemble   {interval_text(averaged.score.accuracy)}, ")
        write(f"{averaged.score.n_clips} test clips once each\n")
        if len(averaged.folds.names) > 1:
            spread = averaged.folds.accuracy
            values = ", ".join(f"{100 * v:.1f}" for v in spread.values)
            write(
                f"per fold   mean {100 * spread.mean:.1f} %, spread {100 * (spread.sd or 0):.1f}: "
            )
            write(values + "\n")
        for line in ensemble_lines(averaged):
            write(line + "\n")
        write("\n")
    for note in result.notes:
        write(f"note      {note}\n")
    write(f"model     {result.model}\nreport    {result.report}\n")
