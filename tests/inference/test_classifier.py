"""Recordings, arrays, batches and timelines, with a classifier whose answers are known."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from stapes.audio import convert, read, split_windows
from stapes.errors import AudioError
from stapes.inference import AudioSettings, BaseClassifier

RATE, WINDOW = 8000, 4000
LABELS = ("quiet", "loud", "positive")


class Loudness(BaseClassifier):
    """Scores by the level and the mean of a window's samples; remembers the batches it got."""

    def __init__(self, **audio: Any) -> None:
        settings = {"sample_rate": RATE, "channels": 1, "window_seconds": 0.5, **audio}
        super().__init__(LABELS, AudioSettings(**settings))
        self.batches: list[int] = []

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        assert windows.dtype == np.float32
        assert windows.shape[1:] == (self.audio.channels, self.audio.window)
        self.batches.append(len(windows))
        level = np.sqrt(np.square(windows, dtype=np.float64).mean((1, 2)))
        logits = np.stack([1 - level, 20 * level, 20 * windows.mean((1, 2))], axis=1)
        scores = np.exp(logits)
        return (scores / scores.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def classifier() -> Loudness:
    return Loudness()


def _noise(seconds: float, rate: int = RATE, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    level = np.repeat(rng.uniform(0.001, 0.5, n // 1000 + 1), 1000)[:n]
    return (rng.standard_normal(n) * level * 0.3).clip(-1, 1).astype(np.float32)


def test_a_recording_gets_the_mean_of_its_windows(classifier: Loudness) -> None:
    waveform = np.repeat(np.array([0.5, -0.1, 0.0], np.float32), WINDOW)
    by_hand = []
    for value in (0.5, -0.1, 0.0):  # level and mean of a constant are known
        scores = np.exp([1 - abs(value), 20 * abs(value), 20 * value])
        by_hand.append(scores / scores.sum())
    expected = np.mean(by_hand, axis=0)
    prediction = classifier.classify(waveform, RATE)
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-6)
    best = int(expected.argmax())
    assert (prediction.label, prediction.score) == (LABELS[best], pytest.approx(expected[best]))
    assert [p for _, p in prediction.top(3)] == sorted(prediction.probabilities, reverse=True)
    assert (prediction.source, prediction.labels) == ("array", LABELS)


@pytest.mark.parametrize("longer", ["window", "crop"])
@pytest.mark.parametrize("shorter", ["pad", "repeat"])
@pytest.mark.parametrize("seconds", [0.05, 0.5, 3.3])
def test_file_array_and_batch_agree(
    tmp_path: Path, seconds: float, shorter: str, longer: str
) -> None:
    classifier = Loudness(longer=longer, shorter=shorter, hop_seconds=0.2)
    waveform = _noise(seconds, 16000)
    path = tmp_path / "clip.wav"
    soundfile.write(path, waveform, 16000, subtype="FLOAT")
    from_file = classifier.classify(path)
    from_array = classifier.classify(waveform, 16000)
    batch = classifier.classify([path, str(path)])
    np.testing.assert_allclose(from_file.probabilities, from_array.probabilities, atol=1e-5)
    assert [p.probabilities for p in batch] == [from_file.probabilities] * 2
    stacked = classifier.classify(np.stack([waveform[None]] * 2), 16000)
    assert [p.probabilities for p in stacked] == [from_array.probabilities] * 2
    whole = read(path, sample_rate=RATE, channels=1)
    windows = split_windows(whole, WINDOW, 1600, shorter=shorter, longer=longer)
    expected = classifier.probabilities(windows).mean(0)
    np.testing.assert_allclose(from_file.probabilities, expected, atol=1e-6)


def test_stereo_is_mixed_and_mono_is_copied(classifier: Loudness) -> None:
    stereo = np.stack([np.full(WINDOW, 0.6, np.float32), np.full(WINDOW, 0.2, np.float32)])
    mixed = classifier.classify(np.full(WINDOW, 0.4, np.float32), RATE)
    np.testing.assert_allclose(
        classifier.classify(stereo, RATE).probabilities, mixed.probabilities, atol=1e-6
    )
    copied = Loudness(channels=2).classify(np.full(WINDOW, 0.4, np.float32), RATE)
    np.testing.assert_allclose(copied.probabilities, mixed.probabilities, atol=1e-6)


def test_integers_are_scaled_by_their_type(classifier: Loudness) -> None:
    as_int = (_noise(0.5) * 32767).astype(np.int16)
    as_float = as_int.astype(np.float32) / 32768
    a, b = classifier.classify(as_int, RATE), classifier.classify(as_float, RATE)
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)


def test_bad_arrays_are_refused(classifier: Loudness) -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        classifier.classify(_noise(0.5))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"a waveform is"):
        classifier.classify(np.zeros((1, 1, 1, 9), np.float32), RATE)
    with pytest.raises(AudioError, match="no audio"):
        classifier.classify(np.zeros(0, np.float32), RATE)
    with pytest.raises(AudioError, match="not finite"):
        classifier.classify(np.full(900, np.nan, np.float32), RATE)


@pytest.mark.parametrize("hop", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("seconds", [0.2, 0.5, 1.0, 2.37, 9.01])
def test_windows_tile_the_recording(
    classifier: Loudness, tmp_path: Path, hop: float, seconds: float
) -> None:
    path = tmp_path / "long.wav"
    waveform = _noise(seconds)
    soundfile.write(path, waveform, RATE, subtype="FLOAT")
    found = list(classifier.windows(path, hop_seconds=hop))
    assert max(classifier.batches) <= 16
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(len(waveform) / RATE)
    for before, after in itertools.pairwise(found):
        assert before.end == after.start
        assert after.end >= after.start
    # Each window's scores are those of that stretch of the waveform by itself.
    converted = convert(waveform[None], RATE, RATE, 1)
    expected = classifier.probabilities(split_windows(converted, WINDOW, round(hop * RATE)))
    np.testing.assert_allclose([w.probabilities for w in found], expected, atol=1e-5)


def test_hop_and_threshold_are_checked(classifier: Loudness, tmp_path: Path) -> None:
    for hop in (0.0, -1.0, 0.6):
        with pytest.raises(ValueError, match="hop"):
            classifier.windows(tmp_path / "x.wav", hop_seconds=hop)
    with pytest.raises(ValueError, match="threshold"):
        classifier.timeline(tmp_path / "x.wav", threshold=1.5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sample_rate": 0}, "sample_rate is a whole number from 1, not 0"),
        ({"sample_rate": True}, "sample_rate is a whole number"),
        ({"channels": 1.0}, "channels is a whole number"),
        ({"window_seconds": 0.0}, "window_seconds is at least one sample"),
        ({"window_seconds": float("inf")}, "window_seconds is a number"),
        ({"hop_seconds": -1.0}, "hop_seconds is at least one sample"),
        ({"shorter": "cut"}, r"shorter is one of \('pad', 'repeat'\), not 'cut'"),
        ({"longer": "cut"}, "longer is one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Loudness(**settings)


def test_samples_follow_from_seconds() -> None:
    audio = AudioSettings(44100, 1, 1.5, 0.1)
    assert (audio.window, audio.hop) == (66150, 4410)
    assert AudioSettings(22050, 1, 0.5).hop == 11025
