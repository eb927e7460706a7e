"""Eight bits and half precision: after training, or with the rounding in the loop.

:func:`prepare_qat` puts the arithmetic of the int8 network (:mod:`stapes.models.quantized`) around
float weights that can be trained, and :func:`finish_qat` makes integers of them; the numbers that
the two compute in evaluation are the same. Quantising after training, :func:`quantize`, is the
same without any training in between.

All scales are set once, from the trained weights and from what the activations are on calibration
clips, so that the squared error of rounding and clipping together is least; and weights are
rounded so that what the layer computes on these clips changes least
(:mod:`stapes.compression.rounding`). Fine-tuning keeps the scales and moves the weights: with 256
levels the gain of learned scales (Esser et al., "Learned Step
Size Quantization", ICLR 2020, whose concern are 2 to 4 bits) is small, fixed ones are nothing that
a checkpoint, an average of weights or a learning rate could upset, and fine-tuning starts exactly
at the network that was quantised after training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stapes.compression.masks import keep_zeros
from stapes.compression.rounding import LEAST_SCALE, input_patches, round_weight, weight_scale
from stapes.errors import StapesError
from stapes.models.dataflow import trace_dataflow
from stapes.models.folding import fold_norms_of, fold_parametrizations, replace_module
from stapes.models.parametrized import unparametrize
from stapes.models.quantized import (
    ConvolutionSums,
    LinearSums,
    QuantizationPlan,
    QuantizedLayer,
    deployed_layer,
    install,
    is_quantized,
    plan_quantization,
    round_through,
)
from stapes.models.timm_layers import split_norm_activations

__all__ = [
    "TrainableConv2d",
    "TrainableLinear",
    "activation_range",
    "finish_qat",
    "half_precision",
    "prepare_qat",
    "quantize",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# A bias is at most this many units of its channel's sums: exact in float32, and an int32.
_LARGEST_BIAS = 2.0**23


def quantize(network: ModuleT, batches: Iterable[Tensor]) -> ModuleT:
    """A network in eight bits, of a trained one, without further training.

    Args:
        network: trained, any of ours: damped, masked, decomposed; it is not changed.
        batches: normalised spectrograms (B, C, F, T) of training clips, such as the network was
            trained with but without augmentation; they set the ranges of the activations. Read
            once.

    Returns:
        The int8 network, in evaluation mode, on the same device. The same network and batches
        give the same numbers.

    Raises:
        StapesError: no batches, or activations that are not finite.
        ValueError: the network is quantised already, or a convolution pads with no zeros.
        ConfigError: a layer computes with another weight than it stores.
    """
    return finish_qat(_prepare(network, batches))


def prepare_qat(network: ModuleT, batches: Iterable[Tensor]) -> ModuleT:
    """A network that computes in eight bits but trains float weights, to be fine-tuned.

    Forward, it computes what the int8 network computes, in training as in evaluation; backward,
    rounding counts as the identity and clipping stops the gradient. Batch norm is folded, so its
    statistics stay those of the training before. Damping stays in force; weights that are zero
    (pruned) stay zero. Before any step, ``finish_qat`` of it equals :func:`quantize`.

    Args:
        network: trained; it is not changed.
        batches: as for :func:`quantize`.

    Returns:
        The network to train, in training mode, on the same device.

    Raises:
        StapesError: no batches, or activations that are not finite.
        ValueError: the network is quantised already, or a convolution pads with no zeros.
        ConfigError: a layer computes with another weight than it stores.
    """
    prepared = _prepare(network, batches)
    layers = [m for m in prepared.modules() if isinstance(m, _TrainableLayer)]
    if any(bool((layer.weight == 0).any()) for layer in layers):
        keep_zeros(prepared)
    return prepared.train()


def finish_qat(network: ModuleT) -> ModuleT:
    """The int8 network of one made by :func:`prepare_qat`.

    Args:
        network: trained further or not; it is not changed.

    Returns:
        A network in evaluation mode that computes the same numbers from stored integers.

    Raises:
        ValueError: the network was not made by :func:`prepare_qat`.
    """
    finished = copy.deepcopy(network).eval()
    layers = [m for m in finished.modules() if isinstance(m, _TrainableLayer)]
    if not layers:
        raise ValueError("this network was not prepared for quantisation: use prepare_qat first")
    with torch.no_grad():
        for layer in layers:
            deployed = deployed_layer(layer)
            deployed.place(layer.input, layer.output, layer._source[0])
            deployed.weight.copy_(layer.integer_weight())
            deployed.scale.copy_(layer.scale)
            deployed.bias.copy_(layer.whole_bias())
            replace_module(finished, layer, deployed)
    return finished


def half_precision(network: ModuleT) -> ModuleT:
    """A copy of a network whose weights are values of half precision, kept as float32.

    Rounded is every parameter with more than one axis, that is, the weights of convolutions and
    linear layers, as the network computes with them: damping and masks are folded first. Biases
    and batch norm (whose statistics do not fit half precision) stay as they are.

    Args:
        network: it is not changed.

    Raises:
        StapesError: a weight beyond 65 504, the largest number of half precision.
    """
    rounded = fold_parametrizations(copy.deepcopy(network))
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():
                half = parameter.half()
                if not half.isfinite().all():
                    raise StapesError(
                        f"{name} has weights beyond 65504, more than half precision holds; "
                        'choose quantization.precision = "float32" or "int8".'
                    )
                parameter.copy_(half)
    return rounded


# --- layers with float weights ----------------------------------------------------------------


class _TrainableLayer(QuantizedLayer):
    """A quantised layer that rounds its float weight anew in each call."""

    weight: Tensor
    bias: Any  # a parameter: the other base of the subclasses says the rest

    def take(self, layer: nn.Conv2d | nn.Linear) -> None:
        """Take over weight, bias and whatever is stacked on the weight."""
        stacked: list[nn.Module] = []
        raw = layer.weight
        if parametrize.is_parametrized(layer, "weight"):
            parts = cast(nn.ModuleDict, layer.parametrizations)["weight"]
            raw, stacked = parts.get_parameter("original"), list(cast(nn.ModuleList, parts))
        bias = raw.new_zeros(len(raw)) if layer.bias is None else layer.bias.detach().clone()
        self.weight = nn.Parameter(raw.detach().clone())
        self.bias = nn.Parameter(bias)
        for part in stacked:
            parametrize.register_parametrization(self, "weight", copy.deepcopy(part))
        self.register_buffer("scale", torch.ones_like(bias))

    def move_to(self, levels: Tensor) -> None:
        """Give the weight other integers, in their middle; damping and masks stay.

        A weight of zero has to stay zero.
        """
        wanted = levels * self._step()
        if not parametrize.is_parametrized(self, "weight"):
            self.weight.copy_(wanted)
            return
        # Damping and masks are factors, so the raw weight changes as much as the result does.
        parts = self.get_submodule("parametrizations.weight")
        raw, now = parts.get_parameter("original"), self.weight.detach()
        raw.mul_(torch.where(now == 0, 1.0, wanted / torch.where(now == 0, 1.0, now)))
        if not torch.equal(self.integer_weight(), levels):  # something else than factors
            unparametrize(self, fold=True)
            self.weight.copy_(wanted)

    def integer_weight(self) -> Tensor:
        return round_through(self.weight / self._step()).clamp(-127, 127)

    def _step(self) -> Tensor:
        return self.scale.view(-1, *[1] * (self.weight.ndim - 1))

    def whole_bias(self) -> Tensor:
        unit = self.multiplier()
        return round_through(self.bias / unit) * unit


class TrainableConv2d(ConvolutionSums, _TrainableLayer, nn.Conv2d):
    """Two-dimensional convolution with float weights that computes in eight bits.

    Args:
        like: trained convolution, with or without parametrizations on its weight.

    Shape:
        - input: (B, C_in, F, T)
        - output: (B, C_out, F', T')

    Raises:
        ValueError: it pads with something else than zeros.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        nn.Conv2d.__init__(
            self,
            like.in_channels,
            like.out_channels,
            cast(Any, like.kernel_size),
            cast(Any, like.stride),
            cast(Any, like.padding),
            cast(Any, like.dilation),
            like.groups,
            device="meta",  # nothing is drawn
        )
        self.place_kernel(like)
        self.take(like)


