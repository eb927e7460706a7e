"""The network and the weights that training starts from: drawn, ImageNet's, or a model's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stapes.bundle import Bundle, load_bundle
from stapes.catalogue import find_model
from stapes.compression.masks import keep_zeros, prunable_layers, unmasked_weight
from stapes.config import InitializationConfig, Recipe, TimmConfig, parse_recipe
from stapes.errors import ConfigError, ModelFileError
from stapes.models import create_model
from stapes.models.blocks import block_plan, check_blocks
from stapes.models.imagenet import ImageNetwork
from stapes.models.registry import network_settings
from stapes.models.weights import file_sha256, hub_weights, load_image_weights, read_weights

__all__ = [
    "INHERITED",
    "WINDOWING",
    "adopt_model",
    "describe_origin",
    "initialize",
    "keep_pruned",
    "new_network",
    "pin_weights",
    "read_parent",
    "starting_network",
]

# Sections of a recipe that belong to the weights of a model and come with them.
INHERITED = ("audio", "features", "normalization", "model")

# Of the audio what may still be another: networks average over time in the end, however long that
# is.
WINDOWING = ("window_seconds", "hop_seconds", "shorter", "longer")

# Metadata of a model that go with its weights.
_OWED = ("data", "origin", "teachers")

# A network has this part of zeros only if it was pruned: training leaves none, and rounding to
# float16 some millionths.
_PRUNED = 1e-3


def adopt_model(recipe: Recipe) -> Recipe:
    """The recipe with the sections that come from the model it starts from.

    Args:
        recipe: with ``initialization.weights = "model"``; any other comes back as it is.

    Returns:
        The recipe with the model's :data:`INHERITED` sections in place of its own, and with the
        model's file where a run folder was given.

    Raises:
        ModelFileError: no model, or one that cannot be trained further.
        ConfigError: sections that do not go together, such as a pruning that the network does not
            know.
    """
    if recipe.initialization.weights != "model":
        return recipe
    path = _model_file(recipe.initialization)
    parent = _trainable(path)
    initialization = recipe.initialization.model_copy(update={"file": str(path)})
    sections = {name: getattr(parent.recipe, name) for name in INHERITED}
    changed = recipe.model_copy(update={**sections, "initialization": initialization})
    return parse_recipe(changed.model_dump(), recipe.name)


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


def read_parent(recipe: Recipe) -> Bundle | None:
    """The model that training starts from; none where it starts from other weights.

    Raises:
        ModelFileError: missing, another one than the recipe says, or one that cannot be trained
            further.
        ConfigError: the recipe's :data:`INHERITED` sections are not the model's.
    """
    if recipe.initialization.weights != "model":
        return None
    path = _weights_file(recipe)
    _check_digest(recipe.initialization, file_sha256(path))
    parent = _trainable(path)
    _check_inherited(recipe, parent)
    return parent


def new_network(
    recipe: Recipe, *, n_classes: int, in_channels: int, seed: int, parent: Bundle | None = None
) -> Any:
    """A network of the recipe with freshly drawn weights.

    Args:
        recipe: resolved.
        n_classes: logits.
        in_channels: channels of the spectrogram.
        seed: of the weights; the caller's random state stays as it is.
        parent: what :func:`read_parent` gives, if it is at hand. Its network decides all but the
            classes, since the recipe does not know channels that were pruned.

    Raises:
        As :func:`read_parent`.
    """
    parent = parent or read_parent(recipe)
    settings: dict[str, Any] = recipe.model.model_dump()
    if parent is not None:
        _check_inherited(recipe, parent)
        settings = network_settings(parent.network)
    settings |= {"n_classes": n_classes, "in_channels": in_channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(**settings)


def initialize(
    network: nn.Module, recipe: Recipe, labels: Sequence[str] = (), *, parent: Bundle | None = None
) -> None:
    """Give a freshly built network the weights that the recipe starts from, in place.

    With ``initialization.blocks`` = k, blocks after the first k and the head keep their drawn
    weights. Without it, only the last layer keeps them, and of that the classes that the model of
    ``initialization.weights = "model"`` does not know: a label of both keeps what was learnt.

    Args:
        network: of the recipe, with drawn weights.
        recipe: resolved.
        labels: (K,) classes of the network, to find those that a model knows.
        parent: what :func:`read_parent` gives, if it is at hand.

    Raises:
        As :func:`pin_weights`.
    """
    initialization = recipe.initialization
    if initialization.weights == "random":
        return
    if initialization.weights == "model":
        parent = parent or read_parent(recipe)
        assert parent is not None
        _take_over(network, parent, labels, initialization.blocks)
        return
    path = _weights_file(recipe)
    _check_digest(initialization, file_sha256(path))
    assert isinstance(network, ImageNetwork)
    load_image_weights(network, read_weights(path), source=str(path), blocks=initialization.blocks)


def starting_network(
    recipe: Recipe, labels: Sequence[str], *, in_channels: int, seed: int
) -> nn.Module:
    """The network as it was before the first step of training, in evaluation mode.

    Args:
        recipe: resolved, of a run or a model file.
        labels: (K,) classes.
        in_channels: channels of the spectrogram.
        seed: of the run.

    Raises:
        As :func:`pin_weights`.
    """
    parent = read_parent(recipe)
    network: nn.Module = new_network(
        recipe, n_classes=len(labels), in_channels=in_channels, seed=seed, parent=parent
    )
    initialize(network, recipe, labels, parent=parent)
    return network.eval()


def keep_pruned(network: nn.Module) -> bool:
    """Mask the zeros of a network that was pruned, in place, so that they stay zero.

    Returns:
        Whether there were any; :func:`stapes.compression.finish` takes the masks off again.
    """
    weights = [unmasked_weight(layer) for layer in prunable_layers(network).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    if zeros <= _PRUNED * sum(weight.numel() for weight in weights):
        return False
    keep_zeros(network)
    return True


def describe_origin(recipe: Recipe, parent: Bundle | None) -> dict[str, Any]:
    """What the weights come from, as plain values for a model file; empty if they were drawn.

    A model made from another one owes what that owed: its recordings' name, licence and citation
    stay with it, and so on to the first of the line.

    Args:
        recipe: resolved, with pinned weights.
        parent: what :func:`read_parent` gives.
    """
    initialization = recipe.initialization
    if initialization.weights == "random":
        return {}
    facts: dict[str, Any] = {"weights": initialization.weights, "sha256": initialization.sha256}
    if parent is None:
        assert isinstance(recipe.model, TimmConfig)
        return facts | {"architecture": recipe.model.architecture}
    facts["recipe"] = parent.recipe.name
    return facts | {key: parent.metadata[key] for key in _OWED if key in parent.metadata}


def _take_over(
    network: nn.Module, parent: Bundle, labels: Sequence[str], blocks: int | None
) -> None:
    plan = block_plan(network)
    if blocks is not None:
        check_blocks(blocks, plan.names, "initialization.blocks")
    given, of_classes = parent.network.state_dict(), _class_tensors(network)
    known = [(i, parent.labels.index(x)) for i, x in enumerate(labels) if x in parent.labels]
    new, old = [i for i, _ in known], [i for _, i in known]
    with torch.no_grad():
        for name, target in network.state_dict().items():
            if blocks is not None and plan.block_of[name] >= blocks:
                continue
            if name in of_classes:
                target[new] = given[name][old]
            else:
                target.copy_(given[name])


def _class_tensors(network: nn.Module) -> set[str]:
    """Names of the tensors whose first axis is the classes."""
    other = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        other.reset_classifier(network.n_classes + 1)  # type: ignore[operator]
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    return {n for n, tensor in network.state_dict().items() if tensor.shape != shapes[n]}


def _weights_file(recipe: Recipe) -> Path:
    initialization, model = recipe.initialization, recipe.model
    if initialization.weights == "model":
        return find_model(_model_file(initialization), "safetensors")
    if not isinstance(model, TimmConfig):
        raise ConfigError(
            f'initialization.weights = "imagenet": only networks of timm have them, and model.name '
            f"is '{model.name}'; use --set model.name=timm."
        )
    if initialization.file is not None:
        return Path(initialization.file)
    return hub_weights(model.architecture)


def _model_file(initialization: InitializationConfig) -> Path:
    assert initialization.file is not None
    path = Path(initialization.file)
    return path / "model.safetensors" if path.is_dir() else path


def _trainable(path: Path) -> Bundle:
    """Read a model that can be trained further."""
    bundle = load_bundle(path)
    if bundle.precision == "int8":
        raise ModelFileError(
            f"{path}: an int8 model computes in whole numbers and cannot be trained further; give "
            "the model that it was made from (float32 or float16)."
        )
    if network_settings(bundle.network)["name"] == "ensemble":
        raise ModelFileError(
            f"{path}: an ensemble cannot be trained further; give one of its members."
        )
    return bundle


def _check_inherited(recipe: Recipe, parent: Bundle) -> None:
    given, own = (
        {name: getattr(one, name).model_dump() for name in INHERITED}
        for one in (parent.recipe, recipe)
    )
    for sections in (given, own):
        sections["audio"] = {k: v for k, v in sections["audio"].items() if k not in WINDOWING}
    differing = [name for name in INHERITED if own[name] != given[name]]
    if differing:
        raise ConfigError(
            f'initialization.weights = "model": {", ".join(differing)} of the recipe are not those '
            f"of {recipe.initialization.file}, and its weights fit no others; leave them out, or "
            "start from random weights."
        )


def _check_digest(initialization: InitializationConfig, found: str) -> None:
    if initialization.sha256 is not None and found != initialization.sha256:
        raise ModelFileError(
            f"{initialization.file or 'the weights from the hub'}: not the weights that "
            f"initialization.sha256 names ({found[:12]}... instead of "
            f"{initialization.sha256[:12]}...); give the right file, or take that line out."
        )
