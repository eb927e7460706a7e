"""``stapes models``, and shipping one."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_catalogue import add_toy
from toy_run import LABELS, RATE, noise_of, toy_bundle, toy_run

import stapes
from stapes import catalogue
from stapes.bundle import load_bundle, save_bundle
from stapes.compression import half_precision
from stapes.errors import TRAINING_PACKAGES
from stapes.evaluation.card import make_card
from stapes.evaluation.describe import describe_model
from stapes.evaluation.metrics import score

ROOT = Path(__file__).resolve().parents[2]
Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = add_toy(tmp_path / "shipped")
    monkeypatch.setattr(catalogue, "SHIPPED", folder)
    return folder


def test_the_list(shipped: Path, stapes_command: Answer) -> None:
    add_toy(shipped, "other", score=None, licence="")
    status, out, complaints = stapes_command("models")
    assert (status, complaints) == (0, "")
    header, second, first = out.splitlines()
    assert header.split()[:2] == ["model", "classes"]
    size = f"{(shipped / 'signs-1kB.safetensors').stat().st_size:,}"
    for cell in ("2  the sign of the mean sample", "84.2 % (82.0 to 86.1)", f" {size} ", " 10.0 ",
                 "CC BY 3.0"):  # fmt: skip
        assert cell in first
    assert "not measured" in second
    assert second.endswith("not stated")
    trees = json.loads(stapes_command("models", "--format", "json")[1])
    assert [tree["name"] for tree in trees] == ["other", "signs-1kB"]


def test_the_card(shipped: Path, stapes_command: Answer) -> None:
    status, out, _ = stapes_command("models", "signs-1kB")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    text = " ".join(out.split())
    file = catalogue.shipped_model("signs-1kB")
    for words in (
        "2 classes: negative, positive",
        "not for Nothing that matters.",
        "84.2 % (82.0 to 86.1), 95 % interval over sources",
        "cross-validated over 5 folds, 2 seed(s), 2000 clips from 1300 sources",
        "2 model(s) resnet50, accuracy of each by itself 91.0 % to 92.0 %",
        "together: 95.0 % (94.0 to 96.0)",
        "trained on signs, 40 clips (CC BY 3.0) A. Author: Signs, 2020.",
        "taught by models of many (licence not stated)",
        "Somebody made the signs.",
        "1,234, 1,200 of them not zero",
        "5.0 million multiply-accumulates a window, 10.0 million a second of audio",
        "30 bins (100 to 900 Hz in the middle) x 40 frames (0.40 s)",
        f"signs-1kB.onnx: {file.size['onnx']:,} bytes, SHA-256 {file.sha256['onnx']}",
        "an int8 model cannot be trained further",
    ):
        assert words in text
    tree = json.loads(stapes_command("models", "signs-1kB", "--format", "json")[1])
    assert tree == json.loads((shipped / "signs-1kB.json").read_text())


def test_copies(shipped: Path, stapes_command: Answer, tmp_path: Path) -> None:
    out = tmp_path / "copies"
    status, told, _ = stapes_command("models", "signs-1kB", "--out", out)
    assert status == 0
    names = {"signs-1kB.onnx", "signs-1kB.safetensors", "signs-1kB.md"}
    assert {path.name for path in out.iterdir()} == names
    assert all(str(out / name) in told for name in names)
    for name in names - {"signs-1kB.md"}:
        assert (out / name).read_bytes() == (shipped / name).read_bytes()
    card = (out / "signs-1kB.md").read_text(encoding="utf-8")
    assert card.startswith("# signs-1kB\n\nthe sign of the mean sample\n\n## Hears\n\n")
    assert "## Data\n\n- trained on signs, 40 clips (CC BY 3.0)\n- A. Author" in card
    assert stapes_command("models", "signs-1kB", "--out", out)[0] == 0  # the same once more
    (out / "signs-1kB.onnx").write_bytes(b"mine")
    (out / "signs-1kB.md").unlink()
    status, _, complaints = stapes_command("models", "signs-1kB", "--out", out)
    assert status == 2
    assert "signs-1kB.onnx: is there already and is another file" in complaints
    assert (out / "signs-1kB.onnx").read_bytes() == b"mine"
    assert not (out / "signs-1kB.md").exists()  # all of it or nothing


def test_mistakes_are_one_sentence(shipped: Path, stapes_command: Answer, tmp_path: Path) -> None:
    (shipped / "signs-1kB.safetensors").write_bytes(b"damaged")
    (tmp_path / "file").touch()
    for arguments, words in (
        (("signs-1MB",), "Unknown shipped model 'signs-1MB'. Did you mean 'signs-1kB'? Known: sig"),
        (("--out", tmp_path / "x"), "--out goes with a name"),
        (("signs-1kB", "--out", tmp_path / "x"), "install stapes again"),
    ):
        status, out, complaints = stapes_command("models", *arguments)
        assert (status, out) == (2, "")
        assert complaints.startswith("Error: ")
        assert complaints.count("\n") == 1
        assert words in complaints
    assert not (tmp_path / "x").exists()
    add_toy(shipped)
    complaints = stapes_command("models", "signs-1kB", "--out", tmp_path / "file")[2]
    assert "file: is a file; name a folder" in complaints


def test_the_light_install(shipped: Path, tmp_path: Path) -> None:
    blocked = sorted(TRAINING_PACKAGES - {"pydantic", "rich"})
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"from pathlib import Path\nfrom stapes import catalogue\n"
        f"catalogue.SHIPPED = Path({str(shipped)!r})\n"
        "from stapes.cli import main\nsys.argv[0] = 'stapes'\nmain()\n"
    )
    for arguments, words in (
        (["models"], "84.2 %"),
        (["models", "signs-1kB", "-o", str(tmp_path / "out")], "signs-1kB.md"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, env=dict(os.environ),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert words in done.stdout


# --- results/ship.py --------------------------------------------------------------------------

WORDS = ["--description", "three noises", "--intended-use", "Tests.", "--limits", "All else."]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds, and a model trained on everything with their score."""
    run = toy_run(tmp_path_factory.mktemp("ship"))
    shutil.copytree(run / "1", run / "2")
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    raw = rng.random((60, 3)) + 0.8 * np.eye(3)[targets]
    found = score(raw / raw.sum(1, keepdims=True), targets, np.arange(60) // 3, LABELS)
    data = {"name": "noises", "train_clips": 30, "licence": "CC0-1.0", "citation": "Nobody."}
    elsewhere = {"name": "many", "licence": "CC BY-NC 3.0", "citation": "Others."}
    facts = {
        "score": None, "cross_validated_score": found.to_json(), "cross_validated_seeds": 2,
        "data": data, "command": "stapes train noises/ --folds 2", "versions": {"stapes": "0"},
        "teachers": [
            {"network": "resnet50", "sha256": "1" * 64, "split": "1", "seed": 0,
             "score": {"value": 0.9, "low": 0.8, "high": 1.0}, "data": data,
             "origin": {"weights": "model", "sha256": "2" * 64, "data": elsewhere}},
        ],
    }  # fmt: skip
    bundle = toy_bundle()
    bundle = replace(
        bundle, network=half_precision(bundle.network), precision="float16", metadata=facts
    )
    save_bundle(bundle, run / "model.safetensors")
    metrics = {"pooled": found.to_json(), "folds": {"1": {}, "2": {}}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


def ship(*arguments: object) -> None:
    runpy.run_path(str(ROOT / "results" / "ship.py"))["main"](list(map(str, arguments)))


def test_a_run_becomes_a_shipped_model(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stapes_command: Answer
) -> None:
    folder = tmp_path / "shipped"
    ship("noises-2kB", run_folder, *WORDS, "--start", "--note", "Made up.", "--folder", folder,
         "--attribution", "Thanks.", "--teacher-run", run_folder)  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {
        "noises-2kB.safetensors", "noises-2kB.onnx", "noises-2kB.json",
    }  # fmt: skip
    monkeypatch.setattr(catalogue, "SHIPPED", folder)
    (model,) = catalogue.starting_models()
    bundle = load_bundle(run_folder)
    facts: Any = model.facts
    ours, theirs = (
        load_bundle(path) for path in (model.file("safetensors"), run_folder / "model.safetensors")
    )
    for name, tensor in theirs.network.state_dict().items():
        assert torch.equal(ours.network.state_dict()[name], tensor)
    kept, given = (m.metadata["cross_validated_score"] for m in (ours, theirs))
    assert kept["accuracy"] == given["accuracy"]
    assert (kept["per_class"], kept["confusion"]) == ([], []), "tables take kilobytes"
    assert given["per_class"]
    assert facts["labels"] == list(LABELS)
    stated = bundle.metadata["cross_validated_score"]
    assert facts["score"] == {
        "accuracy": stated["accuracy"], "level": 0.95, "kind": "cross-validated", "folds": 2,
        "seeds": 2, "n_clips": 30, "n_groups": 20, "note": "Made up.",
    }  # fmt: skip
    assert facts["teacher_score"]["accuracy"] == stated["accuracy"]
    assert [(e["role"], e["name"], e["licence"]) for e in facts["data"]] == [
        ("trained on", "noises", "CC0-1.0"),
        ("taught by models of", "noises", "CC0-1.0"),
        ("started from a model of", "many", "CC BY-NC 3.0"),
    ]
    assert facts["licence"] == "CC0-1.0, CC BY-NC 3.0"
    summary = describe_model(bundle)
    assert facts["model"]["parameters"] == summary.parameters
    assert facts["model"]["macs_per_window"] == round(summary.macs_per_second / 2)
    # The files answer alike, and the card can be read.
    noise = noise_of(1)
    answers = [
        stapes.load(name).classify(noise, RATE).probabilities for name in ("noises-2kB", run_folder)
    ]
    np.testing.assert_allclose(*answers, atol=1e-5)
    status, out, _ = stapes_command("models", "noises-2kB")
    assert status == 0
    text = " ".join(out.split())
    assert "small data start from it unless told otherwise" in text
    assert "1 model(s) resnet50, accuracy of each by itself 90.0 % to 90.0 %" in text
    status, out, _ = stapes_command("inspect", "noises-2kB")
    assert f"({model.size['safetensors']:,} bytes, weights in float16)" in out


def test_what_cannot_be_shipped(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "big.onnx").write_bytes(bytes(1_999_000))
    for arguments, words in (
        (("big/../x", run_folder), "a name has letters"),
        (("noises", run_folder), "more than 2,000,000"),
        (("noises", tmp_path), r"model\.safetensors: missing"),
    ):
        with pytest.raises(SystemExit, match=words):
            ship(*arguments, *WORDS, "--folder", folder)
    assert [path.name for path in folder.iterdir()] == ["big.onnx"]


def test_training_cannot_start_from_an_int8_model(tmp_path: Path) -> None:
    from stapes.deploy.export import in_eight_bits

    bundle = toy_bundle()
    windows = np.stack([noise_of(seed) for seed in range(4)])
    save_bundle(in_eight_bits(bundle, windows), tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match="training cannot start from this model"):
        ship("small", tmp_path, *WORDS, "--start", "--folder", tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_a_card_says_what_is_not_known(run_folder: Path) -> None:
    card = make_card(
        run_folder / "1" / "seed-0", name="x", description="d", intended_use="i", limits="l"
    )
    assert (card["score"], card["teacher_score"], card["licence"]) == (None, None, "")
    assert (card["start"], card["teachers"], card["data"]) == (False, [], [])
