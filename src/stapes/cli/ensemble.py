"""``stapes ensemble``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stapes.cli.terminal import Terminal, interval_text, print_table

if TYPE_CHECKING:
    from stapes.evaluation.ensemble import EnsembleScore

__all__ = ["ensemble", "ensemble_lines"]


def ensemble(
    models: Annotated[
        list[Path],
        typer.Argument(help="Model files, or run folders: each stands for its one model."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model file to write.")],
    every: Annotated[
        bool,
        typer.Option("--members", help="A run folder stands for the models of all folds and seeds "
                     "in it instead."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled recordings to score on that no member was trained on: folder, "
                     "manifest or known corpus."),
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Read --data as this known corpus.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Which recordings share a source, as for 'stapes train'.")
    ] = None,
    format: Annotated[Literal["table", "json"], typer.Option(help="Of the result.")] = "table",
    workers: Annotated[int | None, typer.Option(help="Threads [all cores].", min=1)] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda or mps.")] = "cpu",
) -> None:  # fmt: skip
    """Make one model of several: it predicts the mean of their probabilities.

    Members may be different networks from different seeds and folds; labels and front end must be
    the same. With --data: the accuracy of each and of their mean, and how alike they decide.
    """
    from stapes.bundle import save_bundle
    from stapes.data import load_dataset
    from stapes.errors import StapesError
    from stapes.evaluation.ensemble import ensemble as join
    from stapes.evaluation.ensemble import evaluate_members, members_of_run

    if data is None and (corpus is not None or group_by is not None):
        raise StapesError("--corpus and --group-by say how to read --data, which is not given.")
    members = [
        path
        for model in models
        for path in (members_of_run(model) if every and model.is_dir() else [model])
    ]
    files = [path / "model.safetensors" if path.is_dir() else path for path in members]
    if out.exists() and any(out.samefile(file) for file in files if file.exists()):
        raise StapesError(f"--out {out}: is one of the members; choose another file.")
    joint = join(members, command="stapes " + shlex.join(sys.argv[1:]))
    found: EnsembleScore | None = None
    unreadable: tuple[str, ...] = ()
    if data is not None:
        dataset = load_dataset(data, corpus=corpus, group_by=group_by, min_classes=1)
        with Terminal() as terminal:
            found, unreadable = evaluate_members(
                members, dataset, workers=workers, device=device, progress=terminal.progress
            )
            for line in unreadable:
                terminal.note(f"Left out: {line}")
    save_bundle(joint, out)
    if format == "json":
        tree = {
            "model": str(out),
            "files": [str(member) for member in members],
            "origins": joint.metadata["members"],
            **({} if found is None else found.to_json()),
        }
        sys.stdout.write(json.dumps(tree, indent=1) + "\n")
    else:
        _print(members, joint.metadata["members"], found)
        sys.stdout.write(f"model      {out} ({out.stat().st_size:,} bytes)\n")
    if unreadable:
        raise typer.Exit(1)


def ensemble_lines(found: EnsembleScore) -> list[str]:
    """What is to be said of an ensemble beside its accuracy."""
    together = found.agreement
    kappa = "" if together.kappa is None else f" (Cohen's kappa {together.kappa:.2f})"
    return [
        f"gain       {found.gain.points()} points on the mean of its {len(found.members)} members",
        f"agreement  two members name {100 * together.pairs:.1f} % of the clips alike{kappa}, "
        f"all of them {100 * together.unanimous:.1f} %",
    ]


def _print(members: list[Path], facts: list[dict[str, Any]], found: EnsembleScore | None) -> None:
    header = ["member", "network", "split", "seed"]
    rows = [
        [str(path), fact["network"], str(fact.get("split", "")), str(fact.get("seed", ""))]
        for path, fact in zip(members, facts, strict=True)
    ]
    if found is not None:
        header.append("accuracy")
        for row, score in zip(rows, found.members, strict=True):
            row.append(interval_text(score.accuracy))
    print_table(header, rows, right={3})
    sys.stdout.write("\n")
    if found is None:
        return
    score = found.score
    spread = found.accuracy
    sys.stdout.write(
        f"members    mean {100 * spread.mean:.1f} %, spread {100 * (spread.sd or 0):.1f}\n"
        f"ensemble   {interval_text(score.accuracy)}, 95 % interval over sources; "
        f"{score.n_clips} clips from {score.n_groups} sources\n"
    )
    for line in ensemble_lines(found):
        sys.stdout.write(line + "\n")
