"""``stapes evaluate``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from stapes.cli.terminal import Terminal, interval_text, print_table

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file, run folder or shipped model.")],
    data: Annotated[
        Path, typer.Argument(help="Labelled recordings: folder, manifest or known corpus.")
    ],
    corpus: Annotated[str | None, typer.Option(help="Read DATA as this known corpus.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Which recordings share a source, as for 'stapes train'.")
    ] = None,
    fold: Annotated[str | None, typer.Option(help="Only clips of this declared fold.")] = None,
    format: Annotated[Literal["table", "json"], typer.Option(help="Of the result.")] = "table",
    workers: Annotated[int | None, typer.Option(help="Threads [all cores].", min=1)] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda or mps.")] = "cpu",
) -> None:
    """Score a model on labelled recordings.

    Repeats the score of a run: stapes evaluate RUN/FOLD/seed-0/model.safetensors
    RUN/FOLD/seed-0/test.csv
    """
    from stapes.bundle import load_bundle
    from stapes.data import load_dataset
    from stapes.errors import DataError
    from stapes.evaluation.evaluate import evaluate as run

    bundle = load_bundle(model)
    dataset = load_dataset(data, corpus=corpus, group_by=group_by, min_classes=1)
    if fold is not None:
        known = sorted({clip.fold for clip in dataset.clips if clip.fold is not None})
        if fold not in known:
            raise DataError(
                f"--fold {fold}: no such fold; {dataset.name} has {', '.join(known) or 'none'}."
            )
        clips = tuple(clip for clip in dataset.clips if clip.fold == fold)
        dataset = replace(dataset, clips=clips)
    with Terminal() as terminal:
        result = run(bundle, dataset, workers=workers, device=device, progress=terminal.progress)
        for line in result.unreadable:
            terminal.note(f"Left out: {line}")
    score = result.score
    if format == "json":
        sys.stdout.write(json.dumps(score.to_json(), indent=1) + "\n")
    else:
        sys.stdout.write(
            f"accuracy  {interval_text(score.accuracy)}, 95 % interval over sources\n"
            f"balanced  {interval_text(score.balanced_accuracy)}\n"
            f"macro F1  {interval_text(score.macro_f1)}\n"
            f"log loss  {interval_text(score.log_loss, percent=False)}\n"
            f"calibration error {score.calibration_error:.3f}\n"
            f"{score.n_clips} clips from {score.n_groups} sources\n\n"
        )
        rows = [
            [
                entry.label,
                str(entry.n_clips),
                "-" if entry.recall is None else f"{100 * entry.recall.value:.1f}",
                "-" if entry.precision is None else f"{100 * entry.precision:.1f}",
                f"{100 * entry.f1:.1f}" if entry.f1 is not None else "-",
            ]
            for entry in score.per_class
        ]
        print_table(["class", "clips", "recall %", "precision %", "F1 %"], rows, right={1, 2, 3, 4})
    if result.unreadable:
        raise typer.Exit(1)
