"""Exported models on ONNX Runtime, judged by a graph whose answers are known by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from onnx import helper
from toy_onnx import LABELS, RATE, toy_graph, toy_model

from stapes import runtime
from stapes.errors import ModelFileError
from stapes.inference import AudioSettings
from stapes.inference.sealing import DIGEST_KEY, UNSEALED, seal
from stapes.runtime import OnnxClassifier, load


def _positive(mean: float) -> float:
    return float(1 / (1 + np.exp(-8 * mean)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(toy_model())
    return path


def test_probabilities_are_those_of_the_graph(model: Path) -> None:
    windows = np.full((3, 1, 700), [[[0.0]], [[0.25]], [[-1.0]]], np.float32)
    found = load(model).probabilities(windows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 1], [0.5, _positive(0.25), _positive(-1)], atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert load(model).probabilities(windows[:0]).shape == (0, 2)


def test_a_recording_gets_the_mean_of_its_windows(model: Path, tmp_path: Path) -> None:
    levels = np.repeat(np.array([0.5, -0.25, 0.75], np.float32), RATE // 2)
    soundfile.write(tmp_path / "steps.wav", levels, RATE, subtype="FLOAT")
    prediction = load(model).classify(tmp_path / "steps.wav")
    expected = np.mean([_positive(0.5), _positive(-0.25), _positive(0.75)])
    assert dict(prediction.top(2)) == pytest.approx(
        {"positive": expected, "negative": 1 - expected}, abs=1e-6
    )
    assert prediction.label == "positive"
    events = list(load(model).timeline(tmp_path / "steps.wav", hop_seconds=0.5))
    assert [(e.start, e.end, e.label) for e in events] == [
        (0, 0.5, "positive"), (0.5, 1, "negative"), (1, 1.5, "positive"),
    ]  # fmt: skip


def test_what_the_file_says_is_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(toy_model(channels=2, hop_seconds=0.25, shorter="repeat", longer="crop"))
    classifier = load(tmp_path, threads=1)  # the folder will do
    assert classifier.labels == LABELS
    assert classifier.audio == AudioSettings(RATE, 2, 0.5, 0.25, "repeat", "crop")
    assert (classifier.audio.window, classifier.audio.hop) == (4000, 2000)
    assert classifier.precision == "float32"
    assert classifier.card["licence"] == "CC0-1.0"
    assert classifier.path == path


def test_wrong_windows_are_refused(model: Path) -> None:
    classifier = load(model)
    with pytest.raises(ValueError, match=r"windows are \(B, 1, N\), not of shape \(3, 2, 50\)"):
        classifier.probabilities(np.zeros((3, 2, 50), np.float32))
    with pytest.raises(ValueError, match=r"windows are \(B, 1, N\)"):
        classifier.probabilities(np.zeros(50, np.float32))
    with pytest.raises(ValueError, match="threads is 1 or more"):
        load(model, threads=0)


def _foreign() -> bytes:
    return bytes(toy_graph().SerializeToString())


def _sealed_without_header() -> bytes:
    graph = toy_graph()
    helper.set_model_props(graph, {DIGEST_KEY: UNSEALED})
    return seal(graph.SerializeToString())


def _too_new_for_onnxruntime() -> bytes:
    graph = toy_graph()
    graph.opset_import[0].version = 999
    helper.set_model_props(graph, {"stapes": "{}", DIGEST_KEY: UNSEALED})
    return seal(graph.SerializeToString())


def _flipped(position: float) -> bytes:
    content = bytearray(toy_model())
    content[int(position * len(content))] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"", "not an ONNX file that stapes wrote, or a truncated one", id="empty"),
        pytest.param(b"hello\n", "not an ONNX file that stapes wrote", id="text"),
        pytest.param(_foreign(), "not an ONNX file that stapes wrote", id="foreign"),
        pytest.param(_sealed_without_header(), "not an ONNX file that stapes", id="no header"),
        pytest.param(toy_model()[:300], "or a truncated one", id="truncated"),
        pytest.param(toy_model()[:-1], "does not match its digest|truncated", id="a byte less"),
        pytest.param(toy_model() + b"\0", "does not match its digest", id="a byte more"),
        pytest.param(_flipped(0.02), "does not match its digest", id="altered head"),
        pytest.param(_flipped(0.5), "does not match its digest", id="altered middle"),
        pytest.param(_too_new_for_onnxruntime(), "upgrade onnxruntime", id="operators too new"),
        pytest.param(
            toy_model(header={"format_version": 2}), r"newer stapes \(format 2.*up to 1", id="newer"
        ),
        pytest.param(toy_model(header={"format_version": None}), "not an ONNX", id="no format"),
        pytest.param(toy_model(header={"labels": ["a"]}), "2 entries, not 1", id="labels"),
        pytest.param(toy_model(header={"labels": 3}), "cannot use the model", id="no labels"),
        pytest.param(toy_model(header={"audio": {}}), "'sample_rate' is missing", id="no audio"),
        pytest.param(toy_model(header={"card": 1}), "cannot use the model", id="no card"),
        pytest.param(toy_model(sample_rate=0), "sample_rate is a whole number", id="rate"),
        pytest.param(toy_model(sample_rate=8000.5), "sample_rate is a whole", id="half a hertz"),
        pytest.param(toy_model(window_seconds="1"), "window_seconds is a number", id="window"),
        pytest.param(toy_model(window_seconds=None), "window_seconds is a number", id="none"),
        pytest.param(toy_model(window_seconds=float("nan")), "window_seconds is", id="nan"),
        pytest.param(toy_model(hop_seconds=1e-9), "hop_seconds is at least one sample", id="hop"),
        pytest.param(toy_model(shorter="cut"), "shorter is one of", id="shorter"),
        pytest.param(toy_model(longer="cut"), "longer is one of", id="longer"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    text = str(caught.value)
    assert re.search(sentence, text)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert capfd.readouterr() == ("", "")  # ONNX Runtime's own log stays silent


def test_no_file_and_no_model_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.onnx: cannot read"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ModelFileError, match=r"holds no model\.onnx"):
        load(tmp_path)


def test_graph_and_header_must_agree_on_channels(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(toy_model(channels=1, header={"audio": _stereo()}))
    with pytest.raises(ModelFileError, match="axis 1 of waveform has 1 entries, not 2"):
        load(tmp_path)


def _stereo() -> dict[str, Any]:
    return {
        "sample_rate": RATE, "channels": 2, "window_seconds": 0.5, "hop_seconds": None,
        "shorter": "pad", "longer": "window",
    }  # fmt: skip


def test_silence_about_a_window_too_short_for_the_network(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A graph that pools 100 samples at once cannot answer 50; it says so in Python alone."""
    graph = toy_graph()
    graph.graph.node.insert(
        0, helper.make_node("MaxPool", ["waveform"], ["pooled"], kernel_shape=[100])
    )
    graph.graph.node[1].input[0] = "pooled"
    props = {p.key: p.value for p in onnx.load_from_string(toy_model()).metadata_props}
    helper.set_model_props(graph, {**props, DIGEST_KEY: UNSEALED})
    (tmp_path / "model.onnx").write_bytes(seal(graph.SerializeToString()))
    classifier = OnnxClassifier(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="cannot answer 50 samples; its windows have 4000"):
        classifier.probabilities(np.zeros((1, 1, 50), np.float32))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("saturates", [False, True])
def test_where_integer_sums_overflow_they_are_made_the_exact_way(
    model: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    monkeypatch.setattr(runtime, "integer_sums_saturate", lambda: saturates)
    options = load(model)._session.get_session_options()
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):  # not set
            options.get_session_config_entry("session.x64quantprecision")
