"""Networks that compute in eight bits.

Weights are int8, symmetric, with a scale for each output channel; activations are uint8 with one
scale and one zero point for each tensor (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018; the QuantizeLinear and
DequantizeLinear of ONNX)::

    weight = q_w * scale[channel]                    q_w in -127 .. 127
    activation = (q_x - zero_point) * scale          q_x in 0 .. 255

A layer adds up products of these integers and scales the sum::

    y = float(sum of (q_x - zero_point) * q_w) * (scale_x * scale[channel]) + bias[channel]

Here the sums run in float32, where whole numbers up to 2^24 are exact in any order of adding, so
that integer hardware gets the same ones. A channel stays below that when the absolute values of
its integer weights add up to less than 65 793; one of 1152 weights as large as 57 on average, for
instance. Beyond it, sums round like any float32. The bias is a whole multiple of its channel's
``scale_x * scale``, so that it can be added to the sum as an int32 instead.

Where activations are rounded
-----------------------------

::

    input ─[Q]─ conv ─ ReLU[Q] ─┬─ conv ─ ReLU[Q] ─ conv ─[Q]─(+)─ ReLU[Q] ─ ... ─ conv ─ mean
                                └──────────────────────────────┘

- A ReLU becomes a quantiser with zero point 0: clipping at zero is what it does.
- A layer whose output goes anywhere else has a quantiser behind it (``output``). Residual sums
  add two rounded tensors in float; the ReLU behind them rounds the sum.
- A layer that reads something that is not rounded yet (the network's input, a mean) has a
  quantiser in front of it (``input``). Max pooling, reshaping and padding by zero keep what is
  rounded rounded.
- What leads to no further layer is float: the last layer and the mean behind it are not rounded.

Batch norm is folded into the layers (:mod:`stapes.models.folding`). Other non-linearities than
ReLU, norms that fold nowhere, sums and means stay float operations.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from stapes.errors import ConfigError
from stapes.models.dataflow import Dataflow, norm_after, trace_dataflow
from stapes.models.folding import fold_norms_of, fold_parametrizations, replace_module
from stapes.models.timm_layers import (
    computes_plainly,
    pads_to_size,
    same_padding,
    split_norm_activations,
)

__all__ = [
    "ActivationQuantizer",
    "QuantizationPlan",
    "QuantizationPoint",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "int8_structure",
    "is_quantized",
    "plan_quantization",
    "quantization_points",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_RELUS = (nn.ReLU, nn.ReLU6)
# They pass on values of their input, or zero.
_KEEPING = frozenset(
    {
        "_reshape_alias", "_unsafe_view", "alias", "clone", "detach", "expand", "flatten",
        "max_pool2d_with_indices", "native_channel_shuffle", "permute",
        "pixel_shuffle", "relu", "repeat", "select", "slice", "squeeze", "t", "transpose",
        "unsqueeze", "view",
    }
)  # fmt: skip


class _Round(torch.autograd.Function):
    """Round half to even; the gradient goes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Levels(torch.autograd.Function):
    """Divide by a scale and round; the gradient is that of the division."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return (x / scale).round_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] / ctx.saved_tensors[0], None


class _Quantize(torch.autograd.Function):
    """Divide, round, clip and multiply; the gradient passes where nothing is clipped.

    One function and not four, so that training keeps a byte per value instead of floats.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        levels = (x / scale).round_()
        low: Any = 0.0 if zero_point is None else -zero_point.to(x.dtype)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((levels >= low) & (levels <= low + 255))
        return levels.clamp_(low, low + 255).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None


def round_through(x: Tensor) -> Tensor:
    """Round half to even, with the gradient of the identity."""
    return cast(Tensor, _Round.apply(x))  # type: ignore[no-untyped-call]


