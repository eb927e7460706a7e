"""Channel pruning of CP-ResNets: the same outputs from smaller tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stapes.compression import Pruner, WeightMask, finish, prune, prune_channels, remove_channels
from stapes.compression.channels import ChannelPlan, channel_groups
from stapes.compression.masks import prunable_layers
from stapes.compression.pruning import ramp
from stapes.config import PruningConfig
from stapes.errors import ConfigError
from stapes.models import count_complexity, create_model, damping_of

INPUT = (2, 2, 48, 40)


def _network(**options: Any) -> nn.Module:
    """With norms and statistics as after training."""
    options = {"rho": 5, "width": 6, "blocks": (3, 2, 1), "damping": 0.1} | options
    generator = torch.Generator().manual_seed(1)
    network = create_model("cp_resnet", n_classes=3, in_channels=2, generator=generator, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.2, 2.0, generator=generator)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, generator=generator)
    return network.eval()


NETWORKS = {
    "damped": {},
    "plain": {"damping": None},
    "paper": {"blocks": (4, 3, 0), "rho": 7},
    "one stage": {"blocks": (2, 0, 0)},
    "no second stage": {"blocks": (1, 0, 2), "damping": None},
    "channels": {
        "channels": [[6, 4, 5, 3], [9, 7, 2], [11, 8]], "blocks": (3, 2, 1),
    },
}  # fmt: skip


def _config(**settings: Any) -> PruningConfig:
    settings = {"method": "channels", "ramp_epochs": 2.0} | settings
    return PruningConfig.model_validate(settings)


def _total(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _nonzero(network: nn.Module) -> int:
    return count_complexity(network, INPUT).nonzero_parameters


def _least(network: nn.Module) -> int:
    settings = network.settings()  # type: ignore[operator]
    ones = [[1] * (1 + n) for n in settings["blocks"]]
    return _total(create_model(**(settings | {"channels": ones})))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_removing_masked_channels_changes_nothing_but_the_size(name: str, frozen: bool) -> None:
    network = _network(**NETWORKS[name])
    total, least = _total(network), _least(network)
    for part in (0.8, 0.5, 0.2):
        target = max(least, int(part * total))
        ChannelPlan(network, "global").mask(target, revive=True, frozen=frozen)
        x = torch.randn(INPUT)
        before = network(x)
        keys = list(network.state_dict())
        smaller = remove_channels(network)
        torch.testing.assert_close(smaller(x), before, rtol=1e-5, atol=1e-5)
        assert list(network.state_dict()) == keys
        assert torch.equal(network(x), before)
        assert _total(smaller) <= target
        assert not any(isinstance(m, WeightMask) for m in smaller.modules())
        assert damping_of(smaller) == damping_of(network)
        assert not smaller.training
        # Its settings rebuild it, so that it can be stored and read.
        again = create_model(**smaller.settings()).eval()
        again.load_state_dict(smaller.state_dict())
        assert torch.equal(again(x), smaller(x))
        # A finished network gives the same one.
        other = remove_channels(finish(copy.deepcopy(network)))
        assert other.settings() == smaller.settings()
        assert torch.equal(other(x), smaller(x))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_is_below_the_target_by_less_than_a_channel(name: str, scope: Any) -> None:
    network = _network(**NETWORKS[name])
    total, least = _total(network), _least(network)
    for target in {total, total - 1, (total + least) // 2, total // 3, least + 7, least}:
        target = max(target, least)
        smaller = prune_channels(network, keep_parameters=target, scope=scope)
        left = _total(smaller)
        assert least <= left <= target
        # One channel more anywhere, and it would be too many.
        settings, full = smaller.settings(), network.settings()
        limits = full.get("channels") or [
            [full["width"] * 2**i] * (1 + n) for i, n in enumerate(full["blocks"])
        ]
        for i, row in enumerate(settings["channels"]):
            for j, n in enumerate(row):
                if n < limits[i][j] and len(row) > 1:
                    more = copy.deepcopy(settings)
                    more["channels"][i][j] += 1
                    assert _total(create_model(**more)) > target
    assert _total(prune_channels(network, keep=0.5)) <= total // 2


def test_pruning_no_channel_changes_nothing() -> None:
    network, x = _network(), torch.randn(INPUT)
    smaller = prune_channels(network, keep=1.0)
    assert torch.equal(smaller(x), network(x))
    assert _total(smaller) == _total(network)
    assert list(smaller.state_dict()) == list(network.state_dict())


def _hand_set() -> nn.Module:
    """Width 3, all equal, so that single channels can be made large or small."""
    network = _network(width=3, blocks=(2, 0, 0), rho=0, damping=None)
    with torch.no_grad():
        for layer in prunable_layers(network).values():
            layer.weight.fill_(1.0)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
    return network


def test_importance_is_what_a_channel_delivers_to_its_readers() -> None:
    network = _hand_set()
    block = network.get_submodule("stage1.block2")
    with torch.no_grad():
        block.norm1.weight[0] = -4.0
        block.conv2.weight[:, 2] = 0.5
        block.conv1.weight[1] = 9.0  # norm1 undoes the scale of a row
    plan = ChannelPlan(network, "global")
    stream, _, inner = plan._importances()
    assert [g.name for g in channel_groups(network)] == [
        "stage1", "stage1.block1", "stage1.block2"
    ]  # fmt: skip
    # 4 * 1, 1 * 1, 1 * 0.5, divided by their mean.
    torch.testing.assert_close(inner, torch.tensor([4.0, 1.0, 0.5], dtype=torch.double) / (5.5 / 3))
    torch.testing.assert_close(stream, torch.ones(3, dtype=torch.double))


def test_the_least_important_channel_goes_first() -> None:
    network = _hand_set()
    with torch.no_grad():
        network.get_submodule("stage1.block2").conv2.weight[:, 1] = 0.1
    smaller = prune_channels(network, keep_parameters=_total(network) - 1)
    assert smaller.settings()["channels"][0] == [3, 3, 2]
    kept = network.get_submodule("stage1.block2").norm1.bias[[0, 2]]
    assert torch.equal(smaller.get_submodule("stage1.block2").norm1.bias, kept)


def test_within_layers_every_group_loses_about_the_same_part() -> None:
    network = _network(width=12)
    with torch.no_grad():  # one group with channels of very unequal importance
        network.get_submodule("stage1.block1").norm1.weight[:10] *= 1e-3
    wide = network.settings()["width"]

    def left(scope: Any) -> int:
        smaller = prune_channels(network, keep=0.5, scope=scope)
        return smaller.settings()["channels"][0][1]

    assert left("global") <= 3
    assert wide // 2 < left("layer") < wide


def test_a_channel_that_nobody_reads_takes_its_own_reading_along() -> None:
    network, x = _network(), torch.randn(INPUT)
    with torch.no_grad():
        for layer in prunable_layers(network).values():
            for raw in layer.parameters():
                raw.add_(0.01 * raw.sign())
        # Inner channel 0 is dead; stream channel 1 is read by it alone.
        block = network.get_submodule("stage1.block1")
        raw = dict(block.named_parameters())
        name = "conv1.parametrizations.weight.original"
        raw["conv2.weight"][:, 0] = 0.0
        raw[name][1:, 1] = 0.0
        for reader in channel_groups(network)[0].readers[1:]:
            for weight in network.get_submodule(reader).parameters():
                weight[:, 1] = 0.0
    smaller = remove_channels(network)
    assert smaller.settings()["channels"][0] == [5, 5, 6, 6]
    torch.testing.assert_close(smaller(x), network(x), rtol=1e-5, atol=1e-5)


def test_weights_pruned_by_magnitude_lose_no_channel_that_is_read() -> None:
    network, x = _network(), torch.randn(INPUT)
    prune(network, keep=0.3)
    smaller = remove_channels(network)
    torch.testing.assert_close(smaller(x), network(x), rtol=1e-5, atol=1e-5)
    assert _total(smaller) <= _total(network)
    # An all-zero network keeps one channel each.
    with torch.no_grad():
        for layer in prunable_layers(finish(network)).values():
            for raw in layer.parameters():
                raw.zero_()
    assert _total(remove_channels(network)) == _least(network)


def _train(network: nn.Module, pruner: Pruner, steps: range, per_epoch: int) -> list[int]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    left = []
    for now in steps:
        pruner.update(now // per_epoch, now % per_epoch, per_epoch)
        generator = torch.Generator().manual_seed(now)
        network(torch.randn(INPUT, generator=generator)).square().mean().backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())
        optimizer.step()
        optimizer.zero_grad()
        left.append(_total(remove_channels(network)))
    return left


@pytest.mark.parametrize("returning", [True, False])
def test_the_ramp_in_training(returning: bool) -> None:
    network = _network().train()
    config = _config(keep=0.4, ramp_epochs=2.0, returning=returning)
    pruner = Pruner(network, config, epochs=3)
    total = _total(network)
    left = _train(network, pruner, range(12), 4)
    for now, count in enumerate(left):
        assert count <= ramp(now / 8, total, int(0.4 * total), "exponential")
    assert left[8] == left[-1] > 0.38 * total
    assert not any(m.returning for m in network.modules() if isinstance(m, WeightMask))
    finish(network.eval())
    x = torch.randn(INPUT)
    smaller = remove_channels(network)
    torch.testing.assert_close(smaller(x), network(x), rtol=1e-5, atol=1e-5)
    assert _total(smaller) <= pruner.target
    # Rows and columns are zero in the large one as well; only norms of dead channels are not.
    norms = sum(m.weight.numel() * 2 for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert _nonzero(network) <= _total(smaller) + norms


def _alive(network: nn.Module, name: str) -> Tensor:
    return network.get_submodule(name).weight.detach().flatten(2).any(2).any(0)


@pytest.mark.parametrize("returning", [True, False])
def test_channels_come_back_during_the_ramp_and_not_after(returning: bool) -> None:
    network = _network()
    pruner = Pruner(network, _config(keep=0.5, returning=returning), epochs=4)
    read, gamma = "stage1.block2.conv2", network.get_submodule("stage1.block2").norm1.weight
    for now in range(3):
        pruner.update(0, now, 4)
    with torch.no_grad():
        gamma[0] = 1e-6
    pruner.update(1, 0, 4)
    assert not _alive(network, read)[0]
    with torch.no_grad():
        gamma[0] = 100.0
    pruner.update(1, 1, 4)
    assert bool(_alive(network, read)[0]) == returning
    with torch.no_grad():
        gamma[0] = 1e-6
    pruner.update(2, 0, 4)
    assert not _alive(network, read)[0]
    with torch.no_grad():
        gamma[0] = 100.0
    pruner.update(2, 1, 4)
    assert not _alive(network, read)[0]


def test_a_masked_channel_learns_what_it_would_be_good_for() -> None:
    """Its columns get a gradient from real activations: the rows still compute."""
    network = _network(damping=None).train()
    nn.init.zeros_(network.get_submodule("stage1.block2").norm1.bias)  # nothing dies in relu1
    plan = ChannelPlan(network, "global")
    plan.mask(_total(network) // 2, revive=True, frozen=False)
    network(torch.randn(INPUT)).square().mean().backward()
    layer = network.get_submodule("stage1.block2.conv2")
    dead = ~_alive(network, "stage1.block2.conv2")
    assert dead.any()
    raw = layer.get_submodule("parametrizations.weight").original
    assert bool((raw.grad.flatten(2).abs().sum((0, 2))[dead] > 0).all())
    assert (
        not network.get_submodule("stage1.block2.conv1").weight.detach().eq(0).all((1, 2, 3)).any()
    )
    plan.mask(_total(network) // 2, revive=True, frozen=True)
    rows = network.get_submodule("stage1.block2.conv1").weight.detach().eq(0).all((1, 2, 3))
    assert torch.equal(rows, dead)


def test_a_network_on_another_floating_type_stays_there() -> None:
    network = _network().double()
    smaller = prune_channels(network, keep=0.5)
    assert {p.dtype for p in smaller.parameters()} == {torch.float64}
    assert smaller.training == network.training
    assert prune_channels(network.train(), keep=0.5).training


def test_building_the_smaller_network_draws_nothing() -> None:
    network = _network()
    before = torch.get_rng_state()
    prune_channels(network, keep=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_networks_are_refused_in_a_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"cp_resnet only, not in Sequential: use pruning\.method"
    ):
        prune_channels(nn.Sequential(nn.Conv2d(1, 1, 1)), keep=0.5)
    decomposed = _network(decomposition=2)
    for refused in (
        lambda: remove_channels(decomposed),
        lambda: prune_channels(decomposed, keep=0.5),
        lambda: Pruner(decomposed, _config(keep=0.5), epochs=3),
    ):
        with pytest.raises(ConfigError, match="Channels of a decomposed network"):
            refused()


def test_a_target_below_one_channel_each_names_the_minimum() -> None:
    network = _network()
    least = _least(network)
    for refused in (
        lambda: prune_channels(network, keep_parameters=least - 1),
        lambda: Pruner(network, _config(keep_parameters=least - 1), epochs=3),
    ):
        with pytest.raises(ConfigError, match=rf"needs {least} at least, for one channel"):
            refused()
