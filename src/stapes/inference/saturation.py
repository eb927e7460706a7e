"""Whether this processor's integer sums overflow in ONNX Runtime.

x86 processors without VNNI multiply uint8 by int8 and add pairs of products in 16 bits, where they
stop at 32767: 255 * 127 + 255 * 127 does not fit, and a quantised network gives another answer
than elsewhere. ONNX Runtime has a slower exact way (session option ``session.x64quantprecision``),
but does not know where it is needed, and takes it at half the speed on every x86 processor. So one
such product is tried.
"""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["integer_sums_saturate"]

# ONNX: y = MatMulInteger(a, b), a (16, 64) uint8, b (64, 16) int8, y int32.
_PRODUCT = bytes.fromhex(
    "08083a5c0a180a01610a0162120179220d4d61744d756c496e74656765721201675a130a0161120e0a0c08021208"
    "0a0208100a0208405a130a0162120e0a0c080312080a0208400a02081062130a0179120e0a0c080612080a020810"
    "0a02081042040a001012"
)


@cache
def integer_sums_saturate() -> bool:
    """Try it: the largest activations and weights there are. Takes a millisecond, once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_PRODUCT, options, providers=["CPUExecutionProvider"])
    a, b = np.full((16, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    found = session.run(None, {"a": a, "b": b})[0]
    return bool((found != 64 * 255 * 127).any())
