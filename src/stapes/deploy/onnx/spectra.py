"""The power spectrum of :func:`stapes.features.spectrum.power_spectrum`, in operators of ONNX.

Values are laid out with time last, so that each step is a product with a small constant matrix
from the left, and nothing is transposed but the waveform itself::

    waveform    (B, C, N)
    padded      (B, C, hop, blocks)     mirrored ends, cut at every hop, transposed
    frames      (B, C, L, T)            columns: blocks t, t + 1, ... one below the other
    spectrum    (B, C, K, T)

The transform is factorised (Cooley and Tukey 1965). With ``n_fft = P Q``, samples
``n = Q p + q`` and bins ``k = r + P s``::

    X[r + P s] = sum over q of  exp(-2 pi i q (r + P s) / n_fft)
                                * sum over p of  exp(-2 pi i p r / P) * x[Q p + q]

The inner sums are one product of a (2 * (P // 2 + 1), P) matrix, real and imaginary rows, with
the samples as (P, Q T); the outer ones are one (Q, 2 Q) product for each r, with the twiddle
factors inside. A real signal's bins r > P / 2 mirror those below, so half of the r suffice. The
order of bins that comes out (r, then s) is kept: whoever reads them arranges the constants.

For 1024 samples that is 100 multiplications a sample instead of the 1024 of a plain matrix, and in
ONNX Runtime several times faster than its DFT operator, which is left for sizes with a large prime
factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stapes.deploy.onnx.building import GraphBuilder

__all__ = ["Spectrum", "add_power_spectrum", "frame_count_of"]

# Multiplications a frame beyond which the DFT operator is taken: tables of 32 MB.
_MOST_PRODUCTS = 4_000_000
# Blocks of a frame beyond which its samples are gathered one by one.
_MOST_BLOCKS = 64


@dataclass(frozen=True)
class Spectrum:
    """Power of frames.

    Attributes:
        value: (B, C, K, T) float32.
        rows: (n_fft // 2 + 1,) which row holds each bin; the other rows repeat some.
    """

    value: str
    rows: NDArray[np.int64]


def frame_count_of(graph: GraphBuilder, n_samples: str, n_fft: int, hop_length: int) -> str:
    """Frames of a centred STFT, as :func:`stapes.features.spectrum.frame_count`."""
    odd = graph.integers(n_fft - 2 * (n_fft // 2))
    hops = graph.add("Div", graph.add("Sub", n_samples, odd), graph.integers(hop_length))
    return graph.add("Add", hops, graph.integers(1))


def add_power_spectrum(
    graph: GraphBuilder,
    waveform: str,
    win_length: int,
    n_fft: int,
    hop_length: int,
    *,
    double: bool,
) -> Spectrum:
    """Squared magnitude of the centred STFT, as ``power_spectrum`` of the features computes it.

    Args:
        graph: gets the nodes.
        waveform: (B, C, N) float32, N at least 1.
        win_length: samples, at most ``n_fft``.
        n_fft: samples.
        hop_length: samples.
        double: transform in double precision.
    """
    dtype: DTypeLike = np.float64 if double else np.float32
    factors = _factors(n_fft, win_length)
    row = 1 if factors is None else factors[1]
    length = -(-win_length // row) * row
    frames = _frames(graph, waveform, win_length, n_fft, hop_length, length)
    windowed = graph.add("Mul", graph.cast(frames, dtype), _hann(graph, win_length, length, dtype))
    if factors is None:
        return _by_operator(graph, windowed, n_fft)
    return _by_products(graph, windowed, length, *factors, dtype)


def _factors(n_fft: int, win_length: int) -> tuple[int, int] | None:
    """P and Q with the fewest multiplications; none if there are too many."""

    def products(p: int) -> int:
        q, half = n_fft // p, p // 2 + 1
        return 2 * half * -(-win_length // q) * q + half * (2 * q) ** 2

    p = min((p for p in range(1, n_fft + 1) if n_fft % p == 0), key=products)
    return (p, n_fft // p) if products(p) <= _MOST_PRODUCTS else None


def _frames(
    graph: GraphBuilder, waveform: str, win_length: int, n_fft: int, hop: int, length: int
) -> str:
    """(B, C, N) to (B, C, length, T) float32: the window's samples, then some that follow."""
    before = (n_fft - win_length) // 2
    left = n_fft // 2 - before
    blocks = -(-length // hop)
    n_samples = graph.add("Shape", waveform, start=2)
    n_frames = frame_count_of(graph, n_samples, n_fft, hop)
    rows = graph.add("Add", n_frames, graph.integers(blocks - 1))

    # Mirrored ends: a triangle wave of period 2 (N - 1), as features.spectrum.reflect_pad.
    last = graph.add("Sub", n_samples, graph.integers(1))
    period = graph.add("Max", graph.add("Add", last, last), graph.integers(1))

    def mirrored(positions: str) -> str:
        inside = graph.add("Mod", positions, period)
        nearest = graph.add("Min", inside, graph.add("Sub", period, inside))
        return graph.add("Gather", waveform, nearest, axis=2)

    # The last frame ends at most blocks * hop samples behind the waveform.
    behind = graph.add("Add", n_samples, graph.counting(0, blocks * hop))
    parts = [waveform, mirrored(behind)]
    if left:
        parts.insert(0, mirrored(graph.counting(-left, 0)))
    padded = graph.add(
        "Slice",
        graph.join(*parts, axis=2),
        graph.integers(0),
        graph.add("Mul", rows, graph.integers(hop)),
        graph.integers(2),
    )

    if blocks > _MOST_BLOCKS:
        steps = graph.add(
            "Range",
            graph.constant(0, np.int64),
            graph.add("Squeeze", n_frames),
            graph.constant(1, np.int64),
        )
        starts = graph.add("Mul", steps, graph.integers(hop))
        places = graph.add("Add", graph.counting(0, length, -1, 1), starts)
        return graph.add("Gather", padded, places, axis=2)
    cut = graph.add("Transpose", graph.reshape(padded, 0, 0, -1, hop), perm=[0, 1, 3, 2])
    columns = []
    for block in range(blocks):
        ends = graph.join(
            graph.integers(min(hop, length - block * hop)),
            graph.add("Add", n_frames, graph.integers(block)),
            axis=0,
        )
        columns.append(
            graph.add("Slice", cut, graph.integers(0, block), ends, graph.integers(2, 3))
        )
    return graph.join(*columns, axis=2)


def _hann(graph: GraphBuilder, win_length: int, length: int, dtype: DTypeLike) -> str:
    """Periodic Hann window, then zeros: (length, 1). Computed when the file is loaded."""
    cosine = graph.add("Cos", _angles(graph, graph.counting(0, win_length, -1, 1), win_length))
    half = graph.constant(0.5, np.float64)
    window = graph.add("Sub", half, graph.add("Mul", cosine, half))
    if length > win_length:
        zeros = graph.constant(np.zeros((length - win_length, 1)), np.float64)
        window = graph.join(window, zeros, axis=0)
    return window if dtype == np.float64 else graph.cast(window, dtype)


def _angles(graph: GraphBuilder, numerators: str, denominator: int) -> str:
    """``2 pi numerators / denominator`` in double precision, from whole numbers."""
    within = graph.add("Mod", numerators, graph.integers(denominator))
    step = graph.constant(2 * math.pi / denominator, np.float64)
    return graph.add("Mul", graph.cast(within, np.float64), step)


def _by_products(
    graph: GraphBuilder, frames: str, length: int, p: int, q: int, dtype: DTypeLike
) -> Spectrum:
    half = p // 2 + 1

    def table(value: str) -> str:
        return value if dtype == np.float64 else graph.cast(value, dtype)

    # Inner sums: rows (r, real and imaginary), columns p.
    inner = graph.add("Mul", graph.counting(0, half, -1, 1, 1), graph.counting(0, length // q))
    angles = _angles(graph, inner, p)
    cosine, sine = graph.add("Cos", angles), graph.add("Sin", angles)
    matrix = graph.reshape(graph.join(cosine, graph.add("Neg", sine), axis=1), 2 * half, -1)
    sums = graph.add("MatMul", table(matrix), graph.reshape(frames, 0, 0, length // q, -1))
    sums = graph.reshape(sums, 0, 0, half, 2 * q, -1)  # (B, C, r, real q and imaginary q, T)

    # Outer sums: for each r rows s, columns (real and imaginary, q).
    steps = graph.add("Mul", graph.counting(0, q, -1, 1), graph.integers(p))
    outer = graph.add(
        "Mul", graph.add("Add", graph.counting(0, half, -1, 1, 1), steps), graph.counting(0, q)
    )
    angles = _angles(graph, outer, p * q)
    cosine, sine = graph.add("Cos", angles), graph.add("Sin", angles)
    real = graph.join(cosine, sine, axis=2)
    imaginary = graph.join(graph.add("Neg", sine), cosine, axis=2)
    squares = []
    for matrix in (real, imaginary):
        part = graph.add("MatMul", table(matrix), sums)
        # What is left to do loses nothing in single precision.
        part = part if dtype == np.float32 else graph.cast(part, np.float32)
        squares.append(graph.add("Mul", part, part))
    power = graph.add("Add", *squares)

    # Bin k lies in row (k mod P, k div P); where k mod P is above the middle, its mirror does.
    bins = np.arange(p * q // 2 + 1)
    bins = np.where(bins % p < half, bins, p * q - bins)
    return Spectrum(graph.reshape(power, 0, 0, half * q, -1), bins % p * q + bins // p)


def _by_operator(graph: GraphBuilder, frames: str, n_fft: int) -> Spectrum:
    signal = graph.add("Unsqueeze", frames, graph.integers(-1))
    spectrum = graph.add("DFT", signal, graph.constant(n_fft, np.int64), axis=2, onesided=1)
    power = graph.add("ReduceSumSquare", spectrum, graph.integers(-1), keepdims=0)
    return Spectrum(graph.cast(power, np.float32), np.arange(n_fft // 2 + 1))
