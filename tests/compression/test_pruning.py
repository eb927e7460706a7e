"""Magnitude pruning of any network, judged by torch's own."""

from __future__ import annotations

import copy
import doctest
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import stapes.compression.pruning
from stapes.compression import Pruner, WeightMask, finish, keep_zeros, prune
from stapes.compression.masks import mask_of, prunable_layers, unmasked_weight
from stapes.compression.pruning import largest, ramp, shares
from stapes.config import PruningConfig
from stapes.errors import ConfigError
from stapes.models import count_complexity, create_model, damp, damping_of, fold_damping
from stapes.models.parametrized import unparametrize

INPUT = (2, 1, 40, 40)


def _resnet(**options: Any) -> nn.Module:
    """Small, with norms that are not at their initial values (biases of zero would not count)."""
    options = {"rho": 4, "width": 4, "blocks": (2, 1, 0), "damping": 0.1} | options
    generator = torch.Generator().manual_seed(0)
    network = create_model("cp_resnet", n_classes=3, generator=generator, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
    return network


def _foreign() -> nn.Module:
    """Not one of ours: groups, biases, one dimension, a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.AdaptiveAvgPool2d((1, 5)),
        nn.Flatten(2),
        nn.Conv1d(8, 6, 3),
        nn.Flatten(),
        nn.Linear(18, 7),
    )


NETWORKS = {
    "plain": lambda: _resnet(damping=None),
    "damped": _resnet,
    "damped to zero": lambda: _resnet(damping=0.0),
    "decomposed": lambda: _resnet(decomposition=2, damping=None),
    "damped and decomposed": lambda: _resnet(decomposition=2),
    "foreign": _foreign,
    "foreign damped": lambda: damp(_foreign(), 0.3),
}


def _config(**settings: Any) -> PruningConfig:
    settings = {"method": "magnitude", "ramp_epochs": 2.0} | settings
    return PruningConfig.model_validate(settings)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight.detach() for name, layer in prunable_layers(network).items()}


def _masks(network: nn.Module) -> list[WeightMask]:
    return [module for module in network.modules() if isinstance(module, WeightMask)]


def _folded(network: nn.Module) -> nn.Module:
    """The same function in plain weights, without anything of ours."""
    network = copy.deepcopy(network)
    for layer in network.modules():
        if parametrize.is_parametrized(layer):
            unparametrize(layer, fold=True)
    return network


def _nonzero(network: nn.Module) -> int:
    return count_complexity(network, INPUT).nonzero_parameters


def _total(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_examples_in_the_docstrings() -> None:
    result = doctest.testmod(stapes.compression.pruning)
    assert result.attempted >= 5
    assert not result.failed


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_torch_prunes_the_same_weights(name: str, scope: str) -> None:
    network = NETWORKS[name]()
    judge = _folded(network)
    prune(network, keep=0.4, scope=scope)  # type: ignore[arg-type]
    layers = [(layer, "weight") for layer in prunable_layers(judge).values()]
    gone = [int((~mask.mask).sum()) for mask in _masks(network)]
    if scope == "global":
        torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=sum(gone))
    else:
        sizes = [layer.weight.numel() for layer, _ in layers]
        assert max(g / n for g, n in zip(gone, sizes, strict=True)) < 0.8
        for (layer, weight), amount in zip(layers, gone, strict=True):
            torch_prune.l1_unstructured(layer, weight, amount)
    for ours, theirs in zip(_weights(network).values(), _weights(judge).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    x = torch.randn(INPUT)
    torch.testing.assert_close(network.eval()(x), judge.eval()(x))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "damped to zero"])
def test_what_is_left_is_exactly_the_target(name: str, scope: str) -> None:
    network = NETWORKS[name]()
    total = _total(network)
    for target in (total // 2, total // 3 + 1, total - 1, total):
        prune(network, keep_parameters=target, scope=scope)  # type: ignore[arg-type]
        assert _nonzero(network) == target
    prune(network, keep=0.5, scope=scope)  # type: ignore[arg-type]
    assert _nonzero(network) == total // 2


def test_zeros_of_their_own_leave_less_than_the_target_never_more() -> None:
    network = NETWORKS["damped to zero"]()
    live = _nonzero(network)
    prune(network, keep_parameters=_total(network) - 1)
    assert _nonzero(network) == live
    prune(network, keep_parameters=live - 10)
    assert _nonzero(network) == live - 10


def test_a_part_is_rounded_down_as_people_count() -> None:
    # In binary 0.29 * 100 is a little less than 29.
    layer = prune(nn.Linear(10, 10, bias=False), keep=0.29)
    assert int(layer.weight.count_nonzero()) == 29
    assert int(prune(layer, keep=0.299).weight.count_nonzero()) == 29


def test_equal_weights_are_told_apart_by_their_place() -> None:
    layer = nn.Linear(7, 3, bias=False)
    nn.init.constant_(layer.weight, -0.5)
    prune(layer, keep_parameters=5)
    assert layer.weight.flatten().tolist() == [-0.5] * 5 + [0.0] * 16


@pytest.mark.parametrize("name", NETWORKS)
def test_pruning_nothing_changes_nothing(name: str) -> None:
    network, x = NETWORKS[name](), torch.randn(INPUT)
    keys, before = list(network.state_dict()), network.eval()(x)
    parameters = [id(p) for p in network.parameters()]
    prune(network, keep=1.0)
    assert torch.equal(network(x), before)
    assert _total(network) == len(torch.cat([p.flatten() for p in network.parameters()]))
    finish(network)
    assert torch.equal(network(x), before)
    assert list(network.state_dict()) == keys  # also in the same order
    assert [id(p) for p in network.parameters()] == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_finishing_leaves_the_function_and_no_mask(name: str) -> None:
    network, x = NETWORKS[name](), torch.randn(INPUT)
    keys, damping = list(network.state_dict()), damping_of(network)
    prune(network, keep=0.5)
    before, left = network.eval()(x), _nonzero(network)
    finish(network)
    assert not _masks(network)
    assert list(network.state_dict()) == keys
    assert damping_of(network) == damping
    torch.testing.assert_close(network(x), before, rtol=0, atol=1e-6)
    assert _nonzero(network) == left
    torch.testing.assert_close(fold_damping(network)(x), before, rtol=0, atol=1e-5)
    assert _nonzero(network) == left


def test_folding_the_damping_folds_the_mask_with_it() -> None:
    network, x = _resnet(), torch.randn(INPUT)
    prune(network, keep=0.5)
    before, left = network.eval()(x), _nonzero(network)
    finish(fold_damping(network))  # kernels of one tap had a mask and no damping
    torch.testing.assert_close(network(x), before, rtol=0, atol=1e-5)
    assert _nonzero(network) == left
    assert not any(parametrize.is_parametrized(m) for m in network.modules())


def test_the_magnitude_is_the_damped_one() -> None:
    conv = damp(nn.Conv2d(1, 1, 3, bias=False), 0.1)
    # Raw weights of 5 at the edges come to 0.5: less than the centre's 1.
    conv.parametrizations.weight.original.data = torch.full((1, 1, 3, 3), 5.0)
    conv.parametrizations.weight.original.data[0, 0, 1] = 1.0
    prune(conv, keep_parameters=3)
    torch.testing.assert_close(conv.weight[0, 0, 1], torch.ones(3))
    assert int(conv.weight.count_nonzero()) == 3


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_the_ramp_falls_from_all_to_the_target(kind: Any) -> None:
    left = [ramp(i / 50, 10_000, 700, kind) for i in range(51)]
    assert left[0] == 10_000
    assert left[-1] == 700
    assert left == sorted(left, reverse=True)
    steps = [a - b for a, b in itertools.pairwise(left)]
    ratios = [b / a for a, b in itertools.pairwise(left)]
    if kind == "linear":
        assert max(steps) - min(steps) <= 2  # 186, rounded
    else:
        assert max(ratios) - min(ratios) < 0.002
        assert ratios[0] == pytest.approx(0.07 ** (1 / 50), abs=1e-4)


def test_the_number_left_follows_the_ramp_during_training() -> None:
    network = _resnet()
    config = _config(keep=0.25, start_epoch=1.0, ramp_epochs=2.0)
    pruner = Pruner(network, config, epochs=5)
    total, n_steps = _total(network), 20
    assert (pruner.total, pruner.target) == (total, total // 4)
    for epoch in range(5):
        for step in range(n_steps):
            pruner.update(epoch, step, n_steps)
            progress = (epoch + step / n_steps - 1.0) / 2.0
            assert _nonzero(network) == ramp(progress, total, total // 4, "exponential")
            assert all(m.returning == (progress < 1) for m in _masks(network))
        assert pruner.settled(epoch + 1, n_steps) == (epoch + 1 > 3)


def test_long_epochs_choose_masks_sixteen_times(monkeypatch: pytest.MonkeyPatch) -> None:
    pruner = Pruner(_resnet(), _config(keep=0.25, ramp_epochs=1.0), epochs=2)
    chosen = []
    monkeypatch.setattr(pruner._plan, "mask", lambda target, **_: chosen.append(target))
    for epoch in range(2):
        for step in range(800):
            pruner.update(epoch, step, 800)
    assert len(chosen) == 16
    assert chosen[-1] == pruner.target


@pytest.mark.parametrize(
    ("start", "length", "first"),
    [(0.0, 0.0, 0), (1.0, 0.0, 4), (0.0, 3.0, 11), (2.9, 0.1, 11), (0.3, 0.3, 3)],
)
def test_the_target_is_met_before_training_ends(start: float, length: float, first: int) -> None:
    """A ramp to the very end is over for the last step; one of length zero is one shot."""
    network = _resnet()
    config = _config(keep=0.5, start_epoch=start, ramp_epochs=length)
    pruner = Pruner(network, config, epochs=3)
    for i in range(12):
        pruner.update(i // 4, i % 4, 4)
        assert (_nonzero(network) == pruner.target) == (i >= first)
    assert pruner.settled(3, 4)
    assert pruner.settled(2, 4) == (first < 8)


@pytest.mark.parametrize("returning", [True, False])
def test_weights_come_back_during_the_ramp_and_not_after(returning: bool) -> None:
    layer = nn.Linear(4, 1, bias=False)
    raw = layer.weight
    raw.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    config = _config(keep_parameters=2, ramp="linear", ramp_epochs=2.0, returning=returning)
    pruner = Pruner(layer, config, epochs=4)

    def left(now: int) -> list[int]:
        pruner.update(now // 4, now % 4, 4)
        return layer.weight[0].nonzero()[:, 0].tolist()

    assert left(0) == [0, 1, 2, 3]
    assert left(1) == left(4) == [0, 1, 2]
    raw.data[0, 3] = 9.0
    assert left(5) == ([0, 3] if returning else [0, 1])
    raw.data[0, 2] = 5.0
    assert left(8) == ([2, 3] if returning else [0, 1])
    raw.data[0, 1] = 100.0
    raw.data[0, 0] = 0.1
    assert all(left(now) == ([2, 3] if returning else [0, 1]) for now in range(9, 16))


def test_a_masked_weight_gets_a_gradient_only_while_it_may_return() -> None:
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    mask = WeightMask(weight, returning=True)
    mask.mask[1] = False
    (mask(weight) * torch.tensor([3.0, 5.0])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0, 5.0]
    weight.grad, mask.returning = None, False
    (mask(weight) * torch.tensor([3.0, 5.0])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0, 0.0]


def test_masks_travel_with_the_state_and_a_new_pruner_goes_on_from_there() -> None:
    """As after a checkpoint in the middle of the ramp, at any step."""

    def jiggle(network: nn.Module, now: int) -> None:
        generator = torch.Generator().manual_seed(now)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.05)

    config = _config(keep=0.3, ramp_epochs=1.5, returning=False)
    whole = _resnet()
    pruner = Pruner(whole, config, epochs=3)
    states = []
    for now in range(3 * 40):
        states.append(copy.deepcopy(whole.state_dict()))
        pruner.update(now // 40, now % 40, 40)
        jiggle(whole, now)
    for begin in (1, 17, 59, 60, 61, 100):
        resumed = _resnet()
        pruner = Pruner(resumed, config, epochs=3)
        resumed.load_state_dict(states[begin])
        for now in range(begin, 3 * 40):
            pruner.update(now // 40, now % 40, 40)
            assert not any(mask.returning for mask in _masks(resumed))
            jiggle(resumed, now)
        for key, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value), (begin, key)


def test_zeros_stay_zero_while_a_finished_network_trains_on() -> None:
    network = finish(prune(_resnet(), keep=0.3))
    zeros = {name: weight == 0 for name, weight in _weights(network).items()}
    left = _nonzero(network)
    keep_zeros(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(3):
        network(torch.randn(INPUT)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in _weights(network).items():
        assert torch.equal(weight == 0, zeros[name])
    assert _nonzero(finish(network)) == left


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_target_that_norms_alone_exceed_names_the_minimum(scope: Any) -> None:
    network = _resnet()
    fixed = sum(p.numel() for p in network.parameters() if p.ndim == 1)
    minimum = fixed + len(prunable_layers(network))
    with pytest.raises(ConfigError, match=rf"keep_parameters = 10: .* needs {minimum} at least"):
        Pruner(network, _config(keep_parameters=10, scope=scope), epochs=3)
    with pytest.raises(ConfigError, match=rf"pruning\.keep = 0\.01 leaves .* needs {minimum}"):
        Pruner(network, _config(keep=0.01), epochs=3)
    prune(network, keep_parameters=minimum, scope=scope)
    assert _nonzero(network) == minimum
    if scope == "layer":
        assert all(int(mask.mask.sum()) == 1 for mask in _masks(network))
    with pytest.raises(ConfigError, match=f"needs {minimum} at least"):
        prune(network, keep_parameters=minimum - 1, scope=scope)


def test_wrong_calls_are_refused() -> None:
    network = _resnet()
    with pytest.raises(ValueError, match="either keep or keep_parameters"):
        prune(network)
    with pytest.raises(ValueError, match="either keep or keep_parameters"):
        prune(network, keep=0.5, keep_parameters=100)
    for keep in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="above 0, at most 1"):
            prune(network, keep=keep)
    for config in (PruningConfig(), _config(keep=0.5, ramp_epochs="auto")):
        with pytest.raises(ValueError, match="resolved"):
            Pruner(network, config, epochs=3)


def test_more_than_there_is_keeps_everything() -> None:
    network = _resnet()
    pruner = Pruner(network, _config(keep_parameters=10**9), epochs=3)
    for i in range(12):
        pruner.update(i // 4, i % 4, 4)
    assert pruner.target == _total(network) == _nonzero(network)


def test_memory_layout_does_not_decide_what_goes() -> None:
    a, b = _resnet(), _resnet()
    b.to(memory_format=torch.channels_last)
    for network in (a, b):
        for layer in prunable_layers(network).values():  # many ties
            with torch.no_grad():
                raw = next(p for p in layer.parameters() if p.ndim == 4)
                raw.copy_((raw * 4).round() / 4)
        prune(network, keep=0.5)
    for one, other in zip(_masks(a), _masks(b), strict=True):
        assert torch.equal(one.mask, other.mask)
    assert mask_of(b.get_submodule("stem.conv")) is not None


def test_shares_and_selection_on_random_cases_agree_with_sorting() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        n = int(torch.randint(1, 40, (1,), generator=generator))
        scores = torch.randint(0, 6, (n,), generator=generator).float()
        count = int(torch.randint(0, n + 1, (1,), generator=generator))
        best = sorted(range(n), key=lambda i: -float(scores[i]))[:count]  # sorted is stable
        assert largest(scores, count).nonzero()[:, 0].tolist() == sorted(best)
        sizes = (1 + torch.randint(0, 50, (n,), generator=generator)).tolist()
        count = int(torch.randint(n, sum(sizes) + 1, (1,), generator=generator))
        given = shares(sizes, count)
        assert sum(given) == count
        part = (count - n) / max(1, sum(sizes) - n)
        for size, share in zip(sizes, given, strict=True):
            assert 1 <= share <= size
            assert abs(share - 1 - part * (size - 1)) < 1


def test_the_unmasked_weight_is_the_damped_one() -> None:
    network = _resnet()
    before = {k: v.clone() for k, v in _weights(network).items()}
    prune(network, keep=0.3)
    for name, layer in prunable_layers(network).items():
        torch.testing.assert_close(unmasked_weight(layer), before[name], rtol=0, atol=0)


def test_a_copy_can_be_finished_without_harm_to_the_original() -> None:
    """torch's own removal takes the weight away from the original of a deep copy."""
    network, x = prune(_resnet(), keep=0.5), torch.randn(INPUT)
    before = network.eval()(x)
    copied = copy.deepcopy(network)
    torch.testing.assert_close(finish(copied)(x), before, rtol=0, atol=1e-6)
    assert torch.equal(network(x), before)
    assert torch.equal(copy.deepcopy(copied)(x), copied(x))
    torch.testing.assert_close(_folded(copied)(x), before, rtol=0, atol=1e-5)
    assert torch.equal(prune(copied, keep=1.0)(x), finish(copied)(x))
