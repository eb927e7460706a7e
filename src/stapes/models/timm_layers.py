"""Layers of timm that are subclasses of torch's and compute something more.

A convolution is folded, quantised, damped or masked by what is known of torch's own. timm has
subclasses that pad as their input needs, that standardise their weight in every call, and batch
norms with an activation inside. Here they are told apart; nothing imports timm for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = [
    "computes_plainly",
    "pads_to_size",
    "same_padding",
    "split_norm_activations",
    "standardizes_weight",
]

_PLAIN = (nn.Conv2d.forward, nn.Linear.forward, nn.modules.batchnorm._BatchNorm.forward)


def computes_plainly(layer: nn.Module) -> bool:
    """Whether a convolution, linear layer or batch norm computes what torch's own does.

    With its weight and bias as they are; of a convolution, after padding with zeros.
    """
    plain = type(layer).forward in _PLAIN  # inherited, also by the classes of parametrized layers
    return plain or pads_to_size(layer) or _is(layer, "Linear")


def pads_to_size(layer: nn.Module) -> bool:
    """Whether a convolution pads as the size of its input needs (TensorFlow's "same")."""
    return _is(layer, "Conv2dSame")


def same_padding(
    shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Zeros for such a convolution: before and behind, the last axis first, as ``F.pad`` wants.

    The output has ``ceil(size / stride)`` positions along an axis; the odd zero comes behind.

    Args:
        shape: of its input, (B, C, F, T).
        kernel_size: of the convolution, along frequency and time, and so on.
        stride: positions.
        dilation: positions.
    """
    zeros: list[int] = []
    for size, taps, step, apart in zip(shape[-2:], kernel_size, stride, dilation, strict=True):
        needed = max(0, (-(-size // step) - 1) * step + apart * (taps - 1) + 1 - size)
        zeros = [needed // 2, needed - needed // 2, *zeros]
    return zeros


def standardizes_weight(layer: nn.Module) -> bool:
    """Whether a layer shifts and scales its weight in every call, so that a zero is none."""
    return _is(layer, "StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")


class NormThenActivation(nn.Sequential):
    """A batch norm with what follows inside of timm's: children ``norm``, ``drop`` and ``act``."""


def split_norm_activations(network: nn.Module) -> None:
    """Take timm's batch norms with activation apart, in place: same function, other names.

    Each becomes a :class:`NormThenActivation`; the parameters and buffers are the same objects.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if _is(child, "BatchNormAct2d"):
                setattr(parent, name, _split(child))


def _split(joined: Any) -> NormThenActivation:
    norm = nn.BatchNorm2d(
        joined.num_features,
        joined.eps,
        joined.momentum,
        joined.affine,
        joined.track_running_stats,
        device="meta",  # nothing is drawn
    )
    norm._parameters.update(joined._parameters)
    norm._buffers.update(joined._buffers)
    split = NormThenActivation()
    for name, part in (("norm", norm), ("drop", joined.drop), ("act", joined.act)):
        split.add_module(name, part)
    norm.training = split.training = joined.training
    return split


def _is(layer: nn.Module, *names: str) -> bool:
    # Without timm there is no such layer.
    layers: Any = sys.modules.get("timm.layers")
    return layers is not None and isinstance(layer, tuple(getattr(layers, n) for n in names))
