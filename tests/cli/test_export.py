"""``stapes export`` and ``stapes parity`` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import toy_run


def _stapes(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stapes", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("cli"))


def test_export_says_what_was_written_and_predict_uses_it(run: Path) -> None:
    done = _stapes("export", run / "1" / "seed-0", "--to", "onnx")
    assert done.returncode == 0, done.stderr
    exported = run / "1" / "seed-0" / "model.onnx"
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["written"] == f"{exported} (float32)"
    assert lines["bytes"] == f"{exported.stat().st_size:,}"
    assert lines["replayed"] == "4 test clips of its run"
    assert lines["agreement"].startswith("100.0 % of the decisions")
    clips = sorted(run.parent.glob("*.wav"))
    answers = [_stapes("predict", model, *clips) for model in (exported, run)]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout


def test_mistakes_are_one_sentence(run: Path) -> None:
    for arguments in (
        ("export", run, "--to", "onnx", "--out", "m.txt"),
        ("export", run.parent / "none", "--to", "c"),
        ("parity", run, "--corpus", "esc10"),
        ("parity", run.parent),
    ):
        done = _stapes(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        assert "Traceback" not in done.stderr


def test_parity_prints_the_table_and_its_command(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    done = _stapes("parity", run, "--limit", 2, "--format", "json", "--out", out)
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["n_clips"] == 2
    assert {"torch float32", "ONNX int8", "streaming"} <= {row["name"] for row in tree["rows"]}
    text = out.read_text(encoding="utf-8")
    assert text.startswith("| way |")
    assert "`stapes parity" in text
