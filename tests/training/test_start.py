"""What training starts from where nobody says: the nearest shipped model, if recordings are few."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hits import write_few_hits
from toy_catalogue import add_toy
from toy_run import RATE, WINDOW, toy_bundle

import stapes
from stapes import catalogue
from stapes.bundle import save_bundle
from stapes.config import load_recipe
from stapes.data import load_dataset
from stapes.training.start import (
    FEW_CLIPS,
    SHORTEST_WINDOW,
    default_start,
    leaves_start_open,
    start_settings,
)

SHORT = ("training.epochs=1", "training.batch_size=16")


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few_hits(tmp_path_factory.mktemp("hits"))


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of one model that training may start from."""
    facts: dict[str, Any] = {
        "start": True,
        "audio": {"sample_rate": RATE, "channels": 1, "window_seconds": WINDOW},
    }
    folder = add_toy(tmp_path / "shipped", "noises", **facts)
    path = folder / "noises.safetensors"
    save_bundle(toy_bundle(), path)
    card = json.loads((folder / "noises.json").read_text())
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    card["files"][path.name] = {"bytes": len(content), "sha256": digest}
    (folder / "noises.json").write_text(json.dumps(card))
    monkeypatch.setattr(catalogue, "SHIPPED", folder)
    return folder


def test_few_recordings_start_from_the_shipped_model(
    hits: Path, shipped: Path, tmp_path: Path
) -> None:
    result = stapes.train(hits, overrides=SHORT, out=tmp_path / "run", cache=tmp_path / "cache")
    given = toy_bundle().recipe
    assert result.recipe.initialization.file == "noises"
    assert result.recipe.name == "finetune"
    assert (result.recipe.features, result.recipe.model) == (given.features, given.model)
    assert result.recipe.audio.sample_rate == RATE
    assert result.recipe.audio.window_seconds != WINDOW, "of the recordings, not of the model"
    assert any("noises" in note and "CC BY 3.0" in note for note in result.notes)
    origin = stapes.load_bundle(result.model).metadata["origin"]
    assert origin["sha256"] == catalogue.shipped_model("noises").sha256["safetensors"]


@pytest.mark.parametrize(
    "how",
    [
        {"init": "none"},
        {"init": None},
        {"recipe": "small"},
        {"overrides": ("model.width=4",)},
        {"overrides": ("initialization.weights=random",)},
    ],
)
def test_whoever_says_what_to_train_gets_that(
    how: dict[str, Any], hits: Path, shipped: Path, tmp_path: Path
) -> None:
    overrides = (*how.get("overrides", ()), "audio.window_seconds=0.3", *SHORT)
    how = {key: value for key, value in how.items() if key != "overrides"}
    result = stapes.train(
        hits, overrides=overrides, out=tmp_path / "run", cache=tmp_path / "cache", **how
    )
    assert result.recipe.initialization.weights == "random"
    assert not any("noises" in note for note in result.notes)


def test_many_recordings_and_those_that_were_heard_start_anew(hits: Path, shipped: Path) -> None:
    dataset = load_dataset(hits)
    found = default_start(dataset)
    assert found is not None
    assert found.name == "noises"
    many = replace(dataset, clips=(dataset.clips * FEW_CLIPS)[: FEW_CLIPS + 1])
    assert default_start(many) is None
    assert default_start(many.subset(range(FEW_CLIPS))) is not None
    card = json.loads((shipped / "noises.json").read_text())
    card["data"][0]["name"] = "esc50"
    (shipped / "noises.json").write_text(json.dumps(card))
    for name in ("esc50", "esc10"):  # one is a part of the other
        assert default_start(replace(dataset, name=name)) is None
    assert default_start(replace(dataset, name="fsdd")) is not None


def test_recordings_that_cannot_be_read_choose_nothing(
    hits: Path, shipped: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(hits)
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    clips = tuple(replace(clip, path=bad) for clip in dataset.clips)
    assert default_start(replace(dataset, clips=clips)) is None


def test_what_leaves_the_start_open() -> None:
    assert leaves_start_open(())
    assert leaves_start_open(("training.epochs=3", "audio.window_seconds=1", "augment.gain_db=3"))
    for said in ("model.rho=3", "audio.sample_rate=8000", "initialization.weights=imagenet"):
        assert not leaves_start_open(("training.epochs=3", said))


@pytest.mark.parametrize(("n_clips", "epochs"), [(5, 30), (300, 20), (600, 12), (6000, 12)])
def test_fewer_recordings_are_heard_more_often(n_clips: int, epochs: int, hits: Path) -> None:
    dataset = load_dataset(hits)
    many = replace(dataset, clips=(dataset.clips * 6000)[:n_clips])
    recipe = load_recipe("finetune", start_settings(many))
    assert recipe.training.epochs == epochs


def test_windows_are_as_long_as_shipped_networks_need(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(4):
            noise = np.random.default_rng(i).standard_normal(2400) / 9
            soundfile.write(tmp_path / label / f"{i}.wav", noise, 16_000)
    dataset = load_dataset(tmp_path)
    assert f"audio.window_seconds={SHORTEST_WINDOW}" in start_settings(dataset)
    starts = catalogue.starting_models()
    assert starts, "the package has one"
    for start in starts:
        bundle = stapes.load_bundle(start.name)
        frames = bundle.frontend.n_frames(round(SHORTEST_WINDOW * bundle.audio.sample_rate))
        assert frames >= bundle.network.min_input_size
    result = stapes.train(
        dataset, overrides=["training.epochs=1"], out=tmp_path / "run", cache=tmp_path / "cache"
    )
    assert result.recipe.audio.window_seconds == SHORTEST_WINDOW
