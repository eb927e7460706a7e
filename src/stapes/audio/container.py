"""Frames of a recording at its own rate and channels, decoded by libsndfile.

A header is a claim, never a promise: frames are read in blocks until the decoder has no more, and
no buffer is ever as large as a header says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from stapes.errors import AudioError

__all__ = [
    "MAX_CHANNELS",
    "MAX_SAMPLE_RATE",
    "MIN_SAMPLE_RATE",
    "NotFiniteError",
    "Recording",
    "find_fault",
]

MIN_SAMPLE_RATE = 100
MAX_SAMPLE_RATE = 1_000_000
"""Hz; geophones and bat detectors stay within, damaged headers do not. A header that claims 1 Hz
would make a second of sound half a day long."""

MAX_CHANNELS = 256

# Float files may hold 16 or 32-bit integers as they are (up to 2^31), so a large value alone is no
# fault; one beyond this would overflow in sums of squares and is damage.
_MAX_AMPLITUDE = 1e12

_SAMPLES_PER_READ = 1 << 20  # 4 MiB of float32

_DECODER_FAULTS = (
    soundfile.SoundFileError,
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
    OSError,
)

# Where a decoder can start in the middle and give exactly what it gives from the beginning.
_PLAIN_CONTAINERS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"})
_PLAIN_CODINGS = frozenset(
    {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
)
# MP3 frames borrow bits from frames before them (up to ten at the lowest rates), and Opus predicts
# across packets: started cold, MP3 was wrong by up to 0.7 of full scale. One second of lead-in,
# decoded and thrown away, makes both exact. Closer to the beginning than _FAR it is not worth it,
# and cold starts make the MP3 decoder print complaints.
_LEAD_IN = frozenset({"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "OPUS"})
_LEAD_IN_SECONDS = 1
_FAR_SECONDS = 30

_MPEG_SUFFIXES = frozenset({".mp3", ".mp2", ".mp1", ".mpga"})
_STRETCH = 64


class NotFiniteError(AudioError):
    """A recording with samples that are not a number, infinite or absurdly large."""


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """Reads straight on.

    For a seekable file the base class seeks after every read, which costs time and, in MP3, the
    last bits; and it limits a read to the frames that the header claims.
    """

    def seekable(self) -> bool:
        return False


class _Bytes:
    """The file as libsndfile sees it: by content only, its name and suffix unseen.

    An exception inside a decoder's callback would be printed and lost, so a failing disk is kept
    in ``failure`` for the reader to raise.

    ``stretched`` claims a file ``_STRETCH`` times as long, with zeros at its end, until
    ``settle`` is called (see ``Recording._continue_mp3``).
    """

    def __init__(self, handle: BinaryIO, size: int, *, stretched: bool = False) -> None:
        self._handle = handle
        self._size = size * (_STRETCH if stretched else 1)
        self._zeros_beyond = stretched
        self.failure: OSError | None = None
        handle.seek(0)

    def settle(self) -> None:
        self._zeros_beyond = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset, whence = self._size + offset, os.SEEK_SET
        try:
            return self._handle.seek(offset, whence)
        except (OSError, ValueError):  # before the beginning
            return -1

    def tell(self) -> int:
        return self._handle.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            count = int(self._handle.readinto(view))  # type: ignore[attr-defined]
        except OSError as error:
            self.failure = error
            return 0
        if self._zeros_beyond and count < len(view):
            view[count:] = bytes(len(view) - count)
            self._handle.seek(len(view) - count, os.SEEK_CUR)
            count = len(view)
        return count


class Recording:
    """An open recording; use as a context manager.

    Attributes:
        path: as given.
        sample_rate: Hz, ``MIN_SAMPLE_RATE`` to ``MAX_SAMPLE_RATE``.
        channels: 1 to ``MAX_CHANNELS``.
        frames: samples per channel **by the header**, which may claim too many. Of an MP3 without
            a length header it is an estimate, too high or too low.
        format: container and coding, such as ``"WAV PCM_16"``.

    Raises:
        AudioError: missing, unreadable, empty or not audio.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._handle, self._size = _open_file(self.path)
        try:
            self._open()
        except BaseException:
            self._handle.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sound.close()
        self._handle.close()

    @property
    def _length_is_estimate(self) -> bool:
        return bool(self._sound.format == "MP3")

    @property
    def implausible(self) -> bool:
        """The header claims more frames than any coding packs into a file of this size.

        The densest codings (silence in FLAC or Vorbis) reach some 8000 samples a byte.
        """
        return self.frames > 20_000 * self._size

    def blocks(
        self, start: float = 0.0, end: float | None = None, block_frames: int | None = None
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Decode from ``start`` to ``end`` in seconds, each rounded to the nearest frame.

        Args:
            start: seconds.
            end: seconds; beyond the end of the recording, or none: until its end.
            block_frames: most frames of a block; blocks are smaller where there are many channels.

        Yields:
            float32 of shape (n, channels), n >= 1, all finite.

        Raises:
            AudioError: nothing to decode in that segment, or the decoder stops with an error.
            NotFiniteError: a sample is not a finite number.
        """
        if not start >= 0 or (end is not None and not end > start):
            raise AudioError(
                self.path,
                f"the segment from {start} s to {end} s is empty; its start has to be 0 or more "
                "and its end after its start.",
            )
        first = round(min(start, 1e12) * self.sample_rate)
        stop = None if end is None else round(min(end, 1e12) * self.sample_rate)
        if stop == first:
            raise AudioError(self.path, f"no sample lies between {start} s and {end} s.")
        if first >= self.frames > 0 and not self._length_is_estimate:
            raise self._too_late(start, self.frames)
        size = max(1, _SAMPLES_PER_READ // self.channels)
        size = min(size, block_frames) if block_frames else size

        delivered = False
        wanted = first
        position = self._approach(first)
        while stop is None or position < stop:
            count = min(size, self.frames - position)
            if stop is not None:
                count = min(count, stop - position)
            block = self._read(count, position) if count > 0 else None
            if block is None or not len(block):
                if not self._continue_mp3(position):
                    break
                wanted, position = max(wanted, position), 0
                continue
            skipped = max(0, wanted - position)
            position += len(block)
            if skipped < len(block):
                delivered = True
                yield block[skipped:]
        if delivered:
            return
        if position == 0:
            raise AudioError(self.path, "holds no samples; remove the file or record it again.")
        raise self._too_late(start, position)

    def _open(self, *, stretched: bool = False) -> None:
        self._bytes = _Bytes(self._handle, self._size, stretched=stretched)
        try:
            self._sound = self._sniff()
        except _DECODER_FAULTS as error:
            if self._bytes.failure:
                raise _unreadable(self.path, self._bytes.failure) from None
            raise AudioError(self.path, _not_audio(error)) from None
        finally:
            self._bytes.settle()
        self._stretched = stretched
        self.sample_rate = int(self._sound.samplerate)
        self.channels = int(self._sound.channels)
        self.frames = int(self._sound.frames)
        self.format = f"{self._sound.format} {self._sound.subtype}"
        fault = None
        if not MIN_SAMPLE_RATE <= self.sample_rate <= MAX_SAMPLE_RATE:
            fault = f"its header claims a sample rate of {self.sample_rate} Hz"
        elif not 1 <= self.channels <= MAX_CHANNELS:
            fault = f"its header claims {self.channels} channels (at most {MAX_CHANNELS} are read)"
        if fault:
            self._sound.close()
            raise AudioError(self.path, f"{fault}; the file is damaged or no recording.")

    def _sniff(self) -> _Sequential:
        try:
            return _Sequential(self._bytes)
        except soundfile.SoundFileError:
            # Junk before the first frame hides an MP3 from the sniffer; by its name the decoder
            # looks for that frame. Other suffixes must not decide: libsndfile would play any
            # bytes named .gsm or .vox.
            if self.path.suffix.lower() not in _MPEG_SUFFIXES:
                raise
            return _Sequential(str(self.path))

    def _approach(self, first: int) -> int:
        """Seek to ``first`` or before it, where that is exact and worth it: the frame reached."""
        if first == 0 or first >= self.frames:
            return 0
        container, coding = self._sound.format, self._sound.subtype
        if (container in _PLAIN_CONTAINERS and coding in _PLAIN_CODINGS) or coding == "VORBIS":
            target = first
        elif coding in _LEAD_IN and first > _FAR_SECONDS * self.sample_rate:
            target = first - _LEAD_IN_SECONDS * self.sample_rate
        else:
            return 0
        try:
            reached = self._sound.seek(target)
        except _DECODER_FAULTS:
            reached = -1
        if reached != target:
            self._sound.close()
            self._open()
            return 0
        return target

    def _too_late(self, start: float, frames: int) -> AudioError:
        return AudioError(
            self.path,
            f"the segment starts at {start:g} s but the recording ends at "
            f"{frames / self.sample_rate:g} s.",
        )

    def _read(self, count: int, position: int) -> npt.NDArray[np.float32]:
        try:
            block: npt.NDArray[np.float32] = self._sound.read(
                count, dtype="float32", always_2d=True
            )
        except _DECODER_FAULTS as error:
            if self._bytes.failure:
                raise _unreadable(self.path, self._bytes.failure) from None
            if self._stretched:
                # Behind the length that the header gave there may be tags instead of sound.
                return np.empty((0, self.channels), np.float32)
            reached = self._reached(position)
            if reached == 0:
                raise AudioError(self.path, _not_audio(error)) from None
            raise AudioError(
                self.path,
                f"decoding stops after {reached:.3f} s ({_message(error)}); the file is damaged "
                "there: replace it or keep only the part before.",
            ) from None
        if self._bytes.failure:
            raise _unreadable(self.path, self._bytes.failure) from None
        if 2 * len(block) < count:
            block = block.copy()  # the header claimed more: let go of the large buffer
        if len(block):
            self._check_values(block, position)
        return block

    def _reached(self, position: int) -> float:
        try:
            return max(position, int(self._sound.tell())) / self.sample_rate
        except _DECODER_FAULTS:
            return position / self.sample_rate

    def _check_values(self, block: npt.NDArray[np.float32], position: int) -> None:
        fault = find_fault(block)
        if fault is None:
            return
        at, what = fault
        raise NotFiniteError(
            self.path,
            f"the sample at {(position + at) / self.sample_rate:.3f} s is {what}; the file is "
            "damaged or was written wrongly: export it again.",
        )

    def _continue_mp3(self, position: int) -> bool:
        """Reopen an MP3 that goes on behind the length the decoder has estimated.

        An MP3 of variable bit rate without a length header is taken to be as long as its size
        divided by the bit rate of its first frame, and libsndfile reads no further: a recording
        that begins loud and turns silent loses most of itself. What tells it is that the decoder
        never looked at the rest of the file. A file that claims to be many times longer gives an
        estimate that no longer ends it early.
        """
        if (
            not self._length_is_estimate
            or self._stretched
            or position < self.frames
            or self._size - self._bytes.tell() < 4096  # tags
        ):
            return False
        self._sound.close()
        try:
            self._open(stretched=True)
        except AudioError:
            return False
        return self.frames > position


def find_fault(frames: npt.NDArray[np.float32]) -> tuple[int, str] | None:
    """The first frame of (n, C) that is no sound, and what it is; none if all are.

    No sound are values that are not a number, infinite, or beyond 1e12.
    """
    if not len(frames):
        return None
    with np.errstate(invalid="ignore"):
        # Two passes without a temporary; a NaN makes either comparison false.
        if frames.max() <= _MAX_AMPLITUDE and frames.min() >= -_MAX_AMPLITUDE:
            return None
        wrong = ~(np.abs(frames) <= _MAX_AMPLITUDE).all(axis=1)
    at = int(np.argmax(wrong))
    value = frames[at][~(np.abs(frames[at]) <= _MAX_AMPLITUDE)][0]
    what = f"{value:.3g}" if np.isfinite(value) else "infinite"
    return at, "not a number" if np.isnan(value) else what


def _open_file(path: Path) -> tuple[BinaryIO, int]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(path, "is a folder; name the recordings in it.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise AudioError(path, "is not a regular file; save the recording to disk first.")
        if status.st_size == 0:
            raise AudioError(path, "is empty (0 bytes); remove it or copy it again.")
        return path.open("rb", buffering=1 << 16), status.st_size
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> AudioError:
    if isinstance(error, FileNotFoundError):
        return AudioError(path, "does not exist; check the name.")
    if isinstance(error, PermissionError):
        return AudioError(path, "may not be read; give yourself permission to read it.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return AudioError(path, f"cannot be read ({reason}).")


def _message(error: BaseException) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return str(text).removeprefix("Error : ").strip().rstrip(".") or type(error).__name__


def _not_audio(error: BaseException) -> str:
    message = _message(error)
    # The second is what the MP3 decoder's refusal is translated to.
    if message.startswith(("Format not recognised", "File does not exist")):
        return "is not audio of a known format; convert it to WAV or FLAC, or remove it."
    return f"cannot be decoded ({message}); the file is damaged or not audio."
