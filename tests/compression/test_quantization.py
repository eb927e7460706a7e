"""Eight bits after training and with the rounding in the loop; half precision."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stapes.compression import (
    finish,
    finish_qat,
    half_precision,
    prepare_qat,
    prune,
    quantize,
)
from stapes.compression.masks import add_masks
from stapes.compression.quantization import TrainableConv2d, _Histogram, activation_range
from stapes.errors import StapesError
from stapes.models import (
    FrequencyDamping,
    count_complexity,
    create_model,
    damping_of,
    is_quantized,
    quantization_points,
)
from stapes.models.quantized import ActivationQuantizer
from stapes.training.averaging import WeightAverage


def _task() -> tuple[Tensor, Tensor]:
    """Spectrograms (60, 1, 40, 40) of three classes: where along frequency there is a tone."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 1, 40, 40, generator=generator)
    targets = torch.arange(60) % 3
    for clip, target in zip(x, targets, strict=True):
        clip[:, 5 + 12 * int(target)] += 1.5
    return x, targets


def _train(network: nn.Module, steps: int, rate: float = 0.003) -> None:
    x, targets = _task()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    network.train()
    for _ in range(steps):
        F.cross_entropy(network(x), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval()


@torch.no_grad()
def _loss(network: nn.Module) -> float:
    x, targets = _task()
    return float(F.cross_entropy(network(x), targets))


_TRAINED: dict[str, nn.Module] = {}


def _trained(kind: str = "damped") -> nn.Module:
    """A small network after a few steps; a copy of its own for each test."""
    if kind not in _TRAINED:
        options: dict[str, Any] = {"rho": 3, "width": 6, "blocks": (2, 1, 0), "n_classes": 3}
        if kind == "decomposed":
            options |= {"decomposition": 2}
        if kind != "plain":
            options |= {"damping": 0.1}
        network = create_model("cp_resnet", generator=torch.Generator().manual_seed(0), **options)
        _train(network, 12)
        if kind == "pruned":
            prune(network, keep=0.4)
            finish(network)
        _TRAINED[kind] = network
    return copy.deepcopy(_TRAINED[kind])


KINDS = ("plain", "damped", "decomposed", "pruned")


# --- after training ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_stay_close_and_the_network_as_it_was(kind: str) -> None:
    network = _trained(kind)
    before = copy.deepcopy(network.state_dict())
    x, _ = _task()
    random = torch.get_rng_state()
    with torch.no_grad():
        expected = network(x)
        quantized = quantize(network, [x[:30], x[30:]])
        assert torch.equal(network(x), expected)
        error = (quantized(x) - expected).square().mean() / expected.var()
    assert error.sqrt() < 0.1
    assert error > 0
    assert torch.equal(torch.get_rng_state(), random)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert is_quantized(quantized)
    assert damping_of(quantized) is None


def test_the_same_clips_give_the_same_integers() -> None:
    x, _ = _task()
    first, second = (quantize(_trained(), iter(x.split(20))).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rounding_for_the_output_beats_the_nearest_integers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from stapes.compression import quantization

    network = _trained()
    # What a spectrogram is like: neighbours alike.
    generator = torch.Generator().manual_seed(0)
    x = F.avg_pool2d(torch.randn(40, 1, 60, 60, generator=generator), 9, 1, 4) * 9
    errors = []
    for rounding in (quantization.round_weight, _round_to_nearest):
        monkeypatch.setattr(quantization, "round_weight", rounding)
        # Without rounded activations: integers of the weights alone.
        quantized = quantize(network, [x])
        for module in quantized.modules():
            if isinstance(module, ActivationQuantizer):
                module.register_forward_hook(_unrounded)
        with torch.no_grad():
            errors.append(float((quantized(x) - network(x)).square().mean()))
    assert errors[0] < 0.7 * errors[1]


def _round_to_nearest(weight: Tensor, scale: Tensor, _moments: Tensor) -> Tensor:
    return (weight / scale[:, None, None, None]).round().clamp(-127, 127)


def _unrounded(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output


def test_pruned_weights_stay_zero() -> None:
    network = _trained("pruned")
    x, _ = _task()
    quantized = quantize(network, [x])
    zeros = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            where = module.weight == 0
            zeros += int(where.sum())
            assert (quantized.get_submodule(name).weight[where] == 0).all()
    assert zeros > 0.4 * count_complexity(network, (1, 1, 40, 40)).parameters


def test_a_channel_without_weights_keeps_its_bias() -> None:
    network = _trained("plain")
    with torch.no_grad():
        network.stage1.block1.conv1.weight[2] = 0.0
        network.stage1.block1.norm1.bias[2] = 3.0
    x, _ = _task()
    quantized = quantize(network, [x])
    conv = quantized.stage1.block1.conv1
    assert not conv.weight[2].any()
    norm = network.stage1.block1.norm1
    expected = 3.0 - norm.running_mean[2] * norm.weight[2] / (norm.running_var[2] + norm.eps).sqrt()
    torch.testing.assert_close(conv.bias[2], expected.detach(), rtol=1e-6, atol=0)
    # As an int32 in units of its sums, as is every other bias.
    units = conv.bias / (conv.source.scale * conv.scale)
    assert units.abs().max() < 2**24
    torch.testing.assert_close(units, units.round(), rtol=1e-6, atol=1e-3)


def test_it_can_be_calibrated_where_nothing_ever_sounds() -> None:
    network = _trained()
    quantized = quantize(network, [torch.zeros(2, 1, 40, 40)])
    with torch.no_grad():
        silent = torch.zeros(1, 1, 40, 40)
        torch.testing.assert_close(quantized(silent), network(silent), rtol=0.05, atol=0.02)


def test_what_cannot_be_calibrated_is_explained() -> None:
    x, _ = _task()
    with pytest.raises(StapesError, match="no training clips"):
        quantize(_trained(), [])
    with pytest.raises(StapesError, match=r"at stem.conv.input are not finite"):
        quantize(_trained(), [x * torch.inf])
    with pytest.raises(StapesError, match=r"at stem.conv.input are not finite"):
        prepare_qat(_trained(), [x, x * torch.nan])
    for prepared in (quantize(_trained(), [x]), prepare_qat(_trained(), [x])):
        with pytest.raises(ValueError, match="quantised already"):
            prepare_qat(prepared, [x])
    with pytest.raises(ValueError, match="use prepare_qat first"):
        finish_qat(_trained())


# --- ranges -----------------------------------------------------------------------------------


def _fake(values: Tensor, scale: float, zero_point: int, counts: Tensor | float = 1.0) -> float:
    """Squared error by torch's own rounding."""
    y = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, 0, 255)
    return float(((y.double() - values).square() * counts).sum())


@pytest.mark.parametrize("kind", ["normal", "outlier", "positive", "shifted", "negative"])
def test_ranges_lose_hardly_more_than_the_best_of_a_fine_search(kind: str) -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(3)).double()
    counts = torch.full((2000,), 1000.0).double()
    if kind == "outlier":  # one among two millions
        values[0], counts[0] = 30.0, 1.0
    values = {
        "positive": values.clamp_min(0) ** 2,
        "shifted": values + 3,
        "negative": -values.abs(),
    }.get(kind, values)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale, zero_point = activation_range(values, counts, low, high)
    assert 0 <= zero_point <= 255
    best = np.inf
    for a in np.linspace(0.02, 1, 40):
        for b in np.linspace(0.02, 1, 40):
            step = float(high * b - low * a) / 255
            zero = int(np.clip(round(-low * a / step), 0, 255))
            best = min(best, _fake(values, step, zero, counts))
    found = _fake(values, scale, zero_point, counts)
    assert found <= 1.05 * best
    whole = (high - low) / 255
    if kind == "outlier":
        assert found < 0.5 * _fake(values, whole, round(-low / whole), counts)
    if kind == "positive":
        assert zero_point == 0
    if kind == "negative":
        assert zero_point == 255


def test_the_histogram_serves_in_whatever_order_the_range_grows() -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 2
    x = torch.cat([x, torch.tensor([-40.0, 30.0])])  # 40 is seen first or last
    ranges = []
    for parts in ([x], [x[:9] * 0, x[:1000] * 1e-3, x], [x.flip(0)[:1500], x.flip(0)[1500:]]):
        histogram = _Histogram()
        for part in parts:
            histogram.add("x", part)
        assert (histogram.low, histogram.high) == (-40.0, 30.0)
        assert int(histogram._counts.sum()) == sum(len(part) for part in parts if part.any())
        ranges.append(histogram.range())
    exact = activation_range(x.double(), torch.ones(3002).double(), -40.0, 30.0)
    for scale, zero_point in ranges:
        assert _fake(x.double(), scale, zero_point) <= 1.02 * _fake(x.double(), *exact)


# --- with the rounding in the loop ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_and_ends_at_the_numbers_of_the_int8_network(kind: str) -> None:
    network = _trained(kind)
    x, _ = _task()
    prepared = prepare_qat(network, [x])
    assert prepared.training
    with torch.no_grad():
        assert torch.equal(prepared(x), quantize(network, [x])(x))
    _train(prepared, 3)
    finished = finish_qat(prepared)
    with torch.no_grad():
        expected = prepared(x)
        assert torch.equal(finished(x), expected)
        assert not torch.equal(expected, quantize(network, [x])(x))
    assert prepared(x).requires_grad
    assert not list(finished.parameters())
    assert [point.name for point in quantization_points(finished)] == [
        point.name for point in quantization_points(quantize(network, [x]))
    ]


def test_every_parameter_gets_the_gradient_of_torchs_fake_quantisation() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3))
    x = torch.randn(2, 2, 9, 9)
    prepared = prepare_qat(plain, [x])
    with torch.no_grad():  # off the middle of their levels, some beyond the last
        for parameter in prepared.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape))
    first, relu, second = prepared

    def conv(layer: TrainableConv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        zeros = torch.zeros(len(bias), dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(weight, layer.scale, zeros, 0, -127, 127)
        return F.conv2d(x, weight, bias, padding=layer.padding)

    def fake(point: ActivationQuantizer, x: Tensor) -> Tensor:
        scale, zero_point = float(point.scale), int(point.zero_point)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)

    weights = [p.detach().clone().requires_grad_() for p in prepared.parameters()]
    y = fake(relu, conv(first, fake(first.input, x), *weights[:2]))
    expected = conv(second, y, *weights[2:])
    found = prepared(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # a level of a ReLU at most
    towards = torch.randn(expected.shape)
    (found * towards).sum().backward()
    (expected * towards).sum().backward()
    assert any((p == 0).any() for p in (w.grad for w in weights))  # clipped
    for mine, theirs in zip(prepared.parameters(), weights, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=2e-2)


def test_fine_tuning_makes_up_for_ranges_that_were_set_badly() -> None:
    network = _trained()
    x, _ = _task()
    prepared = prepare_qat(network, [x * 0.1])  # nine tenths are clipped
    before = _loss(finish_qat(prepared))
    assert before > 1.2 * _loss(network)
    _train(prepared, 10)
    # Of what was lost.
    assert _loss(finish_qat(prepared)) < _loss(network) + 0.3 * (before - _loss(network))


def test_damping_and_zeros_stay_in_force() -> None:
    network = _trained("pruned")
    x, _ = _task()
    prepared = prepare_qat(network, [x])
    damped = [n for n, m in network.named_modules() if isinstance(m, FrequencyDamping)]
    assert [n for n, m in prepared.named_modules() if isinstance(m, FrequencyDamping)] == damped
    assert len(damped) > 2
    _train(prepared, 3)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert (prepared.get_submodule(name).weight[module.weight == 0] == 0).all(), name
    finished = finish_qat(prepared)
    kept, left = (count_complexity(n, (1, 1, 40, 40)) for n in (network, finished))
    assert left.nonzero_parameters <= kept.nonzero_parameters + 200  # scales and biases for norms


def test_masks_that_are_not_finished_are_kept() -> None:
    network = _trained()
    for mask in add_masks(network).values():
        mask.mask.view(-1)[::3] = False
    x, _ = _task()
    prepared = prepare_qat(network, [x])
    _train(prepared, 2)
    quantized = finish_qat(prepared)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert (quantized.get_submodule(name).weight.reshape(-1)[::3] == 0).all(), name


def test_it_is_averaged_stored_and_moved_like_any_network() -> None:
    x, _ = _task()
    prepared = prepare_qat(_trained("pruned"), [x])
    average = WeightAverage(prepared, 0.9)
    prepared.to(memory_format=torch.channels_last)
    for _ in range(3):
        _train(prepared, 1)
        average.update(prepared)
    again = prepare_qat(_trained("pruned"), [x])
    state = average.state()
    for name, value in again.state_dict().items():
        if name.endswith(("scale", "zero_point", "mask")):
            assert torch.equal(state[name], value), name  # averaging does not touch what is fixed
    again.load_state_dict(state)
    assert torch.equal(copy.deepcopy(again)(x), again(x))
    assert not torch.equal(again(x), prepared(x))


# --- half precision ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_values_of_half_precision_and_norms_are_untouched(kind: str) -> None:
    network = _trained(kind)
    x, _ = _task()
    with torch.no_grad():
        expected = network(x)
        rounded = half_precision(network)
        assert torch.equal(network(x), expected)
        torch.testing.assert_close(rounded(x), expected, rtol=0.01, atol=0.01)
    assert damping_of(rounded) is None
    create_model(**rounded.settings()).load_state_dict(rounded.state_dict())
    for name, module in network.named_modules():
        other = rounded.get_submodule(name) if "parametrizations" not in name else None
        if isinstance(module, nn.Conv2d):
            expected_weight = torch.from_numpy(
                module.weight.detach().numpy().astype(np.float16).astype(np.float32)
            )
            assert torch.equal(other.weight, expected_weight)
            assert other.weight.dtype is torch.float32
        if isinstance(module, nn.BatchNorm2d):
            for key, value in module.state_dict().items():
                assert torch.equal(other.state_dict()[key], value)


def test_biases_stay_and_weights_too_large_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    bias = network[2].bias.detach().clone()
    assert torch.equal(half_precision(network)[2].bias, bias)
    with torch.no_grad():
        network[2].weight[0, 0] = 1e5
    with pytest.raises(StapesError, match=r"2\.weight has weights beyond 65504"):
        half_precision(network)
