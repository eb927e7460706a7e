"""Mixing of examples within a batch: mixup (Zhang et al. 2018) and Freq-MixStyle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "FreqMixStyle",
    "Mixup",
    "apply_freq_mixstyle",
    "apply_mixup",
    "draw_freq_mixstyle",
    "draw_mixup",
]

# Added to a variance of normalised features, where 1 is usual: what is silent has none.
_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Mixup:
    """One draw: example b becomes ``weight[b] * x[b] + (1 - weight[b]) * x[partner[b]]``.

    Attributes:
        partner: (B,) a permutation.
        weight: (B,) in [0.5, 1], float32.
    """

    partner: Tensor
    weight: Tensor


def draw_mixup(batch: int, alpha: float, rng: np.random.Generator) -> Mixup:
    """Draw partners and weights max(lam, 1 - lam), lam ~ Beta(alpha, alpha) per example.

    The maximum keeps each example the larger part of its mixture, as the authors of
    Koutini et al. 2020 do.
    """
    lam = rng.beta(alpha, alpha, batch)
    weight = np.maximum(lam, 1.0 - lam).astype(np.float32)
    return Mixup(torch.from_numpy(rng.permutation(batch)), torch.from_numpy(weight))


def apply_mixup(x: Tensor, mixup: Mixup) -> Tensor:
    """Mix along the first axis; works for inputs (B, C, F, T) and soft targets (B, K) alike."""
    weight = mixup.weight.to(x.device).view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(x[mixup.partner.to(x.device)], x, weight)


@dataclass(frozen=True, slots=True)
class FreqMixStyle:
    """One draw: example b gets ``weight[b]`` of its own style and the rest of its partner's.

    Attributes:
        partner: (B,) a permutation.
        weight: (B,) in [0, 1], float32.
    """

    partner: Tensor
    weight: Tensor


def draw_freq_mixstyle(
    batch: int, probability: float, alpha: float, rng: np.random.Generator
) -> FreqMixStyle | None:
    """Draw partners and weights lam ~ Beta(alpha, alpha) per example, or that nothing is mixed.

    Unlike in mixup, lam is taken as it is: targets do not follow it, and an example may get all of
    its partner's style.

    Args:
        batch: B.
        probability: of mixing the batch at all, in [0, 1].
        alpha: above 0; small values leave most examples near one style or the other.
        rng: what draws.
    """
    if rng.random() >= probability:
        return None
    weight = rng.beta(alpha, alpha, batch).astype(np.float32)
    return FreqMixStyle(torch.from_numpy(rng.permutation(batch)), torch.from_numpy(weight))


def apply_freq_mixstyle(x: Tensor, mixstyle: FreqMixStyle) -> Tensor:
    """Give the bands of each example a mean and a deviation between its own and its partner's.

    A band's mean and deviation, over channels and time, are mostly what the device and the room
    make of a sound; what happens in the band is left as it is. From Kim, Yang, Park, Chang 2022
    ("Domain Generalization with Relaxed Instance Frequency-wise Normalization") and Schmid,
    Masoudian, Koutini, Widmer 2022 ("Knowledge Distillation from Transformers for Low-Complexity
    Acoustic Scene Classification"); MixStyle (Zhou et al. 2021) does so by channel. With m and s
    mean and deviation of a band of x, m' and s' of its partner, and w the weight::

        (x - m) / s * (w s + (1 - w) s') + w m + (1 - w) m'

    Args:
        x: (B, C, F, T), normalised: a band that varies has a deviation far above 0.001.
        mixstyle: the draw.

    Returns:
        (B, C, F, T).

    >>> x = torch.tensor([[0.0, 2.0], [10.0, 14.0]]).view(2, 1, 1, 2)
    >>> swapped = FreqMixStyle(torch.tensor([1, 0]), torch.tensor([0.0, 0.5]))
    >>> apply_freq_mixstyle(x, swapped).flatten().round(decimals=2).tolist()
    [10.0, 14.0, 5.0, 8.0]
    """
    partner = mixstyle.partner.to(x.device)
    weight = mixstyle.weight.to(x.device).view(-1, 1, 1, 1)
    variance, mean = torch.var_mean(x, (1, 3), correction=0, keepdim=True)  # (B, 1, F, 1)
    deviation = (variance + _EPSILON).sqrt()
    mixed_mean = torch.lerp(mean[partner], mean, weight)
    mixed_deviation = torch.lerp(deviation[partner], deviation, weight)
    return (x - mean) * (mixed_deviation / deviation) + mixed_mean
