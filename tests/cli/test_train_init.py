"""``stapes train --init`` as a user types it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hits import EXAMPLES, write_few_hits

import stapes


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stapes", *map(str, arguments)],
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickly trained model of three kinds of drum hits."""
    folder = tmp_path_factory.mktemp("old")
    return stapes.train(
        write_few_hits(folder),
        overrides=["training.epochs=1", "model.width=4", "model.blocks=[2, 0, 0]",
                   "features.n_mels=32", "audio.window_seconds=0.5"],
        out=folder / "run",
    ).model  # fmt: skip


@pytest.fixture(scope="module")
def claps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hits of two kinds, one of which the model knows."""
    with (EXAMPLES / "manifest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in ("clap", "snare")]
    path = tmp_path_factory.mktemp("new") / "claps.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        writer.writerows([EXAMPLES / row["path"], row["label"], row["group"]] for row in rows)
    return path


def test_a_model_is_taught_another_class(model: Path, claps: Path, tmp_path: Path) -> None:
    done = run("train", claps, "--init", model, "--out", tmp_path, "--set", "training.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    bundle = stapes.load_bundle(tmp_path)
    assert bundle.labels == ("clap", "snare")
    assert bundle.recipe.name == "finetune"
    assert bundle.recipe.initialization.file == str(model)
    inspected = json.loads(run("inspect", tmp_path, "--format", "json").stdout)
    assert inspected["metadata"]["origin"]["data"]["name"] == "manifest"


def test_another_recipe_says_how_to_train(model: Path, claps: Path, tmp_path: Path) -> None:
    done = run("train", claps, "--init", model, "--recipe", "quick", "--out", tmp_path,
               "--set", "training.epochs=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    recipe = stapes.load_bundle(tmp_path).recipe
    assert (recipe.name, recipe.training.learning_rate) == ("quick", 2e-3)
    assert recipe.audio.window_seconds == 0.5, "of the model, not of the recipe"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--init", "gone"], ["model file, run folder or shipped model", "gone"]),
        (["--init", "{model}", "--weights", "w"], ["--weights and --init", "only one"]),
        (["--init", "{model}", "--set", "model.rho=3"], ["model.rho=3", "--init none"]),
        (["--init", "{model}", "--set", "features.name=log_mel"], ["features.name=log_mel"]),
        (["--init", "{manifest}"], ["manifest.csv", "not a stapes model file"]),
        (["--set", "initialization.blocks=2"], ["file and blocks go with", "weights need none"]),
        (["--set", "initialization.weights=model"], ["--init MODEL"]),
    ],
)  # fmt: skip
def test_wrong_use_is_a_clear_sentence(
    options: list[str], words: list[str], model: Path, claps: Path, tmp_path: Path
) -> None:
    names = {"model": str(model), "manifest": str(EXAMPLES / "manifest.csv")}
    done = run("train", claps, "--out", tmp_path / "run", *(o.format(**names) for o in options))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in " ".join(done.stderr.split()), done.stderr
