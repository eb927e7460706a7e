"""A model as one ONNX file, from waveform to probabilities."""

from __future__ import annotations

import bisect
import json
from dataclasses import asdict
from typing import Any

import onnx
from onnx import TensorProto, helper

from stapes.bundle import Bundle
from stapes.deploy.onnx.building import IR_VERSION, OPSET, GraphBuilder
from stapes.deploy.onnx.frontend import add_frontend, add_normalizer
from stapes.deploy.onnx.network import add_network
from stapes.inference.sealing import DIGEST_KEY, UNSEALED, seal
from stapes.inference.settings import AudioSettings
from stapes.models.registry import network_settings
from stapes.runtime import FORMAT_VERSION

__all__ = ["onnx_model"]


def onnx_model(bundle: Bundle) -> bytes:
    """The whole model as the content of an ONNX file.

    Input ``waveform`` (batch, channels, samples) float32 at the model's sample rate, full scale at
    -1..1; output ``probabilities`` (batch, labels) float32. The metadata key ``stapes`` holds this
    JSON::

        {"format_version": 1, "labels": [...], "precision": "float32" or "int8",
         "audio": {"sample_rate", "channels", "window_seconds", "hop_seconds", "shorter", "longer",
                   "min_samples": what the network needs},
         "card": what the model is and where it came from}

    and ``stapes_digest`` the digest of :mod:`stapes.inference.sealing`. The same bundle gives the
    same bytes.

    Raises:
        ConfigError: a network or front end that cannot be exported, with the reason.
    """
    audio = bundle.audio
    frontend, channels = bundle.frontend, audio.channels
    shape = (frontend.out_channels(channels), frontend.n_bins, frontend.n_frames(audio.window))
    graph = GraphBuilder("features")
    features = add_normalizer(graph, bundle.normalizer, add_frontend(graph, frontend, "waveform"))
    result, any_length = add_network(graph, bundle.network, features, shape)
    for node in graph.nodes:
        node.output[:] = ["probabilities" if name == result else name for name in node.output]
    samples = "samples" if any_length else audio.window
    inputs = helper.make_tensor_value_info(
        "waveform", TensorProto.FLOAT, ["batch", channels, samples]
    )
    outputs = helper.make_tensor_value_info(
        "probabilities", TensorProto.FLOAT, ["batch", len(bundle.labels)]
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, "stapes", [inputs], [outputs], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="stapes",
    )
    about = {
        "format_version": FORMAT_VERSION,
        "labels": list(bundle.labels),
        "precision": "int8" if bundle.precision == "int8" else "float32",
        "audio": {**asdict(audio), "min_samples": _min_samples(bundle, audio, any_length)},
        "card": _card(bundle),
    }
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    helper.set_model_props(model, {"stapes": text, DIGEST_KEY: UNSEALED})
    onnx.checker.check_model(model, full_check=True)
    return seal(model.SerializeToString(deterministic=True))


def _min_samples(bundle: Bundle, audio: AudioSettings, any_length: bool) -> int:
    """Fewest samples of which the network accepts the spectrogram."""
    if not any_length:
        return audio.window
    frames = int(bundle.network.min_input_size)  # type: ignore[arg-type]
    window = audio.window
    return bisect.bisect_left(
        range(window), True, lo=1, key=lambda n: bundle.frontend.n_frames(n) >= frames
    )


def _card(bundle: Bundle) -> dict[str, Any]:
    """What the model file says of the model, without tables of the test's details."""
    facts = dict(bundle.metadata)
    score = facts.get("score")
    if isinstance(score, dict):
        facts["score"] = {k: v for k, v in score.items() if not isinstance(v, list)}
    return {
        "network": network_settings(bundle.network),
        "frontend": bundle.frontend.settings(),
        **facts,
    }
