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

A convolution of stride 2 over one or two channels, which is what a network begins with, is written
as one of stride 1 and half the taps over their even and odd rows and columns as channels of their
own: the same products of the same integers, in a third of the time.
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
from torch.nn import functional

from stapes.deploy.onnx.building import GraphBuilder
from stapes.errors import ConfigError
from stapes.models.folding import replace_module
from stapes.models.quantized import ActivationQuantizer, QuantizedConv2d, QuantizedLayer

__all__ = ["add_integers", "symmetric_padding", "with_levels"]

_FEW_CHANNELS = 2


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


class _EvenAndOdd(nn.Module):
    """Pad by zeros, at the end to an even size; then even and odd places become channels."""

    def __init__(self, padding: tuple[int, int]) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        high, wide = self.padding
        below, right = ((x.shape[2 + i] + 2 * p) % 2 + p for i, p in enumerate(self.padding))
        return _split(functional.pad(x, (wide, right, high, below)))


class _FloatLayer(nn.Module):
    """A quantised layer as a float one between its quantisers."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        weight = _integers(layer) * layer.scale.view(-1, *[1] * (layer.integer_weight().ndim - 1))
        self.ahead: nn.Module = nn.Identity()
        if isinstance(layer, QuantizedConv2d):
            stride: Any = layer.stride
            padding: Any = layer.padding
            dilation: Any = layer.dilation
            kernel: Any = layer.kernel_size
            if layer.pads_to_size:
                padding = symmetric_padding(kernel, dilation)
            if _is_split(layer):
                self.ahead = _EvenAndOdd(padding)
                stride, padding, kernel = 1, 0, tuple(weight.shape[2:])
            self.layer: nn.Module = nn.Conv2d(
                weight.shape[1] * layer.groups, len(weight), kernel, stride, padding, dilation,
                layer.groups, device="meta",
            )  # fmt: skip
        else:
            self.layer = nn.Linear(weight.shape[1], len(weight), device="meta")
        self.layer.weight = nn.Parameter(weight)
        self.layer.bias = nn.Parameter(layer.whole_bias().clone())
        self.input = nn.Identity() if layer.input is None else _Levels(layer.input)
        self.output = nn.Identity() if layer.output is None else _Levels(layer.output)

    def forward(self, x: Tensor) -> Tensor:
        # Zeros are levels of their own: padding may come first.
        y: Tensor = self.output(self.layer(self.input(self.ahead(x))))
        return y


def _is_split(layer: QuantizedConv2d) -> bool:
    """Whether a convolution is written over even and odd rows and columns."""
    moves = (layer.stride, layer.dilation, layer.groups)
    plain = moves == ((2, 2), (1, 1), 1) and not layer.pads_to_size
    # An even kernel would find one place too many at the end of an odd size; and what reads
    # others' levels must read them as they are.
    odd = all(taps % 2 for taps in layer.kernel_size)
    return plain and odd and layer.weight.shape[1] <= _FEW_CHANNELS and layer.input is not None


def _integers(layer: QuantizedLayer) -> Tensor:
    """Whole numbers of a layer's weight, as floats, as it is exported."""
    weight = layer.integer_weight()
    if isinstance(layer, QuantizedConv2d) and _is_split(layer):
        high, wide = weight.shape[2:]
        weight = _split(functional.pad(weight, (0, wide % 2, 0, high % 2)))
    return weight


def _split(x: Tensor) -> Tensor:
    """Even and odd rows and columns as channels: (B, C, F, T) to (B, 4 C, F / 2, T / 2)."""
    return torch.cat([x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)], dim=1)


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
            if isinstance(module, QuantizedConv2d) and module.pads_to_size:
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
        multiplier = layer.multiplier().numpy()
        bias = np.rint(layer.whole_bias().double().numpy() / multiplier.astype(np.float64))
        integers = _integers(layer).numpy().astype(np.int8)
        weight = _dequantized(graph, f"{name}.weight", integers, layer.scale.numpy())
        summand = _dequantized(graph, f"{name}.bias", bias.astype(np.int32), multiplier)
        for node in nodes[f"{name}.layer"]:
            if node.op_type in ("Conv", "Gemm"):
                node.input[1:] = [weight, summand]
            elif node.op_type == "MatMul":  # the bias is added behind it, in float
                node.input[1] = graph.add("Transpose", weight, perm=[1, 0])


def _dequantized(
    graph: GraphBuilder, name: str, integers: NDArray[Any], scale: NDArray[np.float32]
) -> str:
    """Integers times a scale for each output channel, their first axis."""
    arrays = {"": integers, "_scale": scale}
    if integers.dtype == np.int8:  # ONNX Runtime makes uint8 of them where it must, and needs it
        arrays["_zero"] = np.zeros(len(scale), np.int8)
    inputs = [name + what for what in arrays]
    for value, array in zip(inputs, arrays.values(), strict=True):
        graph.initializers.append(numpy_helper.from_array(array, value))
    output = f"{name}_float"
    graph.nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [output], axis=0))
    return output
