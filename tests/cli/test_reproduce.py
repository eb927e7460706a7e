"""``stapes reproduce`` as a user types it, on made-up scenes in the official layout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from scene_tree import write_scenes

from stapes.models.imagenet import image_network

TINY = ("model.width=8", "training.epochs=1", "audio.window_seconds=0.5", "features.hop_length=200")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stapes", "reproduce", *map(str, arguments)],
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip


def test_the_table_from_the_official_layout(tmp_path: Path) -> None:
    tree = write_scenes(tmp_path / "tree", "dcase2020b")
    given = ["--data", tree, "--corpus", "dcase2020b", "--quick", "--out", tmp_path / "out"]
    for override in TINY:
        given += ["--set", override]
    done = run("koutini2020", "table1", *given)
    assert done.returncode == 0, done.stderr
    for words in (
        "koutini2020, Table 1", "1061.6K", "97.26 %", "damped, decomposed Z = 4", "width 128 -> 8",
        "epochs 350 -> 1", "table1.csv",
    ):  # fmt: skip
        assert words in done.stdout
    assert "5 of 5, damped, decomposed Z = 4, rho 3" in done.stderr
    assert "stapes reproduce koutini2020 table1 --data" in (tmp_path / "out/table1.md").read_text()
    again = run("koutini2020", "table1", "figure4", "--rho", "3", *given)
    assert again.returncode == 2
    assert "table1 has one rho" in again.stderr
    shared = run("koutini2020", "figure4", "--rho", "3", *given)
    assert shared.returncode == 0, shared.stderr
    assert "2 of 2 points are trained." in shared.stderr
    assert "epoch" not in shared.stderr
    assert (tmp_path / "out" / "figure4.svg").is_file()


def test_networks_and_weights_are_given_in_turn(tmp_path: Path) -> None:
    tree = write_scenes(tmp_path / "tree", "dcase2020b")
    given: list[str | Path] = []
    for network in ("test_resnet", "test_efficientnet"):
        body = image_network(n_classes=7, in_channels=3, architecture=network).body
        save_file(body.state_dict(), tmp_path / f"{network}.safetensors")
        given += ["--network", network, "--weights", tmp_path / f"{network}.safetensors"]
    given += ["--data", tree, "--corpus", "dcase2020b", "--quick", "--epochs", "1"]
    given += ["--out", tmp_path / "out", "--set", "features.n_mels=32"]
    done = run("palanisamy2020", "truncation", "--blocks", "1,2", *given)
    assert done.returncode == 0, done.stderr
    assert "4 of 4, test_efficientnet, ImageNet weights, cut after block 2" in done.stderr
    assert "stapes reproduce palanisamy2020" in (tmp_path / "out/truncation.md").read_text()
    for words in ("test_resnet", "test_efficientnet", "truncation.png", "epochs 70 -> 1"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["koutini2021", "table1", "--data", "x"], "Unknown paper 'koutini2021'. Did you mean"),
        (["koutini2020", "tabel1", "--data", "x"], "Did you mean 'table1'"),
        (["koutini2020", "figure1", "--data", "x", "--rho", "3;4"], "--rho 3;4: write whole"),
        (["koutini2020", "table1", "--data", "no-such-folder"], "no such file or folder"),
        (["koutini2020", "table1", "--data", "x", "--network", "resnet18"], "--network: koutini"),
        (["palanisamy2020", "table1", "--data", "x", "--rho", "3"], "--rho: palanisamy2020 has no"),
        (["palanisamy2020", "fusing", "--data", "x", "--blocks", "a"], "--blocks a: write whole"),
        (
            [
                "palanisamy2020",
                "fusing",
                "--data",
                "x",
                "--network",
                "resnet18",
                "--weights",
                "a",
                "--weights",
                "b",
            ],
            "2 file(s) for 1 network(s) (resnet18)",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
