"""Deletion and insertion where the answer is known, and against the obvious loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stapes.explain.faithfulness import Curve, faithfulness
from stapes.models import create_model


class OnePlace(nn.Module):
    """Says yes by the value of one place alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, 1, 2], torch.zeros(len(x))], 1)


def test_all_of_it_in_one_place() -> None:
    x, baseline = torch.full((1, 4, 5), 3.0), torch.full((1, 4, 5), -3.0)
    values = np.zeros((4, 5))
    values[1, 2] = 1.0
    yes = 1 / (1 + np.exp(-3.0))
    found = faithfulness(OnePlace(), x, baseline, values, 0, steps=20, draws=64)
    np.testing.assert_allclose(found.deletion.shares, np.arange(21) / 20)
    np.testing.assert_allclose(found.deletion.probabilities, [yes] + 20 * [1 - yes], rtol=1e-6)
    np.testing.assert_allclose(found.insertion.probabilities, [1 - yes] + 20 * [yes], rtol=1e-6)
    # Trapezia: one twentieth of the way is half up.
    assert found.deletion.area == pytest.approx((1 - yes) + 0.5 / 20 * (2 * yes - 1))
    assert found.insertion.area == pytest.approx(1 - found.deletion.area)
    # In random order the place comes in the middle, on average.
    assert found.random_deletion.area == pytest.approx(0.5, abs=0.12)
    assert found.random_insertion.area == pytest.approx(0.5, abs=0.12)
    # Moved elsewhere, all other places are equal and the true one is somewhere among them.
    assert found.moved_deletion.area == pytest.approx(0.5, abs=0.15)
    tree = found.summary()
    assert tree["deletion"]["area"] == found.deletion.area
    assert tree["insertion"]["moved"] == found.moved_insertion.area


def test_the_same_as_the_obvious_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    network = create_model(
        "cp_resnet", n_classes=3, in_channels=2, rho=2, width=4, blocks=[1, 0, 0],
        generator=generator,
    ).train()  # fmt: skip
    x, baseline = torch.randn(2, 2, 24, 30, generator=generator)
    values = np.random.default_rng(0).normal(size=(24, 30))
    found = faithfulness(network, x, baseline, values, 1, steps=6, draws=1, batch=4)
    assert network.training
    network.eval()
    order = np.argsort(-values, axis=None)
    for start, end, curve in ((x, baseline, found.deletion), (baseline, x, found.insertion)):
        for step in range(7):
            changed = start.clone()
            for place in order[: step * 24 * 30 // 6]:
                changed[:, place // 30, place % 30] = end[:, place // 30, place % 30]
            with torch.no_grad():
                wanted = network(changed[None]).softmax(1)[0, 1]
            assert curve.probabilities[step] == pytest.approx(float(wanted), rel=1e-4)


def test_equal_places_come_in_random_order_of_the_seed() -> None:
    x, baseline = torch.full((1, 4, 5), 3.0), torch.full((1, 4, 5), -3.0)
    flat = np.zeros((4, 5))
    areas = [
        faithfulness(OnePlace(), x, baseline, flat, 0, steps=20, draws=1, seed=seed).deletion.area
        for seed in (*range(12), 0)
    ]
    assert areas[0] == areas[-1]
    assert len(set(areas)) > 3


def test_area_of_a_straight_line() -> None:
    assert Curve(np.array([0.0, 0.25, 1.0]), np.array([1.0, 0.75, 0.0])).area == 0.5


def test_wrong_arguments() -> None:
    x, values = torch.zeros(1, 4, 5), np.zeros((4, 5))
    with pytest.raises(ValueError, match="values"):
        faithfulness(OnePlace(), x, x, values.T, 0)
    with pytest.raises(ValueError, match="finite"):
        faithfulness(OnePlace(), x, x, values + np.nan, 0)
    with pytest.raises(ValueError, match="draws = 0"):
        faithfulness(OnePlace(), x, x, values, 0, draws=0)