class TrainableLinear(LinearSums, _TrainableLayer, nn.Linear):
    """Linear layer with float weights that computes in eight bits.

    Args:
        like: trained layer, with or without parametrizations on its weight.

    Shape:
        - input: (..., C_in)
        - output: (..., C_out)
    """

    def __init__(self, like: nn.Linear) -> None:
        nn.Linear.__init__(self, like.in_features, like.out_features, device="meta")
        self.take(like)


def _trainable(layer: nn.Module) -> _TrainableLayer:
    if isinstance(layer, nn.Conv2d):
        return TrainableConv2d(layer)
    assert isinstance(layer, nn.Linear)
    return TrainableLinear(layer)


def _prepare(network: ModuleT, batches: Iterable[Tensor]) -> ModuleT:
    """The network with trainable layers and all scales, in evaluation mode."""
    if is_quantized(network) or any(isinstance(m, _TrainableLayer) for m in network.modules()):
        raise ValueError("this network is quantised already")
    prepared = copy.deepcopy(network).eval()
    split_norm_activations(prepared)
    flow = trace_dataflow(prepared)
    plan = plan_quantization(prepared, flow)
    fold_norms_of(prepared, flow)
    ranges, moments = _calibrate(prepared, plan, batches)
    layers = {name: _trainable(prepared.get_submodule(name)) for name in plan.layers}
    quantizers = install(prepared, plan, dict(layers))
    with torch.no_grad():
        for name, quantizer in quantizers.items():
            scale, zero_point = ranges[name]
            quantizer.scale.fill_(scale)
            quantizer.zero_point.fill_(zero_point)
        for name, layer in layers.items():
            needed = layer.bias.abs() / (layer.source.scale * _LARGEST_BIAS)
            layer.scale.copy_(torch.maximum(weight_scale(layer.weight), needed))
            layer.move_to(round_weight(layer.weight, layer.scale, moments[name]))
    return prepared


