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
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
def served(
    *options: str, log: Any = None, folder: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "stapes", "serve", MODEL, "--port", "0", "--quiet"]
    env = os.environ | ({"TMPDIR": folder} if folder else {})
    process = subprocess.Popen(
        [*command, "--no-page", *options], stdout=subprocess.PIPE, stderr=log, text=True, env=env
    )
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


def throughput(data: Path | None, rounds: int = 8, seconds: float = 2.0) -> str:
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


# Memory


def memory(data: Path | None, count: int = 20_000, clients: int = 16) -> str:
    """Resident memory while requests of all kinds go on and on."""
    paths = clips(data)[:400]
    with tempfile.TemporaryDirectory() as name:
        contents = [path.read_bytes() for path in paths]
        waves = [path.read_bytes() for path in _as_wav(paths[:100], Path(name))]
    kinds = [
        [request(content) for content in contents],
        [as_form(content, path.name) for content, path in zip(contents, paths, strict=True)],
        [request(wave, kind="audio/wav") for wave in waves],
        [request(content, "/classify?timeline=true&hop=1") for content in contents],
        [request(content[: len(content) // 2]) for content in contents],  # broken off
    ]
    mixed = [kind[i % len(kind)] for i in range(len(contents)) for kind in kinds]
    resident, statuses, lost = [], dict[int, int](), 0
    with served() as (process, port):
        account = psutil.Process(process.pid)
        resident.append(account.memory_info().rss / 1e6)
        step = count // 20
        for _ in range(20):
            found = load_with(port, mixed, clients, count=step)
            lost += found.lost
            for status, number in found.statuses.items():
                statuses[status] = statuses.get(status, 0) + number
            resident.append(account.memory_info().rss / 1e6)
        files, threads = account.num_fds(), account.num_threads()
    slope = float(np.polyfit(np.arange(15), resident[-15:], 1)[0]) * 1000 / step
    series = ", ".join(f"{value:.0f}" for value in resident)
    return (
        f"### Memory\n\n{sum(statuses.values())} requests of {clients} clients (compressed, forms, "
        f"wav, timelines, broken off): answers {_counted(statuses)}, {lost} lost. Resident memory "
        f"in MB, at the start and after each {step}: {series}. Over the last three quarters "
        f"{slope:+.3f} MB per 1000 requests. At the end {files} open files, {threads} threads.\n"
    )


def _counted(statuses: dict[int, int]) -> str:
    return ", ".join(f"{number} of status {status}" for status, number in sorted(statuses.items()))


# Stopping


def stop(data: Path | None, rounds: int = 20, clients: int = 16) -> str:
    """SIGTERM at random moments under load."""
    rng = np.random.default_rng(0)
    requests = [request(path.read_bytes()) for path in clips(data)[:100]]
    answered = lost = 0
    others, codes, seconds = dict[int, int](), [], []
    for _ in range(rounds):
        with served("--threads", "2") as (process, port):
            found: list[Load] = []
            load = threading.Thread(
                target=lambda found=found, port=port: found.append(
                    load_with(port, requests, clients)
                )
            )
            load.start()
            time.sleep(rng.uniform(0.2, 1.5))
            begun = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            codes.append(process.wait(60))
            seconds.append(time.perf_counter() - begun)
            load.join()
        answered += len(found[0].latencies)
        lost += found[0].lost
        for status, number in found[0].statuses.items():
            if status != 200:
                others[status] = others.get(status, 0) + number
    return (
        f"### SIGTERM under load\n\n{rounds} times, {clients} clients that go on until nobody "
        f"listens: {answered} requests answered, {lost} lost, {_counted(others) or 'none'} with "
        f"another status than 200; exit statuses {sorted(set(codes))}; stopped within "
        f"{np.median(seconds):.2f} s (median), {max(seconds):.2f} s (most).\n"
    )


# Hostile requests

TOKEN = "right-token"
_LIMITS = ("--token", TOKEN, "--max-upload", "1", "--max-duration", "10", "--upload-time", "1",
           "--max-work", "20", "--max-requests", "64")  # fmt: skip


class Hostile:
    """Sends what nobody should, and counts what comes back.

    Args:
        port: of the server.
        paths: good recordings.
    """

    def __init__(self, port: int, paths: Sequence[Path], seed: int = 0) -> None:
        self._port, self._paths = port, paths
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self.seen: dict[str, dict[str, int]] = {}

    def count(self, kind: str, status: int | str) -> None:
        """One more."""
        with self._lock:
            counts = self.seen.setdefault(kind, {})
            counts[str(status)] = counts.get(str(status), 0) + 1

    def exchange(self, content: bytes, seconds: float = 30.0) -> int | str:
        """Send bytes, and read an answer: its status, or what happened instead."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=seconds) as sock:
                with contextlib.suppress(OSError):  # it may have had enough before the end
                    sock.sendall(content)
                received = b""
                while whole_or_partial(received) is None:
                    chunk = sock.recv(65536)
                    if not chunk:
                        return "closed"
                    received += chunk
                return int(received[9:12])
        except TimeoutError:
            return "no answer"
        except OSError:
            return "reset"

    def asking(self, path: str, content: bytes, kind: str, token: str = TOKEN) -> bytes:
        """A request with a token."""
        return request(content, path, kind).replace(
            b"\r\n\r\n",
            f"\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n".encode(),
            1,
        )

    def damaged(self, number: int, folder: Path) -> None:
        """Recordings damaged in all ways, one by one and together."""
        support = Path(__file__).resolve().parent.parent / "tests" / "support"
        damaged_files = runpy.run_path(str(support / "damage.py"))["damaged_files"]
        made = damaged_files(folder, self._paths, number, seed=1)

        def send(i: int) -> None:
            content = made[i].read_bytes()
            query = ("", "?timeline=true&hop=0.5", "?top=3")[i % 3]
            if i % 2:
                message = self.asking(f"/classify{query}", content, "audio/x")
            else:
                form = as_form(content, made[i].name)
                kind, _, rest = form.partition(b"\r\n\r\n")
                media = kind.split(b"Content-Type: ")[1].split(b"\r\n")[0].decode()
                message = self.asking(f"/classify{query}", rest, media)
            self.count("damaged recordings", self.exchange(message))

        self._each(send, number, 8)

    def made_from_description(self, number: int) -> None:
        """Property-based, from the OpenAPI description, with its own checks of the answers."""
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis import strategies as st
        from schemathesis.specs.openapi import checks

        url = f"http://127.0.0.1:{self._port}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
        modes = list(schemathesis.GenerationMode)
        operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
        rules = [
            schemathesis.checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_headers_conformance,
            checks.response_schema_conformance,
        ]
        for operation in operations:
            share = number * (3 if operation.method == "post" else 1) // 10

            @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
            @settings(max_examples=share, deadline=None, database=None, derandomize=True,
                      suppress_health_check=list(HealthCheck), phases=[Phase.generate])  # fmt: skip
            def ask(case: Any) -> None:
                response = case.call(base_url=url, headers=headers)
                self.count("made from the description", response.status_code)
                case.validate_response(response, checks=rules, headers=headers)

            ask()

    def without_access(self, number: int) -> None:
        """Wrong tokens, hosts and origins."""
        good = self._paths[0].read_bytes()

        def send(i: int) -> None:
            token = TOKEN if i % 3 else f"{TOKEN[: i % 11]}{i}"
            message = self.asking("/classify", good, "audio/ogg", token)
            if i % 3 == 1:
                message = message.replace(b"Host: localhost", b"Host: evil.example")
            if i % 3 == 2:
                message = message.replace(
                    b"\r\n\r\n", b"\r\nOrigin: http://evil.example\r\n\r\n", 1
                )
            kind = ("wrong token", "wrong host", "wrong origin")[i % 3]
            self.count(kind, self.exchange(message))

        self._each(send, number, 8)

    def oversized(self, number: int) -> None:
        """Said to be too large, or found to be."""
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"

        def send(i: int) -> None:
            head = self.asking("/classify", b"", "audio/wav")
            if i % 2:
                message = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
                message += chunk * 20
            else:
                message = head.replace(b"Content-Length: 0", b"Content-Length: 1200000")
                message += bytes(1_200_000)
            self.count("oversized", self.exchange(message))

        self._each(send, number, 8)

    def slow(self, number: int) -> None:
        """Heads and bodies that stop or trickle."""

        def send(i: int) -> None:
            head = self.asking("/classify", b"", "audio/wav")
            head = head.replace(b"Content-Length: 0", b"Content-Length: 1000")
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=30) as sock:
                    sock.sendall(head)
                    if i % 2:
                        sock.settimeout(0.1)
                        for _ in range(60):
                            sock.sendall(b"x")
                            with contextlib.suppress(TimeoutError):
                                self.count("slow uploads", int(sock.recv(65536)[9:12]))
                                return
                    sock.settimeout(30)
                    self.count("slow uploads", int(sock.recv(65536)[9:12]))
            except (OSError, ValueError):
                self.count("slow uploads", "reset")

        self._each(send, number, 48)

    def nonsense(self, number: int) -> None:
        """Requests with bytes changed, and connections that break off anywhere."""
        form = as_form(self._paths[0].read_bytes(), "a.ogg")
        plans = [(int(self._rng.integers(1, 30)), self._rng.integers(0, 1 << 30, 64))
                 for _ in range(number)]  # fmt: skip

        def send(i: int) -> None:
            flips, drawn = plans[i]
            message = bytearray(self.asking("/classify", b"", "x") if i % 4 == 0 else form)
            for k in range(flips):
                message[drawn[2 * k] % min(len(message), 500)] = drawn[2 * k + 1] % 256
            if i % 2:
                with socket.create_connection(("127.0.0.1", self._port), timeout=30) as sock:
                    sock.sendall(message[: drawn[63] % len(message)])
                self.count("broken off", "closed by the client")
                return
            # What a head or a body has become may have no end: then it comes too slowly.
            self.count("nonsense", self.exchange(bytes(message)))

        self._each(send, number, 16)

    def streams(self, number: int) -> None:
        """WebSockets with bad queries, no sound, nonsense, or no end."""
        from websockets.exceptions import ConnectionClosed, InvalidStatus
        from websockets.sync.client import connect

        queries = ("", "hop=9", "encoding=f32le", "encoding=f32le&hop=0.001", "x=1",
                   "encoding=f64le&channels=3&sample_rate=100")  # fmt: skip
        plans = [self._rng.bytes(int(self._rng.integers(1, 20_000))) for _ in range(64)]

        def send(i: int) -> None:
            url = f"ws://127.0.0.1:{self._port}/listen?{queries[i % len(queries)]}"
            token = TOKEN if i % 7 else "wrong"
            try:
                with connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as ws:
                    ws.send(plans[i % 64])
                    if i % 5 == 0:
                        ws.send("nonsense")
                    elif i % 5 == 1:
                        self.count("streams", "left")
                        return
                    else:
                        ws.send("end")
                    for _ in ws:
                        pass
                    self.count("streams", f"closed with {ws.close_code}")
            except InvalidStatus as refused:
                self.count("streams", refused.response.status_code)
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd else "nothing"
                self.count("streams", f"closed with {code}")

        self._each(send, number, 8)

    def _each(self, send: Callable[[int], None], number: int, at_once: int) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(send, range(number)))


def whole_or_partial(received: bytes) -> bool | None:
    """Whether an answer has come whole, of those that say their length; none: more is to come."""
    try:
        return None if whole(received) is None else True
    except StopIteration:  # no length: until the connection ends
        return True


def hostile(data: Path | None, number: int = 10_500) -> str:
    """What must not hurt."""
    paths = clips(data)[:20]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool = folder / "spool"
        spool.mkdir()
        good = [*paths, *_as_wav(paths[:10], folder)]
        for form, coding in (("flac", "PCM_16"), ("mp3", "MPEG_LAYER_III")):
            sound, rate = soundfile.read(paths[0])
            good.append(folder / f"good.{form}")
            soundfile.write(good[-1], sound, rate, subtype=coding)
        with (folder / "log").open("w+b") as log:
            with served(*_LIMITS, log=log, folder=str(spool)) as (process, port):
                account = psutil.Process(process.pid)
                before = account.memory_info().rss / 1e6
                attack = Hostile(port, good)
                attack.damaged(number * 30 // 100, folder / "damaged")
                attack.made_from_description(number * 35 // 100)
                attack.without_access(number * 12 // 100)
                attack.oversized(number * 6 // 100)
                attack.nonsense(number * 10 // 100)
                attack.slow(number * 4 // 100)
                attack.streams(number * 5 // 100)
                after = account.memory_info().rss / 1e6
                alive = process.poll() is None
                message = attack.asking("/classify", paths[0].read_bytes(), "audio/ogg")
                well = attack.exchange(message)
                for _ in range(50):  # of uploads whose clients have just gone
                    left = list(spool.glob("stapes-serve-*/*"))
                    if not left:
                        break
                    time.sleep(0.1)
            code = process.returncode
            log.seek(0)
            complaints = log.read().decode(errors="replace")
    lines = ["| what | requests | answers |", "| --- | ---: | --- |"]
    total = failed = 0
    for kind, counts in attack.seen.items():
        total += sum(counts.values())
        failed += sum(n for status, n in counts.items() if status.startswith("5"))
        failed += counts.get("no answer", 0) + counts.get("reset", 0)
        told = ", ".join(f"{status}: {n}" for status, n in sorted(counts.items()))
        lines.append(f"| {kind} | {sum(counts.values())} | {told} |")
    return (
        f"### Hostile requests\n\n{total} requests, {failed} answered with 5xx, reset or not at "
        f"all. The server {'lived' if alive else 'DIED'}, answers a good recording with {well}, "
        f"exit status {code}, {complaints.count('Traceback')} tracebacks in its log, {len(left)} "
        f"files left behind; resident memory {before:.0f} MB before, {after:.0f} MB after.\n\n"
        + "\n".join(lines)
        + "\n"
    )


PARTS: dict[str, Callable[..., str]] = {
    "throughput": throughput,
    "memory": memory,
    "stop": stop,
    "hostile": hostile,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, default=os.environ.get("STAPES_SHARED"))
    parser.add_argument("--number", type=int, help="rounds or requests [those of the report]")
    arguments = parser.parse_args(argv)
    data = Path(arguments.data) if arguments.data else None
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}\n")
    for part in arguments.parts or PARTS:
        extra = () if arguments.number is None else (arguments.number,)
        print(PARTS[part](data, *extra), flush=True)


if __name__ == "__main__":
    main()
