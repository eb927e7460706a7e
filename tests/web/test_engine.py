"""The engine in the browser, judged by Python: the same numbers for the same sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browsing import packed, unpacked

from stapes.audio import convert, read
from stapes.inference import WindowScores
from stapes.runtime import load

pytestmark = pytest.mark.browser

_DECODE = """async ([content, name]) => {
  const file = new File([bytes(content)], name);
  const found = await engine.decode(file);
  return { ...found, channels: found.channels.map(packed) };
}"""
_CLASSIFY = """async ([name, content, hopSeconds]) => {
  const found = await model(name);
  const recording = await engine.decode(new File([bytes(content)], "sound"));
  const progress = [];
  const onProgress = (fraction) => progress.push(fraction);
  const told = [];
  const onScores = (scores) => told.push(...scores);
  const mean = await found.classify(recording);
  const scores = await found.windows(recording, { hopSeconds, onProgress, onScores });
  const row = ({ start, end, probabilities }) => [start, end, packed(probabilities)];
  const same = told.length === scores.length && told.every((one, i) => one === scores[i]);
  return { mean: packed(mean), scores: scores.map(row), progress, same };
}"""
_RESAMPLE = """async ([samples, fromRate, toRate, lengths]) => {
  const { Resampler } = await import(`${location.origin}/drum-hits/engine/resample.js`);
  const resampler = new Resampler(fromRate, toRate);
  const all = floats(samples);
  const parts = [];
  let at = 0;
  for (let i = 0; at < all.length; i++) {
    const length = lengths[i % lengths.length];
    parts.push(resampler.push(all.subarray(at, at + length)));
    at += length;
  }
  parts.push(resampler.finish());
  const { joined } = await import(`${location.origin}/drum-hits/engine/joined.js`);
  return packed(joined(parts));
}"""


def _decoded(page: Any, path: Path) -> tuple[int, np.ndarray]:
    found = page.evaluate(_DECODE, [packed(path.read_bytes()), path.name])
    return found["sampleRate"], np.stack([unpacked(channel) for channel in found["channels"]])


def _sound(rate: int, seconds: float, channels: int = 1, seed: int = 0) -> np.ndarray:
    """(N, C): noise that swells, and a tone that rises."""
    random = np.random.default_rng(seed)
    t = np.arange(round(rate * seconds)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * t) * t)
    noise = 0.2 * random.standard_normal((len(t), channels)) * np.sin(0.7 * t[:, None]) ** 2
    return (noise + tone[:, None]).astype(np.float32)


# --- decoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
def test_wav_is_decoded_to_the_bit(
    container: str, subtype: str, blank: Any, tmp_path: Path
) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, _sound(16000, 0.31, 3), 16000, format=container, subtype=subtype)
    rate, found = _decoded(blank, path)
    assert rate == 16000
    np.testing.assert_array_equal(found, read(path))


@pytest.mark.parametrize(
    ("container", "subtype", "rate", "tolerance"),
    [
        ("FLAC", "PCM_16", 44100, 0), ("FLAC", "PCM_24", 48000, 0), ("FLAC", "PCM_16", 8000, 0),
        ("OGG", "VORBIS", 44100, 1e-6), ("OGG", "VORBIS", 16000, 1e-6),
        ("OGG", "OPUS", 48000, 1e-6), ("MP3", "MPEG_LAYER_III", 44100, 1e-4),
        ("MP3", "MPEG_LAYER_III", 22050, 1e-4), ("MP3", "MPEG_LAYER_III", 8000, 1e-4),
    ],
)  # fmt: skip
def test_other_formats_are_decoded_as_libsndfile_does(
    container: str, subtype: str, rate: int, tolerance: float, blank: Any, tmp_path: Path
) -> None:
    path = tmp_path / "sound"
    soundfile.write(path, _sound(rate, 1.37, 2), rate, format=container, subtype=subtype)
    found_rate, found = _decoded(blank, path)
    expected = read(path)
    assert (found_rate, found.shape) == (rate, expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_tags_before_an_mp3_are_passed_over(blank: Any, tmp_path: Path) -> None:
    path = tmp_path / "tagged.mp3"
    soundfile.write(path, _sound(32000, 0.9), 32000, format="MP3", subtype="MPEG_LAYER_III")
    picture = b"\xff\xfb\x90\x00" * 60  # looks like frames, in another rate
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, len(picture) >> 7, len(picture) & 127]) + picture
    path.write_bytes(tag + path.read_bytes())
    rate, found = _decoded(blank, path)
    assert rate == 32000
    np.testing.assert_allclose(found, read(path), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_opus_has_the_rate_and_length_that_libsndfile_gives_it(
    rate: int, blank: Any, tmp_path: Path
) -> None:
    """libopus itself gives fewer samples then, not by resampling: alike, but not the same."""
    path = tmp_path / "sound.opus"
    tone = _sound(rate, 1.2) * np.array([[0.5]]) + _sound(rate, 1.2, seed=1) * 0.5
    soundfile.write(path, tone, rate, format="OGG", subtype="OPUS")
    found_rate, found = _decoded(blank, path)
    expected = read(path)
    assert (found_rate, found.shape) == (rate, expected.shape)
    assert np.corrcoef(found[0], expected[0])[0, 1] > 0.99


def test_what_browsers_record_is_read(blank: Any) -> None:
    found = blank.evaluate("""async () => {
      const context = new AudioContext({ sampleRate: 48000 });
      const tone = new OscillatorNode(context, { frequency: 1000 });
      const out = new MediaStreamAudioDestinationNode(context);
      tone.connect(out);
      tone.start();
      await context.resume();
      const types = ["audio/webm;codecs=opus", "audio/mp4;codecs=mp4a.40.2"];
      const known = types.filter((type) => MediaRecorder.isTypeSupported(type));
      const recorded = await Promise.all(known.map((mimeType) => new Promise((resolve) => {
        const recorder = new MediaRecorder(out.stream, { mimeType });
        recorder.ondataavailable = ({ data }) => resolve(data);
        recorder.start();
        setTimeout(() => recorder.stop(), 700);
      })));
      const all = await Promise.all(recorded.map((blob) => engine.decode(blob)));
      await context.close();
      return all.map(({ name, sampleRate, channels }) =>
        [name, sampleRate, packed(channels[0])]);
    }""")
    assert found
    for name, rate, samples in found:
        assert (name, rate) == ("recording", 48000)
        middle = unpacked(samples)[8000:24000]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
        assert abs(int(spectrum.argmax()) * rate / len(middle) - 1000) < 10


# --- resampling --------------------------------------------------------------------------------


# Begin with silence: where one of its stages is not there yet, soxr's first samples are others.
_BEFORE = 500


@pytest.mark.parametrize(
    ("rates", "decibels"),
    [
        ((44100, 22050), -120), ((48000, 16000), -120), ((8000, 16000), -120),
        ((96000, 16000), -120), ((44100, 16000), -120), ((48000, 22050), -120),
        ((32000, 22050), -120), ((16000, 22050), -120), ((8000, 22050), -120),
        ((96000, 22050), -120), ((22050, 16000), -120), ((192000, 22050), -120),
        ((44101, 22050), -60), ((37800, 16000), -60),
    ],
)  # fmt: skip
def test_resampling_is_soxrs(rates: tuple[int, int], decibels: float, blank: Any) -> None:
    samples = np.random.default_rng(1).standard_normal(30011).astype(np.float32)
    samples[: round(_BEFORE * max(1, rates[0] / rates[1]))] = 0
    expected = convert(samples[None], *rates)[0]
    found = unpacked(blank.evaluate(_RESAMPLE, [packed(samples), *rates, [len(samples)]]))
    assert found.shape == expected.shape
    residual = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 20 * np.log10(residual) < decibels


@pytest.mark.parametrize("rates", [(44100, 16000), (8000, 22050), (44101, 22050)])
def test_blocks_of_any_length_are_resampled_as_a_whole(rates: tuple[int, int], blank: Any) -> None:
    samples = _sound(rates[0], 1.5)[:, 0]
    whole = blank.evaluate(_RESAMPLE, [packed(samples), *rates, [len(samples)]])
    parts = blank.evaluate(_RESAMPLE, [packed(samples), *rates, [1, 777, 2, 5000, 0, 33]])
    assert parts == whole


# --- the whole way -----------------------------------------------------------------------------


# In int8 a feature on the edge between two levels may take the other one: the last bit decides.
_TOLERANCE = {"float32": 1e-4, "int8": 5e-3}


def _compare(
    page: Any, name: str, path: Path, hop: float | None = None, *,
    model: Path | None = None, tolerance: float | None = None,
) -> None:  # fmt: skip
    classifier = load(model or name, threads=1)
    found = page.evaluate(_CLASSIFY, [name, packed(path.read_bytes()), hop])
    mean = np.array(classifier.classify(path).probabilities)
    tolerance = tolerance or _TOLERANCE[classifier.precision]
    np.testing.assert_allclose(unpacked(found["mean"]), mean, rtol=0, atol=tolerance)
    assert found["same"]
    assert found["progress"][-1] == 1
    assert found["progress"] == sorted(found["progress"])
    _same_scores(found["scores"], list(classifier.windows(path, hop_seconds=hop)), tolerance)


def _same_scores(found: list[list[Any]], expected: list[WindowScores], tolerance: float) -> None:
    assert [row[:2] for row in found] == [[scores.start, scores.end] for scores in expected]
    rows = np.stack([unpacked(row[2]) for row in found])
    wanted = np.stack([scores.probabilities for scores in expected])
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "rate", "seconds", "channels", "hop"),
    [
        ("esc50-128kB", 44100, 12.3, 2, None), ("esc50-128kB", 22050, 2.0, 1, 1.0),
        ("esc10-32kB", 48000, 9.0, 1, 5.0), ("drum-hits", 44100, 3.3, 1, 0.1),
        ("drum-hits", 8000, 0.3, 2, None), ("esc50-500kB", 16000, 6.0, 1, None),
    ],
)  # fmt: skip
def test_a_recording_has_pythons_answers(
    name: str, rate: int, seconds: float, channels: int, hop: float | None, blank: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "sound.wav"
    soundfile.write(path, _sound(rate, seconds, channels), rate, subtype="FLOAT")
    _compare(blank, name, path, hop)


@pytest.mark.parametrize("name", ["network", "repeat", "crop"])
@pytest.mark.parametrize("seconds", [0.2, 0.5, 0.61, 1.9])
def test_every_way_with_windows_is_pythons(
    name: str, seconds: float, exported: Path, blank: Any, tmp_path: Path
) -> None:
    path = tmp_path / "sound.wav"
    t = np.arange(round(11025 * seconds)) / 11025
    sound = _sound(11025, seconds, 2) + np.interp(t, [0, 0.02, 1], [0, -0.4, 0.3])[:, None]
    soundfile.write(path, sound, 11025, subtype="FLOAT")
    _compare(blank, name, path, model=exported / f"{name}.onnx")


@pytest.mark.parametrize("samples", [300, 2842, 7145, 13455, 22050])
def test_vorbis_has_its_last_block(samples: int, blank: Any, tmp_path: Path) -> None:
    path = tmp_path / "hit.ogg"
    rng = np.random.default_rng(samples)
    hit = rng.normal(size=samples) * 0.3 * np.exp(-4 * np.arange(samples) / samples)
    soundfile.write(path, hit, 22050, format="OGG", subtype="VORBIS")
    rate, found = _decoded(blank, path)
    expected, _ = soundfile.read(path, dtype="float32")
    assert len(expected) == samples
    assert np.max(np.abs(expected[-256:])) > 1e-3  # silence would not do
    assert rate == 22050
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["esc50-128kB", "esc50-500kB", "esc10-32kB"])
def test_real_recordings_have_pythons_answers(name: str, shared: Path, blank: Any) -> None:
    for path in sorted((shared / "data" / "ESC-50" / "audio").glob("*.ogg"))[::400]:
        _compare(blank, name, path)
