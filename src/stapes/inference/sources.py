"""Where a stream comes from: a microphone, a pipe, a recording."""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stapes.audio import probe, stream
from stapes.audio.container import MAX_CHANNELS, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from stapes.errors import AudioError, StapesError
from stapes.inference.arrays import as_waveform
from stapes.inference.streaming import Gap

__all__ = ["ENCODINGS", "Source", "from_file", "from_microphone", "from_pipe"]

_CHUNK_SECONDS = 0.05  # of a microphone: little beside a hop, and some twenty wake-ups a second
_HELD_SECONDS = 10.0  # of a microphone, while the model computes
_SILENT_SECONDS = 10.0  # after which a microphone that gives nothing is given up
_BYTES = 1 << 16  # most of a pipe at once


@dataclass(frozen=True, slots=True)
class Source:
    """A stream of sound.

    Attributes:
        name: for messages.
        sample_rate: Hz of the chunks.
        channels: of the chunks.
        chunks: (C, n) float32, n >= 0, or a :class:`Gap` where sound was lost. Closing the
            iterator lets go of the device.
    """

    name: str
    sample_rate: int
    channels: int
    chunks: Iterator[NDArray[np.float32] | Gap]


def from_file(path: str | Path) -> Source:
    """A recording as a stream, as fast as it is taken.

    Raises:
        AudioError: as :func:`stapes.audio.read`; what comes late, with the chunks.
    """
    info = probe(path)
    return Source(str(path), info.sample_rate, info.channels, stream(path, block_seconds=1.0))


# Microphone


def from_microphone(device: int | str | None = None, *, channels: int = 1) -> Source:
    """What a microphone hears from now on, at its own rate.

    Up to ten seconds wait in memory while a model computes. A model that is slower than the sound
    overruns them: then nothing is taken until it has caught up, and a :class:`Gap` says how much
    was lost. Where the driver loses sound, the gap's length is not known.

    Args:
        device: its number, or a part of its name; none: the system's default.
        channels: wanted; fewer where the device has fewer.

    Raises:
        StapesError: the package sounddevice or its library is missing, or there is no such device.
        AudioError: with the chunks: the device cannot be opened, or gives nothing any more.
    """
    sounddevice = _sounddevice()
    name = "microphone" if device is None else f"microphone {device}"
    try:
        info = sounddevice.query_devices(device, "input")
    except (ValueError, sounddevice.PortAudioError) as error:
        raise StapesError(
            f"{name}: there is none ({_words(error)}); connect one, or name another "
            "(python -m sounddevice lists them)."
        ) from None
    rate = round(info["default_samplerate"])
    channels = min(channels, int(info["max_input_channels"]))
    return Source(name, rate, channels, _heard(sounddevice, name, device, rate, channels))


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise StapesError(
            'The microphone needs the package sounddevice: pip install "stapes[microphone]".'
        ) from None
    except OSError:  # found by sounddevice when it is imported
        raise StapesError(
            "The microphone needs the library PortAudio: install it (on Debian and Ubuntu: "
            "apt install libportaudio2)."
        ) from None
    return sounddevice


def _words(error: Exception) -> str:
    return str(error.args[0] if error.args else error).strip().rstrip(".") or type(error).__name__


def _heard(
    sounddevice: Any, name: str, device: int | str | None, rate: int, channels: int
) -> Iterator[NDArray[np.float32] | Gap]:
    chunk_frames = max(1, round(rate * _CHUNK_SECONDS))
    held = _Held(rate, round(_HELD_SECONDS / _CHUNK_SECONDS))
    ended = threading.Event()
    try:
        opened = sounddevice.InputStream(
            samplerate=rate,
            blocksize=chunk_frames,
            device=device,
            channels=channels,
            dtype="float32",
            callback=held.take,
            finished_callback=ended.set,
        )
        opened.start()
    except (ValueError, sounddevice.PortAudioError) as error:
        raise AudioError(name, f"cannot be opened ({_words(error)}).") from None
    try:
        silent = 0.0
        while True:
            try:
                # Not for ever: on Windows a wait without an end cannot be interrupted.
                chunk = held.chunks.get(timeout=0.5)
            except queue.Empty:
                silent += 0.5
                if ended.is_set() or silent >= _SILENT_SECONDS:
                    raise AudioError(name, "gives no sound any more; is it connected?") from None
                continue
            silent = 0.0
            yield chunk
    finally:
        opened.close()


class _Held:
    """What a microphone has given and nobody has taken yet; filled by the driver's thread."""

    def __init__(self, rate: int, chunks: int) -> None:
        self.chunks: queue.Queue[NDArray[np.float32] | Gap] = queue.Queue(chunks)
        self._rate = rate
        self._lost: float | None = None
        self._catching_up = False

    def take(self, frames: NDArray[np.float32], count: int, time: Any, status: Any) -> None:
        """The driver's callback: (n, C), which are its own."""
        if status.input_overflow:
            self._lost = self._lost or 0.0
        # Taking a chunk whenever there is room for one would leave nothing but splinters, each
        # shorter than a window.
        self._catching_up = self._catching_up and not self.chunks.empty()
        if not self._catching_up:
            try:
                if self._lost is not None:
                    self.chunks.put_nowait(Gap(self._lost))
                    self._lost = None
                self.chunks.put_nowait(frames.T.copy())
                return
            except queue.Full:
                self._catching_up = True
        self._lost = (self._lost or 0.0) + count / self._rate


# Pipe


def _scaled(kind: str) -> Callable[[bytes], NDArray[np.float32]]:
    return lambda raw: as_waveform(np.frombuffer(raw, kind)).reshape(-1)


