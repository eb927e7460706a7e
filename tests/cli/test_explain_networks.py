"""``stapes explain --weight-change`` and ``--similarity`` as a user types them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import stapes
from stapes.bundle import load_bundle, save_bundle
from stapes.cli.app import app
from stapes.errors import StapesError
from stapes.models import create_model

HITS = Path(__file__).resolve().parents[2] / "examples" / "drum-hits"
SMALL = ["training.epochs=1", "model.width=4", "model.blocks=[2, 0, 0]", "model.rho=3",
         "features.n_mels=48", "audio.window_seconds=0.5"]  # fmt: skip


def run(*arguments: str | Path, status: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    result = CliRunner().invoke(app, ["explain", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all models of this file lie."""
    return tmp_path_factory.mktemp("models")


def trained(folder: Path, name: str, *overrides: str, seed: int = 0) -> Path:
    return stapes.train(
        HITS, overrides=[*SMALL, *overrides], out=folder / name, seed=seed, cache=folder / "cache"
    ).model


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A quickly trained model of drum hits, in its run folder."""
    return trained(folder, "model", seed=3)


@pytest.fixture(scope="module")
def hardly(folder: Path) -> Path:
    """The same with a rate that moves nothing."""
    return trained(folder, "hardly", "training.learning_rate=1e-12", seed=3)


def layers(text: str) -> dict[str, dict[str, float]]:
    return {layer["name"]: layer for layer in json.loads(text)["layers"]}


def test_training_that_moves_nothing_ends_where_it_started(
    model: Path, hardly: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "change.png"
    still = layers(run("--weight-change", hardly, "-o", out, "--format", "json")[0])
    assert max(x["mean_absolute"] for x in still.values()) < 1e-7
    moved = layers(run("--weight-change", model, "-o", out, "--format", "json")[0])
    assert moved.keys() == still.keys()
    assert min(x["mean_absolute"] for x in moved.values()) > 1e-5
    # So the one is as far from the other as from its own start.
    other = layers(
        run("--weight-change", model, "--against", hardly, "-o", out, "--format", "json")[0]
    )
    for name, layer in other.items():
        assert layer["mean_absolute"] == pytest.approx(moved[name]["mean_absolute"], abs=1e-6)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_random_weights_are_others_for_every_seed(model: Path, tmp_path: Path) -> None:
    found = [
        run("--weight-change", model, "--against", "random", "--seed", seed, "-o",
            tmp_path / "a.svg", "--format", "json")[0]
        for seed in (0, 0, 3)
    ]  # fmt: skip
    assert found[0] == found[1] != found[2]
    for text in found:  # unrelated weights, that of the run's own seed included
        kernels = [x for x in layers(text).values() if x["kind"] == "convolution"]
        assert max(abs(x["cosine"]) for x in kernels if x["parameters"] >= 100) < 0.3


def test_weight_change_says_where_and_what_was_left_out(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = trained(folder, "wider", "model.blocks=[2, 1, 0]")
    text, _ = run("--weight-change", other, "--against", model.parent)
    assert (tmp_path / "weight-change.png").is_file()
    for word in ("stem", "stage1.block1", "head", "cosine", "picture  weight-change.png"):
        assert word in text, text
    assert "left out: stage2.block1.conv1: only in the second network" in text


def test_a_model_against_itself_and_its_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = shutil.copy(model, tmp_path / "copy.safetensors")
    tree = json.loads(
        run("--similarity", model, "--against", again, "--against", "start", "--most", 20,
            "--format", "json")[0]
    )  # fmt: skip
    assert [(p["first"], p["second"]) for p in tree["pairs"]] == [
        ("model", str(again)), ("model", "start"), (str(again), "start")
    ]  # fmt: skip
    assert tree["n_recordings"] == 20
    assert (tmp_path / tree["picture"]).name == "similarity.png"
    same, moved, _ = tree["pairs"]
    for k in range(len(tree["networks"]["model"]["blocks"])):
        for measure in ("svcca", "linear_cka"):
            assert same[measure][k][k] == pytest.approx(1, abs=1e-6)
    assert moved["linear_cka"][-1][-1] < 0.999
    text, _ = run("--similarity", model, HITS / "audio", "--most", 5)
    for word in ("5 recordings", "model and start", "stage1.block2", "by chance", "SVCCA is up to"):
        assert word in text, text
    assert "random" not in text  # that is what it started from


def test_networks_of_another_kind(model: Path, tmp_path: Path) -> None:
    bundle = load_bundle(model)
    image = create_model(
        "timm", n_classes=len(bundle.labels), in_channels=1, architecture="resnet10t"
    )
    save_bundle(replace(bundle, network=image.eval()), tmp_path / "image.safetensors")
    text, _ = run("--similarity", model, "--against", tmp_path / "image.safetensors",
                  "--most", 4, "-o", tmp_path / "a.png")  # fmt: skip
    assert "stem and body." in text
    with pytest.raises(StapesError, match="No layer is in both networks"):
        run("--weight-change", model, "--against", tmp_path / "image.safetensors")


def test_image_weights_that_training_started_from(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = create_model("timm", n_classes=7, architecture="resnet10t").body
    weights = folder / "image.safetensors"
    save_file(source.state_dict(), weights)
    base = ["model.name=timm", "model.architecture=resnet10t", "model.blocks=none",
            "training.epochs=1", "features.n_mels=48", "audio.window_seconds=0.5",
            "training.learning_rate=1e-12", "initialization.weights=imagenet",
            f"initialization.file={weights}"]  # fmt: skip
    half = stapes.train(
        HITS, overrides=[*base, "initialization.blocks=2"], out=folder / "half",
        cache=folder / "cache",
    ).model  # fmt: skip
    asked = ("--weight-change", half, "-o", tmp_path / "a.png", "--format", "json")
    start = layers(run(*asked)[0])
    assert max(x["mean_absolute"] for x in start.values()) < 1e-7
    image = layers(run(*asked, "--against", "imagenet")[0])
    blocks = [image[name]["relative"] for name in ("body.conv1.0", "body.layer1.0.conv1")]
    assert blocks == pytest.approx([0, 0], abs=1e-6)
    assert image["body.layer2.0.conv1"]["relative"] > 1  # drawn, not taken
    pairs = json.loads(
        run("--similarity", half, "--most", 3, "-o", tmp_path / "a.png", "--format", "json")[0]
    )["pairs"]
    assert [(p["first"], p["second"]) for p in pairs] == [
        ("model", "start"), ("model", "random"), ("start", "random")
    ]  # fmt: skip


def test_a_bad_recording_is_named_and_the_rest_used(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    for number, hit in enumerate(sorted((HITS / "audio").rglob("*.ogg"))[:3]):
        shutil.copy(hit, tmp_path / f"{number}.ogg")
    text, errors = run("--similarity", model, tmp_path, "-o", tmp_path / "a.png", status=1)
    assert "3 recordings" in text
    assert "bad.wav" in errors


def test_wrong_use_is_a_clear_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StapesError, match="--against does not go with --receptive-field"):
        run("--receptive-field", model, "--against", "random")
    with pytest.raises(StapesError, match="--most does not go with --weight-change"):
        run("--weight-change", model, "--most", 5)
    with pytest.raises(StapesError, match="RECORDINGS does not go with --weight-change"):
        run("--weight-change", model, HITS)
    with pytest.raises(StapesError, match="give --against once"):
        run("--weight-change", model, "--against", "start", "--against", "random")
    with pytest.raises(StapesError, match="ask for one at a time"):
        run("--weight-change", "--similarity", model)
    with pytest.raises(StapesError, match=r"nowhere\.safetensors"):
        run("--weight-change", model, "--against", tmp_path / "nowhere.safetensors")
    with pytest.raises(StapesError, match="only networks of timm"):
        run("--weight-change", model, "--against", "imagenet")
    bundle = load_bundle(model)
    facts = {key: value for key, value in bundle.metadata.items() if key != "seed"}
    save_bundle(replace(bundle, metadata=facts), tmp_path / "seedless.safetensors")
    with pytest.raises(StapesError, match="does not say which seed"):
        run("--weight-change", tmp_path / "seedless.safetensors")
    with pytest.raises(StapesError, match="two or more recordings"):
        run("--similarity", model, sorted((HITS / "audio").rglob("*.ogg"))[0])
    assert not list(tmp_path.glob("*.png"))
