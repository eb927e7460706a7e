from __future__ import annotations

import io
import os
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stapes.errors import AudioError, StapesError
from stapes.inference import Gap
from stapes.inference.sources import ENCODINGS, from_file, from_microphone, from_pipe


def noise(n: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(n)
    return rng.uniform(-0.9, 0.9, (channels, n)).astype(np.float32)


def joined(chunks: Iterator[np.ndarray | Gap]) -> np.ndarray:
    return np.concatenate(list(chunks), axis=1)


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, content: bytes, step: int) -> None:
        self._content, self._step = io.BytesIO(content), step

    def read1(self, size: int = -1) -> bytes:
        return self._content.read(min(self._step, size))


# Files


def test_a_file_is_a_stream(tmp_path: Path) -> None:
    waveform = noise(30_000, 2)
    path = tmp_path / "clip.flac"
    soundfile.write(path, waveform.T, 8000)
    source = from_file(path)
    assert (source.name, source.sample_rate, source.channels) == (str(path), 8000, 2)
    np.testing.assert_allclose(joined(source.chunks), waveform, atol=1e-4)
    with pytest.raises(AudioError, match="does not exist"):
        from_file(tmp_path / "no.wav")


# Pipes


@pytest.mark.parametrize("step", [1, 5, 4096])
@pytest.mark.parametrize(
    ("subtype", "encoding"),
    [
        ("PCM_U8", "u8"),
        ("PCM_16", "s16le"),
        ("PCM_24", "s24le"),
        ("PCM_32", "s32le"),
        ("FLOAT", "f32le"),
        ("DOUBLE", "f64le"),
    ],
)
def test_samples_are_what_libsndfile_reads(subtype: str, encoding: str, step: int) -> None:
    waveform, wav, raw = noise(300, 3), io.BytesIO(), io.BytesIO()
    soundfile.write(wav, waveform.T, 11025, format="WAV", subtype=subtype)
    soundfile.write(raw, waveform.T, 11025, format="RAW", subtype=subtype, endian="LITTLE")
    wav.seek(0)
    expected = soundfile.read(wav, dtype="float32", always_2d=True)[0].T

    with_header = from_pipe(Trickle(wav.getvalue(), step))
    assert (with_header.sample_rate, with_header.channels) == (11025, 3)
    np.testing.assert_array_equal(joined(with_header.chunks), expected)

    # Half a frame at the end is left out.
    half = bytes(ENCODINGS[encoding][0])
    bare = from_pipe(
        Trickle(raw.getvalue() + half, step), sample_rate=11025, channels=3, encoding=encoding
    )
    np.testing.assert_array_equal(joined(bare.chunks), expected)


def wav_bytes(format: str = "WAV", **more: str) -> tuple[bytes, np.ndarray]:
    file, waveform = io.BytesIO(), noise(200)
    soundfile.write(file, waveform.T, 8000, format=format, subtype="FLOAT", **more)
    return file.getvalue(), waveform


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64"])
def test_headers_of_several_kinds(format: str) -> None:
    content, waveform = wav_bytes(format)
    np.testing.assert_array_equal(joined(from_pipe(io.BytesIO(content)).chunks), waveform)


@pytest.mark.parametrize("claimed", [0, 0x7FFF0000, 0x80000000, 0xFFFFFFFF])
def test_a_header_written_before_the_length_was_known(claimed: int) -> None:
    content, waveform = wav_bytes()
    at = content.index(b"data") + 4
    endless = content[:at] + claimed.to_bytes(4, "little") + content[at + 4 :]
    found = joined(from_pipe(io.BytesIO(endless)).chunks)
    np.testing.assert_array_equal(found[:, :200], waveform)


def test_what_follows_the_samples_is_no_sound() -> None:
    content, waveform = wav_bytes()
    at = content.index(b"data")
    odd = b"note" + (3).to_bytes(4, "little") + b"abc\0"  # chunks are padded to even lengths
    content = content[:at] + odd + content[at : at + 8 + 800] + b"LIST" + bytes(100)
    np.testing.assert_array_equal(joined(from_pipe(Trickle(content, 7)).chunks), waveform)


def test_a_chunk_comes_as_soon_as_it_is_in_the_pipe() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        writer.write(np.arange(6, dtype="<i2").tobytes())
        source = from_pipe(reader, sample_rate=8000, channels=2)
        # The pipe stays open: waiting for more than there is would never end.
        assert next(source.chunks).shape == (2, 3)
        writer.write(np.arange(100, dtype="<i2").tobytes())
        np.testing.assert_array_equal(next(source.chunks)[0], np.arange(0, 100, 2) / 32768)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", {}, "holds no audio"),
        (b"hello, this is text", {}, "has no WAV header; name the rate"),
        (wav_bytes()[0], {"sample_rate": 8000}, "name none"),
        (wav_bytes()[0][:30], {}, "ends within its WAV header"),
        (wav_bytes()[0][:12] + b"data" + bytes(4), {}, "does not say how to read it"),
        (wav_bytes()[0].replace(b"\x03\0\x01\0", b"\x06\0\x01\0", 1), {}, r"format 6, 32 bit"),
        (wav_bytes()[0].replace(b"\x40\x1f\0\0", bytes(4), 1), {}, "a sample rate of 0 Hz"),
        (wav_bytes()[0].replace(b"\x03\0\x01\0", b"\x03\0\0\0", 1), {}, "has 0 channels"),
        (bytes(8), {"sample_rate": 10}, "a sample rate of 10 Hz"),
        (bytes(8), {"sample_rate": 8000, "channels": 1000}, "has 1000 channels"),
    ],
)
def test_what_is_no_stream_is_refused(content: bytes, options: dict[str, int], words: str) -> None:
    with pytest.raises(AudioError, match=rf"^standard input: .*{words}"):
        from_pipe(io.BytesIO(content), **options)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of u8, s16le, .* not 'mulaw'"):
        from_pipe(io.BytesIO(b""), encoding="mulaw")


