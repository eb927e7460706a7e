"""Training on variants of other devices, whose impulse responses the user gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hits import write_few_hits

import stapes
from stapes.config import load_recipe
from stapes.data.loader import FeatureStore, WithVariants
from stapes.errors import ConfigError, StapesError
from stapes.training.finished import quantize_run

TINY = (
    "training.epochs=2", "model.width=4", "model.blocks=[2, 0, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5", "training.batch_size=16", "augment.mixup_alpha=0",
    "augment.waveform_variants=2", "augment.freq_mixstyle_probability=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few_hits(tmp_path_factory.mktemp("hits"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _devices(folder: Path, *seeds: int) -> Path:
    folder.mkdir()
    for seed in seeds:
        taps = np.random.default_rng(seed).standard_normal(300) * np.exp(-np.arange(300) / 30)
        soundfile.write(folder / f"{seed}.wav", 0.1 * taps, 16_000, "FLOAT")
    return folder


def _train(hits: Path, devices: Path, out: Path, cache: Path, *more: str) -> Any:
    chosen = f"augment.impulse_responses={devices}"
    return stapes.train(hits, overrides=[*TINY, chosen, *more], out=out, cache=cache)


def test_a_run_keeps_to_its_devices_wherever_they_lie(
    hits: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, out = _devices(tmp_path / "devices", 1, 2), tmp_path / "run"
    varied: set[int] = set()
    calls = 0
    variant, take = FeatureStore.variant, WithVariants.take

    def watched(self: FeatureStore, index: int, *rest: Any) -> Any:
        varied.add(index)
        return variant(self, index, *rest)

    def killed(self: WithVariants, indices: Any, windows: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return take(self, indices, windows)

    monkeypatch.setattr(FeatureStore, "variant", watched)
    monkeypatch.setattr(WithVariants, "take", killed)
    monkeypatch.setattr("stapes.training.loop._SAVE_SECONDS", 0.0)
    monkeypatch.setattr("stapes.training.loop._SAVE_STEPS", 1)
    with pytest.raises(KeyboardInterrupt):
        _train(hits, devices, out, cache)
    written = (out / "plan.json").read_bytes()
    # Gone on with from another place, with other names.
    moved = _devices(tmp_path / "moved", 2, 1)
    for path in devices.iterdir():
        path.unlink()
    found = _train(hits, moved, out, cache)
    assert (out / "plan.json").read_bytes() == written
    split, steps = found.members[0].split, found.members[0].history[-1]["epoch"]
    batches = -(-len(split.train) // 16)
    assert calls == 1 + steps * batches, "no step twice but the one that was stopped"
    assert varied
    assert varied <= set(split.train.tolist())
    kept = load_recipe(out / "recipe.toml").augment
    assert kept.impulse_responses == str(moved)
    assert kept.impulse_responses_sha256 is not None
    assert found.members[0].bundle.recipe.augment == kept

    others = _devices(tmp_path / "others", 1, 3)
    with pytest.raises(StapesError, match="holds a run with other data, recipe"):
        _train(hits, others, out, cache)
    pinned = f"augment.impulse_responses_sha256={kept.impulse_responses_sha256}"
    with pytest.raises(ConfigError, match="not the impulse responses that"):
        _train(hits, others, tmp_path / "other", cache, pinned)

    # The finished run needs them no more.
    for path in moved.iterdir():
        path.unlink()
    half = quantize_run(out, "float16", out=tmp_path / "half", cache=cache)
    assert half.recipe.augment == kept


def test_devices_that_cannot_be_read_are_said_before_any_work(
    hits: Path, cache: Path, tmp_path: Path
) -> None:
    devices = _devices(tmp_path / "devices", 1)
    (devices / "broken.wav").write_text("no sound")
    with pytest.raises(ConfigError, match=r"^augment\.impulse_responses: .*broken\.wav: "):
        _train(hits, devices, tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()
