"""``stapes shrink`` as a user types it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stapes

HITS = Path(__file__).resolve().parents[2] / "examples" / "drum-hits"
# One epoch of a network of width 6 on two classes of eight kits.
TINY = [
    "training.epochs=1", "model.width=6", "model.blocks=[2, 0, 0]", "model.rho=2",
    "features.n_mels=32", "audio.window_seconds=0.5", "quantization.aware=never",
]  # fmt: skip


def run(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stapes", *map(str, arguments)],
        capture_output=True, text=True, env=dict(os.environ), cwd=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    with (HITS / "manifest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in ("kick", "snare")]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        writer.writerows([HITS / row["path"], row["label"], row["group"]] for row in rows)
    return stapes.train(folder / "manifest.csv", overrides=TINY, out=folder / "run").folder


def test_a_search_from_the_command_line(toy_run: Path) -> None:
    arguments = ("shrink", toy_run, "--size", "4kB", "--trials", "2", "--threads", "1")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    out = toy_run.with_name("run-4kB")
    model = out / "model.safetensors"
    size = model.stat().st_size
    assert size <= 4000
    assert f"file      {size:,} bytes" in done.stdout
    for words in ("limit     4kB", "zeros counted", "tested once", "chosen", "stapes inspect"):
        assert words in done.stdout, done.stdout
    assert "Trial 2 of 2: width" in done.stderr
    assert "left" in done.stderr, "no estimate of the time"
    for foreign in ("optuna", "Optuna", "Warning", "epoch 1/1"):
        assert foreign not in done.stderr
    # What it says comes next works as typed.
    inspected = run("inspect", model)
    assert inspected.returncode == 0, inspected.stderr
    assert f"{size:,} bytes" in inspected.stdout
    evaluated = run("evaluate", model, out / "test.csv")
    assert evaluated.returncode == 0, evaluated.stderr
    accuracy = done.stdout.partition("\naccuracy  ")[2].partition(",")[0]
    assert accuracy
    assert accuracy in evaluated.stdout
    # Finished: nothing is trained again, and the same is printed.
    again = run(*arguments)
    assert again.stdout == done.stdout
    assert "Trial" not in again.stderr


def test_a_search_that_was_killed_ends_as_if_it_had_not(toy_run: Path, tmp_path: Path) -> None:
    """Twice: while the reference is trained, and somewhere in the first trial."""
    # The command is in the model file, so it has to be the same: it is run in two folders.
    arguments = ("shrink", toy_run, "--size", "4kB", "--trials", "2", "--out", "out")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    done = run(*arguments, folder=whole)
    assert done.returncode == 0, done.stderr
    trials = stopped / "out" / "trials.json"
    for number in (0, 1):
        process = subprocess.Popen(
            [sys.executable, "-m", "stapes", *map(str, arguments)],
            cwd=stopped, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not (trials.is_file() and json.loads(trials.read_text())[-1]["number"] >= number):
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.02)
        process.kill()
        process.wait()
    again = run(*arguments, folder=stopped)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    for name in ("model.safetensors", "test.csv", "tradeoff.svg"):
        assert (stopped / "out" / name).read_bytes() == (whole / "out" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--size (such as 128kB), --macs"),
        (("--size", "thirty"), "--size thirty: write a number of bytes"),
        (("--macs", "30MB"), "--macs 30MB: write the multiply-accumulates"),
        (("--size", "200B"), "Nothing fits into 200B: the least found is"),
        (("--size", "4kB", "--fold", "9"), "'9'"),
        (("--size", "4kB", "--trials", "0"), "trials"),
    ],
)
def test_mistakes_get_a_sentence(
    toy_run: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = run("shrink", toy_run, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert words in done.stderr


def test_a_folder_that_is_no_run_gets_a_sentence(tmp_path: Path) -> None:
    done = run("shrink", tmp_path, "--size", "4kB")
    assert done.returncode == 2
    assert "no run folder" in done.stderr
    assert "Traceback" not in done.stderr
