"""Numbers of convolutions, packed as the executor of ``source/`` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stapes.models.quantized import QuantizedConv2d

__all__ = [
    "Numbers",
    "Tables",
    "convolution_numbers",
    "head_numbers",
    "joined",
    "stem_numbers",
]

_MAX_JUMP = 65535


@dataclass
class Numbers:
    """Numbers of a convolution as the executor reads them.

    Attributes:
        weight: (C_out, rows, taps) float32, or (C_out, rows, taps, 4) int8 with C_out a multiple
            of 4; rows of the input that are ``stride`` rows apart.
        places: of each tap, row, column and bin.
        stride: rows of the input between those that a tap reads.
        bias: (C_out,)
        sums: int8: (C_out,), each channel's weights added up.
        factors: int8: (C_out,), what a unit of the integer sums stands for.
    """

    weight: NDArray[np.generic]
    places: list[tuple[int, int, int]]
    stride: int
    bias: NDArray[np.float32]
    sums: NDArray[np.int32] | None = None
    factors: NDArray[np.float32] | None = None


@dataclass
class Tables:
    """The constant arrays that all layers share."""

    weights: list[NDArray[np.generic]] = field(default_factory=list)
    biases: list[NDArray[np.float32]] = field(default_factory=list)
    starts: list[NDArray[np.int32]] = field(default_factory=list)
    factors: list[NDArray[np.float32]] = field(default_factory=list)
    taps: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    jumps: list[int] = field(default_factory=list)

    def add(
        self, numbers: Numbers, *, stride: int, pitch: int, zero: int, sparse: bool
    ) -> dict[str, int]:
        """Append a convolution's numbers.

        Args:
            numbers: of the convolution.
            stride: cells between the rows of its input.
            pitch: cells between the columns of its input.
            zero: int8: the level of its input that stands for zero.
            sparse: whether to hold only the weights that are not zero.

        Returns:
            Fields of the layer in ``layers.h``: sizes, and where its numbers begin.
        """
        weight = numbers.weight
        int8 = numbers.sums is not None
        offsets = [row * stride + column * pitch + f for row, column, f in numbers.places]
        fields = {
            "in_rows": weight.shape[1],
            "out_rows": len(weight) // 4 if int8 else len(weight),
            "in_stride": numbers.stride * stride,
            "first_weight": sum(part.size for part in self.weights),
            "first_bias": sum(part.size for part in self.biases),
        }
        self.biases.append(numbers.bias)
        if numbers.sums is not None and numbers.factors is not None:
            self.starts.append(-zero * numbers.sums)
            self.factors.append(numbers.factors)
        if sparse:
            fields |= {"first_count": len(self.counts), "first_jump": len(self.jumps)}
            places = np.arange(weight.shape[1])[:, None] * fields["in_stride"] + np.array(offsets)
            if int8:
                places = 4 * places[..., None] + np.arange(4)
            self._add_sparse(weight, places.reshape(-1))
        else:
            fields |= {"taps": len(offsets), "first_tap": len(self.taps)}
            self.taps += offsets
            self.weights += _fours_of(weight) if int8 else _groups(weight)
        return fields

    def _add_sparse(self, weight: NDArray[np.generic], places: NDArray[np.int64]) -> None:
        """Append the weights that are not zero, and how far their places lie apart.

        Args:
            weight: (C_out, ...).
            places: of the weights of a channel, flat.
        """
        order = np.argsort(places)
        values: list[np.generic] = []
        for row in weight.reshape(len(weight), -1)[:, order]:
            at, before = 0, len(values)
            for place, value in zip(places[order][row != 0], row[row != 0], strict=True):
                # A weight of zero on the way where one jump does not reach.
                while place - at > _MAX_JUMP:
                    values.append(row.dtype.type(0))
                    self.jumps.append(_MAX_JUMP)
                    at += _MAX_JUMP
                values.append(value)
                self.jumps.append(int(place) - at)
                at = int(place)
            self.counts.append(len(values) - before)
        self.weights.append(np.array(values, dtype=weight.dtype))


def convolution_numbers(conv: nn.Conv2d | QuantizedConv2d, weight: NDArray[np.generic]) -> Numbers:
    """Of a convolution of stride 1 with a weight of (C_out, C_in, K_F, K_T)."""
    high, wide = weight.shape[2:]
    places = [(0, t, f) for t in range(wide) for f in range(high)]
    weight = weight.transpose(0, 1, 3, 2).reshape(*weight.shape[:2], high * wide)
    if isinstance(conv, QuantizedConv2d):
        weight = _fours(_fours(weight, 0), 1)
        weight = weight.reshape(len(weight), -1, 4, high * wide).swapaxes(2, 3)
    return _with_bias(conv, weight, places, 1)


def stem_numbers(conv: nn.Conv2d | QuantizedConv2d, weight: NDArray[np.generic]) -> Numbers:
    """Of the stem, 5x5 with a stride of 2: tap (f, t) reads part 2 (f % 2) + t % 2."""
    channels, inside = weight.shape[:2]
    taps = [(f, t) for t in range(5) for f in range(5)]
    if not isinstance(conv, QuantizedConv2d):
        places = [(2 * (f % 2) + t % 2, t // 2, f // 2) for f, t in taps]
        return _with_bias(
            conv, weight.transpose(0, 1, 3, 2).reshape(channels, inside, 25), places, 4
        )
    parts = np.zeros((channels, inside, 3, 3, 4), np.int8)
    for f, t in taps:
        parts[:, :, t // 2, f // 2, 2 * (f % 2) + t % 2] = weight[:, :, f, t]
    parts = _fours(parts.reshape(channels, inside, 9, 4), 0)
    return _with_bias(conv, parts, [(0, t, f) for t in range(3) for f in range(3)], 1)


def head_numbers(
    conv: nn.Conv2d | QuantizedConv2d, n_places: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight, flat, and bias of the head, for totals over the feature map in place of its means.

    Args:
        conv: 1x1.
        n_places: of the feature map, bins times columns.
    """
    weight = conv.weight.detach().cpu().double().numpy()[:, :, 0, 0]
    if isinstance(conv, QuantizedConv2d):
        weight = _fours(weight, 1) * conv.multiplier().cpu().double().numpy()[:, None]
    weight = weight / n_places
    return weight.astype(np.float32).reshape(-1), _bias(conv)


