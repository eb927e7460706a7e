"""Another device: a waveform convolved with the impulse response of a microphone, or of a room.

Morocutti, Schmid, Koutini, Widmer 2023 ("Device-Robust Acoustic Scene Classification via Impulse
Response Augmentation") convolve training recordings with the responses of old microphones. Here two
things that are no part of a device's sound are taken out of a response first:

- Its level, which says how it was measured and stored: its energy becomes 1. Noise as strong at all
  frequencies then keeps its level; of other sounds, what the device lets through does.
- Its delay: the peak comes to time 0, so that what happens in a recording stays in its place, and
  with it in its window. What comes before the peak (half of a filter of linear phase) is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["ImpulseResponse", "convolve", "impulse_response"]

Samples = npt.NDArray[np.float32]

# Full scale is 1: no measurement is this weak, and a silent one may hold the dither of a converter.
_SILENT = 1e-6


@dataclass(frozen=True, eq=False)
class ImpulseResponse:
    """What a device makes of an impulse at time 0.

    Attributes:
        taps: (K,) float64 of energy 1; neither the first nor the last is 0.
        before: taps before time 0, which is the one of the largest size.
    """

    taps: npt.NDArray[np.float64] = field(repr=False)
    before: int

    @property
    def after(self) -> int:
        """Taps after time 0."""
        return len(self.taps) - 1 - self.before


def impulse_response(samples: Samples) -> ImpulseResponse:
    """Take level and delay out of a response.

    Args:
        samples: (K,), finite, full scale at -1 and 1.

    Raises:
        ValueError: it is silent.
    """
    if np.abs(samples).max(initial=0.0) < _SILENT:
        raise ValueError("an impulse response is not silent")
    taps = np.trim_zeros(samples.astype(np.float64))
    taps /= np.sqrt(np.square(taps).sum())
    return ImpulseResponse(taps, int(np.abs(taps).argmax()))


def convolve(waveform: Samples, response: ImpulseResponse) -> Samples:
    """What the device makes of a waveform, cut to the waveform's length.

    Args:
        waveform: (C, N) float32, finite; silence before and behind it.
        response: at the waveform's sample rate.

    Returns:
        (C, N) float32, ``y[n] = sum_k taps[k] * x[n + before - k]``.

    >>> echo = impulse_response(np.array([0.0, 0.8, 0.6], np.float32))
    >>> convolve(np.array([[0.0, 1.0, 0.0, 0.0]], np.float32), echo).round(2).tolist()
    [[0.0, 0.800000011920929, 0.6000000238418579, 0.0]]
    """
    n = waveform.shape[1]
    size = _fft_length(n + len(response.taps) - 1)
    # Double precision: a silent band lies further below a loud one than single precision reaches.
    product = np.fft.rfft(waveform.astype(np.float64), size) * np.fft.rfft(response.taps, size)
    whole = np.fft.irfft(product, size)
    return whole[:, response.before : response.before + n].astype(np.float32)


def _fft_length(n: int) -> int:
    """The power of two, or three times one, that is ``n`` or the next larger."""
    power = 1 << max(0, n - 1).bit_length()
    return 3 * power // 4 if 3 * power // 4 >= n else power
