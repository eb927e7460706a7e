"""What is too large, too long, too slow or too much, over real connections."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from served import Client, form, served
from toy_onnx import RATE

from stapes.errors import ConfigError
from stapes.runtime import OnnxClassifier
from stapes.server import Settings


def received(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    found = b""
    while chunk := sock.recv(65536):
        found += chunk
    return found


def kind(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head.lower()
    return int(head[9:12]), json.loads(body)["type"].rpartition(":")[2]


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /classify HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def folder_of(client: Client) -> list[Path]:
    """What lies in the server's private folder."""
    folder = client.server.config.app.state.serving.uploads._folder
    return [] if folder is None else list(Path(folder.name).iterdir())


@pytest.fixture(autouse=True)
def _short_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stapes.server.guard._LINGER_SECONDS", 0.2)


@pytest.fixture(scope="module")
def narrow(toy: Path) -> Iterator[Client]:
    limits = {"upload_bytes": 50_000, "duration": 2.0, "upload_seconds": 1.0, "stall_seconds": 0.3}
    with served(toy, files=3, **limits) as client:
        yield client


def test_an_upload_that_says_that_it_is_too_large(narrow: Client) -> None:
    with narrow.socket() as sock:
        sock.sendall(head("Content-Length: 50001", "Content-Type: audio/wav"))
        assert kind(received(sock)) == (413, "too-large")
    # Who sends all of it before reading gets the answer as well, and no reset connection.
    assert narrow.send("/classify", bytes(5_000_000)).kind == "too-large"
    assert narrow.send("/classify", bytes(50_000)).status == 415


def test_an_upload_that_does_not_say(narrow: Client) -> None:
    for media in ("audio/wav", "multipart/form-data; boundary=x"):
        with narrow.socket() as sock:
            sock.sendall(head("Transfer-Encoding: chunked", f"Content-Type: {media}"))
            start = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
            sock.sendall(b"%x\r\n%b\r\n" % (len(start), start))
            with contextlib.suppress(OSError):
                while True:  # for ever, if it were let
                    sock.sendall(b"2000\r\n" + bytes(0x2000) + b"\r\n")
    assert folder_of(narrow) == []


def test_endless_uploads_are_answered_before_they_end(narrow: Client) -> None:
    with narrow.socket() as sock:
        sock.sendall(head("Transfer-Encoding: chunked", "Content-Type: audio/wav"))
        for _ in range(8):
            sock.sendall(b"2000\r\n" + bytes(0x2000) + b"\r\n")
        assert kind(received(sock)) == (413, "too-large")


def test_slow_uploads(narrow: Client) -> None:
    with narrow.socket() as sock:  # stops
        sock.sendall(head("Content-Length: 1000", "Content-Type: audio/wav") + b"RIFF")
        assert kind(received(sock)) == (408, "too-slow")
    with narrow.socket() as sock:  # trickles
        sock.sendall(head("Content-Length: 1000", "Content-Type: audio/wav"))
        sock.settimeout(0.05)
        answer, sent = b"", 0
        while not answer and sent < 200:
            sock.sendall(b"x")
            sent += 1
            try:
                answer = sock.recv(65536)
            except TimeoutError:
                continue
        assert int(answer[9:12]) == 408
        assert sent > 6  # it was let go on for longer than a stall
    assert narrow.metric("stapes_refused_total", reason="slow") == 2
    assert folder_of(narrow) == []


def test_who_goes_away_leaves_nothing(narrow: Client) -> None:
    with narrow.socket() as sock:
        sock.sendall(head("Content-Length: 1000", "Content-Type: audio/wav") + b"RIFF")
    deadline = time.monotonic() + 10
    while narrow.metric("stapes_requests_total", status="499") < 1:
        assert time.monotonic() < deadline
    assert folder_of(narrow) == []
    assert narrow.metric("stapes_active", kind="request") == 0


