"""Rounding of weights: torch's own patches, known answers, and every rounding tried."""

from __future__ import annotations

import doctest
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stapes.compression.rounding
from stapes.compression.rounding import input_patches, round_weight, weight_scale


def test_the_documentations_examples() -> None:
    assert doctest.testmod(stapes.compression.rounding).failed == 0


def _correlated(samples: int, values: int, generator: torch.Generator) -> Tensor:
    """(samples, values) that all lean the same way, as bins of a spectrogram do."""
    common = torch.randn(samples, 1, generator=generator)
    return common + 0.3 * torch.randn(samples, values, generator=generator)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (5, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
        {"kernel_size": (2, 3), "padding": "same"},
        {"kernel_size": 3, "padding": "valid", "groups": 2},
        {"kernel_size": 3, "groups": 4},
    ],
)
def test_patches_times_weights_are_what_the_convolution_computes(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, bias=False, **options)
    x = torch.randn(2, 4, 12, 11)  # few enough positions that all are taken
    patches = input_patches(conv, x)
    with torch.no_grad():
        products = patches @ conv.weight.reshape(conv.groups, 8 // conv.groups, -1).mT
        expected = conv(x)  # (B, C_out, F, T)
    batch, _, height, width = expected.shape
    products = products.unflatten(1, (batch, height, width)).permute(1, 0, 4, 2, 3).flatten(1, 2)
    torch.testing.assert_close(products, expected)


def test_large_maps_are_sampled_all_over() -> None:
    conv = nn.Conv2d(1, 1, 1)
    places = torch.arange(40.0)[:, None] * 1000 + torch.arange(1000.0)
    taken = input_patches(conv, places[None, None]).flatten().long()
    assert 100 <= len(taken) <= 144
    for axis, length in ((taken // 1000, 40), (taken % 1000, 1000)):
        assert axis.min() < 0.1 * length
        assert axis.max() > 0.85 * length
        assert abs(axis.min() + axis.max() - length) < 0.05 * length  # as much left at both ends


def test_with_inputs_that_have_nothing_in_common_the_nearest_is_best() -> None:
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    scale = weight_scale(weight)
    levels = round_weight(weight, scale, torch.eye(4)[None] * 7)
    assert torch.equal(levels, (weight / scale[:, None]).round())


def test_with_inputs_that_are_always_equal_only_the_sum_counts() -> None:
    weight = torch.rand(20, 9, generator=torch.Generator().manual_seed(0)) * 10
    levels = round_weight(weight, torch.ones(20), torch.ones(1, 9, 9))
    assert ((levels - weight).sum(1).abs() < 0.55).all()
    assert ((weight.round() - weight).sum(1).abs() > 0.55).any()
    assert ((levels - weight).abs() < 2).all()


def test_errors_come_close_to_those_of_the_best_of_all_roundings() -> None:
    generator = torch.Generator().manual_seed(0)
    found, nearest, best = [], [], []
    for _ in range(30):
        # Neighbours are alike, and the last has the most to say.
        x = torch.randn(50, 6, generator=generator).cumsum(1).double()
        weight = torch.randn(1, 6, generator=generator) * 3
        wanted = x @ weight[0].double()

        def harm(levels: Tensor, x: Tensor = x, wanted: Tensor = wanted) -> float:
            return float((x @ levels.flatten().double() - wanted).square().sum())

        found.append(harm(round_weight(weight, torch.ones(1), (x.T @ x)[None])))
        nearest.append(harm(weight.round()))
        choices = itertools.product((-1.0, 0.0, 1.0), repeat=6)
        best.append(min(harm(weight.round() + torch.tensor(step)) for step in choices))
    assert all(one <= other * (1 + 1e-9) for one, other in zip(found, nearest, strict=True))
    assert sum(best) <= sum(found) < 1.2 * sum(best)
    assert sum(found) < 0.5 * sum(nearest)


def test_groups_are_rounded_by_their_own_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator) * 4
    scale = torch.full((6,), 0.7)
    moments = torch.stack([x.T @ x for x in (_correlated(60, 5, generator) for _ in range(3))])
    # Other inputs matter most in each of them, but the order is common: make it so.
    moments = moments / moments.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
    moments = moments / moments.diagonal(dim1=1, dim2=2)[:, None, :]
    together = round_weight(weight, scale, moments)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        alone = round_weight(weight[rows], scale[rows], moments[group : group + 1])
        assert torch.equal(together[rows], alone)


def test_zeros_stay_and_levels_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 30, generator=generator)
    weight[:, ::3] = 0.0
    weight[3] = 0.0
    x = _correlated(100, 30, generator)
    x[:, 5] = 0.0  # an input that never speaks
    scale = weight_scale(weight) * 0.5  # half the range is clipped
    levels = round_weight(weight, scale, (x.T @ x)[None])
    assert (levels[weight == 0] == 0).all()
    assert levels.abs().max() == 127
    assert torch.equal(levels, levels.round())
    assert torch.equal(round_weight(weight, scale, torch.zeros(1, 30, 30)), _nearest(weight, scale))


def _nearest(weight: Tensor, scale: Tensor) -> Tensor:
    return F.hardtanh((weight / scale[:, None]).round(), -127, 127)
