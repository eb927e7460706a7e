"""Another pitch and pace for a clip: stapes against librosa's pitch shift and time stretch.

Both change the same 5 seconds of real hits at 44.1 kHz by the same amounts, one thread each, in
alternating passes, and what is compared is the processor's time, so that other work on the machine
counts little. The changes are those that Palanisamy et al. 2020 draw from: up to two semitones
either way, and 0.9 to 1.2 times the pace. That pitch and length come out right is checked on a tone
before anything is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._common import HITS, machine
from stapes.audio import find_audio, read
from stapes.augment import WaveformChange, change_waveform, draw_waveform_changes

RATE, SECONDS, REPEATS = 44_100, 5, 15

Samples = NDArray[np.float32]


def stapes_change(waveform: Samples, change: WaveformChange) -> Samples:
    """Both in one pass."""
    return change_waveform(waveform, RATE, semitones=change.semitones, speed=change.speed)


def librosa_change(waveform: Samples, change: WaveformChange) -> Samples:
    """One after the other, which is all that librosa offers."""
    import librosa

    shifted = librosa.effects.pitch_shift(waveform, sr=RATE, n_steps=change.semitones)
    stretched: Samples = librosa.effects.time_stretch(shifted, rate=change.speed)
    return stretched


def _cents_off(change: WaveformChange) -> float:
    """How far a tone of 1 kHz is from its new pitch."""
    n_samples = SECONDS * RATE
    tone = np.sin(2 * np.pi * 1000 / RATE * np.arange(n_samples)).astype(np.float32)[np.newaxis]
    changed = stapes_change(tone, change)
    if changed.shape[1] != round(n_samples / change.speed):
        raise RuntimeError(f"{change}: {changed.shape[1]} samples")
    n_fft = 16 * n_samples  # bins of 0.0125 Hz, 0.02 cents
    inner = changed[0, RATE // 2 : 3 * RATE]
    peak = int(np.abs(np.fft.rfft(inner * np.hanning(len(inner)), n_fft)).argmax())
    return 1200 * float(np.log2(peak * RATE / n_fft / (1000 * 2 ** (change.semitones / 12))))


def _clip() -> Samples:
    """Hits one after the other, (1, N)."""
    parts: list[Samples] = []
    for path in find_audio(HITS):
        parts.append(read(path, sample_rate=RATE, channels=1))
        if sum(part.shape[1] for part in parts) >= SECONDS * RATE:
            break
    return np.concatenate(parts, axis=1)[:, : SECONDS * RATE]


def main() -> str:
    """Measure and return a markdown section."""
    changes = draw_waveform_changes(REPEATS, 2.0, (0.9, 1.2), np.random.default_rng(0))
    off = max(abs(_cents_off(change)) for change in changes)
    clip = _clip()
    chains: dict[str, Callable[[Samples, WaveformChange], Samples]] = {
        "librosa": librosa_change, "stapes": stapes_change,
    }  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in chains}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for chain in chains.values():  # imports, compilation
            chain(clip, changes[0])
        for change in changes:
            for name, chain in chains.items():
                started = time.process_time()
                chain(clip, change)
                taken[name].append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    # Neighbours in time share what else the machine does: ratios are of the same change.
    ratios = [a / b for a, b in zip(taken["librosa"], taken["stapes"], strict=True)]
    rows = "".join(
        f"| {name} | {1000 * statistics.median(found):.1f} | {1000 * min(found):.1f} to "
        f"{1000 * max(found):.1f} |\n"
        for name, found in taken.items()
    )
    return (
        "## Pitch and pace of a clip\n\n"
        f"{SECONDS} s of hits at {RATE} Hz, one channel, one thread; {REPEATS} changes of up to "
        f"two semitones and 0.9 to 1.2 times the pace, alternating. {machine()}.\n\n"
        "| | ms of processor time, median | range |\n| --- | ---: | ---: |\n" + rows + "\n"
        f"stapes is {statistics.median(ratios):.1f} times as fast ({min(ratios):.1f} to "
        f"{max(ratios):.1f}). A tone of 1 kHz ends within {off:.2f} cents of its new pitch, with "
        "the exact number of samples.\n"
    )


if __name__ == "__main__":
    print(main())