def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays one behind the other, flat."""
    return np.concatenate([part.reshape(-1) for part in parts])


def _bias(conv: nn.Conv2d | QuantizedConv2d) -> NDArray[np.float32]:
    if conv.bias is None:
        return np.zeros(len(conv.weight), np.float32)
    bias: NDArray[np.float32] = conv.bias.detach().cpu().numpy()
    return bias


def _with_bias(
    conv: nn.Conv2d | QuantizedConv2d,
    weight: NDArray[np.generic],
    places: list[tuple[int, int, int]],
    stride: int,
) -> Numbers:
    if not isinstance(conv, QuantizedConv2d):
        return Numbers(weight, places, stride, _bias(conv))
    factors = conv.multiplier().cpu().numpy()
    sums = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.int32)
    return Numbers(weight, places, stride, _fours(_bias(conv), 0), sums, _fours(factors, 0))


def _fours(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Zeros behind the last along an axis, up to a multiple of four."""
    more = [(0, 0)] * values.ndim
    more[axis] = (0, -values.shape[axis] % 4)
    return np.pad(values, more)


def _groups(weight: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Groups of 8 output channels, then of 4, 2 and 1 for the rest, innermost: (rows, taps, 8)."""
    start = 0
    while start < len(weight):
        size = next(size for size in (8, 4, 2, 1) if size <= len(weight) - start)
        yield np.moveaxis(weight[start : start + size], 0, -1)
        start += size


def _fours_of(weight: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """Groups of 4 output channels, each (rows, taps, 4, 4)."""
    return [np.moveaxis(weight[i : i + 4], 0, -2) for i in range(0, len(weight), 4)]
