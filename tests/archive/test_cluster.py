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

from stapes.archive import Settings, sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "stapes[ray]"'
    ),
]

SETTINGS = Settings(timeline=True, hop_seconds=0.02, threshold=0.3)
# In a process of its own: Ray leaves threads, warnings and handlers in the one that it is used in.
PROGRAM = """
import sys
from stapes.archive import Settings, sweep
settings = Settings(timeline=True, hop_seconds=0.02, threshold=0.3)
result = sweep(*sys.argv[1:4], settings, part_files=50, workers=2, engine="ray")
print(result.recordings, result.failed)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings that take some time, and one that cannot be read."""
    folder = write_steps(tmp_path_factory.mktemp("archive"), 120, halves=100)
    (folder / "bad.wav").write_bytes(b"no audio")
    return folder


@pytest.fixture(scope="module")
def whole(archive: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine makes of them."""
    out = tmp_path_factory.mktemp("whole")
    sweep(model, archive, out, SETTINGS, part_files=50, workers=2)
    return tree(out)


def start(model: Path, archive: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(model), str(archive), str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )  # fmt: skip


def answered(out: Path) -> int:
    """Recordings in journals."""
    return sum(path.read_bytes().count(b'["end"') for path in out.glob("_sweep/journal-*.jsonl"))


def test_two_workers_of_which_one_is_killed(
    archive: Path, model: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "out"
    process = start(model, archive, out)
    while process.poll() is None and not answered(out):
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
    assert (process.returncode, said, told) == (0, "121 1\n", "")
    assert before < 121
    assert not workers[0].is_running()
    assert tree(out) == whole


def test_begun_on_a_cluster_killed_and_ended_on_one_machine(
    archive: Path, model: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "out"
    process = start(model, archive, out)
    while process.poll() is None and answered(out) < 20:
        time.sleep(0.01)
    cluster = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    for child in cluster:  # what Ray would end itself, in its own time
        if child.is_running():
            child.kill()
    psutil.wait_procs(cluster, timeout=10)
    assert tree(out) != whole
    sweep(model, archive, out, SETTINGS, part_files=50, workers=2)
    assert tree(out) == whole


def test_no_cluster_at_the_address_is_a_sentence(
    archive: Path, model: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "stapes", "predict", str(model), str(archive), "--out",
        f"{tmp_path / 'out'}/", "--engine", "ray", "--ray-address", "127.0.0.1:1",
    ]  # fmt: skip
    environment = {**os.environ, "RAY_raylet_start_wait_time_s": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --ray-address 127.0.0.1:1: no Ray cluster answers there")
    assert done.stderr.count("\n") == 1
