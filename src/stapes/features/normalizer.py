"""Normalisation of spectrograms, with statistics of the training part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from stapes.errors import DataError

__all__ = ["BandNormalizer", "NormalizationMethod"]

NormalizationMethod = Literal["band", "channel", "imagenet", "none"]

# Of red, green and blue, in 0 to 1, over ImageNet's training images (as torchvision states them).
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class BandNormalizer(nn.Module):
    """Subtract each band's mean and divide by its standard deviation.

    Statistics are over all clips and frames of the training part: per channel and band (Koutini et
    al. 2020, section 3.1), or what else :meth:`fit` is asked for. They are buffers, stored with the
    weights.

    Args:
        channels: C of the spectrogram.
        n_bins: F of the spectrogram.

    Attributes:
        mean, std: (C, F, 1), float32; 0 and 1 until :meth:`fit`.

    Shape:
        (B, C, F, T) to (B, C, F, T).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, n_bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, n_bins, 1))
        self.register_buffer("std", torch.ones(channels, n_bins, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def fit(
        self, spectrograms: Iterable[ArrayLike], method: NormalizationMethod = "band"
    ) -> BandNormalizer:
        """Learn mean and standard deviation, in one pass and float64.

        A band that never varies (above the recordings' bandwidth, say) keeps a standard deviation
        of 1, so that it becomes 0 and not noise blown up.

        Args:
            spectrograms: (C, F, T) each; T may differ.
            method: ``"band"``: per channel and band; ``"channel"``: one mean and deviation for all
                bands of a channel; ``"imagenet"``: each channel's range becomes 0 to 1, then the
                mean is taken away and divided by the deviation that the colours red, green and
                blue have on ImageNet, in turn, or the mean of the three for a single channel;
                ``"none"``: nothing is learnt, features stay as they are.

        Raises:
            DataError: no frame, or values that are not finite.
            ValueError: other channels or bins.
        """
        shape = tuple(self.mean.shape[:2])
        total, mean, squares = 0, np.zeros(shape), np.zeros(shape)
        if method == "none":
            return self
        low, high = np.full(shape[0], np.inf), np.full(shape[0], -np.inf)
        for spectrogram in spectrograms:
            x = np.asarray(spectrogram, dtype=np.float64)
            if x.ndim != 3 or x.shape[:2] != shape:
                raise ValueError(f"Expected (C, F, T) with C, F = {shape}, not {x.shape}.")
            count = x.shape[-1]
            if count == 0:
                continue
            # Chan, Golub, LeVeque 1979: joining two sets' moments does not cancel as the
            # difference of a sum of squares and a squared sum does.
            own = x.mean(-1)
            delta = own - mean
            squares += x.var(-1) * count + delta**2 * (total * count / (total + count))
            mean += delta * (count / (total + count))
            total += count
            low, high = np.minimum(low, x.min((1, 2))), np.maximum(high, x.max((1, 2)))
        if total == 0:
            raise DataError("There is no training recording to learn the normalisation from.")
        std = np.sqrt(squares / total)
        if method == "channel":
            level = mean.mean(1, keepdims=True)
            spread = np.sqrt((std**2 + (mean - level) ** 2).mean(1, keepdims=True))
            mean, std = level.repeat(shape[1], 1), spread.repeat(shape[1], 1)
        elif method == "imagenet":
            colours = np.array([_IMAGENET_MEAN, _IMAGENET_STD])
            if shape[0] == 1:
                colours = colours.mean(1, keepdims=True)
            # In turn, where there are more channels than colours.
            centre, spread = (np.resize(part, shape[0]) for part in colours)
            mean = (low + centre * (high - low))[:, None].repeat(shape[1], 1)
            std = (spread * (high - low))[:, None].repeat(shape[1], 1)
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise DataError("The features of a training recording are not finite numbers.")
        std[std < 1e-4] = 1.0
        self.mean.copy_(torch.from_numpy(mean)[..., None])
        self.std.copy_(torch.from_numpy(std)[..., None])
        return self