def _scaled_24(raw: bytes) -> NDArray[np.float32]:
    # Three bytes become the upper three of four, so that the type's range is the full scale.
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
    return as_waveform(wide.reshape(-1).view("<i4")).reshape(-1)


ENCODINGS: dict[str, tuple[int, Callable[[bytes], NDArray[np.float32]]]] = {
    "u8": (1, _scaled("u1")),
    "s16le": (2, _scaled("<i2")),
    "s24le": (3, _scaled_24),
    "s32le": (4, _scaled("<i4")),
    "f32le": (4, _scaled("<f4")),
    "f64le": (8, _scaled("<f8")),
}
"""Bytes of a sample, and what makes float32 of them; the names are ffmpeg's."""

_WAV_ENCODINGS = {
    (1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le",
    (3, 32): "f32le", (3, 64): "f64le",
}  # fmt: skip
_EXTENSIBLE = 0xFFFE

# Who writes a header before the length is known claims none, or as much as there can be: ffmpeg
# 0xFFFFFFFF, arecord 0x80000000, sox 0x7FFFF000 less its header.
_ENDLESS = 0x7FFF0000


def from_pipe(
    handle: BinaryIO,
    *,
    sample_rate: int | None = None,
    channels: int = 1,
    encoding: str = "s16le",
    name: str = "standard input",
) -> Source:
    """A byte stream: raw samples, or a WAV stream with its header. Never waits for more than it
    needs: a chunk is what the pipe holds.

    Args:
        handle: open for reading.
        sample_rate: Hz of raw samples; none: a header says all.
        channels: of raw samples, which are interleaved.
        encoding: of raw samples, a key of :data:`ENCODINGS`.
        name: for messages.

    Raises:
        AudioError: no header and no rate, both, a damaged header, or values out of range. A frame
            that is cut short at the end of the stream is left out.
        ValueError: an unknown encoding.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"the encoding is one of {', '.join(ENCODINGS)}, not {encoding!r}")
    pipe = _Pipe(handle)
    start = pipe.take(12)
    if start[:4] in (b"RIFF", b"RF64") and start[8:] == b"WAVE":
        if sample_rate is not None:
            raise AudioError(name, "begins with a WAV header, which says the rate: name none.")
        sample_rate, channels, encoding, length = _wav_header(pipe, name)
    elif sample_rate is None:
        if not start:
            raise AudioError(name, "holds no audio.")
        raise AudioError(name, "has no WAV header; name the rate of its raw samples (--rate).")
    else:
        pipe.put_back(start)
        length = None
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            name,
            f"has a sample rate of {sample_rate} Hz; {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz "
            "can be.",
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(name, f"has {channels} channels; 1 to {MAX_CHANNELS} can be.")
    return Source(name, sample_rate, channels, _decoded(pipe, channels, encoding, length))


class _Pipe:
    def __init__(self, handle: BinaryIO) -> None:
        # read() would wait until all that is asked for has come.
        self._read: Callable[[int], bytes] = getattr(handle, "read1", handle.read)
        self._held = b""

    def some(self) -> bytes:
        """What there is, 1 byte or more; none at the end."""
        found, self._held = self._held, b""
        return found or self._read(_BYTES)

    def take(self, count: int) -> bytes:
        """``count`` bytes, fewer at the end."""
        found = b""
        while len(found) < count:
            more = self.some()
            if not more:
                break
            found += more
        self._held = found[count:]
        return found[:count]

    def skip(self, count: int) -> None:
        while count > 0:
            found = self.take(min(count, _BYTES))
            if not found:
                break
            count -= len(found)

    def put_back(self, content: bytes) -> None:
        self._held = content + self._held


def _wav_header(pipe: _Pipe, name: str) -> tuple[int, int, str, int | None]:
    """Rate, channels, encoding and bytes of the samples (none: until the end)."""
    known: tuple[int, int, str] | None = None
    while True:
        head = pipe.take(8)
        if len(head) < 8:
            raise AudioError(name, "ends within its WAV header.")
        kind, size = head[:4], int.from_bytes(head[4:], "little")
        if kind == b"data":
            if known is None:
                raise AudioError(name, "has a WAV header that does not say how to read it.")
            return *known, None if size == 0 or size >= _ENDLESS else size
        if kind == b"fmt ":
            # More than 40 bytes of it would say nothing of interest here.
            content = pipe.take(min(size, 40))
            pipe.skip(size - len(content) + size % 2)
            if len(content) < 16:
                raise AudioError(name, "ends within its WAV header.")
            tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if tag == _EXTENSIBLE and len(content) >= 26:
                tag = int.from_bytes(content[24:26], "little")
            encoding = _WAV_ENCODINGS.get((tag, bits))
            if encoding is None:
                raise AudioError(
                    name,
                    f"has a WAV coding that a stream cannot have here (format {tag}, {bits} bit); "
                    "send PCM or float.",
                )
            known = rate, channels, encoding
        else:
            pipe.skip(size + size % 2)


def _decoded(
    pipe: _Pipe, channels: int, encoding: str, length: int | None
) -> Iterator[NDArray[np.float32]]:
    width, decode = ENCODINGS[encoding]
    frame = width * channels
    held = b""
    while length is None or length > 0:
        found = pipe.some()
        if not found:
            return
        if length is not None:
            found = found[:length]
            length -= len(found)
        held += found
        whole = len(held) - len(held) % frame
        if whole:
            yield decode(held[:whole]).reshape(-1, channels).T
            held = held[whole:]
