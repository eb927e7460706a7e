from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from stapes.bundle import Bundle
from stapes.config import load_recipe, resolve
from stapes.errors import StapesError
from stapes.evaluation.predict import Classifier
from stapes.features import BandNormalizer, create_frontend
from stapes.inference import AudioSettings
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
