from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stapes.audio import convert, split_windows
from stapes.bundle import Bundle
from stapes.config import load_recipe, resolve
from stapes.errors import AudioError
from stapes.evaluation.predict import Classifier
from stapes.features import BandNormalizer, create_frontend
from stapes.inference import WindowScores, merge_events
from stapes.models import create_model

RATE, WINDOW = 8000, 0.5
LABELS = ("low", "high", "other")


def _classifier(**audio: str) -> Classifier:
    settings_ = {"window_seconds": str(WINDOW), "sample_rate": str(RATE), **audio}
    recipe = load_recipe("small", [f"audio.{key}={value}" for key, value in settings_.items()])
    recipe = resolve(recipe, sample_rates=[], durations=[])
    frontend = create_frontend(sample_rate=RATE, **recipe.features.model_dump())
    torch.manual_seed(0)
    network = create_model(
        "cp_resnet", n_classes=3, in_channels=1, rho=3, width=4, blocks=(2, 0, 0), damping=None
    )
    normalizer = BandNormalizer(1, frontend.n_bins)
    normalizer.mean.fill_(-40)
    normalizer.std.fill_(20)
    return Classifier(Bundle(frontend, normalizer, network.eval(), LABELS, recipe))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return _classifier()


def _noise(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    level = np.repeat(rng.uniform(0.001, 0.5, n // 1000 + 1), 1000)[:n]
    return (rng.standard_normal(n) * level * 0.3).clip(-1, 1).astype(np.float32)


def test_a_recording_gets_the_mean_of_its_windows(classifier: Classifier) -> None:
    waveform = _noise(1.75)
    windows = split_windows(waveform[None], 4000, 4000)
    expected = classifier.probabilities(windows).mean(0)
    prediction = classifier.classify(waveform, RATE)
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-6)
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    best = int(expected.argmax())
    assert (prediction.label, prediction.score) == (LABELS[best], pytest.approx(expected[best]))
    assert [p for _, p in prediction.top(3)] == sorted(prediction.probabilities, reverse=True)


@pytest.mark.parametrize("longer", ["window", "crop"])
@pytest.mark.parametrize("seconds", [0.05, 0.5, 3.3])
def test_file_array_and_batch_agree(tmp_path: Path, seconds: float, longer: str) -> None:
    classifier = _classifier(longer=longer)
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


def test_integers_are_scaled_by_their_type(classifier: Classifier) -> None:
    as_int = (_noise(0.5) * 32767).astype(np.int16)
    as_float = as_int.astype(np.float32) / 32768
    a, b = classifier.classify(as_int, RATE), classifier.classify(as_float, RATE)
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)


def test_bad_arrays_are_refused(classifier: Classifier) -> None:
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
    classifier: Classifier, tmp_path: Path, hop: float, seconds: float
) -> None:
    path = tmp_path / "long.wav"
    waveform = _noise(seconds)
    soundfile.write(path, waveform, RATE, subtype="FLOAT")
    found = list(classifier.windows(path, hop_seconds=hop))
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(len(waveform) / RATE)
    for before, after in itertools.pairwise(found):
        assert before.end == after.start
        assert after.end >= after.start
    # Each window's scores are those of that stretch of the waveform by itself.
    converted = convert(waveform[None], RATE, RATE, 1)
    expected = classifier.probabilities(split_windows(converted, 4000, round(hop * RATE)))
    np.testing.assert_allclose([w.probabilities for w in found], expected, atol=1e-5)


def test_hop_and_threshold_are_checked(classifier: Classifier, tmp_path: Path) -> None:
    for hop in (0.0, -1.0, 0.6):
        with pytest.raises(ValueError, match="hop"):
            classifier.windows(tmp_path / "x.wav", hop_seconds=hop)
    with pytest.raises(ValueError, match="threshold"):
        classifier.timeline(tmp_path / "x.wav", threshold=1.5)


def _windows(leaders: list[int], score: float = 0.8) -> list[WindowScores]:
    rest = (1 - score) / 2
    rows = [np.full(3, rest, np.float32) for _ in leaders]
    for row, leader in zip(rows, leaders, strict=True):
        row[leader] = score
    return [WindowScores(float(i), float(i + 1), row) for i, row in enumerate(rows)]


def test_events_join_equal_neighbours() -> None:
    events = list(merge_events(_windows([0, 0, 1, 1, 1, 0]), LABELS))
    assert [(e.start, e.end, e.label) for e in events] == [
        (0, 2, "low"), (2, 5, "high"), (5, 6, "low"),
    ]  # fmt: skip
    assert [e.score for e in events] == pytest.approx([0.8] * 3)


def test_below_the_threshold_there_is_no_event() -> None:
    windows = _windows([0], 0.9) + [
        WindowScores(w.start + 1, w.end + 1, w.probabilities) for w in _windows([0, 0], 0.4)
    ]
    assert [(e.start, e.end) for e in merge_events(windows, LABELS, 0.5)] == [(0, 1)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_no_moment_and_no_border_gives_an_event_twice(leaders: list[int]) -> None:
    events = list(merge_events(_windows(leaders), LABELS))
    assert events[0].start == 0
    assert events[-1].end == len(leaders)
    for before, after in itertools.pairwise(events):
        assert before.end == after.start
        assert before.label != after.label
