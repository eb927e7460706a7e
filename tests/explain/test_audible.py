"""Sounds with parts taken out: what stays, what goes, and what the model hears in either."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from stapes.bundle import Bundle
from stapes.config import Recipe
from stapes.errors import StapesError
from stapes.explain.audible import apply_gains, attributed_part, audible_part, write_sound
from stapes.explain.explanation import explain_recording
from stapes.features import BandNormalizer, create_frontend

RATE = 16000
FREQUENCIES = np.linspace(0, 8000, 33)
TIMES = np.linspace(0, 1, 51)


def tone(hertz: float, begin: float = 0.0, end: float = 1.0) -> np.ndarray:
    time = np.arange(RATE) / RATE
    inside = (time >= begin) & (time < end)
    return (0.2 * np.sin(2 * np.pi * hertz * time) * inside)[None].astype(np.float32)


def level(waveform: np.ndarray, of: np.ndarray) -> float:
    """How much of one sound is in another: 1 where it is all there."""
    return float((waveform * of).sum() / (of * of).sum())


def test_the_fewest_places_with_a_share() -> None:
    values = np.random.default_rng(0).normal(size=(3, 3))
    positive = np.maximum(values, 0).reshape(-1)
    for share in (0.2, 0.5, 0.9, 1.0):
        mask = attributed_part(values, share)
        wanted = share * positive.sum() * (1 - 1e-12)
        fewest = next(
            size
            for size in range(10)
            if any(
                positive[list(some)].sum() >= wanted for some in combinations(range(9), size)
            )
        )  # fmt: skip
        assert mask.sum() == fewest
        assert positive[mask.reshape(-1)].sum() >= wanted
    assert not attributed_part(-np.ones((2, 2))).any()
    assert attributed_part(np.eye(3), 1.0).sum() == 3
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share"):
            attributed_part(values, share)


@pytest.mark.parametrize("n_samples", [1, 100, 5000, RATE])
def test_gains_of_one_change_nothing(n_samples: int) -> None:
    x = np.random.default_rng(0).normal(0, 0.1, (2, n_samples)).astype(np.float32)
    ones = np.ones((len(FREQUENCIES), len(TIMES)))
    np.testing.assert_allclose(apply_gains(x, RATE, ones, FREQUENCIES, TIMES), x, atol=1e-6)
    assert not apply_gains(x, RATE, 0 * ones, FREQUENCIES, TIMES).any()


def test_one_of_two_tones_stays() -> None:
    low, high = tone(1000), tone(5000)
    gains = np.broadcast_to((FREQUENCIES < 3000)[:, None] * 1.0, (33, 51))
    found = apply_gains(low + high, RATE, gains, FREQUENCIES, TIMES)
    assert level(found, low) == pytest.approx(1, abs=1e-3)
    assert abs(level(found, high)) < 1e-3
    half = apply_gains(low, RATE, 0 * gains + 0.5, FREQUENCIES, TIMES)
    np.testing.assert_allclose(half, 0.5 * low, atol=1e-6)


def test_one_of_two_moments_stays_where_it_was() -> None:
    early, late = tone(2000, 0.1, 0.3), tone(2000, 0.6, 0.8)
    gains = np.broadcast_to((TIMES < 0.45) * 1.0, (33, 51))
    found = apply_gains(early + late, RATE, gains, FREQUENCIES, TIMES)
    assert level(found, early) == pytest.approx(1, abs=1e-3)
    assert abs(level(found, late)) < 1e-3


class Loud(nn.Module):
    """Says "high" by how far the loudest place of the upper half is above that of the lower."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[2] // 2
        low, high = x[:, :, :half].amax((1, 2, 3)), x[:, :, half:].amax((1, 2, 3))
        return torch.stack([low, high], 1) / 10


@pytest.fixture(params=["log_mel", "perceptual_mel"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "audio": {"sample_rate": RATE, "channels": 1, "window_seconds": 1.0},
            "features": {"name": request.param, "n_fft": 1024, "hop_length": 320, "n_mels": 32},
        }
    )
    frontend = create_frontend(sample_rate=RATE, **recipe.features.model_dump())
    normalizer = BandNormalizer(1, 32)
    # Decibels, whatever the front end's units are.
    normalizer.std.copy_(frontend.decibel()[None, :, None])
    normalizer.mean.copy_(frontend(torch.zeros(1, 1, RATE)).mean((0, 3))[..., None])
    return Bundle(frontend, normalizer, Loud(), ("low", "high"), recipe)


def test_the_model_hears_the_part_and_misses_it_in_the_rest(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "two.wav"
    low, high = tone(300), 2 * tone(4000, 0.4, 0.6)
    soundfile.write(path, (low + high)[0], RATE, subtype="FLOAT")
    explained = explain_recording(bundle, path, label="high")
    found = audible_part(bundle, explained, 0.95)
    assert found.share_of_attribution >= 0.95
    assert found.mask.mean() < 0.05
    assert found.probability > 0.95 > explained.probability
    assert found.rest_probability < explained.probability
    assert level(found.rest, low) == pytest.approx(1, abs=0.01)
    assert abs(level(found.waveform, low)) < 0.03
    assert set(found.summary()) == {
        "share_of_attribution", "share_of_places", "probability", "rest_probability"
    }  # fmt: skip


def test_nothing_to_hear_is_said(bundle: Bundle, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    explained = explain_recording(bundle, tmp_path / "silent.wav")
    with pytest.raises(StapesError, match=r"silent\.wav: nothing in this window"):
        audible_part(bundle, explained)


def test_a_wave_file_of_16_bits(tmp_path: Path) -> None:
    x = np.stack([np.linspace(-1.5, 1.5, 301), np.zeros(301)]).astype(np.float32)
    write_sound(x, RATE, tmp_path / "deep" / "a.wav")
    found, rate = soundfile.read(tmp_path / "deep" / "a.wav", always_2d=True)
    assert rate == RATE
    np.testing.assert_allclose(found.T, x.clip(-1, 1), atol=1 / 32768)
    assert soundfile.info(tmp_path / "deep" / "a.wav").subtype == "PCM_16"
    with pytest.raises(StapesError, match=r"a\.mp3: .* must end in \.wav"):
        write_sound(x, RATE, tmp_path / "a.mp3")
    (tmp_path / "taken.wav").mkdir()
    with pytest.raises(StapesError, match="cannot write"):
        write_sound(x, RATE, tmp_path / "taken.wav")