# Microphones: a driver that does what the test says


class PortAudioError(Exception):
    pass


class Driver(types.ModuleType):
    """Stands for sounddevice: its thread gives these blocks, then the device is unplugged.

    A block is frames (n, C), or a pair of frames and True where the driver itself lost sound.
    """

    PortAudioError = PortAudioError

    def __init__(self, blocks: list, channels: int = 2, *, wait: threading.Event | None = None):
        super().__init__("sounddevice")
        self.blocks, self.channels, self.wait = blocks, channels, wait
        self.settings: dict = {}
        self.closed = self.given = False

    def query_devices(self, device: object, kind: str) -> dict:
        assert kind == "input"
        if not self.channels:
            raise PortAudioError("Error querying device -1", -9996)
        return {"default_samplerate": 16000.0, "max_input_channels": self.channels}

    def InputStream(self, **settings: object) -> Driver:
        self.settings = settings
        return self

    def start(self) -> None:
        if self.blocks is None:
            raise PortAudioError("Device unavailable", -9985)
        self._thread = threading.Thread(target=self._give)
        self._thread.start()

    def _give(self) -> None:
        for block in self.blocks:
            if callable(block):
                block()
                continue
            frames, lost = block if isinstance(block, tuple) else (block, False)
            own = frames.copy()
            status = types.SimpleNamespace(input_overflow=lost)
            self.settings["callback"](own, len(own), None, status)
            own[:] = np.nan  # the driver uses its buffer again
        self.settings["finished_callback"]()

    def close(self) -> None:
        self._thread.join()
        self.closed = True


def plug(monkeypatch: pytest.MonkeyPatch, driver: object) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", driver)


def test_a_microphone_gives_what_the_driver_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [noise(800 + i).T for i in range(5)]
    driver = Driver(blocks)
    plug(monkeypatch, driver)
    source = from_microphone("USB")
    assert (source.name, source.sample_rate, source.channels) == ("microphone USB", 16000, 1)
    found = [next(source.chunks) for _ in range(5)]
    for ours, theirs in zip(found, blocks, strict=True):
        np.testing.assert_array_equal(ours, theirs.T)
    settings = driver.settings
    assert {k: settings[k] for k in ("samplerate", "blocksize", "device", "channels", "dtype")} == {
        "samplerate": 16000, "blocksize": 800, "device": "USB", "channels": 1, "dtype": "float32",
    }  # fmt: skip
    with pytest.raises(AudioError, match="gives no sound any more"):
        next(source.chunks)
    assert driver.closed


def test_closing_lets_go_of_the_microphone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver([noise(800).T] * 3)
    plug(monkeypatch, driver)
    source = from_microphone()
    next(source.chunks)
    source.chunks.close()
    assert driver.closed


def test_what_a_slow_model_misses_is_one_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten seconds are 200 blocks of 50 ms; the model takes the first and then computes while 300
    # more come, of which 200 fit. Until it has caught up nothing is taken; then all is again.
    block = noise(800).T
    computes, overrun, halfway, missed, caught_up, resumed = (threading.Event() for _ in range(6))
    blocks = [
        block, computes.wait, *[block] * 300, overrun.set, halfway.wait, *[block] * 50, missed.set,
        caught_up.wait, block, block, resumed.set,
    ]  # fmt: skip
    plug(monkeypatch, Driver(blocks))
    chunks = from_microphone().chunks
    assert next(chunks).shape == (1, 800)
    computes.set()
    assert overrun.wait(10)
    for _ in range(100):
        assert next(chunks).shape == (1, 800)
    halfway.set()
    assert missed.wait(10)
    for _ in range(100):
        assert next(chunks).shape == (1, 800)
    caught_up.set()
    assert resumed.wait(10)
    gap = next(chunks)
    assert isinstance(gap, Gap)
    assert gap.seconds == pytest.approx(150 * 0.05)
    assert [next(chunks).shape for _ in range(2)] == [(1, 800)] * 2


def test_what_the_driver_lost_is_a_gap_of_unknown_length(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, Driver([noise(800).T, (noise(801).T, True), noise(802).T]))
    chunks = from_microphone().chunks
    found = [next(chunks) for _ in range(4)]
    assert found[1] == Gap(0.0)
    assert [f.shape[1] for f in found if not isinstance(f, Gap)] == [800, 801, 802]


def test_why_there_is_no_microphone(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, Driver([], channels=0))
    with pytest.raises(StapesError, match=r"microphone USB: there is none \(Error querying"):
        from_microphone("USB")
    plug(monkeypatch, Driver(None))
    with pytest.raises(AudioError, match=r"microphone: cannot be opened \(Device unavailable"):
        next(from_microphone().chunks)
    plug(monkeypatch, None)  # as if it were not installed
    with pytest.raises(StapesError, match=r'pip install "stapes\[microphone\]"'):
        from_microphone()


def test_the_library_behind_sounddevice_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StapesError, match="apt install libportaudio2"):
        from_microphone()
