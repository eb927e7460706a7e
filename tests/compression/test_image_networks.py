"""Folding, eight bits, half precision and pruning of timm's networks, whose layers are not all
torch's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stapes.bundle import Bundle, load_bundle, save_bundle
from stapes.compression import (
    finish,
    finish_qat,
    half_precision,
    prepare_qat,
    prune,
    prune_channels,
    quantize,
)
from stapes.compression.masks import add_masks
from stapes.compression.rounding import input_patches
from stapes.config import Recipe
from stapes.errors import ConfigError
from stapes.features import BandNormalizer, create_frontend
from stapes.models import (
    count_complexity,
    create_model,
    damping_of,
    fold_batch_norm,
    is_quantized,
    quantization_points,
)
from stapes.models.quantized import int8_structure
from stapes.models.timm_layers import (
    computes_plainly,
    pads_to_size,
    same_padding,
    split_norm_activations,
    standardizes_weight,
)
from stapes.models.torchvision_operators import declare_missing_operators

declare_missing_operators()
timm: Any = pytest.importorskip("timm")

# Batch norms with activations inside, padding to size, ReLU6, hard swish, gates, concatenations.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "lite0": {"architecture": "tf_efficientnet_lite0", "blocks": 2},
    "resnet": {"architecture": "resnet10t", "blocks": 3},
    "mobilenet": {"architecture": "mobilenetv3_small_050"},
    "densenet": {"architecture": "densenet121", "blocks": 2},
    "efficientnet": {"architecture": "test_efficientnet"},
    "regnet": {"architecture": "regnetx_002", "blocks": 2},
    "tokens": {"architecture": "test_vit", "blocks": 1},
}
every_network = pytest.mark.parametrize("name", ARCHITECTURES)


def noise(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settled(architecture: str, **options: Any) -> Any:
    """Norms that are not at their initial values, as after training."""
    network = create_model(
        "timm", n_classes=3, generator=torch.Generator().manual_seed(0),
        **(ARCHITECTURES.get(architecture, {"architecture": architecture}) | options),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert isinstance(tensor, Tensor)
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    return network.eval()


def tones(count: int, *size: int) -> Tensor:
    """Clips (count, 1, *size) with a tone in each, at a height of its own."""
    x = noise(count, 1, *size, seed=3)
    for number, clip in enumerate(x):
        clip[0, number * size[0] // count] += 1 + number % 5
    return x


def norms(network: nn.Module) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


# --- folding ----------------------------------------------------------------------------------


@every_network
def test_folding_keeps_activations_and_padding(name: str) -> None:
    network = settled(name, damping=0.2)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x = noise(2, 1, 53, 66)
    with torch.no_grad():
        expected = network(x)
        folded = fold_batch_norm(network)
        assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.equal(network(x), expected)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not folded.training
    left = norms(folded)
    if name == "densenet":  # norms of concatenations have no layer to go into
        assert 0 < len(left) < len(norms(network))
        assert all("norm1" in one for one in left)
    else:
        assert not left


def test_a_standardised_weight_takes_no_norm_in() -> None:
    network = nn.Sequential(timm.layers.StdConv2d(1, 4, 3), nn.BatchNorm2d(4))
    nn.init.uniform_(network[1].running_var, 0.5, 1.5)
    network.eval()
    folded = fold_batch_norm(network)
    x = noise(1, 1, 8, 8)
    assert norms(folded) == ["1"]
    torch.testing.assert_close(folded(x), network(x))


def test_taking_norms_apart_changes_names_only() -> None:
    network = settled("lite0").train()
    x = noise(2, 1, 48, 50)
    apart = settled("lite0").train()
    split_norm_activations(apart)
    assert torch.equal(apart(x), network(x))  # with the statistics of the batch
    expected = dict(network.named_parameters())
    renamed = {name.replace(".norm.", "."): p for name, p in apart.named_parameters()}
    assert renamed.keys() == expected.keys()
    assert all(module.training for module in apart.modules())
    assert not any(isinstance(m, timm.layers.BatchNormAct2d) for m in apart.modules())


# --- what is told apart -----------------------------------------------------------------------


def test_layers_are_known_by_what_they_compute() -> None:
    layers = timm.layers
    plain = [nn.Conv2d(1, 1, 3), nn.Linear(1, 1), nn.BatchNorm2d(1), layers.Linear(1, 1)]
    assert all(computes_plainly(layer) for layer in [*plain, layers.Conv2dSame(1, 1, 3)])
    others = [layers.StdConv2d(1, 1, 3), layers.ScaledStdConv2dSame(1, 1, 3),
              layers.BatchNormAct2d(1)]  # fmt: skip
    assert not any(computes_plainly(layer) for layer in others)
    damped = nn.Sequential(layers.Conv2dSame(1, 1, 3), nn.Conv2d(1, 1, 3), *others[:1])
    add_masks(damped[:2])
    assert [computes_plainly(layer) for layer in damped] == [True, True, False]
    assert [pads_to_size(layer) for layer in damped] == [True, False, False]
    assert [standardizes_weight(layer) for layer in damped] == [False, False, True]


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (9, 1), (2, 30)])
@pytest.mark.parametrize("moves", [(3, 2, 1), (5, 2, 1), (3, 3, 2), (2, 1, 1), (1, 2, 1)])
def test_padding_to_size_is_timms(size: tuple[int, int], moves: tuple[int, int, int]) -> None:
    taps, stride, dilation = moves
    conv = timm.layers.Conv2dSame(2, 4, taps, stride=stride, dilation=dilation, groups=2)
    x = noise(3, 2, *size)
    with torch.no_grad():
        pad = same_padding(x.shape, conv.kernel_size, conv.stride, conv.dilation)
        own = F.conv2d(F.pad(x, pad), conv.weight, conv.bias, stride, 0, dilation, 2)
        assert torch.equal(own, conv(x))
        # What calibration sees of the input is what meets the weights.
        patches = input_patches(conv, x)
        weight = conv.weight.reshape(2, 2, -1)
        found = (patches @ weight.mT).permute(1, 0, 2).reshape(3, -1, 4)
        expected = (conv(x) - conv.bias[:, None, None]).flatten(2).mT
        if expected.shape[1] <= 144 and max(own.shape[2:]) <= 12:  # all positions
            torch.testing.assert_close(found, expected)


# --- eight bits -------------------------------------------------------------------------------


@every_network
def test_eight_bits_decide_as_floats_do(name: str) -> None:
    network = settled(name)
    x, sizes = tones(24, 40, 44), [(40, 44)]
    if any(pads_to_size(module) for module in network.modules()):
        sizes.append((43, 61))  # padded otherwise
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        network.train()(x)  # norms of these clips
        network.eval()
        quantized = quantize(network, [x])
        for size in sizes:
            clips = tones(24, *size)
            expected = network(clips)
            error = (quantized(clips) - expected).square().mean(0).sqrt()
            spread = expected.std(0)  # from clip to clip
            assert (error > 0).all()
            assert (error < 0.4 * spread).all(), error / spread
    assert is_quantized(quantized)
    kinds = {point.place for point in quantization_points(quantized)}
    assert "input" in kinds
    assert ("relu" in kinds) == (name not in ("tokens", "efficientnet"))
    # What describes the float network tells the same of this one.
    exact = sum(
        t.numel() * t.element_size()
        for key, t in quantized.state_dict().items()
        if not key.endswith(("num_batches_tracked", "zero_point"))
    )
    told = count_complexity(network, x.shape).bytes_int8
    if name != "tokens":  # its positions are added to
        assert exact == pytest.approx(told, rel=0.02)


@pytest.mark.parametrize("name", ["lite0", "mobilenet", "densenet"])
def test_the_structure_of_eight_bits_follows_from_the_settings(name: str) -> None:
    x = noise(4, 1, 40, 44)
    quantized = quantize(settled(name, damping=0.3), [x])
    settings = json.loads(json.dumps(quantized.settings()))
    again = create_model(**(settings | {"precision": "int8"}))
    again.load_state_dict(quantized.state_dict(), strict=True)
    assert torch.equal(again(x), quantized(x))


@pytest.mark.parametrize("name", ["lite0", "densenet"])
def test_training_with_rounding_in_the_loop_ends_at_the_same_numbers(name: str) -> None:
    network = settled(name)
    x = noise(6, 1, 40, 44)
    prepared = prepare_qat(network, [x])
    assert prepared.training
    prepared.eval()
    with torch.no_grad():
        assert torch.equal(prepared(x), quantize(network, [x])(x))
    prepared.train()
    rates = torch.optim.SGD(prepared.parameters(), 1e-3)
    F.cross_entropy(prepared(x), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    rates.step()
    prepared.eval()
    with torch.no_grad():
        assert torch.equal(finish_qat(prepared)(x), prepared(x))


def test_a_layer_that_computes_with_another_weight_is_refused() -> None:
    network = settled("test_nfnet")
    for attempt in (
        lambda: int8_structure(network),
        lambda: quantize(network, [noise(1, 1, 32, 32)]),
    ):
        with pytest.raises(ConfigError, match=r"a ScaledStdConv2d, .* cannot be quantised: choose"):
            attempt()


# --- pruning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lite0", "mobilenet", "densenet", "tokens"])
def test_pruned_weights_are_zero_and_stay_so(name: str) -> None:
    network = settled(name, damping=0.2)
    total = sum(p.numel() for p in network.parameters())
    prune(network, keep=0.5)
    x = noise(2, 1, 40, 44)
    with torch.no_grad():
        masked = network(x)
        finish(network)
        assert torch.equal(network(x), masked)
    cost = count_complexity(network, x.shape)
    assert cost.nonzero_parameters <= total // 2
    assert cost.nonzero_parameters > 0.49 * total
    assert damping_of(network) == (
        0.2 if name != "tokens" else damping_of(settled(name, damping=0.2))
    )
    again = create_model(**network.settings())
    again.load_state_dict(network.state_dict())
    quantized = quantize(network, [x])
    zeros = sum(int((m.weight == 0).sum()) for m in network.modules()
                if isinstance(m, nn.Conv2d | nn.Linear))  # fmt: skip
    rounded = sum(int((b == 0).sum()) for b in quantized.buffers() if b.dtype == torch.int8)
    assert rounded >= zeros > 0.4 * total


def test_what_cannot_be_pruned_is_told_what_works() -> None:
    with pytest.raises(ConfigError, match=r'in cp_resnet only.*pruning.method = "magnitude"'):
        prune_channels(settled("resnet"), keep=0.5)
    with pytest.raises(ConfigError, match=r"none of them can stay zero.* choose another"):
        prune(settled("test_nfnet"), keep=0.5)


# --- files ------------------------------------------------------------------------------------


def bundle(network: Any, precision: Any = "float32") -> Bundle:
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "audio": {"sample_rate": 8000, "window_seconds": 1.0},
            "features": {"name": "log_mel", "n_fft": 512, "hop_length": 128, "n_mels": 40},
        }
    )
    frontend = create_frontend(sample_rate=8000, **recipe.features.model_dump())
    return Bundle(
        frontend, BandNormalizer(1, 40), network, ("a", "b", "c"), recipe, precision=precision
    )


@pytest.mark.parametrize("name", ["lite0", "densenet", "mobilenet", "tokens"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_model_files_give_back_the_same_network(name: str, precision: str, tmp_path: Path) -> None:
    network = settled(name, damping=None if name == "tokens" else 0.25)
    x = noise(2, 1, 40, 63)
    if precision == "float16":
        half = half_precision(network)
        with torch.no_grad():
            torch.testing.assert_close(half(x), network(x), rtol=0.02, atol=0.02)
        network = half
    if precision == "int8":
        network = quantize(network, [x])
    path = tmp_path / "model.safetensors"
    random = torch.get_rng_state()
    save_bundle(bundle(network, precision), path)
    loaded = load_bundle(path)
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        assert torch.equal(loaded.network(x), network(x))
    assert loaded.precision == precision
    assert loaded.network.settings() == network.settings()
