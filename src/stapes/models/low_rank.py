"""Decomposing the convolutions of a network that is trained already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stapes.models.cp_resnet import CpResNet, cp_resnet
from stapes.models.damping import FrequencyDamping
from stapes.models.decomposition import DecomposedConv2d, channel_factors

__all__ = ["LayerDecomposition", "decompose"]


@dataclass(frozen=True, slots=True)
class LayerDecomposition:
    """What decomposing did to one convolution.

    Attributes:
        name: of the convolution, as in ``named_modules``.
        rank: channels inside the decomposed one.
        relative_error: Frobenius norm of the change of its weight over that of the weight, 0 to 1;
            of the weight that it computes with, damping included.
        parameters_before: weights of the one convolution.
        parameters_after: weights of the three. With a small Z there are more of them, not fewer.
    """

    name: str
    rank: int
    relative_error: float
    parameters_before: int
    parameters_after: int


def decompose(
    network: CpResNet, decomposition: int
) -> tuple[CpResNet, tuple[LayerDecomposition, ...]]:
    """Replace the convolutions of a trained network's blocks by decomposed ones of low rank.

    The new network is what ``cp_resnet`` builds with ``decomposition``, so it is stored, trained
    and damped like one: ``C_out / Z`` channels inside, chosen by :func:`channel_factors` for the
    weight that the convolution computes with. Stem, head and batch norm are copied. With Z = 1
    nothing is lost and the outputs stay the same (unless channels were pruned so that a 3x3
    kernel has more of them before it than behind it). What larger values lose, fine-tuning has
    to win back.

    Damping stays a parametrization, of the core: it weights taps and the factors mix channels, so
    that the two change places freely. Masks and whatever else is stacked on a weight are folded.

    Args:
        network: trained, with the convolutions of ``cp_resnet``; it is not changed.
        decomposition: Z, 1 or more.

    Returns:
        The new network, in the mode, precision and on the device of the old one; and for each
        convolution, in the order of use, what it cost.

    Raises:
        ValueError: the network is decomposed already, or has other convolutions than cp_resnet
            gives it (folded or quantised ones), or Z is out of range.
    """
    settings = network.settings()
    if settings.pop("decomposition", None) is not None:
        raise ValueError("this network is decomposed already; decompose the one it was made of")
    del settings["name"]
    # The freshly drawn weights are all replaced; a generator keeps the caller's untouched.
    new = cp_resnet(**settings, decomposition=decomposition, generator=torch.Generator())
    weight = next(network.parameters())
    new.to(device=weight.device, dtype=weight.dtype).train(network.training)

    parts = dict(network.named_modules())
    report = []
    with torch.no_grad():
        for name, target in _leaves(new):
            source = parts.get(name)
            if isinstance(target, nn.BatchNorm2d) and isinstance(source, nn.BatchNorm2d):
                target.load_state_dict(source.state_dict())
            elif not isinstance(source, nn.Conv2d) or source.bias is not None:
                raise ValueError(
                    f"{name} is not a convolution or batch norm of cp_resnet any more: decompose "
                    "the network before folding or quantising it"
                )
            elif isinstance(target, nn.Conv2d):
                _raw_weight(target).copy_(_undamped_weight(source))
            elif isinstance(target, DecomposedConv2d):
                report.append(_decompose_layer(name, source, target))
    return new, tuple(report)


def _leaves(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that hold weights, a decomposed convolution as one."""
    decomposed = [n for n, m in network.named_modules() if isinstance(m, DecomposedConv2d)]
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | DecomposedConv2d)
        and not name.startswith(tuple(f"{one}." for one in decomposed))
    ]


def _decompose_layer(name: str, source: nn.Conv2d, target: DecomposedConv2d) -> LayerDecomposition:
    reduce, core, expand = (
        cast(nn.Conv2d, part) for part in (target.reduce, target.core, target.expand)
    )
    rank = core.out_channels
    outer, inner = channel_factors(source.weight, rank)
    raw = torch.einsum("oift,or,is->rsft", _undamped_weight(source).double(), outer, inner)
    _raw_weight(expand).copy_(outer[:, :, None, None])
    _raw_weight(core).copy_(raw)
    _raw_weight(reduce).copy_(inner.T[:, :, None, None])

    exact = source.weight.double()
    product = torch.einsum(
        "or,rsft,si->oift",
        expand.weight.double()[:, :, 0, 0],
        core.weight.double(),
        reduce.weight.double()[:, :, 0, 0],
    )
    norm = exact.norm()
    return LayerDecomposition(
        name=name,
        rank=rank,
        relative_error=float((product - exact).norm() / norm) if norm else 0.0,
        parameters_before=exact.numel(),
        parameters_after=sum(part.weight.numel() for part in (reduce, core, expand)),
    )


def _undamped_weight(conv: nn.Conv2d) -> Tensor:
    """The weight that would be computed with but for the damping: all are factors, in any order."""
    if not parametrize.is_parametrized(conv, "weight"):
        return conv.weight
    stacked = cast(nn.ModuleDict, conv.parametrizations)["weight"]
    weight: Tensor = stacked.get_parameter("original")
    for one in cast(nn.ModuleList, stacked):
        weight = weight if isinstance(one, FrequencyDamping) else one(weight)
    return weight


def _raw_weight(module: nn.Module) -> Tensor:
    if parametrize.is_parametrized(module, "weight"):
        return module.get_parameter("parametrizations.weight.original")
    return module.get_parameter("weight")
