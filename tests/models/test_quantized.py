"""Arithmetic in eight bits, judged by whole numbers and by torch's own rounding."""

from __future__ import annotations

import doctest
import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import stapes.models.quantized
from stapes.compression import quantize
from stapes.models import (
    Network,
    count_complexity,
    create_model,
    int8_structure,
    is_quantized,
    network_settings,
    quantization_points,
    receptive_field,
)
from stapes.models.dataflow import trace_dataflow
from stapes.models.quantized import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLinear,
    plan_quantization,
)


def _resnet(**options: Any) -> nn.Module:
    """Small, with norms that are not at their initial values."""
    options = {"rho": 4, "width": 4, "n_classes": 3, "in_channels": 2} | options
    generator = torch.Generator().manual_seed(0)
    network = create_model("cp_resnet", generator=generator, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.5, generator=generator)
    return network.eval()


def _noise(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _clips(count: int = 3) -> list[Tensor]:
    return [_noise(4, 2, 40, 50, seed=10 + i) for i in range(count)]


def test_the_documentations_examples() -> None:
    assert doctest.testmod(stapes.models.quantized).failed == 0


# --- rounding of activations ------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "zero_point"), [(0.25, 0), (0.0625, 200), (2.0, 255)])
def test_rounding_and_its_gradient_are_those_of_torchs_fake_quantisation(
    scale: float, zero_point: int
) -> None:
    quantizer = ActivationQuantizer(scale, zero_point)
    # Ties and both ends are among them: multiples of half a level.
    steps = torch.arange(-700, 700) / 2 * scale
    x = torch.cat([steps, _noise(1000) * 100 * scale])
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = quantizer(mine)
    expected = torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point, 0, 255)
    assert torch.equal(y, expected)
    weights = _noise(len(x))
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(mine.grad, theirs.grad)
    with torch.no_grad():
        assert torch.equal(quantizer(x), expected)  # the way without a gradient


# --- sums -------------------------------------------------------------------------------------


