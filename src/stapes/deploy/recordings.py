"""Recordings to try a model on: given ones, those of its run, or made-up signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stapes.audio import find_audio
from stapes.data import Clip, load_dataset
from stapes.errors import AudioError, DataError, StapesError
from stapes.inference.settings import AudioSettings

__all__ = [
    "RunClips",
    "calibration_windows",
    "clip_windows",
    "clips_of_run",
    "made_up_windows",
    "recording_windows",
    "spread",
]

Item = TypeVar("Item")

_CALIBRATED = 128  # windows


@dataclass(frozen=True)
class RunClips:
    """The recordings that a model file lies beside.

    Attributes:
        train: those of its run that it is not tested on; of validation also.
        test: its test part.
    """

    train: tuple[Clip, ...]
    test: tuple[Clip, ...]


def clips_of_run(model: str | Path) -> RunClips:
    """Recordings of the run that a model belongs to; none where there is no such run any more.

    Args:
        model: a run folder, its ``model.safetensors``, or a member in ``FOLD/seed-S/``; a shipped
            model's name has none.
    """
    if not Path(model).exists():  # a shipped model's name: whatever lies here is not its run
        return RunClips((), ())
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    everything = _clips(folder / "clips.csv") or _clips(folder.parent.parent / "clips.csv")
    test = _clips(folder / "test.csv")
    tested = {(clip.path.resolve(), clip.start, clip.end) for clip in test}
    train = tuple(c for c in everything if (c.path.resolve(), c.start, c.end) not in tested)
    return RunClips(train, test)


def _clips(table: Path) -> tuple[Clip, ...]:
    if not table.is_file():
        return ()
    try:
        return load_dataset(table, min_classes=1, missing="skip").clips
    except DataError:  # the recordings have gone
        return ()


def clip_windows(
    clips: Sequence[Clip], audio: AudioSettings, limit: int
) -> NDArray[np.float32] | None:
    """The first windows of up to ``limit`` clips, evenly spread; unreadable ones are left out.

    Returns:
        (B, C, window), or none.
    """
    rows = []
    for clip in spread(clips, limit):
        try:
            rows.append(next(audio.cut(clip.path, start=clip.start or 0.0, end=clip.end))[1])
        except AudioError:
            continue
    return np.stack(rows) if rows else None


def calibration_windows(
    model: str | Path, audio: AudioSettings, given: Sequence[str | Path] = ()
) -> NDArray[np.float32] | None:
    """Windows that set the ranges of int8: of given recordings, else of those of its training.

    Args:
        model: as for :func:`clips_of_run`.
        audio: what it listens to.
        given: recordings, or folders of them.

    Returns:
        (B, C, window), B at most 128; none where no recording of its training is at hand.

    Raises:
        AudioError: a given file cannot be read.
        StapesError: no recording in what is given.
    """
    if given:
        return recording_windows(given, audio, _CALIBRATED)
    return clip_windows(clips_of_run(model).train, audio, _CALIBRATED)


def recording_windows(
    inputs: Sequence[str | Path], audio: AudioSettings, limit: int
) -> NDArray[np.float32]:
    """Windows of recordings that a user named: files, or folders of them.

    Returns:
        (B, C, window), B at most ``limit``: as many of each recording as fit.

    Raises:
        AudioError: a named file cannot be read.
        StapesError: no recording.
    """
    paths = [path for given in inputs for path in find_audio(given)]
    if not paths:
        raise StapesError(f"{', '.join(map(str, inputs))}: no recordings found.")
    paths = spread(paths, limit)
    rows: list[NDArray[np.float32]] = []
    for number, path in enumerate(paths):
        share = (limit - len(rows)) // (len(paths) - number)
        for _, (_, window) in zip(range(share), audio.cut(path), strict=False):
            rows.append(window)
    return np.stack(rows)


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """Up to ``limit`` of some items, evenly spread over them, the first and last among them.

    >>> spread("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= limit:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def made_up_windows(audio: AudioSettings) -> NDArray[np.float32]:
    """Eight signals that ask much of a front end, (8, C, window): silence, noise loud and faint,
    tones, a click, a chirp, full scale, and half a window of each of two."""
    n, rate = audio.window, audio.sample_rate
    rng = np.random.default_rng(0)
    t = np.arange(n) / rate
    noise = rng.standard_normal(n)
    tone = np.sin(2 * np.pi * 0.05 * rate * t)
    click = np.zeros(n)
    click[n // 3] = 1.0
    chirp = np.sin(2 * np.pi * (0.01 + 0.2 * t / t[-1]) * rate * t) if n > 1 else tone
    half = np.where(np.arange(n) < n // 2, tone, 1e-3 * noise)
    rows = [np.zeros(n), 0.2 * noise, 1e-4 * noise, 0.5 * tone, click, 0.5 * chirp,
            np.sign(tone), half]  # fmt: skip
    # Channels differ, so that one taken for another is seen.
    gains = 1 / (1 + np.arange(audio.channels))
    return (np.stack(rows)[:, None] * gains[:, None]).astype(np.float32)
