"""``stapes inspect``: sizes, counting rules and layers of a model file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from stapes.bundle import Bundle, save_bundle
from stapes.cli.app import app
from stapes.config import Recipe
from stapes.features import BandNormalizer, create_frontend
from stapes.models import count_complexity, create_model


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A damped model of which a third of the weights is zero, one window of 1 s."""
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "audio": {"sample_rate": 8000, "channels": 1, "window_seconds": 1.0},
            "features": {"name": "log_mel", "n_fft": 512, "hop_length": 128, "n_mels": 40},
        }
    )
    torch.manual_seed(0)
    network = create_model("cp_resnet", n_classes=2, rho=3, width=8, blocks=[2, 0, 0], damping=0.5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight.original"):
                parameter.view(-1)[::2] = 0
            elif name.endswith("norm.bias"):
                nn.init.ones_(parameter)
    frontend = create_frontend(sample_rate=8000, **recipe.features.model_dump())
    bundle = Bundle(frontend, BandNormalizer(1, 40), network.eval(), ("cat", "dog"), recipe)
    save_bundle(bundle, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def cost_of(model: Path) -> tuple[object, int]:
    from stapes.bundle import load_bundle

    network = load_bundle(model).network
    return count_complexity(network, (1, 1, 40, 63)), sum(p.numel() for p in network.parameters())


def test_every_size_with_the_rule_it_is_counted_by(model: Path) -> None:
    text = run("inspect", model)
    cost, parameters = cost_of(model)
    lines = {line[:17].strip(): line[17:] for line in text.split("\n\n")[0].splitlines()}
    assert f"{parameters:,} (rule since 2022: zeros count)" in lines["parameters"]
    assert f"{cost.nonzero_parameters:,} not zero (rule of 2020)" in lines["parameters"]
    assert cost.nonzero_parameters < parameters
    for kind, ending in (("dense", ""), ("sparse", "_sparse")):
        for precision in ("float32", "float16", "int8"):
            n = getattr(cost, f"bytes_{precision}{ending}")
            assert f"{n:,} {precision}" in lines[f"bytes, {kind}"], text
    every, nonzero = re.findall(r"([\d.]+) million", lines["arithmetic"])
    assert float(every) == pytest.approx(cost.macs / 1e6, rel=0.005)
    assert float(nonzero) == pytest.approx(cost.nonzero_macs / 1e6, rel=0.005)
    assert "rule since 2022" in lines["arithmetic"]
    assert f"{cost.peak_activation_bytes:,} bytes at the peak" in lines["activations"]
    for unit in ("bins", "frames", "Hz", " s)"):
        assert unit in lines["receptive field"]
    assert f"{model.stat().st_size:,} bytes" in lines["file"]
    assert "layer " not in text


def test_layers_are_a_table(model: Path) -> None:
    text = run("inspect", model.parent, "--layers")
    table = text.split("\n\n")[1].splitlines()
    cost, _ = cost_of(model)
    assert table[0].split()[:4] == ["layer", "kind", "output", "parameters"]
    assert [line.split()[0] for line in table[1:]] == [layer.name for layer in cost.layers]
    stem = next(line for line in table if line.startswith("stem.conv"))
    # 8 filters of 5 x 5, half of them zeros; 19 x 31 places in one second.
    for word in ("Conv2d", "8 x 19 x 31", "200", "100", f"{200 * 19 * 31:,}", "5 x 5", "0.08 s"):
        assert word in stem, stem


def test_json_says_the_same(model: Path) -> None:
    plain = json.loads(run("inspect", model, "--format", "json"))
    tree = json.loads(run("inspect", model, "--format", "json", "--layers"))
    cost, parameters = cost_of(model)
    assert "layers" not in plain
    assert tree["file_bytes"] == model.stat().st_size
    assert tree["model"]["parameters"] == parameters
    assert tree["model"]["bytes_int8_sparse"] == cost.bytes_int8_sparse
    assert tree["model"]["peak_activation_bytes"] == cost.peak_activation_bytes
    assert sum(layer["parameters"] for layer in tree["layers"]) == parameters
    assert tree["layers"][0]["receptive_field_bins"] == 5
    assert tree["network"]["damping"] == 0.5


def test_a_model_in_eight_bits(model: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from stapes.bundle import load_bundle

    whole = load_bundle(model)
    settings = whole.network.settings()
    small = replace(
        whole, network=create_model(**settings, precision="int8").eval(), precision="int8"
    )
    path = tmp_path / "int8.safetensors"
    save_bundle(small, path)
    text = run("inspect", path, "--layers")
    assert "weights in int8" in text
    tree = json.loads(run("inspect", path, "--format", "json"))
    assert tree["network"]["precision"] == "int8"
    # Nothing but zeros: it was never filled.
    assert tree["model"]["bytes_int8_sparse"] < tree["file_bytes"] < tree["model"]["bytes_int8"]
