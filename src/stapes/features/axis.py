"""The frequency axis of a spectrogram: where its bins end, which frequencies to name on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bin_edges", "frequency_label", "frequency_ticks"]


def bin_edges(frequencies: NDArray[Any]) -> NDArray[np.float64]:
    """Edges of bins with these centres, (F + 1,) Hz: halfway between them, at least 0 Hz.

    >>> bin_edges(np.array([10.0, 20.0, 40.0])).tolist()
    [5.0, 15.0, 30.0, 50.0]

    Args:
        frequencies: (F,) Hz, rising.
    """
    if len(frequencies) < 2:
        return np.array([0.0, 2 * float(frequencies[0])])
    inside = (frequencies[:-1] + frequencies[1:]) / 2
    first = 2 * frequencies[0] - inside[0]
    last = 2 * frequencies[-1] - inside[-1]
    return np.concatenate([[max(0.0, first)], inside, [last]])


def frequency_ticks(frequencies: NDArray[Any]) -> list[float]:
    """Round frequencies in Hz inside an axis, a seventh of its height apart, the highest first.

    Octaves; on an axis that holds fewer than three of them steps of about a third of one; else
    its two ends, the lower one first.

    Args:
        frequencies: (F,) Hz, rising: the centres of its equally high rows.
    """
    octaves = (16.0, 31.5, 63.0, *(125.0 * 2**k for k in range(12)))
    thirds = tuple(step * 10.0**k for k in range(1, 6) for step in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5,
                                                                    6, 8))  # fmt: skip
    place = np.linspace(0, 1, len(frequencies))
    found: list[list[float]] = []
    for series in (octaves, thirds):
        ticks: list[float] = []
        for tick in reversed(series):
            inside = frequencies[0] <= tick <= frequencies[-1]
            here, above = np.interp([tick, ticks[-1] if ticks else np.inf], frequencies, place)
            if inside and (not ticks or above - here >= 1 / 7):
                ticks.append(tick)
        found.append(ticks)
        if len(ticks) > 2:
            return ticks
    ticks = max(found, key=len)
    return ticks if len(ticks) > 1 else [float(f"{f:.3g}") for f in frequencies[[0, -1]]]


def frequency_label(frequency: float) -> str:
    """Hz as an axis names it: ``500``, ``2k``."""
    return f"{frequency / 1000:g}k" if frequency >= 1000 else f"{frequency:g}"
