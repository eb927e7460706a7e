"""The same archive on a Ray cluster of this machine: the same folder, whoever dies."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archive_of_steps import tree, write_steps

from stapes.archive import Progress, Settings, sweep
from stapes.archive.answers import Task
from stapes.archive.cluster import _next_wave

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "stapes[ray]"'
    ),
]

SETTINGS = Settings(timeline=True, hop_seconds=0.02, threshold=0.3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings that take some time, and one that cannot be read."""
    folder = write_steps(tmp_path_factory.mktemp("archive"), 90, halves=60)
    (folder / "bad.wav").write_bytes(b"no audio")
    return folder


@pytest.fixture(scope="module")
def whole(archive: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine makes of them."""
    out = tmp_path_factory.mktemp("whole")
    sweep(model, archive, out, SETTINGS, workers=2)
    return tree(out)


def start(model: Path, archive: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stapes", "predict", str(model), str(archive), "--out", f"{out}/",
         "--timeline", "--hop", "0.02", "--threshold", "0.3", "--engine", "ray", "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )  # fmt: skip


def answered(out: Path) -> int:
    """Recordings in journals."""
    return sum(path.read_bytes().count(b'["end"') for path in out.glob("_sweep/journal-*.jsonl"))


def test_two_workers_of_which_one_is_killed(
    archive: Path, model: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Some recordings were answered on one machine before: engines may take turns."""
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "out"

    def stop(progress: Progress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(model, archive, out, SETTINGS, workers=1, on_progress=stop)
    process = start(model, archive, out)
    while process.poll() is None and answered(out) < 8:
        time.sleep(0.01)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "_Worker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    before = answered(out)
    said, told = process.communicate(timeout=120)
    assert (process.returncode, said) == (1, "")
    for line in told.splitlines():  # nothing of Ray's own
        assert line.startswith(("Classifying: ", f"{out / 'rows'}: ", "1 of 91 recordings "))
    assert before < 91
    assert not workers[0].is_running()
    assert tree(out) == whole


def test_no_cluster_at_the_address_is_a_sentence(
    archive: Path, model: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "stapes", "predict", str(model), str(archive), "--out",
        f"{tmp_path / 'out'}/", "--engine", "ray", "--ray-address",
    ]  # fmt: skip
    for address in ("127.0.0.1:1", "ray://127.0.0.1:10001"):
        done = subprocess.run([*command, address], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(f"Error: --ray-address {address}: no Ray cluster answers")
        assert done.stderr.count("\n") == 1


def test_a_wave_opens_few_parts() -> None:
    tasks = iter([Task(part, 0, "x.wav") for part in range(250)])
    waves = []
    while wave := _next_wave(tasks):
        waves.append(len(wave))
    assert sum(waves) == 250
    assert max(waves) <= 101
