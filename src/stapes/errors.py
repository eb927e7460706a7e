"""Errors that a user can mend.

Every one of them carries a single clear sentence that names the file or option and says what to
do. The command line prints that sentence and exits with status 2; it never shows a traceback for
one of these. A failure of our own stays an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "TRAINING_PACKAGES",
    "AudioError",
    "ConfigError",
    "DataError",
    "MissingPackageError",
    "ModelFileError",
    "StapesError",
    "UnknownNameError",
    "training_packages",
]

TRAINING_PACKAGES = frozenset(
    {
        "accelerate", "filelock", "huggingface_hub", "jinja2", "matplotlib", "onnx", "onnxscript",
        "optuna", "polars", "pydantic", "rich", "safetensors", "timm", "torch",
    }
)  # fmt: skip
"""Modules that come with ``stapes[train]``; using an exported model needs none of them."""


class StapesError(Exception):
    """Base of all errors that the caller can mend."""


class AudioError(StapesError):
    """A recording that cannot be used.

    Args:
        path: the recording.
        reason: what is wrong and what to do, without the file's name.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[Path, str]]:
        # The default rebuilds from ``args`` (one string), which breaks in worker processes.
        return type(self), (self.path, self.reason)


class DataError(StapesError):
    """A folder, manifest or split that cannot be used."""


class ConfigError(StapesError):
    """A recipe or option with an unknown key or a value out of range."""


class ModelFileError(StapesError):
    """A model file or checkpoint that is truncated, altered, foreign or too new."""


class MissingPackageError(StapesError, ImportError):
    """Something that needs packages of an extra, which are not installed."""


class UnknownNameError(StapesError, ValueError):
    """A name that is not registered: says what was asked, what exists and the closest match.

    Args:
        what: the kind of thing, such as ``"network"``.
        name: what was asked for.
        known: the names that exist.
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        super().__init__(f"Unknown {what} '{name}'.{hint} Known: {', '.join(known) or 'none'}.")
        self.args_for_copy = (what, name, known)

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        return type(self), self.args_for_copy


@contextmanager
def training_packages(what: str) -> Iterator[None]:
    """Say in one sentence that something needs the training packages, where one is missing.

    Args:
        what: the thing, such as ``"stapes train"``.

    Raises:
        MissingPackageError: the import of a training package failed inside.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAINING_PACKAGES:
            raise
        raise MissingPackageError(
            f'{what} needs the training packages: pip install "stapes[train]"'
        ) from None
