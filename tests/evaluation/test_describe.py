"""A model in numbers: what inspect and the report say of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stapes.bundle import Bundle, save_bundle
from stapes.cli.inspect import inspect
from stapes.config import Recipe
from stapes.evaluation.describe import describe_layers, describe_model
from stapes.features import BandNormalizer, create_frontend
from stapes.models import count_complexity, create_model, layer_receptive_fields, receptive_field

SECONDS = 2.0


def bundle(precision: str = "float32", **options: object) -> Bundle:
    """A model of two classes on two channels at 8 kHz: 40 bands, 126 frames in 2 s."""
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "audio": {"sample_rate": 8000, "channels": 2, "window_seconds": SECONDS},
            "features": {"name": "log_mel", "n_fft": 512, "hop_length": 128, "n_mels": 40},
        }
    )
    torch.manual_seed(0)
    network = create_model(
        "cp_resnet", n_classes=2, in_channels=2, rho=3, width=8, blocks=[2, 1, 0],
        precision=precision, **options,
    )  # fmt: skip
    frontend = create_frontend(sample_rate=8000, **recipe.features.model_dump())
    return Bundle(
        frontend, BandNormalizer(2, 40), network.eval(), ("a", "b"), recipe,
        precision=precision,
    )  # fmt: skip


def test_numbers_are_those_of_the_network_on_one_window() -> None:
    model = bundle(damping=0.1)
    cost = count_complexity(model.network, (1, 2, 40, 126))
    found = describe_model(model)
    for name in ("parameters", "nonzero_parameters", "peak_activation_bytes", "bytes_float32",
                 "bytes_float16", "bytes_int8", "bytes_float32_sparse", "bytes_float16_sparse",
                 "bytes_int8_sparse"):  # fmt: skip
        assert getattr(found, name) == getattr(cost, name), name
    assert found.parameters == sum(p.numel() for p in model.network.parameters())
    assert found.macs_per_second == cost.macs / SECONDS
    assert found.precision == "float32"
    field = receptive_field(model.network)
    assert found.receptive_field_bins == field.frequency.size
    assert found.receptive_field_seconds == pytest.approx(field.time.size * 128 / 8000)


def test_zeros_count_by_one_rule_and_not_by_the_other() -> None:
    model = bundle()
    dense = describe_model(model)
    with torch.no_grad():
        for module in model.network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.view(-1)[::4] = 0
                module.weight.view(-1)[1::4] = 0
    pruned = describe_model(model)
    kernels = sum(p.numel() for p in model.network.parameters() if p.ndim > 1)
    assert pruned.parameters == dense.parameters
    # Norms that are zero at the start count as zeros in both.
    assert dense.nonzero_parameters - pruned.nonzero_parameters == kernels // 2
    assert pruned.macs_per_second == dense.macs_per_second
    assert pruned.nonzero_macs_per_second == pytest.approx(dense.macs_per_second / 2, rel=1e-3)
    assert pruned.bytes_float32 == dense.bytes_float32
    assert pruned.bytes_float32_sparse < 0.6 * dense.bytes_float32


def test_layers_add_up_to_the_model() -> None:
    model = bundle(damping=0.1)
    whole, layers = describe_model(model), describe_layers(model)
    assert sum(layer.parameters for layer in layers) == whole.parameters
    assert sum(layer.nonzero_parameters for layer in layers) == whole.nonzero_parameters
    assert sum(layer.macs_per_second for layer in layers) == pytest.approx(whole.macs_per_second)
    fields = layer_receptive_fields(model.network)
    names = [layer.name for layer in layers]
    assert names[0] == "stem.conv"
    assert names[-1] == "head.norm"
    for layer in layers:
        assert layer.receptive_field_frames == fields[layer.name].time.size
    assert layers[0].output_shape == (8, 19, 62)
    assert layers[0].kind == "Conv2d"
    # 5 x 5 taps of the stem, 2 channels to 8, at 19 x 62 places in 2 s.
    assert layers[0].macs_per_second == 5 * 5 * 2 * 8 * 19 * 62 / SECONDS
    assert layers[-1].receptive_field_hz == whole.receptive_field_hz


def test_hz_are_those_of_bins_around_the_middle_one() -> None:
    model = bundle()
    stem = describe_layers(model)[0]
    f = model.frontend.band_frequencies().double().numpy()
    # 5 bins around bin 20: 18 to 22, from edge to edge.
    expected = ((f[17] + f[18]) / 2, (f[22] + f[23]) / 2)
    assert stem.receptive_field_hz == pytest.approx(expected)
    assert stem.receptive_field_seconds == pytest.approx(5 * 128 / 8000)
    # A field that is higher than the spectrogram ends with it.
    high = bundle(damping=None).network
    assert receptive_field(high).frequency.size < 40
    tall = describe_model(bundle_of_rho(12))
    assert tall.receptive_field_bins > 40
    low, top = tall.receptive_field_hz
    assert low == pytest.approx(max(0, f[0] - (f[1] - f[0]) / 2))
    assert top == pytest.approx(f[-1] + (f[-1] - f[-2]) / 2)


def bundle_of_rho(rho: int) -> Bundle:
    from dataclasses import replace

    network = create_model("cp_resnet", n_classes=2, in_channels=2, rho=rho, width=4)
    return replace(bundle(), network=network.eval())


def test_a_model_in_eight_bits_is_described_too() -> None:
    model = bundle("int8")
    found, layers = describe_model(model), describe_layers(model)
    assert found.precision == "int8"
    assert found.bytes_int8 < describe_model(bundle()).bytes_float32 / 3
    assert found.receptive_field_bins == describe_model(bundle()).receptive_field_bins
    assert found.macs_per_second == describe_model(bundle()).macs_per_second
    assert sum(layer.macs_per_second for layer in layers) == pytest.approx(found.macs_per_second)


def test_describing_changes_nothing() -> None:
    model = bundle(damping=0.3)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    describe_model(model)
    describe_layers(model)
    for name, tensor in model.network.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name])


def image_bundle(architecture: str) -> Bundle:
    from dataclasses import replace

    network = create_model("timm", n_classes=2, in_channels=2, architecture=architecture)
    return replace(bundle(), network=network.eval())


def test_a_field_that_nobody_knows_is_said_to_be_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = image_bundle("test_vit")
    with pytest.raises(ValueError, match="no receptive field"):
        receptive_field(model.network)
    found = describe_model(model)
    assert found.name == "timm test_vit"
    assert found.parameters == sum(p.numel() for p in model.network.parameters())
    assert found.receptive_field_bins is found.receptive_field_frames is None
    assert found.receptive_field_seconds is found.receptive_field_hz is None
    assert describe_layers(model)[0].receptive_field_bins == 16
    save_bundle(model, tmp_path / "model.safetensors")
    inspect(tmp_path / "model.safetensors", layers=True)
    shown = capsys.readouterr().out
    assert "receptive field  unknown" in shown
    assert "None" not in shown


def test_gates_that_see_the_whole_window_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = image_bundle("mobilenetv3_small_050")
    assert describe_model(model).global_context
    assert not describe_model(bundle()).global_context
    save_bundle(model, tmp_path / "model.safetensors")
    inspect(tmp_path / "model.safetensors")
    assert "and the whole window by its gates" in capsys.readouterr().out
