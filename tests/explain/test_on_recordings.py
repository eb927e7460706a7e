"""From recordings to the field of a model: the same chain as a prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from stapes.bundle import Bundle
from stapes.config import Recipe
from stapes.data import Clip
from stapes.errors import AudioError, DataError
from stapes.explain import (
    effective_receptive_field,
    receptive_field_on_recordings,
    without_damping,
)
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model

RATE, WINDOW = 8000, 8000


@pytest.fixture
def bundle() -> Bundle:
    """A damped model with a normalisation that matters."""
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "audio": {"sample_rate": RATE, "channels": 1, "window_seconds": WINDOW / RATE},
            "features": {"name": "log_mel", "n_fft": 512, "hop_length": 128, "n_mels": 40},
        }
    )
    torch.manual_seed(0)
    network = create_model("cp_resnet", n_classes=2, rho=3, width=8, blocks=[2, 0, 0], damping=0.2)
    frontend = create_frontend(sample_rate=RATE, **recipe.features.model_dump())
    normalizer = BandNormalizer(1, 40)
    rng = np.random.default_rng(0)
    normalizer.fit(rng.normal(-40, rng.uniform(1, 30, (40, 1)), (8, 1, 40, 63)))
    return Bundle(frontend, normalizer, network, ("a", "b"), recipe)


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(1)
    paths = [tmp_path / f"{i}.wav" for i in range(3)]
    for path, length in zip(paths, (WINDOW, 3 * WINDOW, WINDOW // 2), strict=True):
        soundfile.write(path, rng.normal(0, 0.1, length).astype(np.float32), RATE, subtype="FLOAT")
    return paths


def spectrograms(bundle: Bundle, waveforms: list[np.ndarray]) -> torch.Tensor:
    x = torch.from_numpy(np.stack(waveforms)[:, None])
    with torch.no_grad():
        return bundle.normalizer(bundle.frontend(x))


def test_same_as_the_chain_by_hand(bundle: Bundle, sounds: list[Path]) -> None:
    whole, long, short = (soundfile.read(path, dtype="float32")[0] for path in sounds)
    middle = long[WINDOW : 2 * WINDOW]
    segment = long[:WINDOW]
    repeated = np.pad(short, (0, WINDOW - len(short)))
    x = spectrograms(bundle, [whole, middle, segment, repeated])
    clips = [sounds[0], sounds[1], Clip(sounds[1], "a", end=1.0), str(sounds[2])]
    assert bundle.recipe.audio.shorter == "pad"
    found = receptive_field_on_recordings(bundle, clips, probes=2, seed=5)
    after = effective_receptive_field(bundle.network, x, probes=2, seed=5)
    before = effective_receptive_field(without_damping(bundle.network), x, probes=2, seed=5)
    np.testing.assert_allclose(found.field.energy, after.energy, rtol=1e-4, atol=1e-9)
    assert found.undamped is not None
    np.testing.assert_allclose(found.undamped.energy, before.energy, rtol=1e-4, atol=1e-9)
    assert found.damping == 0.2
    assert found.frame_rate == RATE / 128
    np.testing.assert_array_equal(found.frequencies, bundle.frontend.band_frequencies())


def test_an_undamped_model_has_one_map(bundle: Bundle, sounds: list[Path]) -> None:
    settings = {**bundle.network.settings(), "damping": None}
    plain = replace(bundle, network=create_model(**settings))
    found = receptive_field_on_recordings(plain, sounds)
    assert found.undamped is None
    assert found.damping is None
    assert found.field.n_clips == 3


def test_what_cannot_be_read_is_told_or_raised(bundle: Bundle, sounds: list[Path]) -> None:
    bad = sounds[0].with_name("bad.wav")
    bad.write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"bad\.wav"):
        receptive_field_on_recordings(bundle, [sounds[0], bad])
    told: list[AudioError] = []
    found = receptive_field_on_recordings(bundle, [bad, *sounds], unreadable=told.append)
    assert found.field.n_clips == 3
    assert [error.path for error in told] == [bad]
    with pytest.raises(DataError, match="No recording"):
        receptive_field_on_recordings(bundle, [bad], unreadable=told.append)


def test_progress_counts_both_measurements(bundle: Bundle, sounds: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    receptive_field_on_recordings(
        bundle, sounds * 2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(done, 12) for done in (4, 6, 10, 12)]
