"""The weights that training starts from."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from stapes.config import InitializationConfig, Recipe, TimmConfig
from stapes.errors import ConfigError, ModelFileError
from stapes.models.imagenet import ImageNetwork
from stapes.models.weights import file_sha256, hub_weights, load_image_weights, read_weights

__all__ = ["initialize", "pin_weights"]


def pin_weights(recipe: Recipe) -> Recipe:
    """The recipe with the digest of the weights that it starts from.

    Weights that are not on this machine are fetched.

    Raises:
        ConfigError: weights that this network cannot take.
        ModelFileError: a file that is missing, or another one than the recipe says.
        StapesError: the hub cannot be reached.
    """
    initialization = recipe.initialization
    if initialization.weights == "random":
        return recipe
    found = file_sha256(_weights_file(recipe))
    _check_digest(initialization, found)
    pinned = initialization.model_copy(update={"sha256": found})
    return recipe.model_copy(update={"initialization": pinned})


def initialize(network: nn.Module, recipe: Recipe) -> None:
    """Give a freshly built network the weights that the recipe starts from, in place.

    Args:
        network: of the recipe, with drawn weights; its head keeps them.
        recipe: resolved.

    Raises:
        As :func:`pin_weights`.
    """
    initialization = recipe.initialization
    if initialization.weights == "random":
        return
    path = _weights_file(recipe)
    _check_digest(initialization, file_sha256(path))
    assert isinstance(network, ImageNetwork)
    load_image_weights(network, read_weights(path), source=str(path), blocks=initialization.blocks)


def _weights_file(recipe: Recipe) -> Path:
    initialization, model = recipe.initialization, recipe.model
    if not isinstance(model, TimmConfig):
        raise ConfigError(
            f'initialization.weights = "imagenet": only networks of timm have them, and model.name '
            f"is '{model.name}'; use --set model.name=timm."
        )
    if initialization.file is not None:
        return Path(initialization.file)
    return hub_weights(model.architecture)


def _check_digest(initialization: InitializationConfig, found: str) -> None:
    if initialization.sha256 is not None and found != initialization.sha256:
        raise ModelFileError(
            f"{initialization.file or 'the weights from the hub'}: not the weights that "
            f"initialization.sha256 names ({found[:12]}... instead of "
            f"{initialization.sha256[:12]}...); give the right file, or take that line out."
        )