def test_long_recordings(narrow: Client, tmp_path: Path) -> None:
    for seconds, status in ((2.0, 200), (2.001, 422)):
        soundfile.write(tmp_path / "x.flac", np.zeros(round(seconds * RATE)), RATE)
        answer = narrow.upload("/classify", tmp_path / "x.flac")
        assert answer.status == status
    assert answer.kind == "too-long"
    # Half an hour in a few kilobytes, and a rate that makes two minutes of every thousand samples.
    soundfile.write(tmp_path / "x.flac", np.zeros(1800 * RATE, np.int16), RATE)
    assert (tmp_path / "x.flac").stat().st_size < 50_000
    assert narrow.upload("/classify?timeline=true", tmp_path / "x.flac").kind == "too-long"
    soundfile.write(tmp_path / "x.wav", np.zeros(40_000), 100, subtype="PCM_U8")
    assert narrow.upload("/classify", tmp_path / "x.wav").kind == "too-long"
    # A header that claims hours over a second of sound says nothing.
    soundfile.write(tmp_path / "x.wav", np.zeros(RATE), RATE)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\x7f"
    assert narrow.send("/classify", bytes(content)).json["seconds"] == 1.0
    assert narrow.metric("stapes_refused_total", reason="duration") == 3


def test_a_large_recording_that_says_that_it_is_too_long(toy: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(700_000), RATE)
    with served(toy, duration=5) as client:
        assert client.upload("/classify", tmp_path / "x.wav").kind == "too-long"
        assert client.metric("stapes_batch_windows_count") == 0  # nothing was computed for it


def test_many_files(narrow: Client) -> None:
    body, media = form([("files", f"{i}.wav", b"x") for i in range(4)])
    answer = narrow.send("/classify/batch", body, media)
    assert (answer.status, answer.kind) == (413, "too-large")
    assert "at most 3 files" in answer.json["detail"]
    assert folder_of(narrow) == []


