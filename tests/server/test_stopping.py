"""Told to stop under load: everything accepted is answered, and the exit status is 0."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from light_install import BLOCKED, COMMAND, without
from served import form
from toy_onnx import RATE
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from stapes.server.running import _refuse_new


@contextlib.contextmanager
def process(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``stapes serve`` in a Python that has none of the training packages."""
    command = [sys.executable, "-c", without(BLOCKED) + COMMAND, "serve", str(model), "--port", "0"]
    started = subprocess.Popen(
        [*command, "--no-page", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip
    assert started.stdout is not None
    try:
        line = started.stdout.readline()
        assert line.startswith("Listening on http://127.0.0.1:"), started.stderr.read()
        yield started, int(line.rpartition(":")[2])
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    path = tmp_path_factory.mktemp("stop") / "x.wav"
    soundfile.write(path, np.zeros(20 * RATE), RATE)
    return form([("file", "x.wav", path.read_bytes())])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered(
    toy: Path, body: tuple[bytes, str], number: signal.Signals
) -> None:
    answers: list[int] = []
    lost: list[Exception] = []
    enough = threading.Event()

    def ask(port: int) -> None:
        """One request after the other, on one connection as long as it is kept."""
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.connect()
            except ConnectionRefusedError:  # stopped: nothing was accepted
                return
            with contextlib.closing(connection):
                closed = False
                while not closed:
                    try:
                        connection.request(
                            "POST", "/classify?timeline=true&hop=0.05", body[0],
                            {"Content-Type": body[1]},
                        )  # fmt: skip
                        response = connection.getresponse()
                        assert len(json.loads(response.read())["events"]) == 1
                    except Exception as error:
                        lost.append(error)
                        return
                    answers.append(response.status)
                    closed = response.headers["connection"] == "close"
                    if len(answers) > 20:
                        enough.set()

    with process(toy, "--threads", "1") as (server, port):
        clients = [threading.Thread(target=ask, args=(port,)) for _ in range(8)]
        for client in clients:
            client.start()
        assert enough.wait(30)
        server.send_signal(number)
        for client in clients:
            client.join(30)
        _, errors = server.communicate(timeout=30)
    assert lost == []
    assert set(answers) == {200}
    assert server.returncode == 0
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("stopped")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such filter")
def test_no_connection_begins_while_the_last_are_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as made:  # waits to be accepted
            assert _refuse_new(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            accepted, _ = listener.accept()
            with accepted:
                made.sendall(b"still heard")
                assert accepted.recv(100) == b"still heard"
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_streams_are_finished_too(toy: Path) -> None:
    with process(toy) as (server, port):
        with connect(f"ws://127.0.0.1:{port}/listen?encoding=u8&hop=0.5") as stream:
            assert json.loads(stream.recv())["type"] == "ready"
            stream.send(bytes([192]) * RATE)
            idle = http.client.HTTPConnection("127.0.0.1", port)
            idle.request("GET", "/health")
            assert json.loads(idle.getresponse().read())["status"] == "ok"
            server.terminate()
            found = [json.loads(message) for message in stream]
            with pytest.raises(ConnectionClosed) as closed:
                stream.recv()
        idle.close()
        assert [message["type"] for message in found] == ["event", "end"]
        assert (found[0]["start"], found[0]["end"], found[0]["label"]) == (0, 1, "positive")
        assert closed.value.rcvd.code == 1001
        assert server.wait(30) == 0


def test_a_grace_that_is_over(toy: Path) -> None:
    with process(toy, "--grace", "0.3") as (server, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("POST", "/classify")
        connection.putheader("Content-Type", "audio/wav")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"RIFF")  # and no more
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        other.request("GET", "/health")
        other.getresponse().read()
        server.terminate()
        _, errors = server.communicate(timeout=30)
        connection.close()
        other.close()
    assert server.returncode == 0
    assert "1 requests were cut off, unanswered after 0.3 s" in errors


def test_work_does_not_outlast_the_grace(toy: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(500 * RATE), RATE, subtype="PCM_U8")
    with process(toy, "--grace", "0.3", "--max-work", "300") as (server, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        content = (tmp_path / "long.wav").read_bytes()
        kind = {"Content-Type": "audio/wav"}
        connection.request("POST", "/classify?timeline=true&hop=0.0005", content, kind)
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while True:  # until it is being worked on
            other.request("GET", "/metrics")
            if b'stapes_active{kind="request"} 1.0' in other.getresponse().read():
                break
        server.terminate()
        server.communicate(timeout=60)  # the work alone would take minutes
        connection.close()
        other.close()
    assert server.returncode == 0
