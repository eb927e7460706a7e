"""Which block every tensor of a network belongs to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stapes.compression.masks import add_masks
from stapes.errors import ConfigError
from stapes.models import create_model, damp
from stapes.models.blocks import block_plan, check_blocks, modules_behind


class _Branching(nn.Module):
    """Two blocks with a branch, a module between them, one behind them, and a head."""

    in_channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)  # the order of the attributes is not that of their use
        self.behind = nn.BatchNorm2d(2)
        self.second = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())
        self.side = nn.Conv2d(2, 2, 3)
        self.between = nn.BatchNorm2d(2)
        self.first = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        self.unused = nn.Linear(1, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def blocks(self) -> tuple[str, ...]:
        return ("first.1", "second")

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.between(self.first(x))
        return self.behind(self.side(x) + self.second(x)) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


def test_tensors_belong_to_the_block_in_which_they_are_used() -> None:
    plan = block_plan(_Branching())
    assert plan.names == ("first.1", "second")
    assert plan.head == 2
    blocks = {name.rpartition(".")[0]: block for name, block in plan.block_of.items()}
    assert blocks == {
        "first.0": 0, "between": 1, "side": 1, "second.0": 1, "behind": 1, "head": 2,
        "unused": 2, "": 1,
    }  # fmt: skip
    assert plan.block_of.keys() == _Branching().state_dict().keys()
    assert plan.modules[0] == ("first.0",)
    assert set(plan.modules[1]) == {"between", "side", "second.0", "behind", ""}
    assert set(plan.modules[2]) == {"head", "unused"}


def test_a_module_that_holds_later_blocks_too_is_not_among_the_first() -> None:
    assert block_plan(_Branching()).modules_up_to(1) == ("first.0",)
    assert "" not in block_plan(_Branching()).modules_up_to(2)
    tokens = create_model("timm", n_classes=2, architecture="test_vit")
    plan = block_plan(tokens)
    assert plan.block_of["body.pos_embed"] == 0
    assert "body" in plan.modules[0]
    first = plan.modules_up_to(2)
    assert "body.patch_embed.proj" in first
    assert "body" not in first


def test_what_is_stacked_on_a_weight_goes_with_it() -> None:
    network = _Branching()
    plain = block_plan(network)
    add_masks(damp(network, 0.2))
    stacked = block_plan(network)
    assert stacked.block_of["side.parametrizations.weight.original"] == 1
    assert stacked.block_of["first.0.parametrizations.weight.1.mask"] == 0
    assert [set(part) for part in stacked.modules] == [set(part) for part in plain.modules]


CASES: dict[str, dict[str, Any]] = {
    "cp_resnet": {"name": "cp_resnet", "width": 4, "blocks": (2, 1, 0), "damping": 0.1},
    **{
        architecture: {"name": "timm", "architecture": architecture}
        for architecture in ("tf_efficientnet_lite0", "resnet10t", "densenet121", "test_vit")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_has_a_block_and_the_head_is_what_a_new_classifier_changes(case: str) -> None:
    generator = torch.Generator().manual_seed(0)
    network = create_model(n_classes=3, generator=generator, **CASES[case])
    plan = block_plan(network)
    assert plan.names == network.blocks()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert plan.block_of.keys() == state.keys()
    assert set(plan.block_of.values()) == set(range(plan.head + 1))
    network.reset_classifier(5, generator=generator)
    changed = {
        name
        for name, tensor in network.state_dict().items()
        if name not in state or not torch.equal(tensor, state[name])
    }
    assert changed
    assert {plan.block_of[name] for name in changed} == {plan.head}


@pytest.mark.parametrize("case", CASES)
def test_what_a_block_gives_depends_on_no_later_one(case: str) -> None:
    network = create_model(
        n_classes=3, generator=torch.Generator().manual_seed(0), **CASES[case]
    ).eval()
    plan = block_plan(network)
    x = torch.randn(1, 1, 64, 70, generator=torch.Generator().manual_seed(1))
    half = plan.head // 2
    seen = []
    handle = network.get_submodule(plan.names[half - 1]).register_forward_hook(
        lambda _m, _i, output: seen.append(output.detach().clone())
    )
    with torch.no_grad():
        network.forward_features(x)
        for name, tensor in network.state_dict().items():
            if plan.block_of[name] >= half and tensor.is_floating_point():
                tensor.add_(1.0)
        network.forward_features(x)
        for name, tensor in network.state_dict().items():
            if plan.block_of[name] == half - 1 and tensor.is_floating_point():
                tensor.add_(1.0)
        network.forward_features(x)
    handle.remove()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_what_runs_behind_a_module_is_found_outermost() -> None:
    assert modules_behind(_Branching(), "first.1") == ["between", "side", "second", "behind"]
    assert modules_behind(_Branching(), "second") == ["behind"]
    assert modules_behind(_Branching(), "second.0") == ["second.1", "behind"]


def test_a_network_without_blocks_is_all_head() -> None:
    network = _Branching()
    network.blocks = tuple  # type: ignore[assignment, method-assign]
    assert set(block_plan(network).block_of.values()) == {0}


def test_more_blocks_than_there_are_is_refused() -> None:
    check_blocks(2, ("a", "b"), "model.blocks")
    with pytest.raises(ConfigError, match=r"model.blocks = 3: this network has 2 blocks \(a, b\)"):
        check_blocks(3, ("a", "b"), "model.blocks")
