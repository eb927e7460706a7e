"""Batch norm written into the weights of the layer in front of it.

In evaluation, batch norm is one factor and one summand per channel, and a convolution or linear
layer takes both in::

    gain = gamma / sqrt(variance + eps)
    weight' = gain * weight        bias' = beta + gain * (bias - mean)
"""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stapes.models.dataflow import Dataflow, norm_after, trace_dataflow
from stapes.models.parametrized import unparametrize
from stapes.models.timm_layers import computes_plainly, split_norm_activations

__all__ = [
    "fold_batch_norm",
    "fold_norms_of",
    "fold_parametrizations",
    "fold_with_gains",
    "replace_module",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def fold_parametrizations(network: ModuleT) -> ModuleT:
    """Make every parametrized weight of a network plain, in place: damping, masks, all of it.

    Returns:
        The same network, with the same function.
    """
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(cast(nn.ModuleDict, module.parametrizations)):
                unparametrize(module, name, fold=True)
    return network


def fold_batch_norm(network: ModuleT) -> ModuleT:
    """A copy of a network whose batch norms are part of the layers in front of them.

    Every convolution or linear layer whose output is read by a batch norm and nothing else; the
    pairs are found by running the network, so any network will do. A batch norm that reads
    something else (a sum, a concatenation, a convolution that standardises its weight) stays.
    Damping and masks are folded first, and timm's batch norms with activation taken apart.

    Args:
        network: it is not changed.

    Returns:
        The copy, in evaluation mode, with biases, and :class:`torch.nn.Identity` in place of the
        batch norms. Its outputs are those of the network in evaluation mode up to rounding.
    """
    return fold_with_gains(network)[0]


def fold_with_gains(network: ModuleT) -> tuple[ModuleT, dict[str, Tensor]]:
    """The same, and the ``gain`` of each layer that took in a batch norm: (C_out,) float64."""
    folded = fold_parametrizations(copy.deepcopy(network)).eval()
    split_norm_activations(folded)
    return folded, fold_norms_of(folded, trace_dataflow(folded))


def fold_norms_of(network: nn.Module, flow: Dataflow) -> dict[str, Tensor]:
    """Fold in place, with the pairs that a trace of the network shows.

    A parametrization that treats output channels alike (damping, masks) stays.

    Returns:
        The ``gain`` by the layer's name, (C_out,) float64.
    """
    gains = {}
    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.Conv2d | nn.Linear) or not computes_plainly(module):
            continue
        found = norm_after(network, flow, name)
        if found is not None:
            gains[name] = _fold(module, found[1])
            replace_module(network, found[1], nn.Identity())
    return gains


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put another module wherever a network has a certain one, in the same mode."""
    new.train(old.training)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


@torch.no_grad()
def _fold(layer: nn.Conv2d | nn.Linear, norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    gain = (variance.double() + norm.eps).rsqrt()
    shift = -mean.double() if layer.bias is None else layer.bias.double() - mean.double()
    if norm.affine:
        gain = gain * norm.weight.double()
    shift = shift * gain
    if norm.affine:
        shift = shift + norm.bias.double()
    weight = layer.weight.detach()
    scaled = (weight.double() * gain.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
    if parametrize.is_parametrized(layer, "weight"):
        stacked = cast(nn.ModuleDict, layer.parametrizations)["weight"]
        raw = stacked.get_parameter("original")
        kept = raw.clone()
        raw.mul_(gain.to(raw.dtype).view(-1, *[1] * (raw.ndim - 1)))
        if not torch.allclose(layer.weight, scaled, rtol=1e-5, atol=0):
            raw.copy_(kept)
            unparametrize(layer, fold=True)
            layer.weight.copy_(scaled)
    else:
        layer.weight.copy_(scaled)
    layer.bias = nn.Parameter(shift.to(weight.dtype))
    return gain
