"""Waveforms as users hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_waveform"]


def as_waveform(x: Any) -> NDArray[np.float32]:
    """An array or tensor as a waveform; its values are not looked at.

    Args:
        x: (N,) or (C, N); floating point as it is, integers scaled by their type's range.

    Returns:
        (C, N) float32.

    Raises:
        ValueError: another shape.
    """
    # A tensor is told by what it can do: torch need not be there.
    array = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    if array.ndim not in (1, 2):
        raise ValueError(f"a waveform is (N,) or (C, N), a batch (B, C, N), not {array.shape}")
    if np.issubdtype(array.dtype, np.integer):
        info = np.iinfo(array.dtype)
        middle = (int(info.max) + int(info.min) + 1) // 2  # 0 for signed, 128 for 8-bit unsigned
        array = (array.astype(np.float64) - middle) / (int(info.max) - middle + 1)
    array = array.astype(np.float32, copy=False)
    return array[None] if array.ndim == 1 else array
