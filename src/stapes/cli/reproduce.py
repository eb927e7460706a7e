"""``stapes reproduce``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stapes.cli.options import Device, Overrides, Threads, Workers
from stapes.cli.terminal import Terminal, print_table

__all__ = ["reproduce"]

# What studies call the options that not all of them have.
_OPTIONS = {
    "rhos": "--rho",
    "networks": "--network",
    "weights": "--weights",
    "blocks": "--blocks",
}


def reproduce(
    paper: Annotated[str, typer.Argument(help="Which one: koutini2020 or palanisamy2020.")],
    items: Annotated[
        list[str],
        typer.Argument(help="Its tables and figures, such as table1, figure1, pretrained; or all."),
    ],
    data: Annotated[
        Path,
        typer.Option(help="Folder or manifest of labelled recordings, or a corpus as published."),
    ],
    corpus: Annotated[
        str | None, typer.Option(help="Read the data as this known corpus, e.g. dcase2020b.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of all runs and results [runs/PAPER-DATA]."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small version for two cores; it says what differs.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(help="Shrink the paper's schedule to this many epochs.", min=1)
    ] = None,
    rho: Annotated[
        str | None, typer.Option(help="koutini2020: receptive fields of a figure, e.g. 3,7,12.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="palanisamy2020: a network of timm; several times for several."),
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="palanisamy2020: its ImageNet weights; one for each network, or none."),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="palanisamy2020: places of a figure, e.g. 0,3,5 [all].")
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="Test on this declared fold only [all; quick: the first].")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Train every network this often [1; an ensemble's table: 5].", min=1),
    ] = None,
    overrides: Overrides = None,
    device: Device = "auto",
    workers: Workers = None,
    threads: Threads = None,
) -> None:
    """Train the networks of a paper and show its tables and figures beside ours.

    Networks are shared by all tables and figures, and none is trained twice. Stopped at any
    moment, the same command continues where it was.
    """
    from stapes.studies import load_study

    study = load_study(paper)
    wanted = list(study.items) if "all" in items else list(dict.fromkeys(items))
    for item in wanted:
        if item not in study.items:
            from stapes.errors import UnknownNameError

            raise UnknownNameError(f"item of {paper}", item, [*study.items, "all"])
    given: dict[str, Any] = {
        "rhos": None if rho is None else _whole_numbers("--rho", rho),
        "networks": network,
        "weights": weights,
        "blocks": None if blocks is None else _whole_numbers("--blocks", blocks),
    }
    given = {name: value for name, value in given.items() if value}
    for name in given:
        if name not in study.options:
            from stapes.errors import ConfigError

            raise ConfigError(f"{_OPTIONS[name]}: {paper} has no such choice; leave it out.")
    if seeds is not None:
        given["seeds"] = seeds

    import torch

    from stapes.cli.process import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    command = "stapes " + shlex.join(sys.argv[1:])
    for item in wanted:
        with Terminal() as terminal:
            result = study.reproduce(
                item,
                data,
                corpus=corpus,
                out=out,
                quick=quick,
                epochs=epochs,
                overrides=overrides or [],
                fold=fold,
                workers=workers,
                device=device,
                reporter=terminal,
                command=command,
                **given,
            )
        if not result.files:  # another process of several writes and prints
            continue
        write = sys.stdout.write
        write(f"\n{result.title}\n\n")
        print_table(list(result.header), [list(row) for row in result.rows], right=result.numeric)  # type: ignore[arg-type]
        write("\n")
        for sentence in (*result.statements, *result.notes):
            write(f"- {sentence}\n")
        write("".join(f"{file}\n" for file in result.files))


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        from stapes.errors import ConfigError

        raise ConfigError(f"{option} {text}: write whole numbers, such as 3,7,12.") from None
