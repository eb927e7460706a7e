"""The WebSocket, judged by classifier.listen and EventDetector on the same samples."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Client, served
from toy_onnx import RATE
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from stapes.inference import EventDetector, Listener
from stapes.inference.sources import ENCODINGS
from stapes.runtime import load


def talk(client: Client, query: str, messages: list[bytes | str]) -> list[dict[str, Any]]:
    with connect(f"ws://127.0.0.1:{client.port}/listen?{query}") as socket:
        for message in messages:
            socket.send(message)
        found = []
        try:
            while True:
                found.append(json.loads(socket.recv(timeout=10)))
        except ConnectionClosed as closed:
            found.append({"code": closed.rcvd.code if closed.rcvd else None})
        return found


def steps() -> np.ndarray:
    """Two and a half seconds at 16 kHz, stereo: levels that change, and a little noise."""
    rng = np.random.default_rng(5)
    levels = np.repeat(rng.uniform(-0.3, 0.3, 25), 1600)
    return levels[:, None] + 0.05 * rng.standard_normal((len(levels), 2))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_events_are_those_of_the_library(client: Client, toy: Path, encoding: str) -> None:
    scale, kind = {
        "u8": (127, "u1"), "s16le": (32767, "<i2"), "s24le": (8_388_607, "<i4"),
        "s32le": (2147483646, "<i4"), "f32le": (1, "<f4"), "f64le": (1, "<f8"),
    }[encoding]  # fmt: skip
    samples = (steps() * scale + (128 if encoding == "u8" else 0)).astype(kind)
    content = samples.tobytes()
    if encoding == "s24le":
        content = b"".join(content[i : i + 3] for i in range(0, len(content), 4))
    width, decode = ENCODINGS[encoding]
    assert len(content) == samples.size * width
    chunk = decode(content).reshape(-1, 2).T

    classifier = load(toy, threads=1)
    listener = Listener(classifier, 16_000, 2, 0.1)
    detector = EventDetector(classifier.labels, 0.55, release=0.5, smoothing=2)
    scores = [*listener.push(chunk), *listener.finish()]
    events = [event for window in scores for event in detector.push(window)]
    events += detector.finish(listener.seconds)
    assert len(events) > 2

    # Messages of odd lengths, which cut samples and frames in two.
    pieces = [content[i : i + 4999] for i in range(0, len(content), 4999)]
    query = f"sample_rate=16000&channels=2&encoding={encoding}&hop=0.1&threshold=0.55&release=0.5"
    found = talk(client, f"{query}&smoothing=2&windows=true", [*pieces, "end"])
    assert found[0] == {
        "type": "ready", "labels": ["negative", "positive"], "sample_rate": RATE,
        "window_seconds": 0.5,
    }  # fmt: skip
    assert [found[-2], found[-1]] == [{"type": "end", "seconds": 2.5}, {"code": 1000}]
    windows = [message for message in found[1:-1] if message["type"] == "window"]
    told = [message for message in found[1:-1] if message["type"] == "event"]
    assert [(w["start"], w["end"]) for w in windows] == [(s.start, s.end) for s in scores]
    np.testing.assert_allclose(
        [w["probabilities"] for w in windows], [s.probabilities for s in scores], atol=1e-6
    )
    assert [(e["start"], e["end"], e["label"]) for e in told] == [
        (e.start, e.end, e.label) for e in events
    ]
    np.testing.assert_allclose([e["score"] for e in told], [e.score for e in events], atol=1e-6)
    assert talk(client, f"{query}&smoothing=2", [content, "end"])[1:-2] == told


def test_an_event_is_told_while_the_stream_goes_on(client: Client) -> None:
    with connect(f"ws://127.0.0.1:{client.port}/listen?encoding=f32le&hop=0.5") as socket:
        socket.recv()
        socket.send(np.repeat(np.float32([0.5, -0.5]), RATE // 2).tobytes())
        event = json.loads(socket.recv(timeout=10))
        assert (event["start"], event["end"], event["label"]) == (0, 0.5, "positive")
        assert client.metric("stapes_active", kind="stream") == 1


def test_an_empty_stream_ends_too(client: Client) -> None:
    assert talk(client, "", ["end"])[1:] == [{"type": "end", "seconds": 0.0}, {"code": 1000}]
    assert talk(client, "", [b"\0", "end"])[1:] == [{"type": "end", "seconds": 0.0}, {"code": 1000}]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("model=none", 404, "Unknown model"),
        ("hop=0.6", 422, "hop: must be above 0 and at most"),
        ("release=0.5", 422, "release: must be at most the threshold"),
        ("encoding=mp3", 422, "encoding: "),
        ("sample_rate=0", 422, "sample_rate: "),
        ("channels=257", 422, "channels: "),
        ("top=1", 422, "top: there is no such parameter"),
    ],
)
def test_what_cannot_be_is_refused_before(
    client: Client, query: str, status: int, words: str
) -> None:
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(f"ws://127.0.0.1:{client.port}/listen?{query}"),
    ):
        pass
    response = refused.value.response
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert words in json.loads(response.body)["detail"]


def test_what_is_no_sound_ends_the_stream(client: Client) -> None:
    bad = np.float32([0, np.nan]).tobytes()
    *_, problem, code = talk(client, "encoding=f32le", [bad])
    assert problem["problem"]["status"] == 422
    assert "not a number" in problem["problem"]["detail"]
    assert code == {"code": 1007}
    *_, problem, code = talk(client, "encoding=f64le", [np.float64([1e300]).tobytes()])
    assert "infinite" in problem["problem"]["detail"]
    assert code == {"code": 1007}
    *_, problem, code = talk(client, "", ["stop"])
    assert "'end'" in problem["problem"]["detail"]
    assert code == {"code": 1003}


def test_limits_of_streams(toy: Path) -> None:
    limits = {"streams": 1, "stream_idle_seconds": 0.3, "message_bytes": 1000}
    with served(toy, **limits) as client:
        url = f"ws://127.0.0.1:{client.port}/listen"
        with connect(url) as socket:
            socket.recv()
            with pytest.raises(InvalidStatus) as refused, connect(url):
                pass
            assert refused.value.response.status_code == 429
            assert refused.value.response.headers["retry-after"] == "1"
            assert json.loads(socket.recv(timeout=10)) == {"type": "end", "seconds": 0.0}
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
            assert closed.value.rcvd.code == 1001  # silent for too long
        assert talk(client, "", [bytes(1001)])[-1] == {"code": 1009}
        assert client.metric("stapes_refused_total", reason="streams") == 1


def test_too_much_work_ends_the_stream(toy: Path) -> None:
    with served(toy, work_seconds=0.2) as client:
        # A window for every sample: half a million in one message.
        *_, problem, code = talk(client, f"hop={1 / RATE}&encoding=u8", [bytes(500_000)])
        assert problem["problem"]["type"].endswith("too-much-work")
        assert code == {"code": 1008}
        assert client.get("/health").status == 200


def test_a_stream_outlives_the_time_for_a_head(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stapes.server.running._HEAD_SECONDS", 0.2)
    with (
        served([toy]) as client,
        connect(f"ws://127.0.0.1:{client.port}/listen?windows=true") as socket,
    ):
        time.sleep(0.5)
        socket.send(np.zeros(RATE, "<i2").tobytes())
        socket.send("end")
        kinds = [json.loads(socket.recv(timeout=10))["type"] for _ in range(3)]
    assert kinds == ["ready", "window", "window"]


def test_a_slow_rate_is_resampled_in_pieces(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    push = Listener.push

    def watched(self: Listener, chunk: np.ndarray) -> list[Any]:
        taken.append(chunk.shape[1])
        return push(self, chunk)

    monkeypatch.setattr(Listener, "push", watched)
    monkeypatch.setattr("stapes.server.listening._MOST_AT_ONCE", 4 * RATE)
    with served([toy]) as client:
        found = talk(client, "sample_rate=100&encoding=u8", [bytes(range(100)) * 10, "end"])
    assert found[-2] == {"type": "end", "seconds": 10.0}
    assert taken == [400, 400, 200]
