"""Recordings in: any format, rate, number of channels and length becomes float32 (C, N)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stapes.audio.container import MAX_CHANNELS, MAX_SAMPLE_RATE, NotFiniteError, Recording
from stapes.audio.resample import Converter, convert, join
from stapes.errors import AudioError

__all__ = [
    "AUDIO_SUFFIXES",
    "AudioInfo",
    "NotFiniteError",
    "convert",
    "find_audio",
    "is_audio_name",
    "probe",
    "read",
    "stream",
    "walk_audio",
]

AUDIO_SUFFIXES = frozenset(
    {
        ".aif", ".aifc", ".aiff", ".au", ".bwf", ".caf", ".flac", ".mp2", ".mp3", ".oga", ".ogg",
        ".opus", ".rf64", ".snd", ".sph", ".voc", ".w64", ".wav", ".wave",
    }
)  # fmt: skip
"""Endings that a search of a folder takes for recordings. Decoding goes by content alone."""


_SAMPLES_PER_PIECE = 1 << 20  # after resampling, which may make many samples of one


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a recording's header says.

    Attributes:
        sample_rate: Hz.
        channels: 1 or more.
        frames: samples per channel; an estimate for an MP3 without a length header.
        format: container and coding, such as ``"OGG VORBIS"``.
    """

    sample_rate: int
    channels: int
    frames: int
    format: str

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.sample_rate


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """Read a recording's header, without its samples.

    Only where the header claims no length, or one that cannot be, is the recording decoded (in
    constant memory) to count it.

    Raises:
        AudioError: missing, unreadable, empty or not audio.
    """
    with Recording(path) as recording:
        frames = recording.frames
        if recording.implausible:
            frames = sum(len(block) for block in recording.blocks())
        return AudioInfo(recording.sample_rate, recording.channels, frames, recording.format)


def read(
    path: str | os.PathLike[str],
    *,
    sample_rate: int | None = None,
    channels: int | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> npt.NDArray[np.float32]:
    """Decode a recording, or a segment of it.

    The segment is cut first, at the nearest samples of the file, and resampled then. Channels are
    mapped as in :func:`convert`.

    Args:
        path: any format libsndfile knows, whatever its name ends in.
        sample_rate: Hz of the result; none: the file's.
        channels: of the result; none: the file's.
        start: seconds.
        end: seconds; none, or beyond the recording: its end.

    Returns:
        (C, N) float32, N >= 1, full scale at -1 and 1 (a float file or a lossy one may go beyond).
        N is the number of samples in the segment times ``sample_rate`` over the file's rate, a
        half rounded up.

    Raises:
        AudioError: missing, unreadable, empty, not audio, damaged on the way, no sample in the
            segment, too few channels in the file, or more than memory holds.
        NotFiniteError: a sample is not a finite number.
    """
    try:
        blocks = _converted(path, sample_rate, channels, start, end, float("inf"))
        return join([part for parts in blocks for part in parts])
    except MemoryError:
        raise AudioError(Path(path), "is too long to hold in memory at once.") from None


def stream(
    path: str | os.PathLike[str],
    *,
    sample_rate: int | None = None,
    channels: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    block_seconds: float = 30.0,
) -> Iterator[npt.NDArray[np.float32]]:
    """Decode a recording of any length in pieces, in constant memory.

    Joined, the pieces are what :func:`read` returns; arguments and errors are its too. An error is
    raised when the iteration comes to it: pieces before a damaged place have been given by then.

    Args:
        block_seconds: most seconds of a piece, about; fewer where 4 MiB hold less.

    Yields:
        (C, n) float32, n >= 1.
    """
    if not block_seconds > 0:
        raise ValueError(f"block_seconds is more than 0, not {block_seconds}")
    blocks = _converted(path, sample_rate, channels, start, end, block_seconds)
    return (join(parts) for parts in blocks)


def _converted(
    path: str | os.PathLike[str],
    sample_rate: int | None,
    channels: int | None,
    start: float,
    end: float | None,
    block_seconds: float,
) -> Iterator[list[npt.NDArray[np.float32]]]:
    """Blocks of one or more parts (C, m), each with a sample or more."""
    if sample_rate is not None and not 1 <= sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(f"sample_rate is 1 to {MAX_SAMPLE_RATE} Hz, not {sample_rate}")
    if channels is not None and not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"channels is 1 to {MAX_CHANNELS}, not {channels}")
    with Recording(path) as recording:
        if channels is not None and 1 < recording.channels < channels:
            raise AudioError(
                recording.path,
                f"has {recording.channels} channels, {channels} were asked for; ask for fewer.",
            )
        converter = Converter(recording.sample_rate, recording.channels, sample_rate, channels)
        seconds = min(block_seconds, _SAMPLES_PER_PIECE / converter.to_rate)
        block_frames = max(1, int(seconds * recording.sample_rate))
        given = False
        for block in recording.blocks(start, end, block_frames):
            parts = converter.push(block)
            if parts:
                given = True
                yield parts
        rest = converter.finish()
        if rest.shape[1]:
            yield [rest]
        elif not given:
            raise AudioError(
                recording.path, f"is shorter than one sample at {converter.to_rate} Hz."
            )


def is_audio_name(path: str | os.PathLike[str]) -> bool:
    """Whether a name ends as recordings do and is not hidden; the file is not looked at."""
    path = Path(path)
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def find_audio(root: str | os.PathLike[str]) -> list[Path]:
    """All recordings under a folder, by name, sorted; hidden files and folders are left out.

    Args:
        root: a folder; or a file, which is then the only one, whatever its name.

    Raises:
        AudioError: ``root`` does not exist or may not be read.
    """
    root = Path(root)
    if root.is_file():
        return [root]

    def refuse(error: AudioError) -> None:
        raise error

    return list(walk_audio(root, refuse))


def walk_audio(
    root: str | os.PathLike[str], refused: Callable[[AudioError], None]
) -> Iterator[Path]:
    """The recordings of :func:`find_audio` one by one, in its order, however many there are.

    One folder's names are held at a time, and those of the folders around it.

    Args:
        root: a folder.
        refused: is told of a folder that may not be read, which is then left out.

    Raises:
        AudioError: ``root`` is no folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise AudioError(root, "there is no such file or folder; check the name.")
    yield from _walk(root, refused)


def _walk(folder: Path, refused: Callable[[AudioError], None]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            # A link to a folder is left out: it may lead back to where it is.
            entries = sorted(
                (entry.name, entry.is_dir(), entry.is_symlink())
                for entry in found
                if not entry.name.startswith(".")
            )
    except OSError:
        refused(AudioError(folder, "this folder may not be read; give yourself permission."))
        return
    for name, is_folder, is_link in entries:
        if is_folder and not is_link:
            yield from _walk(folder / name, refused)
        elif not is_folder and is_audio_name(name):
            yield folder / name
