"""``--teacher`` as a user types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hits import write_few_hits
from typer.testing import CliRunner

import stapes
from stapes.cli import main
from stapes.cli.app import app

STUDENT = (
    "training.epochs=1", "model.width=4", "model.blocks=[2, 0, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5",
)  # fmt: skip


def command(table: Path, out: Path, *arguments: str | Path) -> list[str]:
    settings = [part for setting in STUDENT for part in ("--set", setting)]
    return [*map(str, ("train", table, "--out", out, *settings, *arguments))]


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few_hits(tmp_path_factory.mktemp("hits"))


@pytest.fixture(scope="module")
def teacher(hits: Path) -> Path:
    """A quickly trained run that hears otherwise than the student."""
    return stapes.train(
        hits,
        overrides=["training.epochs=1", "model.width=6", "model.blocks=[2, 1, 0]",
                   "features.n_mels=40", "audio.window_seconds=0.3", "audio.sample_rate=16000"],
        out=hits.parent / "teacher",
    ).folder  # fmt: skip


def inspect(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_a_student_is_taught(hits: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    model = teacher / "model.safetensors"
    more = ("--teacher", teacher, "--teacher", model, "--set", "distillation.weight=0.5")
    done = CliRunner().invoke(app, command(hits, out, *more), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "Asking a teacher" in done.stderr
    bundle = stapes.load_bundle(out)
    assert bundle.recipe.distillation.teachers == (str(teacher), str(model))
    assert len(bundle.metadata["teachers"]) == 2
    told = json.loads(inspect(out, "--format", "json"))["metadata"]["teachers"]
    assert told[0]["data"]["name"] == "manifest"
    assert "trained on       manifest" in inspect(out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--teacher", "gone"], ["Unknown model file, run folder or shipped model"]),
        (["--teacher", "{folder}"], ["cannot teach, it is no run folder", "stapes train"]),
        (["--teacher", "{teacher}", "--seed", "1"], ["may have learnt", "--force"]),
        (["--teacher", "{teacher}", "--folds", "2"], ["may have learnt", "split 1"]),
        (["--teacher", "{teacher}", "--set", "distillation.heat=2"], ["distillation.heat"]),
        (["--teacher", "{teacher}", "--set", "distillation.weight=2"], ["distillation.weight"]),
    ],
)
def test_wrong_use_is_a_clear_sentence(
    options: list[str],
    words: list[str],
    hits: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"folder": str(hits.parent), "teacher": str(teacher)}
    arguments = command(hits, tmp_path / "run", *(option.format(**names) for option in options))
    monkeypatch.setattr(sys, "argv", ["stapes", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()
