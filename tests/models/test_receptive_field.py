"""Receptive fields against the support of the gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stapes.models import (
    AxisField,
    ReceptiveField,
    create_model,
    layer_receptive_fields,
    published_receptive_field,
    receptive_field,
)
from stapes.models.quantized import int8_structure


def gradient_support(model: nn.Module, size: int, unit: int) -> tuple[range, range]:
    """Input positions along frequency and time that reach one unit of the feature map.

    All weights are made positive and every maximum a mean, so that nothing cancels or is left out.
    """
    model = model.double().eval()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                mean = nn.AvgPool2d(child.kernel_size, child.stride, child.padding)
                setattr(module, name, mean)
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    x = torch.ones(1, channels, size, size, dtype=torch.float64, requires_grad=True)
    method = getattr(model, "forward_features", model)
    method(x)[0, :, unit, unit].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].sum(0) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    return (
        range(int(rows[0]), int(rows[-1]) + 1),
        range(int(columns[0]), int(columns[-1]) + 1),
    )


def positions(axis: AxisField, unit: int) -> range:
    first = axis.offset + unit * axis.stride
    return range(first, first + axis.size)


@pytest.mark.parametrize(("rho", "size", "unit"), [(0, 96, 2), (4, 160, 4), (7, 240, 6)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"damping": 0.1},
        {"damping": 0.1, "decomposition": 4},
        {"channels": ((2, 1, 3, 1, 2), (1, 2, 1, 1), (1,))},
    ],
)
def test_cp_resnet_sees_what_its_gradient_reaches(
    rho: int, size: int, unit: int, options: dict[str, Any]
) -> None:
    model = create_model("cp_resnet", n_classes=2, width=1, rho=rho, **options)
    field = receptive_field(model)
    seen = gradient_support(model, size, unit)
    assert seen == (positions(field.frequency, unit), positions(field.time, unit))


@pytest.mark.parametrize("options", [{}, {"damping": 0.1, "decomposition": 4}])
def test_rounding_and_folding_leave_the_field_alone(options: dict[str, Any]) -> None:
    model = create_model("cp_resnet", n_classes=2, width=2, **options)
    expected = layer_receptive_fields(model)
    quantized = int8_structure(model)
    assert receptive_field(quantized) == receptive_field(model)
    fields = layer_receptive_fields(quantized)
    shared = fields.keys() & expected.keys()
    assert {"stem.conv", "stage2.block1.conv2", "head.conv"} <= shared
    assert all(fields[name] == expected[name] for name in shared)


class Residual(nn.Module):
    """Branches of different extent and alignment, summed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, (4, 7), stride=(2, 1), padding=(1, 2))
        self.body = nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=2, dilation=2), nn.ReLU(inplace=True), nn.BatchNorm2d(2)
        )
        self.side = nn.Conv2d(2, 2, (1, 5), padding=(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        y += x
        return F.relu(y, inplace=True) + self.side(x)[..., 2:-2]


class Dense(nn.Module):
    """Concatenated growth and a transition, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.ModuleList(nn.Conv2d(1 + i, 1, 3, padding=1) for i in range(3))
        self.transition = nn.Sequential(nn.Conv2d(4, 2, 1), nn.AvgPool2d(2))
        self.last = nn.Conv2d(2, 2, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        for conv in self.grow:
            x = torch.cat([x, F.relu(conv(x))], dim=1)
        return F.relu(self.last(self.transition(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean((2, 3))


class Inception(nn.Module):
    """Parallel branches with asymmetric kernels and pooling between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a = nn.Conv2d(3, 1, 1)
        self.b = nn.Sequential(
            nn.Conv2d(3, 1, (1, 7), padding=(0, 3)), nn.Conv2d(1, 1, (7, 1), padding=(3, 0))
        )
        self.c = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.pad(self.stem(x), (0, 1, 2, 0)))
        x = torch.cat([self.a(x), self.b(x), self.c(x)], 1)
        return x.view(x.shape[0], 3, 1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("network", [Residual, Dense, Inception])
def test_branches_pooling_and_odd_kernels_match_the_gradient(network: type[nn.Module]) -> None:
    model = network()
    field = receptive_field(model)
    unit = 6
    seen = gradient_support(model, 64, unit)
    assert seen == (positions(field.frequency, unit), positions(field.time, unit))


def test_max_pooling_sees_what_some_input_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2), nn.Conv2d(4, 1, 3))
    seen = torch.zeros(24, 24, dtype=torch.bool)
    for _ in range(60):
        x = torch.randn(1, 1, 24, 24, generator=generator, requires_grad=True)
        model(x)[0, 0, 3, 3].backward()
        assert x.grad is not None
        seen |= x.grad[0, 0] != 0
    rows = seen.any(1).nonzero().flatten()
    field = receptive_field(model).frequency
    assert range(int(rows[0]), int(rows[-1]) + 1) == positions(field, 3)


