"""The server under load, on the loopback address: how fast, how steady, how it ends, how it holds.

``python -m benchmarks.server throughput|memory|stop|hostile [--data FOLDER]``; without a part, all
of them. Recordings are the clips of ESC-50 where ``--data`` (or ``STAPES_SHARED``) has them, else
the example drum hits. The client is written for this: requests are bytes made beforehand, because
on the same cores a comfortable client costs more than the server.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import soundfile

from benchmarks._common import HITS, machine
from stapes.audio import read, split_windows
from stapes.catalogue import shipped_model
from stapes.runtime import load

MODEL = "esc50-128kB"
CLIENTS = (1, 8, 64)


def clips(data: Path | None) -> list[Path]:
    """Real recordings."""
    found = sorted((data / "ESC-50" / "audio").glob("*.ogg")) if data else []
    return found or sorted(HITS.rglob("*.ogg"))


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "stapes", "serve", MODEL, "--port", "0", "--quiet", "--no-page", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        yield process, port
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        process.stdout.close()


def request(content: bytes, path: str = "/classify", kind: str = "audio/ogg") -> bytes:
    """A whole request, as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def as_form(content: bytes, name: str) -> bytes:
    """The same as a form with one file."""
    boundary = b"----------------------------9051914041544843365972754266"
    body = (
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="file"; filename="'
        + name.encode() + b'"\r\nContent-Type: application/octet-stream\r\n\r\n' + content
        + b"\r\n--" + boundary + b"--\r\n"
    )  # fmt: skip
    kind = "multipart/form-data; boundary=" + boundary.decode()
    return request(body, kind=kind)


@dataclass
class Connection:
    """One client: a connection, what it sends, and what has come back."""

    sock: socket.socket
    to_send: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytes = b""
    began: float = 0.0
    waiting: bool = False


@dataclass
class Load:
    """What clients that always have a request under way have seen."""

    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds."""
        return 1e3 * float(np.percentile(self.latencies, percent))


def load_with(
    port: int,
    requests: Sequence[bytes],
    clients: int,
    *,
    seconds: float | None = None,
    count: int | None = None,
    until: Callable[[], bool] = lambda: False,
) -> Load:
    """Keep ``clients`` requests under way for some time, for a number of requests, or until told.

    A connection that the server ends after an answer that said so is opened again, unless the
    server listens no more; one that ends otherwise has lost its request.
    """
    found = Load()
    selector = selectors.DefaultSelector()
    number = sent = 0
    begun = time.perf_counter()

    def begin(connection: Connection) -> None:
        nonlocal number, sent
        connection.to_send = memoryview(requests[number % len(requests)])
        connection.received, connection.waiting = b"", True
        connection.began = time.perf_counter()
        number += 1
        sent += 1
        push(connection)

    def push(connection: Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            while connection.to_send:
                taken = connection.sock.send(connection.to_send)
                connection.to_send = connection.to_send[taken:]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.to_send else 0)
        if selector.get_key(connection.sock).events != events:
            selector.modify(connection.sock, events, connection)

    def connect() -> bool:
        try:
            sock = socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            return False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = Connection(sock)
        selector.register(sock, selectors.EVENT_READ, connection)
        begin(connection)
        return True

    def more() -> bool:
        if until():
            return False
        if count is not None:
            return sent < count
        return seconds is None or time.perf_counter() - begun < seconds

    def leave(connection: Connection) -> None:
        selector.unregister(connection.sock)
        connection.sock.close()

    for _ in range(clients):
        connect()
    while selector.get_map():
        for key, events in selector.select(1.0):
            connection = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    push(connection)
                if not events & selectors.EVENT_READ:
                    continue
                chunk = connection.sock.recv(1 << 16)
            except OSError:
                chunk = b""
            if not chunk:
                found.lost += connection.waiting
                leave(connection)
                continue
            connection.received += chunk
            answer = whole(connection.received)
            if answer is None:
                continue
            status, closes = answer
            connection.waiting = False
            found.latencies.append(time.perf_counter() - connection.began)
            found.statuses[status] = found.statuses.get(status, 0) + 1
            if closes or not more():
                leave(connection)
                if closes and more():
                    connect()
            else:
                try:
                    begin(connection)
                except OSError:
                    found.lost += 1
                    leave(connection)
    found.seconds = time.perf_counter() - begun
    return found


def whole(received: bytes) -> tuple[int, bool] | None:
    """Status of an answer that has come whole, and whether the connection ends with it."""
    head, mark, body = received.partition(b"\r\n\r\n")
    if not mark:
        return None
    lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    if len(body) < length:
        return None
    return int(head[9:12]), b"connection: close" in lines


# Throughput


class Bare:
    """One session of ONNX Runtime in a loop, with its own choice of threads: all cores."""

    def __init__(self) -> None:
        content = shipped_model(MODEL).file("onnx").read_bytes()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self._audio = load(MODEL, threads=1).audio

    def windows(self, path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The windows of a recording, as the classifier cuts them."""
        audio = self._audio
        waveform = read(path, sample_rate=audio.sample_rate, channels=audio.channels)
        return split_windows(
            waveform, audio.window, audio.hop, shorter=audio.shorter, longer=audio.longer
        )

    def run(self, windows: Any) -> None:
        """Probabilities."""
        self._session.run(["probabilities"], {"waveform": windows})

    def rate(self, work: Callable[[int], None], seconds: float, threads: int = 1) -> float:
        """How often something can be done in a second, in a loop in each of some threads."""
        done = [0] * threads
        begun = time.perf_counter()

        def loop(thread: int) -> None:
            while time.perf_counter() - begun < seconds:
                work(done[thread] * threads + thread)
                done[thread] += 1

        others = [threading.Thread(target=loop, args=(i,)) for i in range(1, threads)]
        for other in others:
            other.start()
        loop(0)
        for other in others:
            other.join()
        return sum(done) / (time.perf_counter() - begun)


