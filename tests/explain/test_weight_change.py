"""How far weights moved: by hand, over kinds of networks, and what cannot be compared."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from stapes.compression import finish, prune
from stapes.errors import StapesError
from stapes.explain.weight_change import WeightChange, weight_change
from stapes.models import create_model, fold_batch_norm, fold_damping, int8_structure


def network(seed: int = 0, **options: object) -> nn.Module:
    options = {"n_classes": 3, "rho": 3, "width": 4, "blocks": [2, 1, 0], **options}
    return create_model("cp_resnet", generator=torch.Generator().manual_seed(seed), **options)


def by_name(found: WeightChange) -> dict[str, object]:
    return {layer.name: layer for layer in found.layers}


def test_nothing_changed() -> None:
    before = network()
    found = weight_change(before, copy.deepcopy(before))
    assert not found.left_out
    for layer in found.layers:
        assert (layer.relative, layer.mean_absolute) == (0, 0)
        assert layer.cosine == pytest.approx(1, abs=1e-12)
    assert found.by_block() == [0] * (len(found.blocks) + 1)
    # Every learned number is counted once, none that is not learned.
    assert sum(layer.parameters for layer in found.layers) == sum(
        p.numel() for p in before.parameters()
    )


def test_numbers_of_one_layer_by_hand() -> None:
    before = network()
    after = copy.deepcopy(before)
    old, new = before.stage1.block1.norm1, after.stage1.block1.norm1
    with torch.no_grad():
        old.weight.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
        old.bias.copy_(torch.tensor([0.0, 4.0, 0.0, 0.0]))
        new.weight.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
        new.bias.copy_(torch.tensor([0.0, 0.0, 4.0, 0.0]))
    found = weight_change(before, after)
    layer = by_name(found)["stage1.block1.norm1"]
    assert layer.kind == "normalization"
    assert layer.parameters == 8
    assert layer.block == 1
    assert layer.relative == pytest.approx(32**0.5 / 5)
    assert layer.cosine == pytest.approx(9 / 25)
    assert layer.mean_absolute == pytest.approx(1.0)
    assert sum(bool(layer.relative) for layer in found.layers) == 1


def test_scaled_and_turned_round() -> None:
    before = network()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.stem.conv.weight.mul_(1.5)
        after.stage1.block1.conv1.weight.neg_()
    layers = by_name(weight_change(before, after))
    assert layers["stem.conv"].relative == pytest.approx(0.5)
    assert layers["stem.conv"].cosine == pytest.approx(1)
    assert layers["stage1.block1.conv1"].relative == pytest.approx(2)
    assert layers["stage1.block1.conv1"].cosine == pytest.approx(-1)
    assert layers["stage1.block1.conv1"].mean_absolute == pytest.approx(
        2 * before.stage1.block1.conv1.weight.abs().mean().item()
    )


def test_blocks_take_the_root_mean_square_of_their_layers() -> None:
    before = network()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.stage1.block1.conv1.weight.mul_(1.3)
        after.stage1.block1.conv2.weight.mul_(0.6)
        after.stage1.block1.norm1.weight.mul_(50)  # no convolution
    found = weight_change(before, after)
    in_block = [x for x in found.layers if x.block == 1 and x.kind == "convolution"]
    expected = ((0.3**2 + 0.4**2) / len(in_block)) ** 0.5
    assert found.blocks[1] == "stage1.block1"
    assert found.by_block()[1] == pytest.approx(expected, rel=1e-5)
    assert found.by_block()[0] == 0
    assert found.by_block(("linear",)) == [None] * (len(found.blocks) + 1)


def test_zeros_have_no_angle_and_no_relative_change() -> None:
    before = network()
    after = copy.deepcopy(before)
    nn.init.zeros_(before.stem.norm.weight)
    layer = by_name(weight_change(before, after))["stem.norm"]
    assert (layer.relative, layer.cosine) == (None, None)
    assert layer.mean_absolute == pytest.approx(0.5)  # weights of one, biases of zero
    gone = by_name(weight_change(after, before))["stem.norm"]
    assert gone.relative == pytest.approx(1)
    assert gone.cosine is None


def test_another_head_is_left_out_and_said_so() -> None:
    found = weight_change(network(), network(n_classes=5))
    assert found.left_out == {
        "head.conv": "weight has shape (3, 8, 1, 1) and (5, 8, 1, 1)",
        "head.norm": "bias has shape (3,) and (5,)",
    }
    assert found.by_block()[-1] is None
    assert "stem.conv" in by_name(found)
    json.dumps(found.summary(), allow_nan=False)


def test_damping_counts_as_it_is_computed_with() -> None:
    plain, damped = network(), network(damping=0.2)
    found = by_name(weight_change(plain, damped))
    folded = by_name(weight_change(plain, fold_damping(copy.deepcopy(damped))))
    assert found.keys() == folded.keys()
    assert found["stem.conv"].relative == pytest.approx(folded["stem.conv"].relative)
    assert found["stem.conv"].relative > 0.1
    same = weight_change(damped, fold_damping(copy.deepcopy(damped)))
    assert max(layer.relative for layer in same.layers) == pytest.approx(0, abs=1e-6)


def test_pruned_weights_count_as_zeros() -> None:
    before = network()
    after = copy.deepcopy(before)
    prune(after, keep=0.5)
    finish(after)
    weights = [m for m in after.modules() if isinstance(m, nn.Conv2d)]
    assert any((m.weight == 0).any() for m in weights)
    found = weight_change(before, after)
    assert not found.left_out
    assert max(layer.relative for layer in found.layers) > 0.1


def test_folded_batch_norms_are_not_taken_for_training() -> None:
    before = network()
    found = weight_change(before, network(rho=3, blocks=[2, 0, 0]))
    assert any("only in the first network" in why for why in found.left_out.values())
    with pytest.raises(StapesError, match="No layer is in both networks"):
        weight_change(before, fold_batch_norm(copy.deepcopy(before).eval()))


def test_what_cannot_be_compared() -> None:
    before = network()
    with pytest.raises(StapesError, match="int8"):
        weight_change(before, int8_structure(network()))
    with pytest.raises(StapesError, match="No layer is in both networks"):
        weight_change(create_model("timm", n_classes=3, architecture="resnet10t"), before)
    damaged = copy.deepcopy(before)
    with torch.no_grad():
        damaged.stem.norm.bias[1] = float("nan")
    with pytest.raises(StapesError, match=r"stem\.norm: its weights are not finite"):
        weight_change(before, damaged)


@pytest.mark.parametrize(
    "architecture", ["resnet10t", "tf_efficientnet_lite0", "vit_tiny_patch16_224"]
)
def test_of_image_networks_every_layer_lies_in_a_block(architecture: str) -> None:
    before = create_model("timm", n_classes=3, architecture=architecture)
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.mul_(1.25)
    found = weight_change(before, after)
    assert not found.left_out
    assert sum(x.parameters for x in found.layers) == sum(p.numel() for p in before.parameters())
    assert {x.block for x in found.layers} == set(range(len(found.blocks) + 1))
    assert [x.block for x in found.layers] == sorted(x.block for x in found.layers)
    for layer in found.layers:
        assert layer.relative is None or layer.relative == pytest.approx(0.25, rel=1e-5)
    kinds = {"convolution", "linear", "normalization"}
    assert {x.kind for x in found.layers} - {"other"} == kinds
