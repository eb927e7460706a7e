"""``stapes predict MODEL ARCHIVE --out FOLDER``."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars
import pytest
from archive_of_steps import tree, write_steps
from light_install import BLOCKED, COMMAND, without

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_steps(tmp_path_factory.mktemp("steps"), 12)


def test_a_folder_of_answers(
    toy_onnx_file: Path, steps: Path, tmp_path: Path, stapes_command: Command
) -> None:
    out = tmp_path / "answers"
    code, said, told = stapes_command("predict", toy_onnx_file, steps, "--out", out)
    assert (code, said) == (0, "")
    assert told.splitlines() == [
        "Classifying: 12 of 12 recordings, 0.00 h of audio, "
        + told.splitlines()[0].partition("audio, ")[2],
        f"{out / 'rows'}: 12 rows in 1 file, of 12 recordings with 0.00 h of audio.",
    ]
    assert told.splitlines()[0].endswith(" times real time")
    assert len(polars.read_parquet(out / "rows" / "*.parquet")) == 12
    code, said, told = stapes_command("predict", toy_onnx_file, steps, "--out", f"{out}/")
    assert (code, said) == (0, "")
    assert told.startswith(f"{out / 'rows'}: 12 rows")


def test_what_names_a_folder(
    toy_onnx_file: Path, steps: Path, tmp_path: Path, stapes_command: Command
) -> None:
    """A suffix means a file, unless the name ends in a slash or is a folder already."""
    clip = next(steps.rglob("*.wav"))
    base = ("predict", toy_onnx_file, steps, "--format", "csv", "--out")
    assert stapes_command(*base, tmp_path / "one.csv")[0] == 0
    assert (tmp_path / "one.csv").is_file()
    assert stapes_command(*base, f"{tmp_path / 'v1.2'}/")[0] == 0
    assert (tmp_path / "v1.2" / "rows" / "part-00000.csv").is_file()
    (tmp_path / "v1.3").mkdir()
    assert stapes_command(*base, tmp_path / "v1.3")[0] == 0
    assert (tmp_path / "v1.3" / "rows" / "part-00000.csv").is_file()
    # One recording into a name without a suffix is a file, as ever.
    assert stapes_command("predict", toy_onnx_file, clip, "--out", tmp_path / "plain")[0] == 0
    assert (tmp_path / "plain").read_text().startswith("path")
    # And such a file stays one.
    assert stapes_command(*base, tmp_path / "plain")[0] == 0
    assert (tmp_path / "plain").is_file()
    # The same rows either way, but for what the paths are relative to.
    with (tmp_path / "one.csv").open() as file:
        single = [{**row, "path": str(Path(row["path"]).relative_to(steps))}
                  for row in csv.DictReader(file)]  # fmt: skip
    with (tmp_path / "v1.2" / "rows" / "part-00000.csv").open() as file:
        assert list(csv.DictReader(file)) == single


def test_events_and_errors(toy_onnx_file: Path, tmp_path: Path, stapes_command: Command) -> None:
    archive = write_steps(tmp_path / "archive", 5)
    (archive / "bad.flac").write_bytes(b"no audio")
    out = tmp_path / "out"
    code, _, told = stapes_command(
        "predict", toy_onnx_file, archive, "--timeline", "--threshold", "0.3", "--workers", "1",
        "--out", out,
    )  # fmt: skip
    assert code == 1
    assert told.splitlines()[-1] == (
        f"1 of 6 recordings could not be read to the end; {out / 'errors'} says why."
    )
    frame = polars.read_parquet(out / "rows" / "*.parquet")
    assert frame.columns == ["path", "start", "end", "label", "score"]
    assert "bad.flac" in (out / "errors" / "part-00000.csv").read_text()


def test_mistakes_are_one_sentence(
    toy_onnx_file: Path, steps: Path, tmp_path: Path, stapes_command: Command
) -> None:
    clip = next(steps.rglob("*.wav"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"")
    out = f"{tmp_path / 'out'}/"
    for arguments, words in (
        ((toy_onnx_file, clip, "--out", out), "one folder of recordings; for single recordings"),
        ((toy_onnx_file, steps, steps, "--out", out), "one folder of recordings"),
        ((toy_onnx_file, steps, "--format", "jsonl", "--out", out), "written as parquet or csv"),
        ((toy_onnx_file, steps, "--device", "cuda", "--out", out), "--device cuda"),
        ((toy_onnx_file, steps, "--ray-address", "x", "--out", out), "goes with --engine ray"),
        ((toy_onnx_file, steps, "--format", "parquet"), "--format parquet goes with an archive"),
        ((toy_onnx_file, clip, "--workers", "2"), "--workers goes with an archive"),
        ((toy_onnx_file, clip, "--engine", "local"), "--engine goes with an archive"),
        ((toy_onnx_file, steps, "--timeline", "--hop", "9", "--out", out), "--hop 9: must be"),
        ((tmp_path / "run", steps, "--out", out), f"stapes export {tmp_path / 'run'} --to onnx"),
    ):
        code, said, told = stapes_command("predict", *arguments)
        assert (code, said) == (2, ""), told
        assert told.startswith("Error: ")
        assert words in told
        assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_light_install_writes_csv_and_says_what_parquet_needs(
    toy_onnx_file: Path, steps: Path, tmp_path: Path
) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", without(BLOCKED | {"filelock", "ray"}) + COMMAND, "predict",
             toy_onnx_file, steps, *map(str, arguments)],
            capture_output=True, text=True,
        )  # fmt: skip

    done = run("--out", tmp_path / "out", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "rows" / "part-00000.csv").is_file()
    done = run("--out", tmp_path / "parquet")
    assert (done.returncode, done.stderr) == (
        2,
        'Error: Parquet needs polars: pip install "stapes[archive]", or write --format csv.\n',
    )
    done = run("--out", tmp_path / "ray", "--format", "csv", "--engine", "ray")
    assert (done.returncode, done.stderr) == (
        2, 'Error: --engine ray needs Ray: pip install "stapes[ray]"\n',
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
def test_an_interrupt_stops_it_and_says_how_to_go_on(toy_onnx_file: Path, tmp_path: Path) -> None:
    archive = write_steps(tmp_path / "archive", 8, halves=600)
    command = [
        sys.executable, "-m", "stapes", "predict", toy_onnx_file, archive, "--out",
        tmp_path / "out", "--timeline", "--hop", "0.02", "--workers", "2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    journal = tmp_path / "out" / "_sweep" / "journal-00000.jsonl"
    while not (journal.is_file() and b"end" in journal.read_bytes()):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130, told
    assert told.splitlines()[-2].startswith("Classifying: ")
    assert " of 8 recordings, " in told
    assert told.splitlines()[-1] == (
        "Stopped. Training, downloads and sweeps of archives go on where they were with the same "
        "command."
    )
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    subprocess.run(
        [*command[:7], tmp_path / "whole", *command[8:]], check=True, capture_output=True
    )
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