def throughput(data: Path | None, rounds: int = 5, seconds: float = 4.0) -> str:
    """Requests per second and latencies beside one bare session, in turns."""
    with tempfile.TemporaryDirectory() as name:
        kinds = {"compressed clips (ogg)": clips(data)[:200]}
        kinds["16-bit wav at the model's rate"] = _as_wav(
            kinds["compressed clips (ogg)"], Path(name)
        )
        lines = [
            "### Throughput",
            "",
            f"{MODEL}, {rounds} rounds of {seconds:g} s in turns; medians over the rounds. Ratio: "
            "to one bare session that decodes, windows and runs the same recordings in a loop.",
            "",
            "| recordings | who | requests/s | ratio | p50 ms | p99 ms | lost |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for kind, paths in kinds.items():
            lines += _compare(kind, paths, rounds, seconds)
    return "\n".join(lines) + "\n"


def _as_wav(paths: list[Path], folder: Path) -> list[Path]:
    rate = load(MODEL, threads=1).audio.sample_rate
    made = []
    for path in paths:
        made.append(folder / f"{path.stem}.wav")
        soundfile.write(made[-1], read(path, sample_rate=rate, channels=1).T, rate, "PCM_16")
    return made


def _compare(kind: str, paths: list[Path], rounds: int, seconds: float) -> list[str]:
    bare = Bare()
    windows = [bare.windows(path) for path in paths]
    contents = [path.read_bytes() for path in paths]
    raw = [request(content) for content in contents]
    forms = [as_form(content, path.name) for content, path in zip(contents, paths, strict=True)]
    n = len(paths)

    def whole_work(i: int) -> None:
        bare.run(bare.windows(paths[i % n]))

    rates: dict[str, list[float]] = {}
    loads: dict[str, list[Load]] = {}
    with served() as (_, port):
        load_with(port, raw, 8, seconds=1.0)
        for _ in range(rounds):
            for name, work, threads in (
                ("one bare session", whole_work, 1),
                ("one bare session, called in two threads", whole_work, 2),
                ("session.run alone", lambda i: bare.run(windows[i % n]), 1),
            ):
                rates.setdefault(name, []).append(bare.rate(work, seconds / 2, threads))
            for clients in CLIENTS:
                found = load_with(port, raw, clients, seconds=seconds)
                loads.setdefault(f"server, {clients} clients", []).append(found)
            found = load_with(port, forms, 8, seconds=seconds)
            loads.setdefault("server, 8 clients, forms", []).append(found)
    base = np.array(rates["one bare session"])
    lines = []
    for name, measured in rates.items():
        ratio = float(np.median(np.array(measured) / base))
        lines.append(f"| {kind} | {name} | {np.median(measured):.0f} | {ratio:.2f} | | | |")
    for name, some in loads.items():
        each = [found.rate for found in some]
        ratio = float(np.median(np.array(each) / base))
        p50 = np.median([found.percentile(50) for found in some])
        p99 = np.median([found.percentile(99) for found in some])
        failed = sum(found.lost + sum(found.statuses.values()) - found.statuses.get(200, 0)
                     for found in some)  # fmt: skip
        lines.append(
            f"| {kind} | {name} | {np.median(each):.0f} | {ratio:.2f} | {p50:.1f} | {p99:.1f} | "
            f"{failed} |"
        )
    return lines


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*")
    parser.add_argument("--data", type=Path, default=os.environ.get("STAPES_SHARED"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(machine())
    print(throughput(arguments.data and Path(arguments.data), arguments.rounds))


if __name__ == "__main__":
    main()
