"""``stapes listen``."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile
from light_install import BLOCKED, COMMAND, without
from toy_onnx import RATE, positive

from stapes.cli import main
from stapes.runtime import load

HALF = RATE // 2  # a window
HIGH, LOW = positive(0.5), positive(-0.25)


# A Python that has none of the training packages.
def start(
    *arguments: object, env: dict[str, str] | None = None, **streams: int
) -> subprocess.Popen:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", without(BLOCKED) + COMMAND, "listen", *map(str, arguments)]
    env = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(command, env=env, **{**pipes, **streams})


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: its exit status, output and errors."""

    def run(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stapes", "listen", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capfd.readouterr()

    return run


def sound(*levels: float) -> np.ndarray:
    """Half a second of each level: a window at a hop of 0.5 s."""
    return np.repeat(np.array(levels, "<f4"), HALF)


@pytest.fixture(scope="module")
def model(toy_onnx_file: Path) -> Path:
    return toy_onnx_file


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "steps.wav"
    soundfile.write(path, sound(0.5, 0.5, -0.25, 0.5, 0.5), RATE, subtype="FLOAT")
    return path


WHOLE = [
    {"start": "0.0", "end": "1.0", "label": "positive", "score": f"{HIGH:.3f}"},
    {"start": "1.0", "end": "1.5", "label": "negative", "score": f"{1 - LOW:.4f}"},
    {"start": "1.5", "end": "2.5", "label": "positive", "score": f"{HIGH:.3f}"},
]


def test_events_of_a_file_of_a_wav_stream_and_of_raw_samples(
    run: Run, model: Path, clip: Path
) -> None:
    options = (model, "-", "--hop", "0.5", "--format", "csv")
    samples = sound(0.5, 0.5, -0.25, 0.5, 0.5).tobytes()
    for status, out, error in (
        run(model, clip, "--hop", "0.5", "--format", "csv"),
        run(*options, stdin=clip.read_bytes()),
        run(*options, "--rate", RATE, "--encoding", "f32le", stdin=samples),
    ):
        assert (status, error) == (0, "")
        assert list(csv.DictReader(io.StringIO(out))) == WHOLE


def test_what_is_behind_the_last_window_is_told_as_well(run: Run, model: Path) -> None:
    samples = (np.repeat([0.5, 0.5, -0.25], [HALF, HALF // 2, HALF // 5]) * 32768).astype("<i2")
    status, out, _ = run(model, "-", "--hop", "0.5", "--every-hop", "--rate", RATE, "--format",
                         "csv", stdin=samples.tobytes())  # fmt: skip
    rows = [line.split(",")[:2] for line in out.splitlines()[1:]]
    assert (status, rows) == (0, [["0.0", "0.5"], ["0.5", "0.85"]])


def test_a_row_for_every_hop(run: Run, model: Path, clip: Path) -> None:
    status, out, _ = run(model, clip, "--every-hop", "--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    expected = load(model).windows(clip)
    assert [(r["end"], r["label"]) for r in rows[:-1]] == [
        (round(w.end, 3), ("negative", "positive")[w.probabilities.argmax()])
        for w, _ in zip(expected, rows[:-1], strict=False)
    ]
    assert len(rows) == 9  # 2.5 s in steps of a quarter, windows of half a second
    assert rows[-1]["end"] == 2.375  # half a hop before the end: the middle of nothing more

    # Three windows around the third: 0.5, 0.5 and -0.25 give two of HIGH and one of LOW.
    out = run(model, clip, "--every-hop", "--hop", "0.5", "--smoothing", "3", "--clock")[1]
    third = out.splitlines()[2].split()
    assert float(third[-1]) == pytest.approx((2 * HIGH + LOW) / 3, abs=1e-4)
    times = [datetime.fromisoformat(text) for text in third[:2]]
    assert (times[1] - times[0]).total_seconds() == pytest.approx(0.5, abs=0.002)
    assert abs((datetime.now().astimezone() - times[0]).total_seconds()) < 600


@pytest.fixture
def listening(model: Path) -> Iterator[subprocess.Popen]:
    """Listens to raw samples, and has told one event; another goes on."""
    process = start(model, "-", "--hop", "0.5", "--rate", RATE, "--encoding", "f32le",
                    "--format", "csv")  # fmt: skip
    watchdog = threading.Timer(60, process.kill)  # a row that is kept back would be waited for
    watchdog.start()
    process.stdin.write(sound(0.5, -0.25, -0.25).tobytes())
    process.stdin.flush()
    assert process.stdout.readline() == b"start,end,label,score\n"
    # The pipe is open still: rows are not kept back.
    assert process.stdout.readline() == f"0.0,0.5,positive,{HIGH:.3f}\n".encode()
    yield process
    watchdog.cancel()
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_what_goes_on(listening: subprocess.Popen, number: int) -> None:
    listening.send_signal(number)
    rest, error = listening.communicate(timeout=60)
    assert (listening.returncode, error) == (0, b"")
    assert rest.decode().split(",")[:3] == ["0.5", "1.5", "negative"]


def test_a_reader_that_goes_away_ends_listening(listening: subprocess.Popen) -> None:
    listening.stdout.close()
    listening.stdin.write(sound(0.5).tobytes())
    listening.stdin.close()
    assert listening.wait(60) == 1
    assert listening.stderr.read() == b""


def test_what_is_no_sound_ends_listening_with_a_sentence(listening: subprocess.Popen) -> None:
    rest, error = listening.communicate(sound(np.nan).tobytes(), timeout=60)
    assert listening.returncode == 2
    assert error.decode() == (
        "Error: standard input: the sample at 1.500 s is not a number; mend what sends it.\n"
    )
    assert [line.split(",")[:3] for line in rest.decode().splitlines()] == [
        ["0.5", "1.5", "negative"]
    ]


def test_out_is_added_to(run: Run, model: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "log" / "events.csv"
    for _ in range(2):
        done = run(model, clip, "--hop", "0.5", "--format", "csv", "--out", out)
        assert done == (0, "", "")
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert rows == WHOLE * 2


FAKE = """\
# Stands for sounddevice: two seconds, of which the driver loses something after the first.
import types, numpy
class PortAudioError(Exception): pass
def query_devices(device, kind):
    return {"default_samplerate": 8000.0, "max_input_channels": 2}
class InputStream:
    def __init__(self, callback, finished_callback, blocksize, **_):
        self.callback, self.finished, self.size = callback, finished_callback, blocksize
    def start(self):
        for i in range(40):
            level = 0.5 if i < 20 else -0.25
            self.callback(numpy.full((self.size, 1), level, "f4"), self.size, None,
                          types.SimpleNamespace(input_overflow=i == 20))
        self.finished()
    def close(self): pass
"""


def test_a_microphone_that_is_unplugged(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sounddevice.py").write_text(FAKE)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    status, out, error = run(model, "--hop", "0.5")
    del sys.modules["sounddevice"]
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["start", "end", "label"], ["0.00", "1.00", "positive"], ["1.00", "2.00", "negative"],
    ]  # fmt: skip
    assert error.splitlines() == [
        "At 1.0 s: the microphone's driver lost sound.",
        "Error: microphone: gives no sound any more; is it connected?",
    ]
    assert status == 2


def test_a_terminal_shows_what_is_heard_now(model: Path, clip: Path) -> None:
    ours, theirs = pytest.importorskip("pty").openpty()
    process = start(model, clip, "--hop", "0.5", "--format", "csv", stderr=theirs)
    os.close(theirs)
    out, _ = process.communicate(timeout=60)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)
    assert process.returncode == 0
    assert list(csv.DictReader(io.StringIO(out.decode()))) == WHOLE  # nothing of the line in it
    assert "positive 0.98" in shown.decode()
    assert shown.endswith(b"\r\x1b[K")  # and nothing of it stays


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "--channels", "2"], "--channels goes with --rate"),
        (["CLIP", "--rate", "8000"], "--rate goes with -"),
        (["CLIP", "--every-hop", "--threshold", "0.5"], "do not go with --every-hop"),
        (["CLIP", "--threshold", "0.5", "--release", "0.6"], "at most --threshold, which is 0.5"),
        (["CLIP", "--hop", "0.7"], "at most the model's window of 0.5 s"),
        (["no-such-file.wav"], "no-such-file.wav: does not exist"),
        (["-"], "standard input: holds no audio"),
        (["microphone:3"], 'pip install "stapes[microphone]"'),
    ],
)
def test_mistakes_get_a_sentence(
    run: Run, model: Path, clip: Path, arguments: list[str], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    status, out, error = run(model, *[str(clip) if a == "CLIP" else a for a in arguments])
    assert (status, out) == (2, "")
    assert error.startswith("Error: ")
    assert words in error
    assert error.count("\n") == 1
