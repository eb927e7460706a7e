"""stapes: turn a folder of labelled recordings into a sound classifier that fits your device.

>>> import stapes
>>> result = stapes.train("recordings/")                # doctest: +SKIP
>>> stapes.load(result.model).classify("street.wav")    # doctest: +SKIP

The names below are all that most programs need; they are imported when first used, so that
``import stapes`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from stapes.bundle import Bundle, load_bundle, save_bundle
    from stapes.config import Recipe, load_recipe
    from stapes.data import Dataset, load_dataset
    from stapes.deploy.export import export
    from stapes.errors import StapesError
    from stapes.evaluation.ensemble import ensemble
    from stapes.evaluation.evaluate import evaluate
    from stapes.evaluation.predict import Classifier
    from stapes.inference import BaseClassifier, Event, Prediction
    from stapes.models import create_model, receptive_field
    from stapes.shrinking import shrink
    from stapes.training import train

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Classifier",
    "Dataset",
    "Event",
    "Prediction",
    "Recipe",
    "StapesError",
    "create_model",
    "ensemble",
    "evaluate",
    "export",
    "load",
    "load_bundle",
    "load_dataset",
    "load_recipe",
    "receptive_field",
    "save_bundle",
    "shrink",
    "train",
]

_HOMES = {
    "Bundle": "bundle",
    "Classifier": "evaluation.predict",
    "Dataset": "data",
    "Event": "inference",
    "Prediction": "inference",
    "Recipe": "config",
    "StapesError": "errors",
    "create_model": "models",
    "ensemble": "evaluation.ensemble",
    "evaluate": "evaluation.evaluate",
    "export": "deploy.export",
    "load_bundle": "bundle",
    "load_dataset": "data",
    "load_recipe": "config",
    "receptive_field": "models",
    "save_bundle": "bundle",
    "shrink": "shrinking",
    "train": "training",
}


def load(path: str | Path, device: str | torch.device = "cpu") -> BaseClassifier:
    """Load a model, trained or exported, ready to use.

    Args:
        path: a ``.safetensors`` written by stapes, or the folder of a run; or an ``.onnx`` written
            by ``stapes export``, or a folder whose only model is ``model.onnx``; or the name of a
            shipped model, see ``stapes models``.
        device: where to compute; an exported model computes on the CPU, and so does a shipped one
            there, without torch.

    Returns:
        :class:`stapes.evaluation.predict.Classifier`, or of an exported model
        :class:`stapes.runtime.OnnxClassifier`.

    Raises:
        ModelFileError: missing, truncated, altered, foreign, or of a newer format.
        UnknownNameError: neither a file nor a shipped model.
        ConfigError: a device that is not there.
        MissingPackageError: a trained model where the training packages are not installed.
    """
    from stapes.catalogue import exported_model, find_model
    from stapes.errors import ConfigError, training_packages

    given = find_model(path, "onnx" if str(device) == "cpu" else "safetensors")
    if exported_model(given) is not None:
        if str(device) != "cpu":
            raise ConfigError(
                f"--device {device}: the exported model {path} computes on the CPU; leave the "
                "option out, or use the model that it was exported from."
            )
        from stapes.runtime import load as load_exported

        return load_exported(given)
    with training_packages(f"{path}: a model that was not exported to ONNX"):
        from stapes.evaluation.predict import load as load_trained
    return load_trained(given, device)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stapes' has no attribute '{name}'")
    from stapes.errors import training_packages

    with training_packages(f"stapes.{name}"):
        return getattr(import_module(f"stapes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