class ActivationQuantizer(nn.Module):
    """Round activations to 256 levels: ``(clip(round(x / scale) + zero_point, 0, 255) -
    zero_point) * scale``, halves to even.

    The gradient passes where nothing is clipped, as if there were no rounding.

    Args:
        scale: first value of the attribute.
        zero_point: first value of the attribute.
        from_zero: whether the zero point is always 0, as in the place of a ReLU; quicker.

    Attributes:
        scale: of one level, float32, one value.
        zero_point: the level that stands for 0, uint8, one value.

    Shape:
        - input, output: any, floating point
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float = 1.0, zero_point: int = 0, *, from_zero: bool = False) -> None:
        super().__init__()
        self.from_zero = from_zero
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        offset = None if self.from_zero else self.zero_point
        return cast(Tensor, _Quantize.apply(x, self.scale, offset))  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"scale={float(self.scale):.4g}, zero_point={int(self.zero_point)}"


class QuantizedLayer(nn.Module, ABC):
    """What quantised layers share; how sums are made and where the numbers are kept is the
    subclasses'.

    Attributes:
        input: quantiser in front of the layer, where its input is not rounded yet; or none.
        output: quantiser behind it; or none.
        scale: (C_out,) of the weights.
    """

    input: ActivationQuantizer | None
    output: ActivationQuantizer | None
    scale: Tensor

    def place(
        self,
        input: ActivationQuantizer | None,
        output: ActivationQuantizer | None,
        source: ActivationQuantizer | None,
    ) -> None:
        """Say what is around the layer.

        Args:
            input: its own quantiser in front; or none, and then
            source: the quantiser elsewhere in the network whose levels it reads.
            output: quantiser behind it.
        """
        self.input, self.output = input, output
        # In a tuple, so that it is no submodule and its state not stored twice.
        self._source = (source,)

    @property
    def source(self) -> ActivationQuantizer:
        """The quantiser whose levels the layer reads."""
        found = self.input or self._source[0]
        if found is None:
            raise RuntimeError("a quantised layer that was never placed in a network")
        return found

    @abstractmethod
    def integer_weight(self) -> Tensor:
        """The weight in whole numbers from -127 to 127, as floats."""

    def multiplier(self) -> Tensor:
        """What one unit of the integer sums stands for: ``scale_x * scale``, (C_out,)."""
        return self.source.scale * self.scale

    @abstractmethod
    def whole_bias(self) -> Tensor:
        """The bias as a whole multiple of :meth:`multiplier`, (C_out,)."""

    @abstractmethod
    def sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolution or product of integers."""

    @abstractmethod
    def per_channel(self, values: Tensor) -> Tensor:
        """(C_out,) shaped so that it meets the channels of the sums."""

    def forward(self, x: Tensor) -> Tensor:
        # Half precision has no room for the sums.
        with torch.autocast(_autocast_device(x), enabled=False):
            x = x.to(self.scale.dtype)
            if self.input is not None:
                x = self.input(x)
            # x is a whole multiple of the scale up to its last bit: rounding finds which.
            whole = cast(Tensor, _Levels.apply(x, self.source.scale))  # type: ignore[no-untyped-call]
            y = self.sums(whole, self.integer_weight())
            # In place: the gradient needs none of the two. Not addcmul: it may round only once.
            y = y.mul_(self.per_channel(self.multiplier()))
            y = y.add_(self.per_channel(self.whole_bias()))
            return y if self.output is None else self.output(y)


def _autocast_device(x: Tensor) -> str:
    return x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"


class ConvolutionSums:
    """Sums of a two-dimensional convolution.

    Attributes:
        kernel_size, stride, padding, dilation, groups: as those of ``nn.Conv2d``.
        pads_to_size: whether the zeros follow from the size of the input (TensorFlow's "same"), so
            that ``padding`` says nothing.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pads_to_size: bool

    def place_kernel(self, conv: nn.Conv2d) -> None:
        """Take over how a convolution moves.

        Raises:
            ValueError: it pads with something else than zeros.
        """
        if conv.padding_mode != "zeros":
            raise ValueError(
                f'a convolution with padding_mode = "{conv.padding_mode}" cannot be quantised: '
                'use "zeros"'
            )
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation, self.groups = conv.padding, conv.dilation, conv.groups
        self.pads_to_size = (
            conv.pads_to_size if isinstance(conv, ConvolutionSums) else pads_to_size(conv)
        )

    def sums(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.pads_to_size:
            x = F.pad(x, same_padding(x.shape, self.kernel_size, self.stride, self.dilation))
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def per_channel(self, values: Tensor) -> Tensor:
        return values[:, None, None]


class LinearSums:
    """Sums of a linear layer."""

    def sums(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def per_channel(self, values: Tensor) -> Tensor:
        return values


class _DeployedLayer(QuantizedLayer):
    """A layer whose integers are stored as such, for evaluation only."""

    weight: Tensor
    bias: Tensor

    def __init__(self, like: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        weight = torch.zeros_like(like.weight, dtype=torch.int8)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", like.weight.new_ones(len(weight)))
        self.register_buffer("bias", like.weight.new_zeros(len(weight)))

    def integer_weight(self) -> Tensor:
        return self.weight.to(self.scale.dtype)

    def whole_bias(self) -> Tensor:
        return self.bias


class QuantizedConv2d(ConvolutionSums, _DeployedLayer):
    """Two-dimensional convolution in eight bits.

    Args:
        like: convolution with the same sizes; its weights are not taken.

    Attributes:
        weight: (C_out, C_in / groups, K_F, K_T), int8, -127 to 127.
        scale: (C_out,), float32.
        bias: (C_out,), float32.
        kernel_size, stride, padding, dilation, groups, pads_to_size: as
            :class:`ConvolutionSums` has them.

    Shape:
        - input: (B, C_in, F, T)
        - output: (B, C_out, F', T')

    Raises:
        ValueError: it pads with something else than zeros.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__(like)
        self.place_kernel(like)

    def extra_repr(self) -> str:
        channels, inside = self.weight.shape[:2]
        return (
            f"{inside * self.groups}, {channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}"
        )


