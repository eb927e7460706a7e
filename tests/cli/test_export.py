"""``stapes export`` and ``stapes parity`` as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_run import toy_run
from typer.testing import CliRunner

from stapes.cli.app import app
from stapes.deploy import parity as module
from stapes.deploy.parity import Parity, ParityRow
from stapes.evaluation.metrics import Interval

Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("cli"))


def test_export_says_what_was_written_and_predict_uses_it(
    run: Path, stapes_command: Answer
) -> None:
    status, out, complaints = stapes_command("export", run / "1" / "seed-0", "--to", "onnx")
    assert status == 0, complaints
    exported = run / "1" / "seed-0" / "model.onnx"
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["written"] == f"{exported} (float32)"
    assert lines["bytes"] == f"{exported.stat().st_size:,}"
    assert lines["replayed"] == "4 test clips of its run"
    assert lines["agreement"].startswith("100.0 % of the decisions")
    clips = sorted(run.parent.glob("*.wav"))
    answers = [stapes_command("predict", model, *clips) for model in (exported, run)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 0


def test_mistakes_are_one_sentence(run: Path, stapes_command: Answer) -> None:
    for arguments in (
        ("export", run, "--to", "onnx", "--out", "m.txt"),
        ("export", run.parent / "none", "--to", "c"),
        ("parity", run, "--corpus", "esc10"),
        ("parity", run.parent),
    ):
        status, out, complaints = stapes_command(*arguments)
        assert (status, out) == (2, "")
        assert complaints.startswith("Error: ")
        assert complaints.count("\n") == 1, complaints


def _made_up() -> Parity:
    row = ParityRow(
        name="ONNX float32", twin="torch float32", difference=2e-6, decisions=1.0,
        decisions_float=1.0, accuracy=Interval(0.9, 0.8, 0.95), milliseconds=0.5, size=123456,
        ram=None,
    )  # fmt: skip
    return Parity((row,), 40, 2, ("C: not run.",))


def test_parity_prints_the_table_and_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        module, "parity", lambda *given, **options: asked.append((given, options)) or _made_up()
    )
    out = tmp_path / "table.md"
    arguments = ["parity", "runs/x", "--int8", "runs/y", "--limit", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["stapes", *arguments])
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0, table.output
    ((given, options),) = asked
    assert given == (Path("runs/x"), None)
    assert (options["int8"], options["limit"]) == (Path("runs/y"), 2)
    assert "40 clips, 2 network(s)" in table.output
    assert "C: not run." in table.output
    line = next(line for line in table.output.splitlines() if line.startswith("ONNX float32"))
    for cell in ("2.0e-06", "100.0 %", "90.0 % (80.0 to 95.0)", "0.50", "123,456"):
        assert cell in line
    text = out.read_text(encoding="utf-8")
    assert text.startswith("| way |")
    assert f"`stapes {' '.join(arguments)}`" in text
    plain = CliRunner().invoke(app, ["parity", "runs/x", "--format", "json"])
    tree = json.loads(plain.stdout)
    assert tree["rows"][0]["accuracy"]["value"] == 0.9


def test_a_page_of_a_run_and_of_what_was_exported(
    run: Path, tmp_path: Path, stapes_command: Answer
) -> None:
    member = run / "1" / "seed-0"
    status, out, complaints = stapes_command("export", member, "--to", "web")
    assert status == 0, complaints
    folder = member / "model-web"
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["written"] == f"{folder} (float32)"
    assert lines["open"].startswith(f"python -m http.server --bind 127.0.0.1 -d {folder},")
    assert lines["replayed"] == "4 test clips of its run"
    assert lines["agreement"].startswith("100.0 % of the decisions")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert lines["bytes"].startswith(f"{size:,}, ")
    assert json.loads((folder / "model.json").read_text())["name"] == "seed-0"

    exported = tmp_path / "noises.onnx"
    assert stapes_command("export", member, "--to", "onnx", "--out", exported)[0] == 0
    status, out, complaints = stapes_command("export", exported, "--to", "web")
    assert (status, complaints) == (0, "")
    assert f"written    {tmp_path / 'noises-web'} (float32)" in out
    same = [(found / "model.onnx").read_bytes() for found in (folder, tmp_path / "noises-web")]
    assert same[0] == same[1]


def test_mistakes_with_pages_are_one_sentence(
    run: Path, tmp_path: Path, toy_onnx_file: Path, stapes_command: Answer
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for arguments, said in (
        (("export", toy_onnx_file, "--to", "web", "--out", tmp_path), "thesis.txt"),
        (("export", run / "1" / "seed-0", "--to", "web", "--out", tmp_path), "thesis.txt"),
        (("export", toy_onnx_file, "--to", "web", "--precision", "int8"), "--precision"),
        (("export", toy_onnx_file, "--to", "web", "--replay", tmp_path), "--replay"),
        (("export", toy_onnx_file, "--to", "web", "--chunk", "4"), "--chunk"),
        (("export", tmp_path / "none", "--to", "web"), "none"),
        (("export", "nobody", "--to", "web"), "nobody"),
    ):
        status, out, complaints = stapes_command(*arguments)
        assert (status, out) == (2, "")
        assert complaints.startswith("Error: ")
        assert said in complaints
        assert complaints.count("\n") == 1, complaints
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
