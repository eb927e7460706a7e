"""Frozen blocks and rates by block, on networks whose blocks are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted import CLASSES, fit_planted
from torch import nn

from stapes.config import Recipe, load_recipe
from stapes.errors import ConfigError
from stapes.models import create_model
from stapes.models.blocks import block_plan
from stapes.training.groups import freeze_blocks, parameter_groups

# First word or words of a tensor's name, to the block that it belongs to.
BLOCKS = {
    "cp_resnet": {"stem": 0, "stage1.block1": 1, "stage1.block2": 2, "stage2.block1": 3, "head": 4},
    "timm": {
        "body.conv1": 0, "body.bn1": 0, "body.layer1": 1, "body.layer2": 2, "body.layer3": 3,
        "body.layer4": 4, "body.fc": 5,
    },
}  # fmt: skip


def _network(name: str) -> nn.Module:
    torch.manual_seed(1)
    if name == "timm":  # a ResNet-18 of a thirtieth of the size
        network = create_model("timm", n_classes=CLASSES, architecture="test_resnet", damping=0.1)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.ones_(norm.weight)  # timm's last of a block is zero: no gradient behind
        return network
    return create_model(
        "cp_resnet", n_classes=CLASSES, rho=2, width=4, blocks=(2, 1, 0), damping=0.1
    )


def _block(network: str, tensor: str) -> int:
    (found,) = (k for start, k in BLOCKS[network].items() if tensor.startswith(f"{start}."))
    return found


def _recipe(*overrides: str) -> Recipe:
    return load_recipe(
        "small",
        ["training.epochs=3", "training.batch_size=8", "augment.time_roll_seconds=0",
         "training.validation_fraction=0.2", *overrides],
    )  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_every_parameter_learns_at_the_rate_of_its_block(name: str) -> None:
    network = _network(name)
    groups = parameter_groups(network, 0.3, layer_decay=0.5)
    found = {p: group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    last = max(BLOCKS[name].values())
    for tensor, parameter in network.named_parameters():
        assert found[parameter]["rate_scale"] == 0.5 ** (last - _block(name, tensor)), tensor
        assert found[parameter]["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0), tensor


def test_without_a_decay_by_block_all_learn_at_one_rate() -> None:
    network = _network("cp_resnet")
    groups = parameter_groups(network, 0.3)
    assert [(g["rate_scale"], g["weight_decay"]) for g in groups] == [(1.0, 0.3), (1.0, 0.0)]
    parameters = {p for group in groups for p in group["params"]}
    assert parameters == set(network.parameters())


def test_norms_and_biases_decay_where_a_recipe_says_so() -> None:
    recipe = load_recipe("palanisamy2020-esc50")
    assert recipe.training.decayed == "all"
    groups = parameter_groups(_network("cp_resnet"), 0.3, decay_all=True)
    assert {g["weight_decay"] for g in groups} == {0.3}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_step_is_as_long_as_the_rate_of_its_block(name: str, tmp_path: Path) -> None:
    network = _network(name)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    recipe = _recipe(
        "training.epochs=1", "training.batch_size=30", "training.learning_rate=1e-3",
        "training.schedule=constant", "training.optimizer=adam", "training.weight_decay=0",
        "training.averaging=none", "training.layer_decay=0.5",
    )  # fmt: skip
    fit_planted(network, tmp_path, recipe)
    last = max(BLOCKS[name].values())
    seen = set()
    for tensor, parameter in network.named_parameters():
        # Adam's first step is as long as the rate, whatever the gradient, unless that is none:
        # behind a dead ReLU, or where the next norm takes away what a bias adds.
        if parameter.ndim == 1:
            continue
        step = float((parameter.detach() - before[tensor]).abs().max())
        if step > 0:
            block = _block(name, tensor)
            assert step == pytest.approx(1e-3 * 0.5 ** (last - block), rel=0.01), tensor
            seen.add(block)
    assert seen == set(BLOCKS[name].values())


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(
    "averaging",
    [
        ("training.averaging=none",),
        ("training.averaging=ema", "training.averaging_decay=0.5"),
        ("training.averaging=equal",),
        ("training.early_stopping_epochs=2",),
    ],
    ids=["none", "ema", "equal", "early"],
)
def test_frozen_blocks_stay_as_they_are_to_the_bit(
    name: str, averaging: tuple[str, ...], tmp_path: Path
) -> None:
    network = _network(name)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    recipe = _recipe("initialization.frozen_blocks=2", "training.weight_decay=0.5", *averaging)
    fit_planted(network, tmp_path, recipe, validation=6)
    for tensor, value in network.state_dict().items():
        if _block(name, tensor) < 2:
            assert torch.equal(value, before[tensor]), tensor
        else:
            assert not torch.equal(value, before[tensor]), tensor


def test_all_blocks_frozen_leave_the_head_to_learn(tmp_path: Path) -> None:
    network = _network("cp_resnet")
    assert len(freeze_blocks(network, 0)) == 0
    assert all(p.requires_grad for p in network.parameters())
    freeze_blocks(network, 4)
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        "head.conv.weight", "head.norm.weight", "head.norm.bias",
    }  # fmt: skip
    groups = parameter_groups(network, 0.1, layer_decay=0.5)
    assert [group["rate_scale"] for group in groups] == [1.0, 1.0]


def test_more_blocks_than_there_are_is_said() -> None:
    with pytest.raises(ConfigError, match=r"frozen_blocks = 5: this network has 4 blocks \(stem, "):
        freeze_blocks(_network("cp_resnet"), 5)


def test_modules_of_frozen_blocks_hold_their_tensors_and_no_others() -> None:
    network = _network("timm")
    plan = block_plan(network)
    frozen = freeze_blocks(network, 2)
    held = {id(t) for module in frozen for t in module.state_dict(keep_vars=True).values()}
    state = network.state_dict(keep_vars=True)
    assert held == {id(t) for n, t in state.items() if plan.block_of[n] < 2}
