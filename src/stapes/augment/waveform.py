"""Pitch and pace of a waveform, each changed without the other.

Resampling moves the pitch, and with it the length; a phase vocoder then brings the sound to the
length that is asked for, at its pitch. So a change of both costs no more than a change of one.

The vocoder (Flanagan and Golden 1966; Laroche and Dolson 1999) builds the output of overlapping
frames. Each is taken from the input where the moment that it stands for is::

    output   |----|----|----|----|       frame j at j * hop
    input    |---|---|---|---|           frame j at j * hop * speed

A frame X cannot follow the one before it as it is, because their phases would not meet. Let P be
what the input has one hop before X, and Y what the output has there. Then the output goes on from
Y as the input goes on from P if every bin of X is rotated by

    R = Y * conj(P) / |Y * conj(P)|

This takes no angle and nothing is unwrapped, so it is exact for a steady tone at any speed. Three
details make it hold for other sounds:

- The product is summed over neighbouring bins before its size is taken out, so that the bins of a
  partial turn together and keep their shape (phase locking, Puckette 1995).
- It is summed over the channels, too: all turn alike, and every sound keeps its place between them.
- Where a sound sets in there is nothing to go on from, and R = 1: the phases, and with them the
  attack, are those of the input (Roebel 2003).

Within the usual ranges, some semitones and 0.8 to 1.25 times the pace, tones keep their level, and
attacks stay sharp and within 4 ms of their place. At several times the length, attacks blur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch

from stapes.augment.impulse import ImpulseResponse

__all__ = ["WaveformChange", "change_waveform", "draw_waveform_changes"]

Samples = npt.NDArray[np.float32]
Spectra = npt.NDArray[np.complex64]

_HOP_SECONDS = 0.0174
# A Hann window squared adds up to a constant from three per window on.
_OVERLAP = 3
_BLOCK = 32  # frames at once: they fit the cache, and memory does not grow with the length
# A bin has an onset where its energy is more than this many times what it could go on from.
_ONSET = 8.0
_TINY = np.float32(1e-30)  # keeps silence from dividing by zero


@dataclass(frozen=True)
class WaveformChange:
    """Another pitch and pace, then another device.

    Attributes:
        semitones: positive is higher.
        speed: above 1 is faster, so shorter.
        response: of the device; none: the one that it was recorded with.
    """

    semitones: float
    speed: float
    response: ImpulseResponse | None = None


def draw_waveform_changes(
    n: int,
    pitch_semitones: float,
    time_stretch: tuple[float, float],
    rng: np.random.Generator,
    responses: Sequence[ImpulseResponse] = (),
    response_probability: float = 1.0,
) -> list[WaveformChange]:
    """Independent changes, uniform in semitones, in speed and over the responses.

    Args:
        n: how many.
        pitch_semitones: largest shift either way.
        time_stretch: lowest and highest speed.
        rng: what draws; always the same number of values, and none for no responses.
        responses: of devices to choose from.
        response_probability: of another device at all, in [0, 1].

    >>> draw_waveform_changes(1, 0.0, (1.0, 1.0), np.random.default_rng(0))
    [WaveformChange(semitones=0.0, speed=1.0, response=None)]
    """
    semitones = rng.uniform(-1.0, 1.0, n) * pitch_semitones
    speeds = rng.uniform(*time_stretch, n)
    devices: list[ImpulseResponse | None] = [None] * n
    if responses:
        chosen = rng.integers(len(responses), size=n)
        other = rng.random(n) < response_probability
        devices = [responses[i] if on else None for i, on in zip(chosen, other, strict=True)]
    return [
        WaveformChange(float(s), float(v), device)
        for s, v, device in zip(semitones, speeds, devices, strict=True)
    ]


def change_waveform(
    waveform: Samples, sample_rate: int, *, semitones: float = 0.0, speed: float = 1.0
) -> Samples:
    """Move a sound's pitch and pace: what was at ``t`` seconds is then at ``t / speed``.

    Args:
        waveform: (C, N) float32, finite.
        sample_rate: Hz.
        semitones: -24 to 24; frequencies become ``2 ** (semitones / 12)`` times as high. What
            comes to lie above half the sample rate is lost; moved down, the top stays empty.
        speed: 0.25 to 4; above 1 is faster.

    Returns:
        (C, round(N / speed)), float32, always a new array; the same values for 0 semitones at
        speed 1.

    Raises:
        ValueError: not (C, N) float32, or an argument out of range.
    """
    if waveform.ndim != 2 or waveform.dtype != np.float32:
        raise ValueError(
            f"a waveform is (channels, samples) float32, not {waveform.dtype} of shape "
            f"{waveform.shape}"
        )
    if sample_rate < 1 or not -24 <= semitones <= 24 or not 0.25 <= speed <= 4:
        raise ValueError(
            "sample_rate is 1 Hz or more, semitones -24 to 24 and speed 0.25 to 4, not "
            f"{sample_rate}, {semitones} and {speed}"
        )
    if semitones == 0 and speed == 1:
        return waveform.copy()
    n_samples = round(waveform.shape[1] / speed)
    if not waveform.any():  # the resampler takes no waveform without samples
        return np.zeros((waveform.shape[0], n_samples), np.float32)
    ratio = 2.0 ** (semitones / 12)
    if semitones:
        # Played `ratio` times as fast: the pitch is right, and the length is not.
        played = soxr.resample(np.ascontiguousarray(waveform.T), ratio, 1.0, quality="HQ")
        waveform = np.ascontiguousarray(played.T)
    return _stretch(waveform, n_samples, speed / ratio, sample_rate)


def _stretch(waveform: Samples, n_samples: int, speed: float, sample_rate: int) -> Samples:
    """(C, N) played at ``speed``, at its pitch, as (C, n_samples)."""
    hop = _hop(sample_rate)
    size, half = hop * _OVERLAP, hop * _OVERLAP // 2
    channels, length = waveform.shape
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    n_frames = -(-(n_samples + half) // hop)  # the last sample lies inside the last frame
    # Frames are placed by their centres. Before the input come half a frame, so that the first has
    # its centre at the first sample, and a hop, for what the input has before that.
    starts = np.rint(np.arange(n_frames) * (hop * speed)).astype(np.int64)
    behind = max(0, int(starts[-1]) + half - length)
    padded = np.zeros((channels, half + hop + length + behind), np.float32)
    padded[:, half + hop : half + hop + length] = waveform
    frames = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)  # (C, ., size)

    result = np.zeros((channels, n_frames + _OVERLAP - 1, hop), np.float32)
    before = np.zeros((channels, half + 1), np.complex64)
    turn = np.ones(half + 1, np.complex64)
    for first in range(0, n_frames, _BLOCK):
        part = starts[first : first + _BLOCK]
        cut = frames[:, np.concatenate([part, part + hop])].swapaxes(0, 1)  # (2 J, C, size)
        spectra = torch.fft.rfft(torch.from_numpy(np.multiply(cut, window, order="C"))).numpy()
        past, x = spectra[: len(part)], spectra[len(part) :]  # (J, C, bins)
        np.conj(past, out=past)
        past[0] *= before
        past[1:] *= x[:-1]  # Y * conj(P), but for the rotation that Y got
        turns = _turns(_over_channels(past), _over_channels(np.square(np.abs(x))), turn)
        before, turn = x[-1].copy(), turns[-1]
        x *= turns[:, np.newaxis]
        y = torch.fft.irfft(torch.from_numpy(x), n=size).numpy()  # (J, C, size)
        y *= window
        for k in range(_OVERLAP):
            piece = y[:, :, k * hop : (k + 1) * hop].swapaxes(0, 1)  # (C, J, hop)
            place = result[:, first + k : first + k + len(part)]
            np.add(place, piece, out=place)  # += would copy it once more

    # The window was applied twice. At the start, frames that would come before are missing.
    squares = np.square(window).reshape(_OVERLAP, hop)
    weights = np.zeros(result.shape[1:], np.float32)
    for k in range(_OVERLAP):
        weights[k : k + n_frames] += squares[k]
    inside = slice(half, half + n_samples)
    joined: Samples = np.divide(
        result.reshape(channels, -1)[:, inside],
        weights.reshape(-1)[inside],
        out=np.empty((channels, n_samples), np.float32),
    )
    return joined


def _turns(steps: Spectra, energy: npt.NDArray[np.float32], turn: Spectra) -> Spectra:
    """The rotations R of successive frames.

    Args:
        steps: (J, bins), Y * conj(P) of each as if Y were not rotated.
        energy: (J, bins) of the frames to rotate.
        turn: (bins,), the rotation of the frame before the first.

    Returns:
        (J, bins), of size 1.
    """
    onsets = energy.copy()
    np.add(onsets[:, 1:], energy[:, :-1], out=onsets[:, 1:])
    np.add(onsets[:, :-1], energy[:, 1:], out=onsets[:, :-1])
    onsets *= np.float32(1 / _ONSET)
    onsets += _TINY
    turns = np.empty_like(steps)
    # One frame after the other. An operation takes a microsecond, so nothing is allocated inside.
    n_bins = steps.shape[1]
    product = np.zeros(n_bins + 2, np.complex64)
    lower, middle, upper = product[:-2], product[1:-1], product[2:]
    size = np.empty(n_bins, np.float32)
    fresh = np.empty(n_bins, np.bool_)
    for step, onset, result in zip(steps, onsets, turns, strict=True):
        np.multiply(step, turn, out=middle)
        np.add(lower, upper, out=result)
        np.add(result, middle, out=result)
        np.abs(result, out=size)
        np.less_equal(size, onset, out=fresh)
        np.maximum(size, onset, out=size)
        np.copyto(result, onset, where=fresh)  # divided by itself below
        np.reciprocal(size, out=size)
        turn = np.multiply(result, size, out=result)
    return turns


def _over_channels(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(J, C, bins) summed to (J, bins)."""
    summed: npt.NDArray[Any] = values[:, 0] if values.shape[1] == 1 else values.sum(1)
    return summed


def _hop(sample_rate: int) -> int:
    """The power of two, or three times one, that is nearest to the time between frames.

    At 44.1 kHz 768, in frames of 2304 samples or 52 ms.
    """
    powers = [1 << k for k in range(4, 24)]
    wanted = _HOP_SECONDS * sample_rate
    return min([*powers, *(3 * p for p in powers)], key=lambda hop: abs(hop - wanted))