@pytest.mark.shared
def test_the_published_count_agrees_with_the_golden_fields(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "cp_resnet_counts.json").read_text())
    assert len(golden["max_receptive_field"]) == 22
    for rho, expected in golden["max_receptive_field"].items():
        assert published_receptive_field(int(rho)) == expected, rho
    # Beyond the blocks that are kept nothing grows.
    assert published_receptive_field(7, (4, 3, 0)) == golden["max_receptive_field"]["7"]
    assert published_receptive_field(21, (4, 3, 0)) == golden["max_receptive_field"]["12"]
    assert published_receptive_field(21, (4, 0, 0)) == golden["max_receptive_field"]["6"]
    assert published_receptive_field(21, (1, 0, 0)) == golden["max_receptive_field"]["0"]


@pytest.mark.parametrize("blocks", [(4, 4, 4), (4, 3, 0), (3, 2, 1), (2, 0, 4), (1, 0, 0)])
def test_the_published_count_differs_from_the_gradients_support_in_two_things_only(
    blocks: tuple[int, int, int],
) -> None:
    poolings = sum((2, 4, 8)[: sum(block <= blocks[0] for block in (1, 2, 4))])
    for rho in range(22):
        model = create_model("cp_resnet", n_classes=2, width=1, rho=rho, blocks=blocks)
        # Stride in front of each pooling whose convolution before it is 3x3: counted twice.
        early = sum(
            2 * stride
            for number, stride in ((1, 2), (2, 4), (4, 8))
            if number <= blocks[0]
            and getattr(model.stage1, f"block{number}").conv2.kernel_size[0] == 3
        )
        seen = receptive_field(model).time.size
        assert published_receptive_field(rho, blocks) == seen - poolings + early
        assert seen == layer_receptive_fields(model)["head.conv"].time.size


def test_the_published_count_refuses_what_the_network_refuses() -> None:
    with pytest.raises(ValueError, match="rho = 22"):
        published_receptive_field(22)
    with pytest.raises(ValueError, match="blocks ="):
        published_receptive_field(3, (4, 3))


@pytest.mark.parametrize(
    ("rho", "size"), [(0, 23), (1, 31), (2, 39), (3, 55), (5, 87), (7, 135), (12, 295), (21, 583)]
)
def test_maximum_receptive_field_by_hand(rho: int, size: int) -> None:
    # 5 (stem) + 2 + 4 + 8 (poolings) + 4 (first 3x3) = 23; then 8 for each 3x3 of block 2, 16 of
    # blocks 3 and 4, 32 of the later stages.
    model = create_model("cp_resnet", n_classes=2, width=1, rho=rho, blocks=(4, 4, 4))
    field = receptive_field(model)
    assert field.frequency.size == field.time.size == size
    assert field.frequency.centre == 8.0  # the zeros of the stem shift it half a step


def test_layers_come_in_order_of_use_and_end_where_all_is_pooled() -> None:
    model = create_model("cp_resnet", n_classes=2, width=1)
    fields = layer_receptive_fields(model)
    names = list(fields)
    assert fields["stem.conv"].time == AxisField(5, 2, -1)
    assert fields["stage1.pool1"].time == AxisField(11, 4, -3)
    assert names.index("stem.conv") < names.index("stage1.block1.conv1") < names.index("head.conv")
    assert all(f.time.size <= fields["head.conv"].time.size for f in fields.values())


def test_global_pooling_marks_a_gated_map_and_ends_the_maps() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.gate = nn.Conv2d(4, 4, 1)
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.conv(x), inplace=True)
            x = x * self.gate(F.adaptive_avg_pool2d(x, 1)).sigmoid()
            return self.linear(x.mean((2, 3)))

    axis = AxisField(3, 1, 0)
    model = Gated()
    assert receptive_field(model) == ReceptiveField(axis, axis, global_context=True)
    assert set(layer_receptive_fields(model)) == {"conv"}


def test_what_cannot_be_followed_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="transposed convolution"):
        receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ConvTranspose2d(1, 1, 2)))
    with pytest.raises(ValueError, match="reflection_pad2d"):
        receptive_field(nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, 1, 3)))
    with pytest.raises(ValueError, match="no two-dimensional convolution"):
        receptive_field(nn.Linear(3, 3))


def test_the_network_is_left_as_it_was() -> None:
    model = create_model("cp_resnet", n_classes=2, width=2, damping=0.1).train()
    model.stage1.block1.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    receptive_field(model)
    layer_receptive_fields(model, input_size=(64, 100))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)
