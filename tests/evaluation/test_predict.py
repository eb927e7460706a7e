from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stapes.bundle import Bundle
from stapes.config import load_recipe, resolve
from stapes.errors import StapesError
from stapes.evaluation.predict import Classifier
from stapes.features import BandNormalizer, create_frontend
from stapes.inference import AudioSettings, WindowScores, merge_events
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


def test_probabilities_are_the_networks(classifier: Classifier) -> None:
    windows = torch.from_numpy(_noise(1.0)).reshape(2, 1, 4000)
    bundle = classifier.bundle
    with torch.no_grad():
        logits = bundle.network(bundle.normalizer(bundle.frontend(windows)))
    expected = logits.softmax(1).numpy()
    np.testing.assert_allclose(classifier.probabilities(windows), expected, atol=1e-6)
    np.testing.assert_allclose(classifier.probabilities(windows.numpy()), expected, atol=1e-6)


def test_file_array_and_tensor_agree(classifier: Classifier, tmp_path: Path) -> None:
    waveform = _noise(3.3, 16000)
    path = tmp_path / "clip.wav"
    soundfile.write(path, waveform, 16000, subtype="FLOAT")
    from_array = classifier.classify(waveform, 16000)
    np.testing.assert_allclose(
        classifier.classify(path).probabilities, from_array.probabilities, atol=1e-5
    )
    tensor = torch.from_numpy(waveform).requires_grad_()
    assert classifier.classify(tensor, 16000) == from_array
    assert classifier.classify(tensor[None, None], 16000) == [from_array]


def test_settings_are_the_recipes() -> None:
    found = _classifier(longer="crop", shorter="repeat", hop_seconds="0.25").audio
    assert found == AudioSettings(RATE, 1, WINDOW, 0.25, "repeat", "crop")


def test_an_unresolved_recipe_is_refused(classifier: Classifier) -> None:
    unresolved = replace(classifier.bundle, recipe=load_recipe("small"))
    with pytest.raises(StapesError, match="not resolved"):
        Classifier(unresolved)


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
