"""The models that come with stapes, found by name.

Each is three files in the package's folder ``shipped``: ``NAME.safetensors``, to train further,
explain, evaluate and export; ``NAME.onnx``, to predict and listen, which needs no torch; and
``NAME.json``, its model card, as :func:`stapes.evaluation.card.make_card` writes it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from stapes.errors import ModelFileError, UnknownNameError

__all__ = [
    "SHIPPED",
    "Kind",
    "ShippedModel",
    "exported_model",
    "find_model",
    "nearest_start",
    "shipped_model",
    "shipped_models",
    "starting_models",
]

Kind = Literal["safetensors", "onnx"]

SHIPPED = Path(__file__).with_name("shipped")
"""Folder of the files."""


@dataclass(frozen=True)
class ShippedModel:
    """A model that comes with stapes.

    Attributes:
        name: by which it is found.
        description: what it hears, in a few words.
        start: whether training may start from it where no model is named.
        files: its model files by kind; :meth:`file` gives one that has been checked.
        size: bytes of each.
        sha256: of each, as its model card states.
        facts: the whole model card, plain values.
    """

    name: str
    description: str
    start: bool
    files: Mapping[Kind, Path]
    size: Mapping[Kind, int]
    sha256: Mapping[Kind, str]
    facts: Mapping[str, Any]

    def file(self, kind: Kind) -> Path:
        """A model file that is as it was shipped.

        Raises:
            ModelFileError: missing or altered.
        """
        path = self.files[kind]
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ModelFileError(
                f"{path}: cannot read this file of stapes ({error.strerror}); install stapes again."
            ) from None
        if found != self.sha256[kind]:
            raise ModelFileError(
                f"{path}: not the file that the model card of '{self.name}' describes; it was "
                "altered or damaged, install stapes again."
            )
        return path


def shipped_models() -> list[ShippedModel]:
    """All models that come with stapes, by name.

    Raises:
        ModelFileError: a model card that is damaged.
    """
    return [_read(name) for name in _names()]


def shipped_model(name: str) -> ShippedModel:
    """One of them.

    Raises:
        UnknownNameError: there is none of that name.
        ModelFileError: its model card is damaged.
    """
    if name not in _names():
        raise UnknownNameError("shipped model", name, _names())
    return _read(name)


def find_model(model: str | Path, kind: Kind) -> Path:
    """The file or folder that a user means by a path or a name.

    Args:
        model: a path, or the name of a model that comes with stapes. What exists under the path
            wins.
        kind: the file that is wanted of a named model.

    Returns:
        The model file of that name, checked; else the path as it was given, whatever is there.

    Raises:
        UnknownNameError: nothing of that name, and no path by its looks: without a separator and
            a suffix.
        ModelFileError: a shipped file that is missing or altered.
    """
    path = Path(model)
    if path.exists():
        return path
    name = str(model)
    if name in _names():
        return _read(name).file(kind)
    if name == path.name and not path.suffix:
        raise UnknownNameError("model file, run folder or shipped model", name, _names())
    return path


def exported_model(path: Path) -> Path | None:
    """The exported model that a file or folder is, or holds as its only model.

    Args:
        path: as :func:`find_model` gives it.

    Returns:
        An ``.onnx`` file; none: it is a trained model, if it is one.
    """
    if path.suffix.lower() == ".onnx":
        return path
    inside = path / "model.onnx"
    return inside if inside.is_file() and not (path / "model.safetensors").exists() else None


def starting_models() -> list[ShippedModel]:
    """Those that training may start from where no model is named.

    Raises:
        ModelFileError: a model card that is damaged.
    """
    return [model for model in shipped_models() if model.start]


def nearest_start(
    sample_rate: int, seconds: float | None = None, *, data: str = ""
) -> ShippedModel | None:
    """The shipped model whose sounds are most like some recordings.

    Nearest is the smallest sum of octaves between the sample rates and between the model's window
    and the recordings' length; among equals the largest model, then the first by name.

    Args:
        sample_rate: most common rate of the recordings, Hz.
        seconds: their usual length; none: only the rates count.
        data: name of the recordings. A model that has heard recordings of that name is left out:
            those held out for a test may be among them.

    Returns:
        None where there is no model to start from.

    Raises:
        ModelFileError: a model card that is damaged.
    """

    def distance(model: ShippedModel) -> tuple[float, int, str]:
        audio = model.facts["audio"]
        octaves = abs(math.log2(audio["sample_rate"] / sample_rate))
        if seconds is not None:
            octaves += abs(math.log2(audio["window_seconds"] / seconds))
        return round(octaves, 6), -model.size["safetensors"], model.name

    def heard(model: ShippedModel) -> set[str]:
        return {entry["name"] for entry in model.facts["data"]}

    others = [model for model in starting_models() if not data or data not in heard(model)]
    return min(others, key=distance, default=None)


def _names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def _read(name: str) -> ShippedModel:
    path = SHIPPED / f"{name}.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        files: dict[Kind, Path] = {kind: SHIPPED / f"{name}.{kind}" for kind in get_args(Kind)}
        stated = {kind: facts["files"][file.name] for kind, file in files.items()}
        return ShippedModel(
            name=name,
            description=str(facts["description"]),
            start=bool(facts["start"]),
            files=files,
            size={kind: int(entry["bytes"]) for kind, entry in stated.items()},
            sha256={kind: str(entry["sha256"]) for kind, entry in stated.items()},
            facts=facts,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ModelFileError(
            f"{path}: damaged model card ({problem}); install stapes again."
        ) from None