class QuantizedLinear(LinearSums, _DeployedLayer):
    """Linear layer in eight bits.

    Args:
        like: linear layer with the same sizes; its weights are not taken.

    Attributes:
        weight: (C_out, C_in), int8, -127 to 127.
        scale: (C_out,), float32.
        bias: (C_out,), float32.

    Shape:
        - input: (..., C_in)
        - output: (..., C_out)
    """

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


# --- where the quantisers go ------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizationPlan:
    """Where a network is rounded, by the names of its modules.

    Attributes:
        layers: those that will be quantised, in the order of use.
        relus: those that will be quantisers.
        inputs: layers with a quantiser of their own in front.
        outputs: layers with a quantiser behind.
        sources: for every other layer, the ReLU, or the layer with an ``outputs`` quantiser,
            whose levels it reads.
    """

    layers: tuple[str, ...]
    relus: frozenset[str]
    inputs: frozenset[str]
    outputs: frozenset[str]
    sources: dict[str, str]


def plan_quantization(network: nn.Module, flow: Dataflow) -> QuantizationPlan:
    """Decide where a network is rounded; see this module's header.

    Args:
        network: float, batch norms not folded yet.
        flow: its :func:`~stapes.models.dataflow.trace_dataflow`.

    Raises:
        ConfigError: it has a layer that computes with another weight than it stores.
    """
    modules = dict(network.named_modules())
    used = list(dict.fromkeys(step.module for step in flow.steps if step.module is not None))
    layers = tuple(name for name in used if isinstance(modules[name], nn.Conv2d | nn.Linear))
    for name in layers:
        if not computes_plainly(modules[name]):
            raise ConfigError(
                f"{name}, a {parametrize.type_before_parametrizations(modules[name]).__name__}, "
                "computes with another weight than it stores, so that it cannot be quantised: "
                'choose quantization.precision = "float16" or another network.'
            )
    targets = frozenset(layers)
    made: dict[int, str] = {}  # which quantiser rounded a value
    relus, outputs = set(), set()
    for name in used:
        if isinstance(modules[name], _RELUS):
            writes = [step.writes[0] for step in flow.calls(name)]
            if flow.leads_to(writes, targets):
                relus.add(name)
                made |= dict.fromkeys(writes, name)
    for name in layers:
        norm = norm_after(network, flow, name)
        writes = [step.writes[0] for step in flow.calls(norm[0] if norm else name)]
        readers = [reader.module for value in writes for reader in flow.readers(value)]
        if not all(reader in relus for reader in readers) and flow.leads_to(writes, targets):
            outputs.add(name)
            made |= dict.fromkeys(writes, name)
    sources = {}
    for name in layers:
        found = {_rounded_by(flow, step.reads[0], made) for step in flow.calls(name)}
        if len(found) == 1 and (source := found.pop()) is not None:
            sources[name] = source
    return QuantizationPlan(
        layers, frozenset(relus), targets - sources.keys(), frozenset(outputs), sources
    )


