"""An exported model as a page for the browser. Needs the light dependencies only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stapes.catalogue import exported_model, find_model
from stapes.errors import ConfigError
from stapes.web import Page, write_page

__all__ = ["beside", "page_of_exported"]


def page_of_exported(
    model: str | Path,
    out: str | Path | None = None,
    precision: str | None = None,
    replay: Sequence[str | Path] | None = None,
    calibrate: Sequence[str | Path] | None = None,
) -> Page | None:
    """Write the page of a model that has been exported to ONNX already.

    Args:
        model: an ``.onnx`` file, a folder whose only model is ``model.onnx``, or the name of a
            shipped model.
        out: the folder to make; none: beside the model, of a shipped one in the working folder.
        precision, replay, calibrate: as for :func:`stapes.deploy.export.export`: they take a
            trained model, so that a shipped name means that one.

    Returns:
        None where the model is a trained one, or is not there.

    Raises:
        ConfigError: an option for a trained model with an exported one, or a folder that holds
            other files.
        ModelFileError: missing, truncated, altered, foreign, or of a newer format.
        UnknownNameError: neither a file nor a shipped model.
        StapesError: the folder cannot be written.
    """
    options = {"--precision": precision, "--replay": replay, "--calibrate": calibrate}
    given = next((name for name, value in options.items() if value), None)
    exported = exported_model(find_model(model, "safetensors" if given else "onnx"))
    if exported is None:
        return None
    if given:
        raise ConfigError(
            f"{given} goes with a trained model; {model} was exported and checked before."
        )
    return write_page(exported, beside(Path(model), "-web") if out is None else out)


def beside(model: Path, ending: str) -> Path:
    """Where an export goes if nothing is said: a name beside the model, or in its run folder.

    Of a shipped model, which is a mere name, that is in the working folder.
    """
    stem = model / "model" if model.is_dir() else model
    if stem.suffix.lower() in {".onnx", ".safetensors"}:
        stem = stem.with_suffix("")
    return stem.with_name(stem.name + ending)