class Held(OnnxClassifier):
    """Computes nothing until it is let."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, threads=1)
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        self.begun.release()
        assert self.go.wait(20)
        return super().probabilities(windows)


@contextmanager
def busy(toy: Path, **settings: float) -> Iterator[tuple[Client, Held, ThreadPoolExecutor]]:
    """A server that is computing for one client."""
    model = Held(toy)
    with served({"held": model}, threads=1, **settings) as client, ThreadPoolExecutor(4) as pool:
        try:
            yield client, model, pool
        finally:
            model.go.set()


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wav") / "x.wav"
    soundfile.write(path, np.zeros(RATE), RATE)
    return path


def test_many_requests_at_once(toy: Path, wav: Path) -> None:
    with busy(toy, requests=2) as (client, model, pool):
        under_way = [pool.submit(client.upload, "/classify", wav) for _ in range(2)]
        while client.metric("stapes_active", kind="request") < 2:
            time.sleep(0.01)
        refused = client.upload("/classify", wav)
        assert (refused.status, refused.kind) == (429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/models").status == 200  # what costs nothing is answered
        model.go.set()
        assert [done.result(20).status for done in under_way] == [200, 200]
        assert client.upload("/classify", wav).status == 200
        assert client.metric("stapes_refused_total", reason="requests") == 1


def test_long_waiting(toy: Path, wav: Path) -> None:
    with busy(toy, workers=1, queue_seconds=0.05) as (client, model, pool):
        first = pool.submit(client.upload, "/classify", wav)
        assert model.begun.acquire(timeout=20)
        second = pool.submit(client.upload, "/classify", wav)
        while client.metric("stapes_active", kind="request") < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        model.go.set()
        assert first.result(20).status == 200
        assert (second.result(20).status, second.result(20).kind) == (429, "busy")


def test_long_work(toy: Path, wav: Path) -> None:
    with busy(toy, work_seconds=0.2, batch=1) as (client, model, _):
        # The window that is being computed is waited for, what is behind it is not begun.
        threading.Timer(0.6, model.go.set).start()
        answer = client.upload("/classify?timeline=true&hop=0.1", wav)
        assert (answer.status, answer.kind) == (422, "too-much-work")
        assert client.metric("stapes_refused_total", reason="work") == 1
        assert client.metric("stapes_batch_windows_sum") == 1


def test_who_goes_away_is_not_worked_for(toy: Path) -> None:
    with busy(toy) as (client, model, _):
        content = np.zeros(100 * RATE, np.uint8).tobytes()
        wave = struct.pack(
            "<4sI8sIHHIIHH4sI", b"RIFF", 0x7FFFFFFF, b"WAVEfmt ", 16, 1, 1, RATE, RATE, 1, 8,
            b"data", 0x7FFFFFFF,
        )  # fmt: skip
        with client.socket() as sock:
            length = len(wave) + len(content)
            sock.sendall(head(f"Content-Length: {length}", "Content-Type: audio/wav"))
            sock.sendall(wave + content)
            assert model.begun.acquire(timeout=20)
            time.sleep(1.2)  # until it is watched
        deadline = time.monotonic() + 10
        while client.metric("stapes_requests_total", status="499") < 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        model.go.set()
        while client.server.config.app.state.serving.hosts.find(None).batcher.pending:
            assert time.monotonic() < deadline
        assert client.metric("stapes_batch_windows_sum") < 200


class Broken(OnnxClassifier):
    """Fails in a way that nobody has thought of."""

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("of the network")


def test_a_failure_of_our_own(toy: Path, wav: Path, caplog: pytest.LogCaptureFixture) -> None:
    with served({"broken": Broken(toy)}) as client:
        answer = client.upload("/classify", wav)
        assert (answer.status, answer.kind) == (500, "internal")
        assert "network" not in answer.body.decode()
        assert client.metric("stapes_requests_total", route="/classify", status="500") == 1
        assert folder_of(client) == []
        assert client.get("/health").status == 200
    assert "ZeroDivisionError: of the network" in caplog.text


def test_heads_that_never_end(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stapes.server.running._HEAD_SECONDS", 0.3)
    with served(toy) as client:
        with client.socket() as silent, client.socket() as trickling:
            trickling.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
            assert kind(received(silent)) == (408, "too-slow")
            assert kind(received(trickling)) == (408, "too-slow")
        with client.socket() as sock:  # a second head on the same connection
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in sock.recv(65536)
            sock.sendall(b"GET /hea")
            assert b"408" in received(sock)


def test_many_connections(toy: Path) -> None:
    with served(toy, connections=3) as client:
        held = [client.socket() for _ in range(3)]
        time.sleep(0.1)
        with client.socket() as sock:
            assert kind(received(sock)) == (429, "busy")
        for sock in held:
            sock.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                assert client.get("/health").status == 200
                return
            except (AssertionError, OSError):
                assert time.monotonic() < deadline


def test_what_is_no_http(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    chunked = head("Transfer-Encoding: chunked", "Content-Type: audio/wav") + b"4\r\nRIFF\r\n"
    for content in (b"\0\1\2\3\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 9000,
                    chunked + b"none\r\n"):  # fmt: skip
        with client.socket() as sock:
            sock.sendall(content)
            assert kind(received(sock)) == (400, "bad-request")
    refused = chunked.replace(b"audio/wav", b"text/plain")
    with client.socket() as sock:  # a chunk that is none after the answer
        sock.sendall(refused)
        assert b" 415 " in sock.recv(100)
        sock.sendall(b"none\r\n")
        received(sock)
    assert caplog.text.count("Traceback") == 0


def test_settings_out_of_range() -> None:
    for name, value in (
        ("threads", 0), ("batch", 1.5), ("duration", 0), ("work_seconds", float("inf")),
        ("batch_wait", 1), ("requests", True), ("allow_origins", ("example.org",)),
        ("allow_origins", ("https://example.org/page",)),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            Settings(**{name: value})