def _rounded_by(flow: Dataflow, value: int, made: dict[int, str]) -> str | None:
    """The quantiser whose levels a value has; none if it has none's."""
    while value not in made:
        step = flow.writer(value)
        if step is None or len(step.reads) != 1:
            return None
        # constant_pad_nd(input, pad, value=0)
        pads_zero = step.operation == "constant_pad_nd" and not any(step.arguments[1:])
        if not pads_zero and step.operation not in _KEEPING:
            return None
        value = step.reads[0]
    return made[value]


def install(
    network: nn.Module, plan: QuantizationPlan, layers: dict[str, QuantizedLayer]
) -> dict[str, ActivationQuantizer]:
    """Put quantised layers and quantisers into a network whose batch norms are folded, in place.

    Args:
        network: float.
        plan: where.
        layers: what comes in place of each layer of the plan.

    Returns:
        All quantisers by name: a ReLU's name, or the layer's with ``.input`` or ``.output``.
    """
    like = next(layer.scale for layer in layers.values()) if layers else torch.empty(0)
    quantizers = {}

    def new(name: str) -> ActivationQuantizer:
        made = ActivationQuantizer(from_zero=name in plan.relus)
        quantizers[name] = made.to(device=like.device, dtype=like.dtype)
        return made

    inside = {
        name: (
            new(f"{name}.input") if name in plan.inputs else None,
            new(f"{name}.output") if name in plan.outputs else None,
        )
        for name in plan.layers
    }
    modules = dict(network.named_modules())
    for name in sorted(plan.relus):
        replace_module(network, modules[name], new(name))
    for name, (before, behind) in inside.items():
        place = plan.sources.get(name)
        source = None if place is None else quantizers.get(place) or quantizers[f"{place}.output"]
        layers[name].place(before, behind, source)
        replace_module(network, modules[name], layers[name])
    return quantizers


def int8_structure(network: ModuleT) -> ModuleT:
    """A copy of a network that computes in eight bits, without its numbers.

    Names, shapes and types of its state dict follow from the network's structure, so that a
    stored int8 network can be loaded into it. :func:`stapes.compression.quantize` fills it.

    Args:
        network: float, with or without damping; it is not changed.

    Returns:
        The copy, in evaluation mode, on the same device.

    Raises:
        ValueError: the network is quantised already, or a convolution pads with no zeros.
        ConfigError: a layer computes with another weight than it stores.
    """
    if is_quantized(network):
        raise ValueError("this network is quantised already")
    structure = fold_parametrizations(copy.deepcopy(network)).eval()
    split_norm_activations(structure)
    flow = trace_dataflow(structure)
    plan = plan_quantization(structure, flow)
    fold_norms_of(structure, flow)
    install(structure, plan, {n: deployed_layer(structure.get_submodule(n)) for n in plan.layers})
    return structure


def deployed_layer(like: nn.Module) -> QuantizedConv2d | QuantizedLinear:
    """An int8 layer of the same sizes, all zeros."""
    if isinstance(like, nn.Conv2d):
        return QuantizedConv2d(like)
    assert isinstance(like, nn.Linear)
    return QuantizedLinear(like)


def is_quantized(network: nn.Module) -> bool:
    """Whether a network computes in eight bits."""
    return any(isinstance(module, _DeployedLayer) for module in network.modules())


# --- what an exporter needs -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QuantizationPoint:
    """One place where activations are rounded.

    Attributes:
        name: of the :class:`ActivationQuantizer`, as in ``named_modules``.
        place: ``"input"``: in front of a layer; ``"output"``: behind one; ``"relu"``: in the place
            of a ReLU.
        scale: of one level.
        zero_point: 0 to 255; always 0 in the place of a ReLU.
        readers: layers that read these levels, in the order of the network.
    """

    name: str
    place: str
    scale: float
    zero_point: int
    readers: tuple[str, ...]


def quantization_points(network: nn.Module) -> tuple[QuantizationPoint, ...]:
    """All places where a quantised network rounds activations, in the order of its modules."""
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, QuantizedLayer)]
    places = {id(m.input): "input" for _, m in layers} | {id(m.output): "output" for _, m in layers}
    return tuple(
        QuantizationPoint(
            name=name,
            place=places.get(id(module), "relu"),
            scale=float(module.scale),
            zero_point=int(module.zero_point),
            readers=tuple(n for n, layer in layers if layer.source is module),
        )
        for name, module in network.named_modules()
        if isinstance(module, ActivationQuantizer)
    )
