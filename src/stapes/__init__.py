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
    from stapes.bundle import Bundle, load_bundle, save_bundle
    from stapes.config import Recipe, load_recipe
    from stapes.data import Dataset, load_dataset
    from stapes.errors import StapesError
    from stapes.evaluation.ensemble import ensemble
    from stapes.evaluation.evaluate import evaluate
    from stapes.evaluation.predict import Classifier, load
    from stapes.inference import Event, Prediction
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
    "load": "evaluation.predict",
    "load_bundle": "bundle",
    "load_dataset": "data",
    "load_recipe": "config",
    "receptive_field": "models",
    "save_bundle": "bundle",
    "shrink": "shrinking",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stapes' has no attribute '{name}'")
    return getattr(import_module(f"stapes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
