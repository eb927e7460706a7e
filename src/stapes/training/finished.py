"""A run that is there already: read again, and its networks stored in another precision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from stapes.config import Recipe, load_recipe
from stapes.data import Dataset, load_dataset
from stapes.errors import ConfigError, StapesError
from stapes.training.experiment import TrainResult, carry_out, everything, open_run
from stapes.training.folders import planned_members
from stapes.training.reporter import Reporter

__all__ = ["quantize_run", "read_run"]


def read_run(folder: str | Path) -> tuple[Dataset, Recipe]:
    """The recordings of a run, with the parts they had in it, and its resolved recipe.

    Args:
        folder: a run folder, where all recordings still are.

    Raises:
        StapesError: no run folder, or one of a version that did not leave its clips.
        DataError: recordings are missing.
        ConfigError: its recipe cannot be read.
    """
    folder = Path(folder)
    # A search of 'stapes shrink' leaves a plan, too, but no recipe of its own.
    if not all((folder / name).is_file() for name in ("plan.json", "recipe.toml")):
        raise StapesError(f"{folder}: no run folder; give the folder that 'stapes train' wrote.")
    if not (folder / "clips.csv").is_file():
        raise StapesError(
            f"{folder}: this run does not say which recordings it used (no clips.csv); run the "
            "same 'stapes train' again, it will add the file and train nothing twice."
        )
    dataset = load_dataset(folder / "clips.csv")
    try:
        facts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        described = replace(
            dataset,
            name=str(facts["name"]),
            licence=str(facts["licence"]),
            citation=str(facts["citation"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StapesError(
            f"{folder / 'data.json'}: damaged or missing ({error}); run the same 'stapes train' "
            "again, it will write the file anew."
        ) from None
    return described, load_recipe(folder / "recipe.toml")


def quantize_run(
    folder: str | Path,
    precision: Literal["float16", "int8"],
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    command: str = "",
) -> TrainResult:
    """Store the networks of a finished run in another precision and score them again.

    What comes out is what the same training with ``quantization.precision`` set would have given:
    activations are calibrated on each network's training clips, and where int8 costs more than
    half a point on the validation part (without one, on training clips), the network is fine-tuned
    with quantisation in the loop.

    Args:
        folder: the run folder; its recordings must still be where they were.
        precision: ``"float16"`` or ``"int8"``.
        out: new run folder; none: ``<folder>-<precision>``.
        overrides: ``quantization.field=value``, on top of the run's recipe.
        cache, workers, device, reporter, command: as for :func:`train`.

    Raises:
        StapesError: no finished run, or one that is quantised already.
        DataError: recordings are missing.
        ConfigError: overrides of anything but the quantisation.
    """
    folder = Path(folder)
    dataset, before = read_run(folder)
    recipe = load_recipe(
        folder / "recipe.toml", [*overrides, f"quantization.precision={precision}"]
    )
    if recipe.model_copy(update={"quantization": before.quantization}) != before:
        raise ConfigError(
            "--set changes more than the section quantization; train again to change the rest."
        )
    if before.quantization.precision != "float32":
        raise StapesError(
            f"{folder}: is {before.quantization.precision} already; give the run that was trained."
        )
    tasks = planned_members(folder)
    named = folder if folder.name not in ("", "..") else folder.resolve()
    run, splits, notes = open_run(
        dataset,
        recipe,
        out=out if out is not None else f"{named}-{precision}",
        seed=min(seed for _, seed in tasks),  # it drew the validation parts
        force=True,  # the run has accepted its split
        cache=cache,
        workers=workers,
        device=device,
        trained=folder,
        reporter=reporter,
        command=command,
    )
    by_name = {split.name: split for split in splits}
    if len(splits) == 1:  # a single split is called as it was in the run
        by_name = {name: replace(splits[0], name=name) for name, _ in tasks}
    parts = [
        (by_name.get(name) or everything(run.dataset, run.groups, recipe, seed), seed)
        for name, seed in tasks
    ]
    before_run = replace(run, folder=folder)
    if not all(
        (before_run.member_folder(split, seed) / "model.safetensors").is_file()
        for split, seed in parts
    ):
        raise StapesError(
            f"{folder}: this run is not finished; run the same 'stapes train' again, it continues "
            "where it was stopped."
        )
    with run.locked():
        return carry_out(run, parts, notes, workers=workers)