def _integer_conv(
    x: NDArray[np.int64],
    w: NDArray[np.int64],
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> NDArray[np.int64]:
    """Slow and obvious convolution of whole numbers, (B, C, F, T)."""
    (pad_f, pad_t), (step_f, step_t), (apart_f, apart_t) = padding, stride, dilation
    x = np.pad(x, ((0, 0), (0, 0), (pad_f, pad_f), (pad_t, pad_t)))
    out_channels, inside, taps_f, taps_t = w.shape
    height = (x.shape[2] - apart_f * (taps_f - 1) - 1) // step_f + 1
    width = (x.shape[3] - apart_t * (taps_t - 1) - 1) // step_t + 1
    y = np.zeros((len(x), out_channels, height, width), dtype=np.int64)
    for o in range(out_channels):
        first = o // (out_channels // groups) * inside
        for i in range(inside):
            for f in range(taps_f):
                for t in range(taps_t):
                    part = x[:, first + i, f * apart_f :: step_f, t * apart_t :: step_t]
                    y[:, o] += w[o, i, f, t] * part[:, :height, :width]
    return y


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 5, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
        {"kernel_size": 3, "groups": 4, "padding": 1},
        {"kernel_size": 1},
    ],
)
def test_a_convolution_adds_up_whole_numbers(options: dict[str, Any]) -> None:
    conv = nn.Conv2d(8, 12, **options)
    layer = QuantizedConv2d(conv)
    generator = torch.Generator().manual_seed(0)
    layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape, generator=generator))
    layer.scale.copy_(torch.rand(12, generator=generator) * 0.01)
    layer.bias.copy_(torch.randn(12, generator=generator))
    layer.place(ActivationQuantizer(0.037, 77), None, None)
    x = _noise(2, 8, 13, 11) * 4

    levels = np.clip(np.round(x.numpy() / np.float32(0.037)) + 77, 0, 255).astype(np.int64)
    sums = _integer_conv(
        levels - 77,
        layer.weight.numpy().astype(np.int64),
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    assert np.abs(sums).max() < 2**24
    # Whole numbers as float32, one multiplier, one sum: to the last bit.
    multiplier = np.float32(0.037) * layer.scale.numpy()
    expected = sums.astype(np.float32) * multiplier[:, None, None]
    expected += layer.bias.numpy()[:, None, None]
    assert np.array_equal(layer(x).numpy(), expected)


def test_a_linear_layer_adds_up_whole_numbers() -> None:
    layer = QuantizedLinear(nn.Linear(300, 5))
    generator = torch.Generator().manual_seed(0)
    layer.weight.copy_(torch.randint(-127, 128, (5, 300), generator=generator))
    layer.place(ActivationQuantizer(0.5, 128), ActivationQuantizer(8.0, 3), None)
    x = _noise(4, 300) * 20
    levels = np.clip(np.round(x.numpy() / 0.5), -128, 127).astype(np.int64)
    sums = levels @ layer.weight.numpy().T.astype(np.int64)
    expected = (np.clip(np.round(sums * 0.5 / 8) + 3, 0, 255) - 3) * 8
    assert np.array_equal(layer(x).numpy(), expected)


# --- whole networks ---------------------------------------------------------------------------


class _Exported:
    """A CP-ResNet computed from its state and :func:`quantization_points` alone, in whole numbers.

    What an exporter has to do, without torch's convolutions and without ours.
    """

    def __init__(self, network: nn.Module) -> None:
        self.state = {k: v.numpy() for k, v in network.state_dict().items()}
        self.points = {point.name: point for point in quantization_points(network)}
        self.source = {r: point for point in self.points.values() for r in point.readers}

    def levels(self, name: str, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Whole multiples of the scale."""
        point = self.points[name]
        levels = np.round(x / np.float32(point.scale)) + point.zero_point
        return np.clip(levels, 0, 255).astype(np.int64) - point.zero_point

    def real(self, name: str, levels: NDArray[np.int64]) -> NDArray[np.float32]:
        return levels.astype(np.float32) * np.float32(self.points[name].scale)

    def conv(
        self, name: str, levels: NDArray[np.int64], padding: int, stride: int = 1
    ) -> NDArray[np.float32]:
        weight, scale, bias = (self.state[f"{name}.{key}"] for key in ("weight", "scale", "bias"))
        sums = _integer_conv(
            levels, weight.astype(np.int64), stride=(stride,) * 2, padding=(padding,) * 2
        )
        unit = np.float32(self.source[name].scale) * scale
        # The bias is a whole number of units, added before the one rounding to float.
        whole = np.round(bias / unit).astype(np.int64)
        return ((sums + whole[:, None, None]) * unit[:, None, None].astype(np.float64)).astype(
            np.float32
        )

    def block(self, name: str, x: NDArray[np.int64], source: str) -> NDArray[np.int64]:
        taps = {k: self.state[f"{name}.{k}.weight"].shape[2] for k in ("conv1", "conv2")}
        y = self.levels(f"{name}.relu1", self.conv(f"{name}.conv1", x, taps["conv1"] // 2))
        y = self.levels(f"{name}.conv2.output", self.conv(f"{name}.conv2", y, taps["conv2"] // 2))
        shortcut = self.real(source, x)
        if f"{name}.shortcut.conv.weight" in self.state:
            label = f"{name}.shortcut.conv"
            shortcut = self.real(
                f"{label}.output", self.levels(f"{label}.output", self.conv(label, x, 0))
            )
        return self.levels(f"{name}.relu2", self.real(f"{name}.conv2.output", y) + shortcut)

    def __call__(self, x: Tensor) -> NDArray[np.float32]:
        y = self.levels("stem.conv.input", x.numpy())
        y = self.levels("stem.relu", self.conv("stem.conv", y, padding=1, stride=2))
        source = "stem.relu"
        for stage, count in (("stage1", 4), ("stage2", 3)):
            for number in range(1, count + 1):
                name = f"{stage}.block{number}"
                y, source = self.block(name, y, source), f"{name}.relu2"
                if stage == "stage1" and number in (1, 2, 4):
                    height, width = y.shape[2] // 2, y.shape[3] // 2
                    y = y[:, :, : 2 * height, : 2 * width]
                    y = y.reshape(*y.shape[:2], height, 2, width, 2).max((3, 5))
        return self.conv("head.conv", y, 0).mean((2, 3), dtype=np.float64).astype(np.float32)


def test_a_network_can_be_computed_in_whole_numbers_from_what_it_tells_an_exporter() -> None:
    network = quantize(_resnet(damping=0.1), _clips())
    x = _noise(2, 2, 40, 50, seed=5)
    expected = _Exported(network)(x)
    assert np.ptp(expected) > 0.1
    with torch.no_grad():
        np.testing.assert_allclose(network(x).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"damping": 0.1},
        {"decomposition": 2},
        {"channels": ((3, 2, 4, 1, 3), (5, 6, 2, 4), (8,))},
        {"blocks": (1, 0, 0)},
        {"n_classes": 1, "in_channels": 1},
    ],
)
def test_settings_and_state_rebuild_the_network(options: dict[str, Any]) -> None:
    plain = _resnet(**options)
    x = _noise(2, plain.in_channels, 40, 50)
    network = quantize(plain, [x])
    settings = json.loads(json.dumps(network_settings(network)))
    assert settings["precision"] == "int8"
    again = create_model(**settings)
    assert list(again.state_dict()) == list(network.state_dict())
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    assert network_settings(again) == settings
    assert network_settings(plain) == plain.settings()
    # Eight bits for the weights, and next to nothing besides.
    for name, tensor in network.state_dict().items():
        assert tensor.dtype is torch.int8 or tensor.ndim < 2, name


def test_it_keeps_the_contract_of_networks() -> None:
    plain = _resnet()
    network = quantize(plain, _clips())
    assert isinstance(network, Network)
    x = _noise(2, 2, 40, 50)
    with torch.no_grad():
        features = network.forward_features(x)
        assert features.shape == plain.forward_features(x).shape
        assert torch.equal(network.forward_head(features), network(x))
        assert network.forward_head(features, pre_logits=True).shape == (2, network.n_features)
    assert receptive_field(network) == receptive_field(plain)
    mine, theirs = (count_complexity(n, (1, 2, 40, 50)) for n in (network, plain))
    assert mine.macs == theirs.macs
    assert is_quantized(network)
    assert not is_quantized(plain)
    assert not network.training
    assert not list(network.parameters())


def test_half_precision_around_it_changes_nothing() -> None:
    network = quantize(_resnet(), _clips())
    x = _noise(2, 2, 40, 50)
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(network(x), expected)


def test_gradients_pass_through_it_as_if_nothing_were_rounded() -> None:
    plain = _resnet()
    network = quantize(plain, _clips(8))
    gradients = []
    for one in (plain, network):
        x = _clips()[0].requires_grad_()
        one(x)[:, 0].sum().backward()
        gradients.append(x.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


# --- where the quantisers sit -----------------------------------------------------------------


class _Foreign(nn.Module):
    """Not one of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()  # used four times
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.beside = nn.Conv2d(4, 4, 1)
        self.padded = nn.Conv2d(4, 4, 3)
        self.filled = nn.Conv2d(4, 4, 3)
        self.raised = nn.Conv2d(4, 4, 1)
        self.smooth = nn.Conv2d(4, 4, 1)
        self.functional = nn.Conv2d(4, 4, 1)
        self.hidden = nn.Linear(4, 6)
        self.unused = nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(6, 2)
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.second(x) + self.beside(x))
        x = F.max_pool2d(x, 2)
        x = self.relu(self.padded(F.pad(x, (1, 1, 1, 1))))
        x = self.relu(self.filled(F.pad(x, (1, 1, 1, 1), value=1.0)))
        x += 0.3
        x = F.silu(self.raised(x))
        x = F.relu(self.smooth(x))
        x = F.relu(self.functional(x) + x)
        x = self.hidden(x.mean((2, 3)))
        return self.last_relu(self.last(x))


def test_quantisers_sit_where_the_module_says() -> None:
    torch.manual_seed(0)
    plain = _Foreign().eval()
    plan = plan_quantization(plain, trace_dataflow(plain))
    assert plan.layers == (
        "first", "second", "beside", "padded", "filled", "raised", "smooth",
        "functional", "hidden", "last",
    )  # fmt: skip
    assert plan.relus == {"relu"}  # the last one leads to no layer
    # Not rounded: the input, what was padded by something else than zero, what was changed in
    # place, what SiLU made, a mean.
    assert plan.inputs == {"first", "filled", "raised", "smooth", "hidden"}
    assert plan.outputs == {"second", "beside", "raised", "smooth", "functional", "hidden"}
    assert plan.sources == {
        "second": "relu",
        "beside": "relu",
        "padded": "relu",
        "functional": "smooth",  # through a ReLU that is no module, on the same levels
        "last": "hidden",
    }
    x = _noise(8, 1, 64, 64)
    network = quantize(plain, [x])
    points = {point.name: (point.place, point.readers) for point in quantization_points(network)}
    assert points == {
        "relu": ("relu", ("second", "beside", "padded")),
        "first.input": ("input", ("first",)),
        "second.output": ("output", ()),
        "beside.output": ("output", ()),
        "filled.input": ("input", ("filled",)),
        "raised.input": ("input", ("raised",)),
        "raised.output": ("output", ()),
        "smooth.input": ("input", ("smooth",)),
        "smooth.output": ("output", ("functional",)),
        "functional.output": ("output", ()),
        "hidden.input": ("input", ("hidden",)),
        "hidden.output": ("output", ("last",)),
    }
    assert isinstance(network.unused, nn.Conv2d)
    with torch.no_grad():
        expected = plain(x)
        assert (network(x) - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_place_of_a_relu_starts_at_zero_and_logits_are_not_rounded() -> None:
    network = quantize(_resnet(), _clips())
    points = quantization_points(network)
    assert all(point.zero_point == 0 for point in points if point.place == "relu")
    assert {point.name.rpartition(".")[2] for point in points if point.place == "relu"} == {
        "relu", "relu1", "relu2"
    }  # fmt: skip
    assert network.head.conv.output is None
    assert [point.name for point in points if point.place == "input"] == ["stem.conv.input"]


# --- what is refused --------------------------------------------------------------------------


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match='padding_mode = "reflect"'):
        int8_structure(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")))
    with pytest.raises(ValueError, match="quantised already"):
        int8_structure(int8_structure(_resnet()))
    with pytest.raises(ValueError, match="precision = 'int4': must be"):
        create_model("cp_resnet", n_classes=2, precision="int4")  # type: ignore[arg-type]


def test_the_structure_leaves_network_and_random_state_alone() -> None:
    network = _resnet(damping=0.1)
    x = _noise(2, 2, 40, 50)
    random = torch.get_rng_state()
    with torch.no_grad():
        expected = network(x)
        int8_structure(network)
        assert torch.equal(network(x), expected)
    assert torch.equal(torch.get_rng_state(), random)
