"""CP-ResNet against the authors' network."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stapes.models import create_model
from stapes.models.cp_resnet import KERNELS, he_conv

# Ours for the authors' names.
NAMES = {
    "in_c.0": "stem.conv",
    "in_c.1": "stem.norm",
    "feed_forward.0": "head.conv",
    "feed_forward.1": "head.norm",
    "shortcut.bn": "shortcut.norm",
    "bn1": "norm1",
    "bn2": "norm2",
}


# Inside a decomposed convolution.
PARTS = {"conv1": "reduce", "conv2": "core", "conv3": "expand"}


def load_golden(path: Path, **options: object) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    x, expected = arrays.pop("__input"), arrays.pop("__output")
    model = create_model(
        "cp_resnet", n_classes=expected.shape[1], in_channels=x.shape[1], **options
    )
    state = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    for name, array in arrays.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        name = re.sub(
            r"(?<=conv[12]\.|\.conv\.)(conv[123])(?=\.weight)", lambda m: PARTS[m[1]], name
        )
        raw = name.replace("weight", "parametrizations.weight.original")
        state[raw if raw in model.state_dict() else name] = array
    model.load_state_dict(state, strict=True)
    return model.eval(), x, expected


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("cp_resnet_rho7_width8.npz", {"rho": 7, "width": 8}),
        ("cp_resnet_damped_rho4_width8.npz", {"rho": 4, "width": 8, "damping": 0.1}),
        ("cp_resnet_decomposed_rho5_width16.npz", {"rho": 5, "width": 16, "decomposition": 4}),
    ],
)
def test_logits_agree_with_the_authors_network(
    shared: Path, file: str, options: dict[str, object]
) -> None:
    model, x, expected = load_golden(shared / "golden" / file, **options)
    with torch.no_grad():
        logits = model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.shared
def test_parameter_counts_agree_with_the_paper(shared: Path) -> None:
    rows = json.loads((shared / "golden" / "cp_resnet_counts.json").read_text())["counts"]
    assert len(rows) == 10
    assert sum(row["decomposition"] is not None for row in rows) == 3
    for row in rows:
        model = create_model(
            "cp_resnet",
            n_classes=row["classes"],
            in_channels=row["channels"],
            rho=row["rho"],
            width=row["width"],
            blocks=row["blocks"],
            decomposition=row["decomposition"],
            damping=0.1,  # has no parameters of its own
        )
        assert sum(p.numel() for p in model.parameters()) == row["parameters"], row["paper"]


def test_each_step_of_rho_widens_the_next_kernel() -> None:
    rows = ["".join(row).replace(" ", "") for row in KERNELS]
    assert all(len(row) == 24 for row in rows)
    assert rows[0] == "3" + "1" * 23
    for before, after in itertools.pairwise(rows):
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert len(changed) == 1
        assert after[changed[0]] == "3"
        # All before it are wide already, except the second, which never is.
        assert after[: changed[0] + 1].replace("3", "") == "1"


def test_he_initialisation_has_its_variance() -> None:
    weight = he_conv(64, 256, 3, generator=torch.Generator().manual_seed(0)).weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-3


def test_the_issue_example_builds() -> None:
    model = create_model(
        "cp_resnet", n_classes=10, in_channels=2, rho=7, width=128, blocks=(4, 3, 0), damping=0.1
    )
    assert model.settings() == {
        "name": "cp_resnet",
        "n_classes": 10,
        "in_channels": 2,
        "rho": 7,
        "width": 128,
        "blocks": [4, 3, 0],
        "damping": 0.1,
    }


def test_convolutions_of_the_blocks_can_be_given_as_a_part() -> None:
    made = []

    def separable(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
        made.append((in_channels, out_channels, kernel_size))
        return nn.Sequential(he_conv(in_channels, 2, 1), he_conv(2, out_channels, kernel_size))

    model = create_model("cp_resnet", n_classes=3, width=4, blocks=(1, 1, 0), conv=separable)
    assert made == [(4, 4, 3), (4, 4, 1), (4, 8, 3), (8, 8, 1), (4, 8, 1)]
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3)


def test_empty_stages_are_skipped() -> None:
    model = create_model("cp_resnet", n_classes=2, width=4, blocks=(2, 0, 1))
    assert model.forward_features(torch.zeros(1, 1, 40, 40)).shape == (1, 16, 4, 4)
