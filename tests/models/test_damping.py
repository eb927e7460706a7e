"""Frequency damping on convolutions of any network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from stapes.models import FrequencyDamping, create_model, damp, damping_of, fold_damping
from stapes.models.damping import damping_window


@pytest.mark.parametrize(
    ("taps", "floor", "expected"),
    [
        (1, 0.1, [1]),
        (2, 0.1, [1, 1]),
        (3, 0.1, [0.1, 1, 0.1]),
        (4, 0.1, [0.1, 1, 1, 0.1]),
        (5, 0.1, [0.1, 0.55, 1, 0.55, 0.1]),
        (7, 0.4, [0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4]),
        (5, 0.0, [0, 0.5, 1, 0.5, 0]),
        (5, 1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_window_falls_linearly_from_centre_to_edge(
    taps: int, floor: float, expected: list[float]
) -> None:
    assert torch.equal(damping_window(taps, floor), torch.tensor(expected, dtype=torch.float32))


def test_damping_acts_along_frequency_and_not_along_time() -> None:
    conv = damp(nn.Conv2d(1, 1, (5, 3), padding=(2, 1), bias=False), 0.2)
    with torch.no_grad():
        conv.parametrizations.weight.original.fill_(1.0)
        impulse = torch.zeros(1, 1, 9, 9)
        impulse[..., 4, 4] = 1.0
        response = conv(impulse)[0, 0, 2:7, 3:6]
    expected = torch.tensor([0.2, 0.6, 1.0, 0.6, 0.2])[:, None].expand(5, 3)
    torch.testing.assert_close(response, expected)


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, groups=2, dilation=2),
    )


def test_any_cnn_can_be_damped_and_kernels_without_an_edge_are_untouched() -> None:
    model = small_cnn()
    plain = copy.deepcopy(model)
    assert damp(model, 0.1) is model
    assert damping_of(model) == 0.1
    assert damping_of(plain) is None
    damped = [parametrize.is_parametrized(layer) for layer in model]
    assert damped == [True, False, False, False, True]
    torch.testing.assert_close(
        model[4].weight, plain[4].weight * torch.tensor([[0.1], [1.0], [0.1]])
    )


def test_damping_of_one_changes_nothing() -> None:
    x = torch.randn(2, 2, 20, 20)
    model = small_cnn()
    before = model(x)
    assert torch.equal(damp(model, 1.0)(x), before)
    kwargs = {"n_classes": 3, "in_channels": 2, "width": 4}
    plain, damped = (
        create_model(
            "cp_resnet", damping=d, generator=torch.Generator().manual_seed(0), **kwargs
        ).eval()
        for d in (None, 1.0)
    )
    x = torch.randn(2, 2, 40, 40)
    assert torch.equal(plain(x), damped(x))


def test_folding_keeps_the_function_and_leaves_plain_weights() -> None:
    model = create_model("cp_resnet", n_classes=3, in_channels=2, width=4, damping=0.1).eval()
    x = torch.randn(2, 2, 40, 40)
    before = model(x)
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fold_damping(model) is model
    assert torch.equal(model(x), before)
    assert not any(isinstance(m, FrequencyDamping) for m in model.modules())
    assert model.settings()["damping"] is None
    # Loads into an undamped network; and the raw weights were not lost before.
    plain = create_model("cp_resnet", n_classes=3, in_channels=2, width=4).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain(x), before)
    window = torch.tensor([[0.1], [1.0], [0.1]])
    torch.testing.assert_close(
        plain.stage1.block2.conv1.weight,
        raw["stage1.block2.conv1.parametrizations.weight.original"] * window,
    )


def test_state_holds_the_raw_weight_and_no_window() -> None:
    state = damp(nn.Conv2d(1, 1, 3), 0.1).state_dict()
    assert set(state) == {"bias", "parametrizations.weight.original"}


def test_gradients_reach_the_raw_weight_damped() -> None:
    conv = damp(nn.Conv2d(1, 1, 3, bias=False), 0.25)
    conv(torch.ones(1, 1, 3, 3)).sum().backward()
    expected = torch.tensor([0.25, 1.0, 0.25])[:, None].expand(3, 3)
    torch.testing.assert_close(conv.parametrizations.weight.original.grad[0, 0], expected)


def test_each_damped_weight_is_computed_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    forward = FrequencyDamping.forward

    def counted(self: FrequencyDamping, weight: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return forward(self, weight)

    model = create_model("cp_resnet", n_classes=2, width=4, damping=0.1)
    damped = sum(isinstance(m, FrequencyDamping) for m in model.modules())
    monkeypatch.setattr(FrequencyDamping, "forward", counted)
    model(torch.randn(2, 1, 32, 32)).sum().backward()
    assert calls == damped == 9  # the stem and the eight wide kernels of rho 7


def test_wrong_use_is_refused() -> None:
    for floor in (-0.1, 1.1, float("nan"), "0.1", True):
        with pytest.raises(ValueError, match="must be a number from 0 to 1"):
            damp(nn.Conv2d(1, 1, 3), floor)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="damped already"):
        damp(damp(nn.Conv2d(1, 1, 3), 0.1), 0.1)


def test_folding_a_copy_leaves_the_original_usable() -> None:
    model = create_model("cp_resnet", n_classes=2, width=2, damping=0.1).eval()
    x = torch.randn(1, 1, 40, 40)
    with torch.no_grad():
        before = model(x)
        folded = fold_damping(copy.deepcopy(model))(x)
        torch.testing.assert_close(model(x), before)
        torch.testing.assert_close(folded, before)
    assert damping_of(model) == 0.1
