"""A small layer over the onnx package: graphs written as expressions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import helper, numpy_helper

__all__ = ["IR_VERSION", "OPSET", "GraphBuilder"]

# The oldest that hold all that is used (Resize with antialiasing), so that runtimes that are some
# years old still read the file.
OPSET = 18
IR_VERSION = 8

_ONNX_TYPES = {
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.float64): onnx.TensorProto.DOUBLE,
    np.dtype(np.int64): onnx.TensorProto.INT64,
}


class GraphBuilder:
    """Nodes and constants of a graph, in the order in which they are added.

    Values are names. Each name says where the value is from: a room, the operator, and a number.

    Args:
        room: the first part of the names.

    Attributes:
        nodes: in an order in which they can run.
        initializers: the constants.
    """

    def __init__(self, room: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._room = room
        self._counts: dict[str, int] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output.

        Args:
            operator: of ONNX's standard domain.
            inputs: values.
            attributes: plain Python values.

        Returns:
            The output.
        """
        name = self._fresh(operator)
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: ArrayLike, dtype: DTypeLike) -> str:
        """A constant; equal ones are stored once."""
        array = np.asarray(value, dtype=dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self._fresh("constant")
            self.initializers.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def integers(self, *values: int) -> str:
        """A row of whole numbers, as shapes, axes and indices are given."""
        return self.constant(values, np.int64)

    def counting(self, start: int, end: int, *shape: int) -> str:
        """``start`` to ``end - 1``, in a shape, computed when the file is loaded."""
        ends = (self.constant(number, np.int64) for number in (start, end, 1))
        row = self.add("Range", *ends)
        return self.reshape(row, *shape) if shape else row

    def cast(self, value: str, dtype: DTypeLike) -> str:
        """Another type."""
        return self.add("Cast", value, to=_ONNX_TYPES[np.dtype(dtype)])

    def reshape(self, value: str, *shape: int) -> str:
        """Another shape: 0 keeps the axis at that place, -1 takes what is left."""
        return self.add("Reshape", value, self.integers(*shape))

    def join(self, *values: str, axis: int) -> str:
        """Values side by side along an axis."""
        return values[0] if len(values) == 1 else self.add("Concat", *values, axis=axis)

    def _fresh(self, what: str) -> str:
        count = self._counts[what] = self._counts.get(what, -1) + 1
        return f"{self._room}/{what}" + (f"_{count}" if count else "")
