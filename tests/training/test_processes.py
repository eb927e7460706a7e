"""Training in two processes: what pruning, teachers and a kill come to there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from hits import write_few_hits
from safetensors.torch import load_file

import stapes

TINY = (
    "training.epochs=3", "model.width=4", "model.blocks=[2, 1, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5", "training.batch_size=16",
)  # fmt: skip
LAUNCHER = (
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
    "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
)  # fmt: skip
# A checkpoint after every epoch, not only every few seconds.
PROGRAM = """
import stapes.training.loop as loop
from stapes.cli import main
loop._SAVE_SECONDS = 0.0
main()
"""
PRUNED = ("--set", "pruning.method=magnitude", "--set", "pruning.keep=0.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def start(folder: Path) -> Callable[..., subprocess.Popen[str]]:
    """Begins a training in two processes, of which it gives the launcher."""
    hits, program = write_few_hits(folder), folder / "program.py"
    program.write_text(PROGRAM)

    def start(out: Path, *more: str) -> subprocess.Popen[str]:
        settings = [part for setting in TINY for part in ("--set", setting)]
        command = [*LAUNCHER, str(program), "train", str(hits), "--out", str(out), *settings, *more]
        environment = {
            **os.environ, "STAPES_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        return subprocess.Popen(
            [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment, start_new_session=True,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Path:
    settings = [*TINY[1:], "training.epochs=1"]
    result = stapes.train(
        write_few_hits(folder), overrides=settings, out=folder / "teacher", cache=folder / "cache"
    )
    return result.folder


@pytest.fixture(scope="module")
def taught(start: Callable[..., subprocess.Popen[str]], folder: Path, teacher: Path) -> Path:
    """A student that was pruned while two processes trained it."""
    out = folder / "taught"
    process = start(out, *PRUNED, "--teacher", str(teacher))
    said, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert said.count("accuracy") == 1, "only one process speaks"
    return out


@pytest.mark.slow
def test_a_student_is_pruned_and_taught(taught: Path, teacher: Path) -> None:
    bundle = stapes.load_bundle(taught)
    weights = list(bundle.network.parameters())
    count = sum(p.numel() for p in weights)
    left = sum(int(torch.count_nonzero(p)) for p in weights)
    assert left == pytest.approx(count / 2, abs=1)
    assert len(bundle.metadata["teachers"]) == 1
    rows = [
        json.loads(line)
        for path in taught.rglob("log.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["train_loss"] > 0 for row in rows)


@pytest.mark.slow
def test_killed_it_ends_with_the_same_weights(
    start: Callable[..., subprocess.Popen[str]], folder: Path, taught: Path, teacher: Path
) -> None:
    out = folder / "killed"
    process = start(out, *PRUNED, "--teacher", str(teacher))
    # Workers are in sessions of their own, and outlive a launcher that is killed.
    while not any(out.rglob("checkpoint.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    for each in (*workers, process):
        each.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(workers)
    assert not (out / "model.safetensors").exists(), "it was killed too late"
    process = start(out, *PRUNED, "--teacher", str(teacher))
    _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    ours, whole = (load_file(run / "model.safetensors") for run in (out, taught))
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in ours)
