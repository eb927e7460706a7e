"""Front ends on ONNX Runtime against their torch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from stapes.deploy.onnx.building import IR_VERSION, OPSET, GraphBuilder
from stapes.deploy.onnx.frontend import add_frontend, add_normalizer
from stapes.deploy.onnx.spectra import add_power_spectrum
from stapes.errors import ConfigError
from stapes.features import BandNormalizer, FrontEnd, LogMel, create_frontend

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

FRONT_ENDS: dict[str, dict[str, Any]] = {
    "recipe": {"name": "log_mel", "sample_rate": 22050, "hop_length": 551, "n_mels": 64},
    "top_db": {"name": "log_mel", "sample_rate": 8000, "n_fft": 256, "top_db": 60.0},
    "log": {"name": "log_mel", "sample_rate": 8000, "n_fft": 400, "scaling": "log"},
    "htk": {"name": "log_mel", "sample_rate": 8000, "n_fft": 256, "mel_scale": "htk",
            "mel_norm": None, "f_min": 100.0, "f_max": 3000.0},
    "short window": {"name": "log_mel", "sample_rate": 8000, "n_fft": 512, "win_length": 201},
    "odd": {"name": "log_mel", "sample_rate": 8000, "n_fft": 225, "win_length": 200,
            "hop_length": 77},
    "prime": {"name": "log_mel", "sample_rate": 8000, "n_fft": 251, "hop_length": 100},
    "large prime": {"name": "log_mel", "sample_rate": 8000, "n_fft": 2053, "hop_length": 1000},
    "hop of one": {"name": "log_mel", "sample_rate": 2000, "n_fft": 90, "hop_length": 1,
                   "n_mels": 8},
    "hop beyond the frame": {"name": "log_mel", "sample_rate": 8000, "n_fft": 64,
                             "hop_length": 700, "n_mels": 8},
    "bands without a bin": {"name": "log_mel", "sample_rate": 8000, "n_fft": 64, "n_mels": 60},
    "perceptual": {"name": "perceptual_mel", "sample_rate": 22050},
    "perceptual, odd": {"name": "perceptual_mel", "sample_rate": 8000, "n_fft": 315,
                        "hop_length": 100, "n_mels": 30},
    "three windows": {"name": "three_window_log_mel", "sample_rate": 8000, "n_mels": 40,
                      "n_frames": 60},
    "three windows of ESC-50": {"name": "three_window_log_mel", "sample_rate": 44100},
}  # fmt: skip


def on_onnx_runtime(build: Callable[[GraphBuilder], str], channels: int | str) -> Run:
    """What is built on the value ``waveform``, as a function."""
    graph = GraphBuilder("features")
    result = build(graph)
    shapes = {"waveform": ["b", channels, "n"], result: ["b", "c", "f", "t"]}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "g", values[:1], values[1:], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda waveform: session.run(None, {"waveform": waveform})[0]


def signals(sample_rate: int, channels: int, seconds: float) -> dict[str, NDArray[np.float32]]:
    """(2, channels, N) each."""
    generator = np.random.default_rng(5)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    tone = np.sin(2 * np.pi * 0.11 * sample_rate * time)
    gains = np.array([[1.0], [1e-3]]) * np.linspace(1, 0.1, channels)
    made = {
        "noise": generator.standard_normal((2, channels, len(time))),
        "tone": np.broadcast_to(tone, (2, channels, len(time))),
        "tone, then silence": np.where(time < seconds / 2, tone, 0) * np.ones((2, channels, 1)),
    }
    made = {name: 0.9 * gains[..., None] * signal for name, signal in made.items()}
    made["silence"] = np.zeros((2, channels, len(time)))
    return {name: signal.astype(np.float32) for name, signal in made.items()}


@pytest.mark.parametrize("settings", FRONT_ENDS.values(), ids=list(FRONT_ENDS))
def test_the_values_are_torchs(settings: dict[str, Any]) -> None:
    frontend = create_frontend(**settings)
    run = on_onnx_runtime(lambda graph: add_frontend(graph, frontend, "waveform"), "c")
    # A level in units of the front end's own; perceptual_mel computes in single precision, and
    # adds levels of hundreds of bins.
    close = 1e-3 if frontend.name == "perceptual_mel" else 5e-5
    for channels in (1, 2):
        for name, waveform in signals(frontend.sample_rate, channels, 0.6).items():
            found = run(waveform)
            expected = frontend(torch.from_numpy(waveform)).numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=close, err_msg=name)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 50, 127, 128, 129, 300])
@pytest.mark.parametrize("name", ["log_mel", "perceptual_mel", "three_window_log_mel"])
def test_any_length(name: str, n_samples: int) -> None:
    options = {} if name == "three_window_log_mel" else {"n_fft": 256, "hop_length": 100}
    frontend = create_frontend(name, sample_rate=2000, n_mels=12, **options)
    run = on_onnx_runtime(lambda graph: add_frontend(graph, frontend, "waveform"), 1)
    waveform = np.random.default_rng(1).uniform(-1, 1, (3, 1, n_samples)).astype(np.float32)
    expected = frontend(torch.from_numpy(waveform)).numpy()
    np.testing.assert_allclose(run(waveform), expected, rtol=0, atol=1e-4)


def test_the_transform_is_numpys() -> None:
    # One frame, whose window is known.
    waveform = np.random.default_rng(2).uniform(-1, 1, (1, 1, 360)).astype(np.float32)
    frame = waveform[0, 0] * np.hanning(361)[:360]
    expected = np.abs(np.fft.rfft(frame)) ** 2
    made = []

    def build(graph: GraphBuilder) -> str:
        made.append(add_power_spectrum(graph, "waveform", 360, 360, 180, double=True))
        return made[0].value

    found = on_onnx_runtime(build, 1)(waveform)[0, 0, :, 1]
    assert len(made[0].rows) == 181
    np.testing.assert_allclose(found[made[0].rows], expected, rtol=1e-5, atol=1e-9)


def test_normalisation() -> None:
    normalizer = BandNormalizer(2, 3)
    normalizer.mean.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]])[..., None])
    normalizer.std.copy_(torch.tensor([[1.0, 2, 4], [5, 8, 10]])[..., None])
    run = on_onnx_runtime(
        lambda graph: add_normalizer(
            graph, normalizer, graph.add("Unsqueeze", "waveform", graph.integers(2))
        ),
        2,
    )
    found = run(np.array([[[11.0], [24.0]]], dtype=np.float32))
    np.testing.assert_allclose(found.squeeze(), [[10, 4.5, 2], [4, 2.375, 1.8]], rtol=1e-6)


def test_an_unknown_front_end_is_refused() -> None:
    class Another(FrontEnd):
        name = "another"
        n_frames = frame_rate = band_frequencies = decibel = settings = _spectrogram = (
            LogMel.n_frames
        )

    with pytest.raises(ConfigError, match="'another'"):
        add_frontend(GraphBuilder("features"), Another(), "waveform")
