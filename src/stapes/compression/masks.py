"""Masks on weights: parametrizations that set chosen entries to zero.

A mask is stacked on whatever parametrizes a weight already, so that

    effective weight = weight * damping * mask

The convolution sees the effective weight and the optimiser the raw one. The masks are buffers:
they travel with the state dict, as ``<name>.parametrizations.weight.<place>.mask``.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stapes.errors import ConfigError
from stapes.models.parametrized import unparametrize
from stapes.models.timm_layers import standardizes_weight

__all__ = [
    "WeightMask",
    "add_masks",
    "finish",
    "keep_zeros",
    "mask_of",
    "prunable_layers",
    "unmasked_weight",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WeightMask(nn.Module):
    """Parametrization of a weight: zero where ``mask`` is false, unchanged elsewhere.

    Args:
        weight: the tensor to be masked; gives shape, device and memory layout. Nothing is masked
            at first.
        returning: whether a masked weight learns on: the gradient of the masked entry reaches the
            raw weight as if there were no mask (straight through), so that the raw weight may grow
            until a later mask lets it in again. Without it, masked entries get no gradient.

    Attributes:
        mask: bool, shaped like the weight, part of the state dict.
        returning: may be changed at any time; not part of the state dict.

    Shape:
        - input, output: that of the weight
    """

    mask: Tensor

    def __init__(self, weight: Tensor, *, returning: bool = False) -> None:
        super().__init__()
        self.returning = returning
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        # Not a product: that of a masked negative weight would be -0, and of an infinite one NaN.
        if self.returning and torch.is_grad_enabled():
            return cast(Tensor, _StraightThrough.apply(weight, self.mask))  # type: ignore[no-untyped-call]
        return torch.where(self.mask, weight, 0.0)

    def extra_repr(self) -> str:
        return f"shape={tuple(self.mask.shape)}, returning={self.returning}"


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def prunable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Layers whose weights may be masked, by name: convolutions and linear layers.

    Their biases, and all of a normalisation layer, are never pruned.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    }


def mask_of(layer: nn.Module) -> WeightMask | None:
    """The mask on a layer's weight; none if there is none."""
    for part in _stack(layer):
        if isinstance(part, WeightMask):
            return part
    return None


def add_masks(network: nn.Module) -> dict[str, WeightMask]:
    """Give every prunable layer a mask, in place; one that has a mask keeps it.

    Returns:
        The masks by the layers' names.

    Raises:
        ConfigError: a layer standardises its weight, so that a zero would be none.
    """
    masks = {}
    for name, layer in prunable_layers(network).items():
        mask = mask_of(layer)
        if mask is None:
            if standardizes_weight(layer):
                raise ConfigError(
                    f"{name}, a {type(layer).__name__}, shifts its weights in every call, so that "
                    "none of them can stay zero: this network cannot be pruned; choose another."
                )
            mask = WeightMask(unmasked_weight(layer))
            parametrize.register_parametrization(layer, "weight", mask)
        masks[name] = mask
    return masks


@torch.no_grad()
def unmasked_weight(layer: nn.Module) -> Tensor:
    """What a layer would compute with if it had no mask: damped, for instance. No gradient."""
    weight = _raw_weight(layer)
    for part in _stack(layer):
        if not isinstance(part, WeightMask):
            weight = part(weight)
    return weight.detach()


@torch.no_grad()
def finish(network: ModuleT) -> ModuleT:
    """Write the masks into the raw weights and take them off, in place: same function.

    Other parametrizations (damping) stay, and the state dict has the entries of a network that
    never had a mask.

    Returns:
        The same network, without any :class:`WeightMask`.
    """
    for layer in prunable_layers(network).values():
        mask = mask_of(layer)
        if mask is None:
            continue
        raw = _raw_weight(layer)
        raw.copy_(torch.where(mask.mask, raw, 0.0))
        others = [part for part in _stack(layer) if part is not mask]
        unparametrize(layer, fold=False)  # a stack is only taken off as a whole
        for part in others:
            parametrize.register_parametrization(layer, "weight", part)
    return network


@torch.no_grad()
def keep_zeros(network: ModuleT) -> ModuleT:
    """Mask every weight that is zero now, in place, so that further training leaves it zero.

    For fine-tuning a pruned network that was finished or read from a file.

    Returns:
        The same network; :func:`finish` takes the masks off again.
    """
    for name, mask in add_masks(network).items():
        layer = network.get_submodule(name)
        mask.mask.logical_and_(unmasked_weight(layer) != 0)
        mask.returning = False
    return network


def _stack(layer: nn.Module) -> list[nn.Module]:
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return list(cast(nn.ModuleList, layer.get_submodule("parametrizations.weight")))


def _raw_weight(layer: nn.Module) -> Tensor:
    if not parametrize.is_parametrized(layer, "weight"):
        return cast(Tensor, layer.weight)
    return layer.get_submodule("parametrizations.weight").get_parameter("original")
