"""Costs against two foreign counters, and where the answer is known."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torchinfo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stapes.models import count_complexity, create_model, damp, fold_damping
from stapes.models.folding import fold_batch_norm
from stapes.models.quantized import ActivationQuantizer, QuantizedConv2d, int8_structure


def foreign_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(shape))
    return int(counter.get_total_flops()) // 2


def mixed_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, (3, 5), stride=2, padding=1),
        nn.Conv2d(6, 6, 3, groups=3, dilation=2),
        nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.Linear(5, 3, bias=False),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "damped": {"damping": 0.1},
    "decomposed": {"decomposition": 4},
    "decomposed and damped": {"decomposition": 2, "damping": 0.1},
    "fewer channels": {"channels": ((6, 5, 3, 1, 7), (9, 4, 12, 2), (8,))},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str) -> nn.Module:
    options = VARIANTS[variant]
    generator = torch.Generator().manual_seed(0)
    return create_model(
        "cp_resnet", n_classes=10, in_channels=2, width=8, generator=generator, **options
    )


def prune(model: nn.Module, part: float = 0.7) -> nn.Module:
    """Set the smallest weights of each kernel to zero."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            magnitude = parameter.detach().abs()
            parameter.data[magnitude < magnitude.flatten().quantile(part)] = 0
    return model


@every_variant
@pytest.mark.parametrize("batch", [1, 3])
def test_macs_agree_with_a_foreign_counter(variant: str, batch: int) -> None:
    model = build(variant)
    shape = (batch, 2, 64, 50)
    complexity = count_complexity(model, shape)
    assert complexity.macs == foreign_macs(model, shape)
    assert complexity.macs == sum(layer.macs for layer in complexity.layers)
    # A multiplication by zero is one.
    assert count_complexity(prune(model), shape).macs == foreign_macs(model, shape)


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_other_layers_agree_with_a_foreign_counter(batch: int) -> None:
    model, shape = mixed_network(), (batch, 2, 20, 30)
    assert count_complexity(model, shape).macs == foreign_macs(model, shape)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "damped" not in name])
def test_parameters_and_layers_agree_with_torchinfo(variant: str) -> None:
    model = prune(build(variant)).eval()
    info = torchinfo.summary(model, (1, 2, 64, 50), verbose=0)
    complexity = count_complexity(model, (1, 2, 64, 50))
    assert complexity.parameters == info.total_params
    theirs = [
        (layer.class_name, tuple(layer.output_size), layer.num_params)
        for layer in info.summary_list
        if layer.is_leaf_layer and layer.num_params
    ]
    ours = [(layer.kind, layer.output_shape, layer.parameters) for layer in complexity.layers]
    assert sorted(ours) == sorted(theirs)
    convolutions = [layer for layer in info.summary_list if layer.class_name == "Conv2d"]
    assert complexity.macs == sum(layer.macs for layer in convolutions)


@every_variant
def test_what_is_not_zero_counts_apart(variant: str) -> None:
    model = prune(build(variant)).eval()
    shape = (2, 2, 64, 50)
    cost = count_complexity(model, shape)
    positions: dict[str, int] = {}
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}

    def watch(name: str) -> Any:
        return lambda _module, _x, y: positions.update({name: y.numel() // y.shape[1]})

    for name, conv in convolutions.items():
        conv.register_forward_hook(watch(name))
    model(torch.zeros(shape))
    # Slow and obvious: each weight meets each position of its layer's output once.
    nonzero = {name: int((conv.weight != 0).sum()) for name, conv in convolutions.items()}
    assert cost.nonzero_macs == sum(nonzero[name] * positions[name] for name in convolutions)
    assert cost.nonzero_macs < 0.4 * cost.macs
    layers = {layer.name: layer for layer in cost.layers}
    for name in convolutions:
        assert layers[name].nonzero_parameters == nonzero[name]
        assert layers[name].nonzero_macs == nonzero[name] * positions[name]
    assert cost.nonzero_parameters == sum(layer.nonzero_parameters for layer in cost.layers)


def test_known_answer_for_one_convolution() -> None:
    conv = nn.Conv2d(2, 4, (3, 5), padding=(1, 2), bias=True)
    complexity = count_complexity(conv, (2, 2, 10, 7))
    assert complexity.macs == 2 * 10 * 7 * 4 * 2 * 15
    assert complexity.parameters == complexity.nonzero_parameters == 4 * 2 * 15 + 4
    assert complexity.bytes_float32 == 4 * 124
    assert complexity.bytes_float16 == 2 * 124
    assert [(layer.name, layer.kind) for layer in complexity.layers] == [("", "Conv2d")]


def test_normalisation_stays_in_full_precision_or_goes_into_the_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8))
    complexity = count_complexity(model, (1, 1, 8, 8))
    assert complexity.bytes_float32 == 4 * (72 + 4 * 8)  # weight, bias, mean, variance
    assert complexity.bytes_float16 == 2 * 72 + 4 * 4 * 8
    assert complexity.bytes_int8 == 72 + 8 * (4 + 4)  # scale and bias of each output channel


