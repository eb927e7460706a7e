"""Batch norm folded into the layers in front of it, judged by torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stapes.compression.masks import add_masks
from stapes.models import create_model, damping_of, fold_batch_norm
from stapes.models.dataflow import trace_dataflow
from stapes.models.folding import fold_norms_of


def _settled(network: nn.Module) -> nn.Module:
    """Norms that are not at their initial values, as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.2, 1.5, generator=generator)
    return network.eval()


def _resnet(**options: Any) -> nn.Module:
    options = {"rho": 4, "width": 4, "n_classes": 3, "in_channels": 2} | options
    return _settled(
        create_model("cp_resnet", generator=torch.Generator().manual_seed(0), **options)
    )


def _masked() -> nn.Module:
    network = _resnet(damping=0.1)
    for number, mask in enumerate(add_masks(network).values()):
        generator = torch.Generator().manual_seed(number)
        mask.mask.copy_(torch.rand(mask.mask.shape, generator=generator) < 0.6)
    return network


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


NETWORKS = {
    "plain": _resnet,
    "damped": lambda: _resnet(damping=0.1),
    "damped to zero": lambda: _resnet(damping=0.0),
    "decomposed": lambda: _resnet(decomposition=2, damping=0.1),
    "channels": lambda: _resnet(channels=((3, 2, 4, 1, 3), (5, 6, 2, 4), (8,)), damping=0.1),
    "masked": _masked,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_and_no_norm_is_left(name: str) -> None:
    network = NETWORKS[name]()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x = _noise(2, 2, 50, 60)
    with torch.no_grad():
        expected = network(x)
        folded = fold_batch_norm(network)
        assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.equal(network(x), expected)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not any(parametrize.is_parametrized(m) for m in folded.modules())
    assert not folded.training


def test_weights_are_those_of_torchs_own_fusion() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    network = _settled(nn.Sequential(conv, nn.BatchNorm2d(6)))
    expected = fuse_conv_bn_eval(conv, network[1])
    folded = fold_batch_norm(network)
    torch.testing.assert_close(folded[0].weight, expected.weight)
    torch.testing.assert_close(folded[0].bias, expected.bias)
    assert [name for name, _ in folded.named_parameters()] == ["0.weight", "0.bias"]


def test_a_linear_layer_and_a_norm_without_factors_fold() -> None:
    network = _settled(
        nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3, affine=False),
            nn.Flatten(),
            nn.Linear(108, 5),
            nn.BatchNorm1d(5),
        )
    )
    network.min_input_size = 8
    folded = fold_batch_norm(network)
    x = _noise(4, 1, 8, 8)
    torch.testing.assert_close(folded(x), network(x))
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(folded[4], nn.Identity)


class _Branches(nn.Module):
    """Norms that read something else than what one layer alone made for them."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(1, 2, 1)  # read by its norm and by the sum
        self.both_norm = nn.BatchNorm2d(2)
        self.sum_norm = nn.BatchNorm2d(2)
        self.changed = nn.Conv2d(2, 2, 1)  # doubled in place before its norm
        self.changed_norm = nn.BatchNorm2d(2)
        self.twice = nn.Conv2d(2, 2, 1)  # called twice
        self.twice_norm = nn.BatchNorm2d(2)
        self.one, self.other = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.common_norm = nn.BatchNorm2d(2)  # called twice
        self.untracked = nn.Conv2d(2, 2, 1)
        self.untracked_norm = nn.BatchNorm2d(2, track_running_stats=False)
        self.plain = nn.Conv2d(2, 2, 1)
        self.plain_norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.both(x)
        x = self.sum_norm(x + self.both_norm(x))
        x = self.changed_norm(self.changed(x).mul_(2))
        x = self.twice_norm(self.twice(x)) + self.twice(x)
        x = self.common_norm(self.one(x)) + self.common_norm(self.other(x))
        x = self.untracked_norm(self.untracked(x))
        x = self.plain_norm(self.plain(x))
        return x


def test_only_norms_that_read_one_layer_are_folded() -> None:
    network = _settled(_Branches())
    folded = fold_batch_norm(network)
    x = _noise(2, 1, 4, 4)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)
    left = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == [
        "both_norm", "sum_norm", "changed_norm", "twice_norm", "common_norm", "untracked_norm"
    ]  # fmt: skip


def test_damping_and_masks_can_stay_in_force() -> None:
    network = _masked()
    x = _noise(2, 2, 50, 60)
    expected = network(x)
    folded = copy.deepcopy(network)
    fold_norms_of(folded, trace_dataflow(folded))
    assert damping_of(folded) == 0.1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


class _Shift(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 1


def test_a_parametrization_that_is_no_factor_is_folded() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    parametrize.register_parametrization(network[0], "weight", _Shift())
    _settled(network)
    x = _noise(2, 1, 8, 8)
    expected = network(x)
    fold_norms_of(network, trace_dataflow(network))
    assert not parametrize.is_parametrized(network[0])
    torch.testing.assert_close(network(x), expected)
