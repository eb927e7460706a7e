"""Hear what a network goes by: a recording with only the attributed part left in it.

The part is a set of places of the spectrogram. What lies outside it is turned down, by a gain for
each place, until it is as quiet as the baseline; nothing is made louder. The gains of the bands are
interpolated between their centres to the bins of a short-time Fourier transform (below the first
centre and above the last one they go on), those of the frames over time, and the transform is
turned back with its own phases::

    waveform ── STFT ── times gain(f, t) ── inverse STFT ── waveform
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stapes.bundle import Bundle
from stapes.errors import StapesError
from stapes.explain.attribution import label_probabilities
from stapes.explain.explanation import Explanation
from stapes.files import atomic_path

__all__ = [
    "AudiblePart",
    "apply_gains",
    "attributed_part",
    "audible_part",
    "check_sound_name",
    "write_sound",
]

Floats = NDArray[np.float64]

_ANALYSIS_SECONDS = 0.046  # 2048 samples at 44.1 kHz: tells partials and onsets apart


@dataclass(frozen=True, eq=False)
class AudiblePart:
    """The attributed part of a window as a sound, and all the rest as another.

    Attributes:
        mask: (F, T), the places that are left.
        share_of_attribution: that they hold, of all that is above 0.
        waveform: (C, N), with only the part left.
        rest: (C, N), with the part taken out.
        sample_rate: Hz.
        probability: of the label, when the model hears the part.
        rest_probability: of the label, when the model hears the rest.
    """

    mask: NDArray[np.bool_]
    share_of_attribution: float
    waveform: NDArray[np.float32]
    rest: NDArray[np.float32]
    sample_rate: int
    probability: float
    rest_probability: float

    def summary(self) -> dict[str, float]:
        """The numbers, as plain JSON values."""
        return {
            "share_of_attribution": self.share_of_attribution,
            "share_of_places": float(self.mask.mean()),
            "probability": self.probability,
            "rest_probability": self.rest_probability,
        }


def attributed_part(values: NDArray[np.floating], share: float = 0.5) -> NDArray[np.bool_]:
    """The fewest places that hold a share of the attribution above 0.

    >>> attributed_part(np.array([[4.0, 1.0], [-9.0, 3.0]]), 0.75)
    array([[ True, False],
           [False,  True]])

    Args:
        values: (F, T).
        share: above 0 and up to 1.

    Returns:
        (F, T); nothing where no attribution is above 0.

    Raises:
        ValueError: ``share`` out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share!r}: must be above 0 and up to 1")
    flat = np.maximum(np.asarray(values, dtype=np.float64).reshape(-1), 0.0)
    order = np.argsort(-flat, kind="stable")
    held = np.cumsum(flat[order])
    mask = np.zeros(flat.size, dtype=np.bool_)
    if held[-1] > 0:
        # Rounding of the sums must not ask for one more place.
        needed = int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1
        mask[order[:needed]] = True
        mask &= flat > 0
    return mask.reshape(values.shape)


def audible_part(bundle: Bundle, explained: Explanation, share: float = 0.5) -> AudiblePart:
    """Turn the attributed part of an explained window, and the rest, into sounds; score both.

    Args:
        bundle: the model that was explained.
        explained: one of its explanations.
        share: of the attribution above 0 that the part holds.

    Raises:
        StapesError: nothing in the window speaks for the label.
        ValueError: ``share`` out of range.
    """
    mask = attributed_part(explained.values, share)
    if not mask.any():
        raise StapesError(
            f"{explained.source}: nothing in this window speaks for '{explained.label}', so there "
            "is nothing to listen to; explain another label."
        )
    decibel = bundle.frontend.decibel()[:, None]
    change = (explained.baseline - explained.spectrogram) / torch.where(
        decibel > 0, decibel, torch.inf
    )
    quiet = 10.0 ** (change.mean(0).clamp(max=0.0).double().numpy() / 20.0)  # (F, T)
    sounds = [
        apply_gains(
            explained.waveform,
            explained.sample_rate,
            np.where(kept, 1.0, quiet),
            explained.frequencies,
            explained.times,
        )
        for kept in (mask, ~mask)
    ]
    network = nn.Sequential(bundle.normalizer, bundle.network)
    with torch.no_grad():
        heard = bundle.frontend(torch.from_numpy(np.stack(sounds)))
    scores = label_probabilities(network, heard)[:, explained.index]
    positive = np.maximum(explained.values, 0.0)
    return AudiblePart(
        mask=mask,
        share_of_attribution=float(positive[mask].sum() / positive.sum()),
        waveform=sounds[0],
        rest=sounds[1],
        sample_rate=explained.sample_rate,
        probability=float(scores[0]),
        rest_probability=float(scores[1]),
    )


def apply_gains(
    waveform: NDArray[np.float32],
    sample_rate: int,
    gains: NDArray[np.floating],
    frequencies: NDArray[np.floating],
    times: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Amplify each place of a sound.

    Args:
        waveform: (C, N).
        sample_rate: Hz.
        gains: (F, T), factors of the amplitude, 0 and above; between places they are interpolated.
        frequencies: (F,) Hz, rising: where the rows are.
        times: (T,) seconds, rising: where the columns are.

    Returns:
        (C, N)
    """
    n_fft = 2 ** max(4, round(math.log2(_ANALYSIS_SECONDS * sample_rate)))
    hop = n_fft // 4
    window = torch.hann_window(n_fft, dtype=torch.float64)
    x = torch.from_numpy(np.asarray(waveform, dtype=np.float64))
    spectrum = torch.stft(x, n_fft, hop, window=window, pad_mode="constant", return_complex=True)
    bins = np.arange(spectrum.shape[1]) * (sample_rate / n_fft)
    frames = np.arange(spectrum.shape[2]) * (hop / sample_rate)
    rows = _between(torch.tensor(gains, dtype=torch.float64), frequencies, bins)
    places = _between(rows.T, times, frames).T  # (bins, frames)
    sound = torch.istft(spectrum * places, n_fft, hop, window=window, length=x.shape[1])
    result: NDArray[np.float32] = sound.float().numpy()
    return result


def _between(rows: Tensor, known: NDArray[np.floating], wanted: Floats) -> Tensor:
    """Interpolate the rows of (K, M), which are at ``known``, to ``wanted``: (W, M)."""
    place = torch.from_numpy(np.interp(wanted, known, np.arange(len(known))))
    below = place.floor().long()
    above = (below + 1).clamp(max=len(known) - 1)
    weight = (place - below)[:, None]
    return rows[below] * (1 - weight) + rows[above] * weight


def check_sound_name(path: str | Path) -> Path:
    """The path, if it ends in ``.wav``.

    Raises:
        StapesError: another ending.
    """
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise StapesError(f"{path}: a sound's name must end in .wav.")
    return path


def write_sound(waveform: NDArray[np.float32], sample_rate: int, path: str | Path) -> None:
    """Write a WAV file of 16 bits atomically; what is beyond full scale is clipped.

    Args:
        waveform: (C, N), full scale at -1 and 1.
        sample_rate: Hz.
        path: ends in ``.wav``.

    Raises:
        StapesError: another ending, or the place cannot be written to.
    """
    with atomic_path(check_sound_name(path)) as aside:
        soundfile.write(aside, waveform.T, sample_rate, subtype="PCM_16", format="WAV")