class Branches(nn.Module):
    """A convolution that two read, behind its norm; and a norm of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.last(self.norm(y) + y)
        return z


class Twice(nn.Module):
    """One convolution, two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.conv(x))
        return x


@pytest.mark.parametrize(
    ("model", "kept", "weights", "channels"),
    [
        (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3, padding=1)), 1, 36, 4),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)), 4, 36, 4),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(), nn.BatchNorm2d(4)), 0, 36, 4),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)), 0, 192, 3),
        # Transposed convolutions are not quantised.
        (nn.Sequential(nn.ConvTranspose2d(1, 4, 2), nn.BatchNorm2d(4)), 4, 4 * 20, 0),
        (Branches(), 8, 36, 4),
        (nn.Sequential(nn.Conv2d(1, 4, 1), Twice()), 8, 4 + 144, 8),
    ],
)
def test_only_norms_that_can_be_folded_vanish(
    model: nn.Module, kept: int, weights: int, channels: int
) -> None:
    cost = count_complexity(model, (2, 1, 8, 8))
    assert cost.bytes_int8 == weights + 8 * channels + 8 * kept


def test_zeros_are_stored_as_bits_where_that_is_smaller() -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1))
    first, last = model[0].weight.data, model[2].weight.data
    with torch.no_grad():
        first.fill_(1.0)
        last.fill_(1.0)
        first.flatten()[50:] = 0  # of 189
        last.flatten()[13:] = 0  # of 14
    cost = count_complexity(model, (1, 3, 9, 9))
    bits = 24  # 189 of them, in bytes; two more for the last kernel, where one value is saved
    assert cost.bytes_float32 == 4 * (189 + 28 + 14 + 2)
    assert cost.bytes_float32_sparse == 4 * (50 + 28 + 13 + 2) + bits + 2
    assert cost.bytes_float16_sparse == 2 * (50 + 14 + 2) + 4 * 28 + bits
    assert cost.bytes_int8 == 189 + 14 + 8 * (7 + 2)
    assert cost.bytes_int8_sparse == 50 + bits + 14 + 8 * (7 + 2)
    # Of a dense network nothing is gained.
    for plain in ("plain", "damped", "decomposed"):
        cost = count_complexity(build(plain), (1, 2, 64, 50))
        assert cost.bytes_float32_sparse == cost.bytes_float32
        assert cost.bytes_float16_sparse == cost.bytes_float16
        assert cost.bytes_int8_sparse == cost.bytes_int8


