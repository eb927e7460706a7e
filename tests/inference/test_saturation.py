"""Whether integer sums overflow: asked of the processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from stapes.inference import saturation
from stapes.inference.saturation import integer_sums_saturate


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    integer_sums_saturate.cache_clear()
    yield
    integer_sums_saturate.cache_clear()


def one_product() -> onnx.ModelProto:
    """(16, 64) uint8 by (64, 16) int8, as the onnx package writes it."""
    shapes = (("a", TensorProto.UINT8, [16, 64]), ("b", TensorProto.INT8, [64, 16]),
              ("y", TensorProto.INT32, [16, 16]))  # fmt: skip
    a, b, y = (helper.make_tensor_value_info(*shape) for shape in shapes)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    return helper.make_model(
        helper.make_graph([node], "g", [a, b], [y]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


def test_the_graph_is_one_integer_product() -> None:
    assert onnx.load_model_from_string(saturation._PRODUCT) == one_product()


@pytest.mark.parametrize("saturates", [False, True])
def test_what_a_processor_answers(saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, _: None, given: dict[str, NDArray[Any]]) -> list[NDArray[np.int32]]:
            # As vpmaddubsw does: products of two neighbours, added in 16 bits with saturation.
            a, b = given["a"].astype(np.int32), given["b"].astype(np.int32)
            pairs = a[:, 0::2, None] * b[0::2] + a[:, 1::2, None] * b[1::2]
            if saturates:
                pairs = pairs.clip(-(2**15), 2**15 - 1)
            return [pairs.sum(1)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert integer_sums_saturate() is saturates


def test_this_processor() -> None:
    a, b = np.full((16, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    session = onnxruntime.InferenceSession(one_product().SerializeToString())
    found = session.run(None, {"a": a, "b": b})[0]
    exact = a.astype(np.int32) @ b.astype(np.int32)
    assert integer_sums_saturate() is not np.array_equal(found, exact)