# --- scales -----------------------------------------------------------------------------------


def activation_range(values: Tensor, counts: Tensor, low: float, high: float) -> tuple[float, int]:
    """Scale and zero point with the least squared error of values that occur so often.

    Both ends of the range start at the extremes and draw back in steps of 3 %, first together,
    then one after the other. Zero is always one of the levels.

    Args:
        values: distinct values.
        counts: how often each occurs.
        low: the least value, or 0 if that is positive.
        high: the greatest value, or 0 if that is negative.

    Shape:
        - values, counts: (M,), float64
    """
    if high - low < 255 * LEAST_SCALE:
        return 1.0, 0
    pull = 0.97 ** torch.arange(100, dtype=torch.float64)
    none = torch.ones_like(pull)
    lows, highs = (low * pull, high * pull) if low < 0 else (low * none, high * pull)
    low, high = _best_range(values, counts, lows, highs)
    if low < 0 < high:
        for _ in range(2):
            low, high = _best_range(values, counts, low * none, highs)
            low, high = _best_range(values, counts, lows, high * none)
    scale, zero_point = _levels(torch.tensor([low]).double(), torch.tensor([high]).double())
    return float(scale), int(zero_point)


def _levels(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    scale = ((high - low) / 255).float().double()  # as it will be stored
    return scale, (-low / scale).round().clamp(0, 255)


def _best_range(values: Tensor, counts: Tensor, lows: Tensor, highs: Tensor) -> tuple[float, float]:
    scales, zero_points = (part[:, None] for part in _levels(lows, highs))
    levels = ((values / scales).round() + zero_points).clamp(0, 255)
    errors = ((levels - zero_points) * scales - values).square() @ counts
    best = int(errors.argmin())
    return float(lows[best]), float(highs[best])


class _Histogram:
    """How often the values of an activation occur, in a range that grows with them."""

    _BINS = 4096  # on each side of zero: sixteen for each level that is left to one side

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self._counts = torch.zeros(2 * self._BINS, dtype=torch.int64)
        self._end = 0.0  # of the range, on either side

    def add(self, name: str, x: Tensor) -> None:
        low, high = (float(end) for end in x.detach().aminmax())
        largest = max(-low, high)
        if not largest < torch.inf:
            raise StapesError(
                f"The activations at {name} are not finite numbers on the calibration clips; the "
                "network cannot be quantised."
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        if largest == 0:
            return  # zero is exact in any case
        self._end = self._end or largest
        while self._end < largest:
            half = torch.zeros_like(self._counts)
            half[self._BINS // 2 : self._BINS // 2 + self._BINS] = self._counts.view(-1, 2).sum(1)
            self._counts, self._end = half, 2 * self._end
        place = ((x.detach().flatten() / self._end + 1) * self._BINS).long()
        place.clamp_(0, 2 * self._BINS - 1)
        self._counts += torch.bincount(place, minlength=2 * self._BINS).cpu()

    def range(self) -> tuple[float, int]:
        bins = self._counts.nonzero()[:, 0]
        middles = ((bins.double() + 0.5) / self._BINS - 1) * self._end
        return activation_range(middles, self._counts[bins].double(), self.low, self.high)


def _calibrate(
    network: nn.Module, plan: QuantizationPlan, batches: Iterable[Tensor]
) -> tuple[dict[str, tuple[float, int]], dict[str, Tensor]]:
    """Scale and zero point of each quantiser of a plan, and the moments of each layer's inputs."""
    histograms = {
        name: _Histogram()
        for name in (
            *(f"{layer}.input" for layer in plan.inputs),
            *(f"{layer}.output" for layer in plan.outputs),
            *plan.relus,
        )
    }
    moments: dict[str, Tensor] = {}
    like = next(network.parameters())
    seen = False
    with ExitStack() as stack, torch.no_grad():
        for name in plan.layers:
            layer = network.get_submodule(name)
            stack.callback(
                layer.register_forward_pre_hook(_watch(name, histograms, moments)).remove
            )
        for name in (*plan.outputs, *plan.relus):
            label = name if name in plan.relus else f"{name}.output"
            written = network.get_submodule(name).register_forward_hook(
                _watch_output(label, histograms)
            )
            stack.callback(written.remove)
        for batch in batches:
            network(batch.to(device=like.device, dtype=like.dtype))
            seen = True
    if not seen:
        raise StapesError("There are no training clips to set the ranges of the activations with.")
    return {name: histogram.range() for name, histogram in histograms.items()}, moments


def _watch(name: str, histograms: dict[str, _Histogram], moments: dict[str, Tensor]) -> Any:
    def see(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        if f"{name}.input" in histograms:
            histograms[f"{name}.input"].add(f"{name}.input", inputs[0])
        patches = input_patches(layer, inputs[0])
        products = patches.mT @ patches
        moments[name] = moments[name] + products if name in moments else products

    return see


def _watch_output(name: str, histograms: dict[str, _Histogram]) -> Any:
    return lambda _module, _inputs, output: histograms[name].add(name, output)
