"""``POST /classify`` and ``/classify/batch``, judged by stapes.runtime on the same files."""

from __future__ import annotations

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from damage import damaged_files
from served import Client, form, served
from toy_onnx import RATE, positive, toy_model

from stapes.errors import AudioError, ConfigError
from stapes.runtime import load
from stapes.server import create_app


def expected(model: str | Path, path: Path, top: int) -> list[dict[str, object]]:
    pairs = load(model, threads=1).classify(path).top(top)
    return [{"label": label, "score": near(score)} for label, score in pairs]


def near(value: float) -> Any:
    """Windows may share a batch with others here, which may change the last bits of a float32."""
    return pytest.approx(value, abs=1e-6)


@pytest.fixture(scope="module")
def long_clip(hits: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen seconds: more windows than one batch has."""
    rate = soundfile.info(hits[0]).samplerate
    sound = np.concatenate([soundfile.read(hit, always_2d=True)[0][:, 0] for hit in hits])
    path = tmp_path_factory.mktemp("long") / "long.flac"
    soundfile.write(path, np.resize(sound, 14 * rate), rate)
    return path


def test_the_numbers_are_the_runtimes(client: Client, hits: list[Path], long_clip: Path) -> None:
    for path in [*hits[:4], long_clip]:
        wanted = expected("drum-hits", path, 3)
        as_form = client.upload("/classify?model=drum-hits&top=3", path)
        assert as_form.status == 200
        info = soundfile.info(path)
        assert as_form.json["seconds"] == pytest.approx(info.duration, abs=1e-3)
        assert as_form.json == {
            "model": "drum-hits", "name": path.name, "seconds": as_form.json["seconds"],
            "labels": wanted,
        }  # fmt: skip
        as_body = client.send("/classify?model=drum-hits&top=3", path.read_bytes(), "audio/x")
        assert as_body.json == {**as_form.json, "name": None}


def test_timelines_are_the_runtimes(client: Client, long_clip: Path) -> None:
    settings = {"threshold": 0.5, "release": 0.3, "smoothing": 3}
    events = load("drum-hits", threads=1).timeline(long_clip, hop_seconds=0.2, **settings)
    query = "hop=0.2&threshold=0.5&release=0.3&smoothing=3"
    answer = client.upload(f"/classify?model=drum-hits&timeline=true&{query}", long_clip)
    assert answer.json["events"] == [
        {"start": e.start, "end": e.end, "label": e.label, "score": near(e.score)} for e in events
    ]
    assert len(answer.json["events"]) > 3


def test_many_at_once_get_the_same_numbers(hits: list[Path], long_clip: Path) -> None:
    """Also where windows of several requests are computed in one call, of an int8 model."""
    paths = [*hits, long_clip] * 4
    with served("drum-hits", threads=1, batch=8, batch_wait=0.02, workers=16) as client:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda path: client.upload("/classify?top=9", path), paths))
        calls = client.metric("stapes_batch_windows_count", model="drum-hits")
        windows = client.metric("stapes_batch_windows_sum", model="drum-hits")
    wanted = {path: expected("drum-hits", path, 9) for path in {*paths}}
    for path, answer in zip(paths, answers, strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer.json["labels"]}
        for entry in wanted[path]:
            assert scores[entry["label"]] == entry["score"]
    assert windows > 1.2 * calls  # otherwise nothing was tried


def test_a_middle_is_cut_as_the_runtime_cuts_it(tmp_path: Path) -> None:
    (tmp_path / "middle.onnx").write_bytes(toy_model(longer="crop"))
    levels = np.repeat([0.5, -0.25, 0.5], RATE // 2)
    soundfile.write(tmp_path / "x.wav", levels, RATE, subtype="FLOAT")
    with served(tmp_path / "middle.onnx", duration=2) as client:
        answer = client.upload("/classify", tmp_path / "x.wav").json
        assert answer["labels"] == expected(tmp_path / "middle.onnx", tmp_path / "x.wav", 2)
        assert answer["labels"][0]["label"] == "negative"
        soundfile.write(tmp_path / "y.wav", np.tile(levels, 2), RATE)
        assert client.upload("/classify", tmp_path / "y.wav").kind == "too-long"


def test_the_first_model_answers_where_none_is_named(client: Client, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.full(RATE // 2, 0.25), RATE, subtype="FLOAT")
    answer = client.upload("/classify", tmp_path / "x.wav").json
    assert answer["model"] == "signs"
    assert answer["labels"][0] == {"label": "positive", "score": pytest.approx(positive(0.25))}
    assert client.send("/classify?model=sign", b"").kind == "unknown-model"
    assert "Did you mean 'signs'" in client.send("/classify?model=sign", b"").json["detail"]


def test_in_a_batch_a_bad_file_does_not_stop_the_others(
    client: Client, hits: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no sound\n" * 9)
    (tmp_path / "empty.wav").touch()
    files = [hits[0], tmp_path / "notes.txt", tmp_path / "empty.wav", *hits[1:]]
    answer = client.upload("/classify/batch?model=drum-hits&top=1", *files, field="files")
    assert answer.status == 200
    entries = answer.json["results"]
    assert [entry["name"] for entry in entries] == [path.name for path in files]
    for path, entry in zip(files, entries, strict=True):
        if path in hits:
            assert entry["result"]["labels"] == expected("drum-hits", path, 1)
            assert entry["problem"] is None
        else:
            assert entry["result"] is None
            assert entry["problem"]["status"] == (415 if path.stem == "notes" else 422)


QUERIES = {
    "unknown": "there is no such parameter; known: model, hop",
    "top=0": "top: Input should be greater than or equal to 1",
    "top=one": "top: ",
    "top=1&top=2": "top: is given twice",
    "top=2&timeline=true": "top: does not go with timeline=true",
    "hop=0.1": "hop: goes with timeline=true",
    "timeline=true&hop=0.6": "hop: must be above 0 and at most the model's window of 0.5 s",
    "timeline=true&hop=1e-9": "hop: must be above 0",
    "timeline=true&hop=nan": "hop: ",
    "timeline=true&threshold=1.5": "threshold: ",
    "timeline=true&threshold=0.2&release=0.3": "release: must be at most the threshold, which is",
    "timeline=true&smoothing=0": "smoothing: ",
    "timeline=perhaps": "timeline: ",
}


@pytest.mark.parametrize("query", QUERIES)
def test_parameters_that_cannot_be_are_refused(client: Client, query: str) -> None:
    for path in ("/classify", "/classify/batch"):
        answer = client.send(f"{path}?{query}", b"")
        assert answer.status == 422
        assert answer.kind == "invalid-value"
        assert QUERIES[query] in answer.json["detail"]
        assert answer.json["errors"][0]["parameter"] == query.partition("=")[0].replace(
            "timeline", query.rpartition("&")[2].partition("=")[0]
        )


def test_bodies_that_cannot_be_are_refused(client: Client) -> None:
    def kind(body: bytes, media: str, path: str = "/classify") -> tuple[int, str]:
        answer = client.send(path, body, media)
        return answer.status, answer.kind

    sent, media = form([("file", "a.wav", b"x"), ("file", "b.wav", b"y")])
    assert kind(sent, media) == (413, "too-large")
    assert kind(*form([("note", None, b"x")])) == (422, "invalid-value")
    assert kind(sent[:-20], media, "/classify/batch") == (400, "bad-request")
    assert kind(b"--nothing", media) == (400, "bad-request")
    assert kind(b"--x1y2--\r\n", media) == (400, "bad-request")
    assert kind(b"x", "multipart/form-data") == (400, "bad-request")
    assert kind(b"--x1y2\r\nA: " + b"b" * 9000, media) == (400, "bad-request")
    assert kind(b"file=x", "application/x-www-form-urlencoded") == (415, "unsupported-media")
    assert kind(b"", "audio/wav") == (422, "bad-recording")
    assert kind(b"text", "audio/wav") == (415, "unsupported-media")
    nameless = client.send("/classify", *form([("file", "../../etc/a\x01.wav", b"x")]))
    assert nameless.json["detail"].startswith("a.wav: ")


def test_damaged_recordings_are_answered_as_the_runtime_answers(
    client: Client, hits: list[Path], tmp_path: Path
) -> None:
    good = [hits[0]]
    for suffix, subtype in ((".wav", "PCM_16"), (".flac", "PCM_16"), (".mp3", "MPEG_LAYER_III")):
        good.append(tmp_path / f"good{suffix}")
        sound, rate = soundfile.read(hits[1])
        soundfile.write(good[-1], sound, rate, subtype=subtype)
    model = load("drum-hits", threads=1)
    seen = set()
    for path in damaged_files(tmp_path / "damaged", good, 84, seed=7):
        answer = client.upload("/classify?model=drum-hits&top=9", path)
        seen.add(answer.status)
        wanted, reason = None, ""
        try:
            wanted = [(label, near(score)) for label, score in model.classify(path).top(9)]
        except AudioError as error:
            reason = error.reason
        if wanted is None:
            assert answer.kind in ("bad-recording", "unsupported-media")
            assert answer.json["detail"] == f"{path.name}: {reason}"
        else:
            assert answer.status == 200
            assert [(e["label"], e["score"]) for e in answer.json["labels"]] == wanted
        assert tempfile.gettempdir() not in answer.body.decode()
    assert seen == {200, 415, 422}


def test_names_of_models(toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "barks"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(toy.read_bytes())
    with served([toy, folder]) as client:
        assert [entry["name"] for entry in client.get("/models").json["models"]] == [
            "signs", "barks",
        ]  # fmt: skip
    with pytest.raises(ConfigError, match=re.escape("Two models are called 'signs'")):
        create_app([toy, toy])
    with pytest.raises(ConfigError, match="Name a model"):
        create_app([])
    with pytest.raises(ConfigError, match="cannot be called 'a b'"):
        create_app({"a b": toy})


def test_what_is_said_of_models(client: Client) -> None:
    signs, hits = client.get("/models").json["models"]
    assert signs == {
        "name": "signs", "labels": ["negative", "positive"], "sample_rate": RATE, "channels": 1,
        "window_seconds": 0.5, "hop_seconds": 0.5, "precision": "float32", "score": None,
        "licence": "CC0-1.0",
    }  # fmt: skip
    assert hits["precision"] == "int8"
    assert 0 < hits["score"]["accuracy"]["value"] <= 1
    assert hits["licence"]
    assert client.get("/models?x=1").status == 422
    assert client.get("/health").json["status"] == "ok"
    assert client.get("/nothing").kind == "not-found"
    wrong = client.get("/classify")
    assert (wrong.status, wrong.headers["allow"], wrong.kind) == (405, "POST", "method-not-allowed")
    assert client.get("/listen").kind == "upgrade-required"


def test_counts(toy: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(3 * RATE), RATE)
    with served(toy, upload_bytes=100_000) as client:
        for _ in range(2):
            client.upload("/classify", tmp_path / "x.wav")
        client.send("/classify", bytes(100_001))
        assert client.metric("stapes_requests_total", route="/classify", status="200") == 2
        assert client.metric("stapes_requests_total", route="/classify", status="413") == 1
        assert client.metric("stapes_request_seconds_count", route="/classify") == 3
        assert client.metric("stapes_refused_total", reason="size") == 1
        assert client.metric("stapes_audio_seconds_total", model="signs") == 6
        assert client.metric("stapes_batch_windows_sum", model="signs") == 12
        assert client.metric("stapes_queue_windows", model="signs") == 0
        assert client.metric("stapes_active", kind="request") == 0
