"""Shipped models: found by name, checked on use, and as their cards say."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_catalogue import add_toy
from toy_onnx import RATE, toy_model
from toy_run import toy_bundle, toy_run

import stapes
from stapes import catalogue, runtime
from stapes.bundle import load_bundle, save_bundle
from stapes.catalogue import (
    find_model,
    nearest_start,
    shipped_model,
    shipped_models,
    starting_models,
)
from stapes.errors import TRAINING_PACKAGES, ModelFileError, UnknownNameError

REAL = catalogue.SHIPPED


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue with the model signs-1kB, the working directory beside it."""
    folder = add_toy(tmp_path / "shipped")
    monkeypatch.setattr(catalogue, "SHIPPED", folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def _with_trained(folder: Path, name: str = "toy") -> Path:
    """Ship the toy CP-ResNet too, and give its file."""
    add_toy(folder, name)
    path = folder / f"{name}.safetensors"
    save_bundle(toy_bundle(), path)
    card = json.loads((folder / f"{name}.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card["files"][path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    (folder / f"{name}.json").write_text(json.dumps(card))
    return path


def test_a_name_stands_for_its_files(shipped: Path) -> None:
    assert find_model("signs-1kB", "onnx") == shipped / "signs-1kB.onnx"
    assert find_model(Path("signs-1kB"), "safetensors") == shipped / "signs-1kB.safetensors"
    model = shipped_model("signs-1kB")
    assert shipped_models() == [model]
    assert model.size == {kind: file.stat().st_size for kind, file in model.files.items()}
    assert set(model.files) == {"onnx", "safetensors"}
    for load in (stapes.load, runtime.load):
        assert load("signs-1kB").labels == ("negative", "positive")


@pytest.mark.parametrize("made", [Path.mkdir, Path.touch])
def test_what_exists_wins(shipped: Path, made: Callable[[Path], None]) -> None:
    made(Path("signs-1kB"))
    assert find_model("signs-1kB", "onnx") == Path("signs-1kB")
    with pytest.raises(ModelFileError):
        runtime.load("signs-1kB")


def test_an_unknown_name_says_which_there_are(shipped: Path) -> None:
    add_toy(shipped, "drum-hits")
    for use in (stapes.load, runtime.load, load_bundle):
        with pytest.raises(UnknownNameError) as caught:
            use("signs-1KB")
        assert str(caught.value) == (
            "Unknown model file, run folder or shipped model 'signs-1KB'. Did you mean "
            "'signs-1kB'? Known: drum-hits, signs-1kB."
        )


@pytest.mark.parametrize("path", ["absent.onnx", "folder/signs-1kB", "signs-1kB.safetensors"])
def test_what_looks_like_a_path_gets_the_error_of_a_path(shipped: Path, path: str) -> None:
    assert find_model(path, "onnx") == Path(path)
    with pytest.raises(ModelFileError, match="cannot read"):
        runtime.load(path)


def test_a_damaged_package_is_one_sentence(shipped: Path) -> None:
    file = shipped / "signs-1kB.onnx"
    other = toy_model(header={"card": {}})  # intact in itself, but not the one of the card
    file.write_bytes(other)
    with pytest.raises(ModelFileError, match=r"not the file that the model card of 'signs-1kB'"):
        stapes.load("signs-1kB")
    file.unlink()
    with pytest.raises(ModelFileError, match="install stapes again"):
        stapes.load("signs-1kB")
    for text in ("{", "[]", json.dumps({"files": {}})):
        (shipped / "signs-1kB.json").write_text(text)
        with pytest.raises(ModelFileError, match=r"signs-1kB\.json: damaged model card \(.+\); "):
            shipped_models()


def test_a_trained_model_by_name(shipped: Path) -> None:
    path = _with_trained(shipped)
    named, given = load_bundle("toy"), load_bundle(path)
    assert named.labels == given.labels
    noise = np.random.default_rng(0).standard_normal((1, 4000)).astype(np.float32)
    answers = [stapes.Classifier(bundle).classify(noise, RATE) for bundle in (named, given)]
    np.testing.assert_array_equal(*(answer.probabilities for answer in answers))


def test_evaluate_and_export_by_name(shipped: Path, tmp_path: Path) -> None:
    path = _with_trained(shipped)
    run = toy_run(tmp_path)
    table = run / "1" / "seed-0" / "test.csv"
    scores = [stapes.evaluate(model, table).score for model in ("toy", path)]
    assert scores[0].to_json() == scores[1].to_json()
    made = stapes.export("toy", "onnx")
    assert made.path == Path("toy.onnx")  # beside nothing: here
    assert "made-up" in made.replayed
    assert runtime.load("toy.onnx").labels == load_bundle("toy").labels


def test_training_starts_from_a_name(shipped: Path, tmp_path: Path) -> None:
    path = _with_trained(shipped)
    run = toy_run(tmp_path)
    result = stapes.train(
        run / "clips.csv", init="toy", overrides=["training.epochs=1"], out=tmp_path / "out",
        test_fraction=0.4,
    )  # fmt: skip
    start = load_bundle(result.model).recipe.initialization
    assert (start.weights, start.file) == ("model", "toy")  # and no path of this machine
    assert start.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_models_that_training_may_start_from(shipped: Path) -> None:
    assert starting_models() == []
    assert nearest_start(8000) is None
    audio = {"sample_rate": 8000, "channels": 1, "window_seconds": 1.0}
    add_toy(shipped, "speech", start=True, audio=audio)
    add_toy(shipped, "street", start=True,
            audio={**audio, "sample_rate": 22050, "window_seconds": 5.0})  # fmt: skip
    add_toy(shipped, "hits", start=True, audio={**audio, "sample_rate": 22050},
            data=[{"name": "drums", "role": "trained on"}])  # fmt: skip
    assert [model.name for model in starting_models()] == ["hits", "speech", "street"]

    def name(*given: float, data: str = "") -> str:
        model = nearest_start(*given, data=data)  # type: ignore[arg-type]
        assert model is not None
        return model.name

    assert name(11025) == "speech"
    assert name(44100, 4.0) == "street"
    assert name(44100, 0.5) == "hits"
    assert name(44100, data="drums") == "street"  # it may have heard the test
    assert name(44100) == "hits"  # equally near and large: by name
    add_toy(shipped, "big", start=True, audio={**audio, "sample_rate": 22050})
    card = json.loads((shipped / "big.json").read_text())
    card["files"]["big.safetensors"]["bytes"] = 10_000
    (shipped / "big.json").write_text(json.dumps(card))
    assert name(44100) == "big"


def test_the_light_install_predicts_by_name(shipped: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(RATE, 0.5, np.float32), RATE, subtype="FLOAT")
    blocked = sorted({*TRAINING_PACKAGES, "typer", "click"})
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from pathlib import Path\nimport stapes\nfrom stapes import catalogue, runtime\n"
        f"catalogue.SHIPPED = Path({str(shipped)!r})\n"
        f"print(stapes.load('signs-1kB').classify({str(tmp_path / 'a.wav')!r}).label)\n"
        "print(*runtime.load('signs-1kB').labels)\n"
        "print(*[model.name for model in catalogue.shipped_models()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["positive", "negative positive", "signs-1kB"]


def test_what_is_shipped_is_whole_and_small() -> None:
    """Of the package itself: every file is of a model, as its card says, within two megabytes."""
    files = [p for p in REAL.iterdir() if p.suffix in (".safetensors", ".onnx", ".json")]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    assert {path.stem for path in files} == {model.name for model in shipped_models()}
    for model in shipped_models():
        for kind, path in model.files.items():
            assert model.file(kind) == path
            assert path.stat().st_size == model.size[kind]
        exported = runtime.load(model.name)
        assert list(exported.labels) == model.facts["labels"]
        assert load_bundle(model.name).labels == exported.labels
        for question in ("description", "intended_use", "limits", "licence", "score", "data"):
            assert model.facts[question], question
