"""Rounding weights so that what the layer computes changes least.

To the nearest integer is best for each weight by itself. But inputs next to each other in a
spectrogram are alike, so that errors of one sign add up and errors of both signs cancel. With X the
inputs that meet the weights w of a channel (one row for each position), what counts is::

    |X w' - X w|^2 = (w' - w)^T H (w' - w)        H = X^T X

Weights are rounded one after the other, and each error is made good, as well as the later weights
can, by changing those before they are rounded in turn. With the Cholesky factor ``U`` of ``H^-1``
(upper, ``H^-1 = U^T U``) and weight k rounded, the best change of the later ones is::

    w[k:] -= (w[k] - w'[k]) / U[k, k] * U[k, k:]

Reference:
    Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
    Generative Pre-trained Transformers", ICLR 2023; after Hassibi and Stork, "Second Order
    Derivatives for Network Pruning: Optimal Brain Surgeon", NIPS 1992.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stapes.models.timm_layers import pads_to_size, same_padding

__all__ = ["input_patches", "round_weight", "weight_scale"]

# Added to the diagonal of H, as a share of its mean: trust the calibration clips only so far.
_RIDGE = 0.01
# Positions of each map that are looked at, along frequency and along time.
_POSITIONS = 12
# Weights of a channel that are rounded before those behind them are told.
_BLOCK = 128
# Products of two scales stay far from where float32 ends.
LEAST_SCALE = 1e-15


def weight_scale(weight: Tensor) -> Tensor:
    """The scale of each output channel that puts its largest absolute weight on 127.

    A smaller one would clip. Clipping the share p of the largest of n weights costs
    ``(127 p)^2`` squared levels and makes the others' ``n / 12`` smaller by ``n p / 6``; it can
    pay up to ``p = n / 96774``, a third of a percent for 288 weights.

    >>> weight_scale(torch.tensor([[127.0, -3.0], [0.0, -254.0]])).tolist()
    [1.0, 2.0]

    Shape:
        - weight: (C_out, ...)
        - output: (C_out,), at least 1e-15, also for a channel of zeros
    """
    return (weight.detach().flatten(1).abs().amax(1) / 127).clamp_min(LEAST_SCALE)


def input_patches(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """What meets the weights of a layer, at some positions of its input.

    Args:
        layer: linear, or a convolution that pads with zeros.
        x: its input; of a map up to 144 positions on an even grid are taken.

    Shape:
        - x: (B, C_in, F, T) or, for a linear layer, (..., C_in)
        - output: (groups, M, K): M positions, K weights of a channel
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    x = F.pad(x, _padding(layer, x))
    for axis, taps, step, apart in zip(
        (2, 3), layer.kernel_size, layer.stride, layer.dilation, strict=True
    ):
        # A view in which each position has an axis of its own for its taps.
        x = x.unfold(axis, apart * (taps - 1) + 1, step)[..., ::apart]
        count = x.shape[axis]
        every = -(-count // _POSITIONS)
        x = x.narrow(axis, every // 2, count - every // 2)
        x = x[:, :, ::every] if axis == 2 else x[:, :, :, ::every]
    batch, channels, *rest = x.shape
    x = x.reshape(batch, layer.groups, channels // layer.groups, *rest)
    # (B, G, C, F, T, K_F, K_T) -> (G, B, F, T, C, K_F, K_T), the order of the weights last
    x = x.permute(1, 0, 3, 4, 2, 5, 6)
    return x.flatten(4).flatten(1, 3)


def _padding(layer: nn.Conv2d, x: Tensor) -> list[int]:
    """Zeros before and behind, the last axis first."""
    if pads_to_size(layer):
        return same_padding(x.shape, layer.kernel_size, layer.stride, layer.dilation)
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    if layer.padding == "same":
        whole = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [side for n in reversed(whole) for side in (n // 2, n - n // 2)]
    return [n for n in reversed(cast(tuple[int, int], layer.padding)) for _ in range(2)]


def round_weight(weight: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """Integers whose layer computes most nearly what the float weights do.

    A weight of zero stays zero. A channel whose sum of squared errors by this is not smaller than
    by rounding to the nearest is rounded to the nearest.

    >>> alike = torch.ones(1, 3, 3)  # three inputs that are always equal: only the sum counts
    >>> round_weight(torch.tensor([[0.4, 0.4, 0.4]]), torch.ones(1), alike).sum()
    tensor(1.)

    Args:
        weight: float.
        scale: of each output channel.
        moments: ``H`` of this module's header, for each group of channels.

    Shape:
        - weight: (C_out, ...), K values for each channel
        - scale: (C_out,)
        - moments: (groups, K, K)
        - output: that of the weight, -127 to 127
    """
    groups = len(moments)
    exact = weight.detach().double().reshape(groups, len(weight) // groups, -1)
    step = scale.double().reshape(groups, -1, 1)
    h = moments.double()
    diagonal = h.diagonal(dim1=1, dim2=2)
    ridge = (_RIDGE * diagonal.mean(1)).clamp_min(torch.finfo(torch.float64).tiny)
    # The inputs with most to say first: what the last ones lose, nothing can make good. The order
    # is that of all groups together.
    order = diagonal.sum(0).argsort(descending=True, stable=True)
    h = h[:, order][:, :, order] / ridge[:, None, None]
    h = h + torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True)

    wanted = exact[:, :, order].clone()
    levels = torch.empty_like(wanted)
    free = wanted != 0
    n_weights = wanted.shape[2]
    for first in range(0, n_weights, _BLOCK):
        end = min(first + _BLOCK, n_weights)
        errors = torch.empty_like(wanted[:, :, first:end])
        for k in range(first, end):
            level = (wanted[:, :, k : k + 1] / step).round().clamp(-127, 127)
            level = torch.where(free[:, :, k : k + 1], level, 0.0)
            levels[:, :, k : k + 1] = level
            error = (wanted[:, :, k : k + 1] - level * step) / upper[:, k : k + 1, k : k + 1]
            wanted[:, :, k:end] -= error * upper[:, k : k + 1, k:end]
            errors[:, :, k - first : k - first + 1] = error
        # The weights behind the block feel all its errors at once: one product, not a pass for
        # each weight over all that are left.
        wanted[:, :, end:] -= errors @ upper[:, first:end, end:]
    levels = levels[:, :, order.argsort()]

    nearest = (exact / step).round().clamp(-127, 127)
    better = _harm(levels * step - exact, moments) < _harm(nearest * step - exact, moments)
    return torch.where(better, levels, nearest).reshape(weight.shape).to(weight.dtype)


def _harm(change: Tensor, moments: Tensor) -> Tensor:
    """Squared error of the outputs, (groups, channels, 1)."""
    return (change @ moments.double() * change).sum(2, keepdim=True)
