"""Networks that compute in eight bits, as ONNX writes them: QuantizeLinear and DequantizeLinear.

Between a pair of these around every rounding a graph computes in float, by the numbers of
:mod:`stapes.models.quantized`; a runtime joins the pairs with what is between them to integer
operators (ONNX Runtime: QLinearConv, QLinearAdd)::

    levels ─ DequantizeLinear ─┐
    weight ─ DequantizeLinear ─┼─ Conv ─ QuantizeLinear ─ levels
    bias ─── DequantizeLinear ─┘

Weights are int8 with zero point 0, which every runtime and accelerator takes. x86 processors
without VNNI add pairs of products with such weights in 16 bits, which overflows; whoever runs
the file there has to tell ONNX Runtime not to (``session.x64quantprecision = 1``, at a cost of
speed), as :mod:`stapes.runtime` does. Stored as uint8 with zero point 128 they would be safe
everywhere and twice to three times as slow where the processor does have VNNI.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from stapes.deploy.onnx.building import GraphBuilder
from stapes.errors import ConfigError
from stapes.models.folding import replace_module
from stapes.models.quantized import ActivationQuantizer, QuantizedConv2d, QuantizedLayer

__all__ = ["add_integers", "symmetric_padding", "with_levels"]


class _Levels(nn.Module):
    """An activation quantiser in the two operators that torch's exporter knows."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.scale = float(quantizer.scale)
        self.zero_point = int(quantizer.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        operators = torch.ops.quantized_decomposed
        numbers = (self.scale, self.zero_point, 0, 255, torch.uint8)
        levels = operators.quantize_per_tensor(x, *numbers)
        rounded: Tensor = operators.dequantize_per_tensor(levels, *numbers)
        return rounded


class _FloatLayer(nn.Module):
    """A quantised layer as a float one between its quantisers."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        weight = layer.integer_weight()
        weight = weight * layer.scale.view(-1, *[1] * (weight.ndim - 1))
        if isinstance(layer, QuantizedConv2d):
            moves: Any = layer._moves
            kernel: Any = layer._kernel_size
            stride, padding, dilation, groups = moves
            if layer._pads_to_size:
                padding = symmetric_padding(kernel, dilation)
            self.layer: nn.Module = nn.Conv2d(
                weight.shape[1] * groups, len(weight), kernel, stride, padding, dilation, groups,
                device="meta",
            )  # fmt: skip
        else:
            self.layer = nn.Linear(weight.shape[1], len(weight), device="meta")
        self.layer.weight = nn.Parameter(weight)
        self.layer.bias = nn.Parameter(layer.whole_bias().clone())
        self.input = nn.Identity() if layer.input is None else _Levels(layer.input)
        self.output = nn.Identity() if layer.output is None else _Levels(layer.output)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(self.layer(self.input(x)))
        return y


def symmetric_padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Zeros on either side that give maps as large as padding to the size of the input does.

    Raises:
        ConfigError: an even kernel has none.
    """
    if any(taps % 2 == 0 for taps in kernel):
        raise ConfigError(
            f"A {kernel[0]}x{kernel[1]} convolution that pads as its input needs cannot be "
            "exported in eight bits; export the float32 model."
        )
    high, wide = (apart * (taps - 1) // 2 for taps, apart in zip(kernel, dilation, strict=True))
    return high, wide


def with_levels(network: nn.Module) -> tuple[nn.Module, set[str]]:
    """A copy of an int8 network in float, with pairs of operators where it rounds.

    Returns:
        The copy, and the names that its convolutions have in the exported graph which should pad
        as their input needs and pad symmetrically in the copy.

    Raises:
        ConfigError: as :func:`symmetric_padding`.
    """
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
    copied = copy.deepcopy(network).eval()
    same = set()
    for name, module in list(copied.named_modules()):
        if isinstance(module, QuantizedLayer):
            replace_module(copied, module, _FloatLayer(module))
            if isinstance(module, QuantizedConv2d) and module._pads_to_size:
                same.add(f"{name}.layer")
    for module in list(copied.modules()):
        if isinstance(module, ActivationQuantizer):
            replace_module(copied, module, _Levels(module))
    return copied, same


def add_integers(
    graph: GraphBuilder, network: nn.Module, nodes: Mapping[str, list[onnx.NodeProto]]
) -> None:
    """Let the layers of an exported network read the stored integers.

    Args:
        graph: gets a DequantizeLinear for each weight and bias.
        network: the int8 network.
        nodes: of the exported one, by module; changed in place.
    """
    for name, layer in network.named_modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        integers = layer.integer_weight().numpy().astype(np.int8)
        weight = _dequantized(graph, f"{name}.weight", integers, layer.scale.numpy())
        multiplier = layer.multiplier().numpy()
        bias = np.rint(layer.whole_bias().double().numpy() / multiplier.astype(np.float64))
        for node in nodes[f"{name}.layer"]:
            if node.op_type in ("Conv", "Gemm"):
                del node.input[1:]
                summand = _dequantized(graph, f"{name}.bias", bias.astype(np.int32), multiplier)
                node.input.extend([weight, summand])
            elif node.op_type == "MatMul":
                node.input[1] = graph.add("Transpose", weight, perm=[1, 0])


def _dequantized(
    graph: GraphBuilder,
    name: str,
    integers: NDArray[Any],
    scale: NDArray[np.float32],
    zero_point: int | None = None,
) -> str:
    """Integers times a scale for each output channel, their first axis."""
    arrays = {"": integers, "_scale": scale}
    if zero_point is not None:
        arrays["_zero"] = np.full(len(scale), zero_point, integers.dtype)
    inputs = [name + what for what in arrays]
    for value, array in zip(inputs, arrays.values(), strict=True):
        graph.initializers.append(numpy_helper.from_array(array, value))
    graph.nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}_float"], axis=0))
    return f"{name}_float"
