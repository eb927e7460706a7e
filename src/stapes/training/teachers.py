"""Which models teach a smaller one: their files, whether they may, and what is owed to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stapes.bundle import Bundle, load_bundle
from stapes.catalogue import find_model
from stapes.config import DistillationConfig, Recipe
from stapes.data import Clip, Dataset, Split, load_dataset
from stapes.errors import ConfigError, DataError, ModelFileError, StapesError
from stapes.models.registry import network_settings
from stapes.models.weights import file_sha256
from stapes.training.folders import member_folder, planned_members

__all__ = [
    "check_teachers",
    "class_columns",
    "describe_teachers",
    "pin_teachers",
    "taught_by",
    "teacher_files",
]

_MODEL = "model.safetensors"


def taught_by(recipe: Recipe, teachers: Sequence[str | Path]) -> Recipe:
    """The recipe with these teachers in place of its own; without any, as it is."""
    if not teachers:
        return recipe
    update = {"teachers": tuple(map(str, teachers)), "sha256": ()}
    return recipe.model_copy(update={"distillation": recipe.distillation.model_copy(update=update)})


def pin_teachers(recipe: Recipe) -> Recipe:
    """The recipe with the digests of its teachers.

    Raises:
        ModelFileError: a teacher that is missing, or another one than the recipe says.
        StapesError: a run folder without a finished model.
    """
    config = recipe.distillation
    if not config.teachers:
        return recipe
    found = tuple(_digest(find_model(teacher, "safetensors")) for teacher in config.teachers)
    for teacher, digest, stated in zip(config.teachers, found, config.sha256, strict=False):
        if digest != stated:
            raise ModelFileError(
                f"{teacher}: not the teacher that distillation.sha256 names ({digest[:12]}... "
                f"instead of {stated[:12]}...); give the right one, or take that line out."
            )
    pinned = config.model_copy(update={"sha256": found})
    return recipe.model_copy(update={"distillation": pinned})


def check_teachers(
    recipe: Recipe,
    dataset: Dataset,
    splits: Iterable[Split],
    *,
    force: bool,
) -> list[str]:
    """Find out before any work is done which teachers cannot teach.

    A teacher that has heard what the student is tested on gives away the answers. What a model of
    a run has heard is known from the run's folder; of another model only the name of its data is.

    Args:
        recipe: with pinned teachers.
        dataset: what the student is trained and tested on.
        splits: all that will be trained.
        force: go on all the same.

    Returns:
        What a reader of the score must know.

    Raises:
        ConfigError: a split without a teacher; a teacher that does not know all classes.
        DataError: a teacher has heard test clips of its student.
        ModelFileError: a teacher that cannot be read.
    """
    notes: list[str] = []
    if not recipe.distillation.teachers:
        return notes
    present = {_place(clip) for clip in dataset.clips}
    doubtful: set[str] = set()
    for split in splits:
        for path in teacher_files(recipe.distillation, split.name):
            bundle = load_bundle(path)
            class_columns(bundle, dataset.labels, path)
            if not split.test.size:
                continue
            heard = _heard(path, str(bundle.metadata.get("split")))
            if heard is None or heard.isdisjoint(present):
                if bundle.metadata.get("data", {}).get("name") == dataset.name:
                    doubtful.add(str(path))
                continue
            leaked = sum(_place(dataset.clips[i]) in heard for i in split.test)
            if not leaked:
                continue
            problem = (
                f"{path}: this teacher may have learnt {leaked} of the {split.test.size} clips "
                f"that split {split.name} is tested on, so the score is too good"
            )
            if not force:
                raise DataError(
                    f"{problem}. Give the run folder of a teacher with the same split (the same "
                    "folds, or --seed), or accept that with 'stapes train --force'."
                )
            notes.append(f"{problem} (forced).")
    for unknown in sorted(doubtful):
        notes.append(
            f"The teacher {unknown} was trained on recordings called '{dataset.name}', too; if "
            "recordings tested here are among them, the score is too good."
        )
    return notes


def describe_teachers(recipe: Recipe, split: str) -> list[dict[str, Any]]:
    """The teachers of a split as plain values for a model file: their network, score and debts.

    A model owes what its teachers owed: their data's licence and citation, and the origin of their
    weights, stay with it.
    """
    if not recipe.distillation.teachers:
        return []
    return [_facts(load_bundle(path), path) for path in teacher_files(recipe.distillation, split)]


def teacher_files(config: DistillationConfig, split: str) -> list[Path]:
    """The models that teach a split.

    Raises:
        ConfigError: a run has none.
    """
    found: list[Path] = []
    for teacher in (find_model(name, "safetensors") for name in config.teachers):
        if (single := _single(teacher)) is not None:
            found.append(single)
            continue
        members = _members(teacher)
        if split == "all" and "all" not in members:
            # Each of them has heard most of the recordings, and together they have heard all.
            found += [path for one in members.values() for path in one]
            continue
        folds = [name for name in members if name != "all"]
        if split in members:
            found += members[split]
        elif len(folds) == 1:
            # One split has several names: "held-out" where it was made, "official" when it is read
            # again. Whether it is the student's is seen by what was tested.
            found += members[folds[0]]
        else:
            raise ConfigError(
                f"{teacher}: no teacher for split {split}, this run has models for "
                f"{', '.join(members)} only; give a model file, or a run with the same splits."
            )
    return found


def class_columns(bundle: Bundle, labels: Sequence[str], path: Path) -> NDArray[np.int64]:
    """Where a teacher has the classes of its student, (K,).

    Raises:
        ConfigError: it does not know all of them.
    """
    unknown = [label for label in labels if label not in bundle.labels]
    if unknown:
        raise ConfigError(
            f"{path}: cannot teach {', '.join(unknown[:5])}, it knows only "
            f"{', '.join(bundle.labels[:10])}{', ...' if len(bundle.labels) > 10 else ''}; give a "
            "teacher of all classes."
        )
    return np.array([bundle.labels.index(label) for label in labels], dtype=np.int64)


def _single(teacher: Path) -> Path | None:
    """The file of a teacher that is one model; none: a run, which has one or more for a split.

    The folder of a search has one, too, and a plan that is none of members.
    """
    if not teacher.is_dir():
        return teacher
    model = teacher / _MODEL
    return model if model.is_file() and not (teacher / "recipe.toml").is_file() else None


def _members(folder: Path) -> dict[str, list[Path]]:
    """Model files of a run folder by split.

    Raises:
        StapesError: no run folder, or one that is not finished.
    """
    if not (folder / "plan.json").is_file():
        raise StapesError(
            f"{folder}: cannot teach, it is no run folder; give the folder that 'stapes train' "
            "wrote, or a model file."
        )
    members: dict[str, list[Path]] = {}
    for split, seed in planned_members(folder):
        path = member_folder(folder, split, seed) / _MODEL
        if not path.is_file():
            raise StapesError(
                f"{folder}: cannot teach, this run is not finished; run the same 'stapes train' "
                "again, it continues where it was stopped."
            )
        members.setdefault(split, []).append(path)
    return members


def _digest(teacher: Path) -> str:
    if (single := _single(teacher)) is not None:
        return file_sha256(single)
    together = hashlib.sha256()
    for split, paths in sorted(_members(teacher).items()):
        for path in paths:
            together.update(json.dumps([split, file_sha256(path)]).encode())
    return together.hexdigest()


Place = tuple[str, float | None, float | None]


def _place(clip: Clip) -> Place:
    return str(Path(clip.path).resolve()), clip.start, clip.end


def _heard(path: Path, split: str) -> set[Place] | None:
    """What a model of a run or a search may have learnt; none: nobody knows.

    That is what the run had less what the model was tested on.
    """
    folder = path.absolute().parent
    runs = (folder, *folder.parents[1:2], folder / "trials" / "000")
    clips = next((run / "clips.csv" for run in runs if (run / "clips.csv").is_file()), None)
    if clips is None:
        return None
    own = member_folder(folder, split, 0).parent.glob("seed-*/test.csv")  # of the run's own model
    tested = next((table for table in (folder / "test.csv", *own) if table.is_file()), None)
    try:
        return _places(clips) - (_places(tested) if tested is not None else set())
    except DataError:  # recordings have moved
        return None


def _places(table: Path) -> set[Place]:
    return {_place(clip) for clip in load_dataset(table, min_classes=1).clips}


def _facts(bundle: Bundle, path: Path) -> dict[str, Any]:
    settings = network_settings(bundle.network)
    facts: dict[str, Any] = {
        "sha256": file_sha256(path),
        "network": settings.get("architecture", settings["name"]),
    }
    for key in ("split", "seed", "data", "origin", "teachers", "members"):
        if bundle.metadata.get(key) not in (None, {}, []):
            facts[key] = bundle.metadata[key]
    # Of a model that was trained on everything, the score of those of the folds.
    scored = bundle.metadata.get("cross_validated_score") or bundle.metadata.get("score")
    if scored:  # the tables by class are the teacher's own
        facts["score"] = scored["accuracy"]
    return facts
