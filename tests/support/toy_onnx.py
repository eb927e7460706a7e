"""An exported model so small that its answers are known: how positive is the mean sample?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stapes.inference.sealing import DIGEST_KEY, UNSEALED, seal

LABELS = ("negative", "positive")
RATE, WINDOW_SECONDS = 8000, 0.5


def toy_model(*, channels: int = 1, header: dict[str, Any] | None = None, **audio: Any) -> bytes:
    """A sealed ONNX file: P("positive") of a window with the mean sample m is 1 / (1 + exp(-8 m)).

    Args:
        channels: of the windows.
        header: entries of the metadata that are to be others.
        audio: settings that are to be others.
    """
    settings = {
        "sample_rate": RATE, "channels": channels, "window_seconds": WINDOW_SECONDS,
        "hop_seconds": None, "shorter": "pad", "longer": "window", **audio,
    }  # fmt: skip
    card = {"licence": "CC0-1.0"}
    whole = {
        "format_version": 1, "labels": LABELS, "audio": settings, "precision": "float32",
        "card": card, **(header or {}),
    }  # fmt: skip
    model = toy_graph(channels)
    helper.set_model_props(model, {"stapes": json.dumps(whole), DIGEST_KEY: UNSEALED})
    return seal(model.SerializeToString())


def positive(mean: float) -> float:
    """P("positive") of a window with this mean sample."""
    return 1 / (1 + float(np.exp(-8 * mean)))


def toy_graph(channels: int = 1) -> onnx.ModelProto:
    """The same without metadata: what any other program might have written."""
    nodes = [
        helper.make_node("ReduceMean", ["waveform", "axes"], ["mean"], keepdims=0),  # (B,)
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),  # (B, 1)
        helper.make_node("MatMul", ["column", "slopes"], ["logits"]),  # (B, 2)
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = {
        "axes": np.array([1, 2]),
        "last": np.array([1]),
        "slopes": np.array([[-4, 4]], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", channels, "n"])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    return model