def test_the_size_of_a_pruned_network_follows_from_its_nonzeros() -> None:
    model = prune(build("damped"), 0.75)
    cost = count_complexity(model, (1, 2, 64, 50))
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    bits = sum(-(-w.numel() // 8) for w in kernels)
    norms = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    nonzero = sum(int((w != 0).sum()) for w in kernels)
    assert cost.bytes_float16_sparse == 2 * nonzero + bits + 16 * norms


class Integers(nn.Module):
    """A layer as quantisation leaves it: what was learned is in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.arange(-36, 36, dtype=torch.int8).view(8, 1, 3, 3))
        self.register_buffer("scale", torch.ones(8))
        self.register_buffer("bias", torch.ones(8))
        self.register_buffer("zero_point", torch.tensor(128, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.scale
        return F.conv2d(x, self.weight * scale.view(-1, 1, 1, 1), self.bias)


def test_weights_that_are_integers_already_take_one_byte() -> None:
    cost = count_complexity(Integers(), (1, 1, 10, 12))
    assert cost.parameters == 80
    assert cost.nonzero_parameters == 79
    assert cost.bytes_int8 == cost.bytes_float32 == 72 + 4 * 16 + 1
    # As many as the network takes that it was made of.
    assert cost.bytes_int8 - 1 == count_complexity(nn.Conv2d(1, 8, 3), (1, 1, 10, 12)).bytes_int8
    assert cost.macs == 8 * 10 * 72
    assert cost.nonzero_macs == 8 * 10 * 71
    assert [(layer.name, layer.parameters) for layer in cost.layers] == [("", 80)]


@every_variant
def test_the_size_in_eight_bits_is_that_of_the_quantised_network(variant: str) -> None:
    model = build(variant).eval()
    shape = (2, 2, 64, 50)
    cost = count_complexity(model, shape)
    quantized = int8_structure(model)
    for module in quantized.modules():
        if isinstance(module, QuantizedConv2d):
            module.weight.fill_(1)
    after = count_complexity(quantized, shape)
    scales = 5 * sum(isinstance(m, ActivationQuantizer) for m in quantized.modules())
    assert after.bytes_int8 == cost.bytes_int8 + scales
    # All of it is stored, and nothing else: what takes no byte are counters.
    stored = sum(t.numel() * t.element_size() for t in quantized.state_dict().values())
    assert after.bytes_int8 == after.bytes_float32 == stored
    biases = sum(m.weight.shape[0] for m in quantized.modules() if isinstance(m, QuantizedConv2d))
    kernels = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert after.parameters == kernels + biases
    assert after.macs == after.nonzero_macs == cost.macs == foreign_macs(model, shape)
    # The same maps at the same time, although rounding takes several steps here.
    folded = count_complexity(fold_batch_norm(model), shape)
    assert after.peak_activation_bytes == folded.peak_activation_bytes
    assert folded.bytes_int8 == cost.bytes_int8


def largest_step(model: nn.Sequential, shape: tuple[int, ...]) -> int:
    """Most bytes of the input and output of one layer, where all layers are in a row."""
    sizes = [torch.zeros(shape).numel()]
    x = torch.zeros(shape)
    for layer in model:
        x = layer(x)
        sizes.append(x.numel())
    return 4 * max(a + b for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_chain_one_input_and_one_output_are_alive(batch: int, dtype: torch.dtype) -> None:
    layers = [
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),  # the positions of its maxima are not needed
        nn.Conv2d(6, 60, 3, padding=1),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(60 * 4, 3),
    ]
    for length in range(1, len(layers) + 1):
        model = nn.Sequential(*layers[:length]).eval()
        expected = largest_step(model.float(), (batch, 1, 12, 12))
        cost = count_complexity(model.to(dtype), (batch, 1, 12, 12))
        if length < 7:  # a view is no step
            assert cost.peak_activation_bytes == expected, length
    assert cost.peak_activation_bytes == 4 * batch * (60 * 36 + 60 * 4)  # the average pooling


class Shortcut(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 2, 3, padding=1)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x), inplace=self.in_place))
        later = x * 2  # forgotten as soon as it is made
        del later
        return y.add_(x) if self.in_place else y + x


def test_a_shortcut_keeps_its_input_alive_and_work_in_place_takes_nothing() -> None:
    values = 10 * 10
    cost = count_complexity(Shortcut(in_place=True), (1, 2, 10, 10))
    assert cost.peak_activation_bytes == 4 * values * (2 + 8 + 2)  # the second convolution
    cost = count_complexity(Shortcut(in_place=False), (1, 2, 10, 10))
    assert cost.peak_activation_bytes == 4 * values * (2 + 8 + 8)  # the ReLU


@every_variant
def test_the_peak_of_cp_resnet_is_in_the_first_block(variant: str) -> None:
    model = build(variant)
    cost = count_complexity(prune(model), (2, 2, 101, 203))
    # What the block reads and what goes through it, twice: a convolution's or a norm's input and
    # output; at half the size. Zeros take as much as other values.
    one_map = 4 * 2 * (99 // 2 + 1) * (201 // 2 + 1)
    options = VARIANTS[variant]
    stream, *inner = options.get("channels", ((8,) * 5,))[0]
    assert cost.peak_activation_bytes == one_map * (stream + 2 * max(inner[0], stream))
    layers = {layer.name: layer for layer in cost.layers}
    assert layers["stem.conv"].output_bytes == one_map * stream


def test_nothing_of_the_weights_counts_as_activation() -> None:
    # A damped weight is computed anew, but does not depend on the input.
    plain, damped = nn.Conv2d(1, 500, 9), damp(nn.Conv2d(1, 500, 9), 0.1)
    shape = (1, 1, 9, 9)
    peaks = [count_complexity(model, shape).peak_activation_bytes for model in (plain, damped)]
    assert peaks == [4 * (81 + 500)] * 2


def test_weights_count_as_what_they_are_after_folding() -> None:
    conv = damp(nn.Conv2d(3, 5, 3), 0.0)  # an edge of nothing
    before = count_complexity(conv, (1, 3, 8, 8))
    assert before.parameters == 5 * 27 + 5
    assert before.nonzero_parameters == 5 * 9 + 5
    assert before.layers[0].kind == "Conv2d"
    assert before.layers[0].parameters == 140
    assert count_complexity(fold_damping(conv), (1, 3, 8, 8)) == before
    with torch.no_grad():
        conv.weight[0] = 0
    assert count_complexity(conv, (1, 3, 8, 8)).nonzero_parameters == 4 * 9 + 5


def test_a_shared_weight_counts_once() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False))
    model[2].weight = model[0].weight
    complexity = count_complexity(model, (1, 4, 3, 3))
    assert complexity.parameters == complexity.nonzero_parameters == 16
    assert complexity.bytes_float32 == 64
    assert complexity.macs == 2 * 16 * 9


def test_the_network_is_left_as_it_was() -> None:
    model = create_model("cp_resnet", n_classes=2, width=2, damping=0.1).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_complexity(model, (1, 1, 64, 64))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
