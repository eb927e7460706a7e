"""Decomposed convolutions, and decomposing those of a trained network."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stapes.models import (
    FrequencyDamping,
    create_model,
    damp,
    damping_of,
    decompose,
    fold_damping,
)
from stapes.models.decomposition import DecomposedConv2d, channel_factors


def trained_network(seed: int = 0, **options: object) -> nn.Module:
    """Weights and batch-norm statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    model = create_model(
        "cp_resnet",
        **({"n_classes": 3, "in_channels": 2, "width": 8, "generator": generator} | options),
    )
    for _ in range(30):
        model(torch.randn(8, 2, 40, 40, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
    return model.eval()


def spectrograms(seed: int = 1) -> Tensor:
    return torch.randn(4, 2, 48, 56, generator=torch.Generator().manual_seed(seed))


def test_three_convolutions_are_one_of_low_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    reduce, core, expand = nn.Conv2d(5, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 7, 1)
    for conv in (reduce, core, expand):
        nn.init.normal_(conv.weight, generator=generator)
        conv.bias = None
    one = nn.Conv2d(5, 7, 3, padding=1, bias=False)
    with torch.no_grad():
        # Slow and obvious: the sum of the module's docstring, one entry after the other.
        for o, i, f, t in np.ndindex(7, 5, 3, 3):
            one.weight[o, i, f, t] = sum(
                expand.weight[o, r, 0, 0] * core.weight[r, s, f, t] * reduce.weight[s, i, 0, 0]
                for r in range(2)
                for s in range(2)
            )
    x = torch.randn(2, 5, 9, 11, generator=generator)
    torch.testing.assert_close(DecomposedConv2d(reduce, core, expand)(x), one(x))


def projected(weight: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    return torch.einsum("oift,or,pr,is,js->pjft", weight.double(), outer, outer, inner, inner)


def tails(weight: Tensor, rank: int) -> tuple[float, float]:
    """What the best approximation of either unfolding alone leaves, squared (by NumPy)."""
    array = weight.double().numpy()
    found = []
    for unfolding in (array, array.transpose(1, 0, 2, 3)):
        values = np.linalg.svd(unfolding.reshape(len(unfolding), -1), compute_uv=False)
        found.append(float((values[rank:] ** 2).sum()))
    return found[0], found[1]


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (6, 8, 5, 3), (9, 9, 1, 3)])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_error_lies_between_what_theory_allows(shape: tuple[int, ...], rank: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(rank))
    errors = []
    for sweeps in (0, 3, 30):
        outer, inner = channel_factors(weight, rank, sweeps=sweeps)
        for basis in (outer, inner):
            torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
            # Singular vectors are free in their signs: the largest entry is made positive.
            assert torch.equal(basis.max(0).values, basis.abs().max(0).values)
        errors.append(float((weight - projected(weight, outer, inner)).square().sum()))
    least = max(tails(weight, rank))
    assert least <= errors[2] <= errors[1] <= errors[0] <= sum(tails(weight, rank))
    assert errors[1] < errors[0] - 1e-3  # the sweeps do something


def test_of_a_matrix_it_is_the_truncated_svd() -> None:
    weight = torch.randn(12, 7, 1, 1, generator=torch.Generator().manual_seed(0))
    outer, inner = channel_factors(weight, 3)
    u, s, v = np.linalg.svd(weight.double()[:, :, 0, 0].numpy(), full_matrices=False)
    best = (u[:, :3] * s[:3]) @ v[:3]
    np.testing.assert_allclose(projected(weight, outer, inner)[:, :, 0, 0].numpy(), best, atol=1e-9)


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (3, 9, 3, 3), (16, 4, 1, 1), (1, 1, 5, 5)])
def test_a_weight_of_low_rank_is_found_exactly(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    rank = min(2, *shape[:2])
    a = torch.randn(shape[0], rank, generator=generator)
    b = torch.randn(rank, rank, *shape[2:], generator=generator)
    c = torch.randn(rank, shape[1], generator=generator)
    weight = torch.einsum("or,rsft,si->oift", a, b, c)
    # Also with more room than there are directions: the rest is zero.
    for room in (rank, shape[0] + 2):
        outer, inner = channel_factors(weight, room)
        assert (outer.shape, inner.shape) == ((shape[0], room), (shape[1], room))
        torch.testing.assert_close(projected(weight, outer, inner), weight.double())


@pytest.mark.parametrize("damping", [None, 0.1, 0.0])
def test_full_rank_changes_nothing(damping: float | None) -> None:
    network = trained_network(damping=damping)
    before = copy.deepcopy(network.state_dict())
    new, layers = decompose(network, 1)
    x = spectrograms()
    with torch.no_grad():
        torch.testing.assert_close(new(x), network(x), rtol=1e-5, atol=1e-5)
    assert max(layer.relative_error for layer in layers) < 1e-6
    assert new.settings() == network.settings() | {"decomposition": 1}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_network_that_was_decomposed_once_is_recovered() -> None:
    # Merged into plain convolutions, its weights have exactly that rank.
    decomposed = trained_network(decomposition=4, damping=0.1)
    merged = create_model("cp_resnet", n_classes=3, in_channels=2, width=8, damping=0.1).eval()
    state = decomposed.state_dict()
    for name, module in decomposed.named_modules():
        if isinstance(module, DecomposedConv2d):
            raw = [
                state.pop(key)
                for part in ("expand", "core", "reduce")
                for key in list(state)
                if key.startswith(f"{name}.{part}.")
            ]
            key = name + ".parametrizations.weight.original"
            key = key if key in merged.state_dict() else name + ".weight"
            state[key] = torch.einsum("oraa,rsft,sibb->oift", *raw)
    merged.load_state_dict(state, strict=True)
    again, layers = decompose(merged, 4)
    x = spectrograms()
    with torch.no_grad():
        torch.testing.assert_close(merged(x), decomposed(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(x), decomposed(x), rtol=1e-4, atol=1e-4)
    assert max(layer.relative_error for layer in layers) < 1e-5


def test_the_report_states_what_was_lost_and_won() -> None:
    network = trained_network(damping=0.0)
    new, layers = decompose(network, 4)
    names = [name for name, m in new.named_modules() if isinstance(m, DecomposedConv2d)]
    assert [layer.name for layer in layers] == names
    assert names[0] == "stage1.block1.conv1"
    assert "stage2.block1.shortcut.conv" in names
    for layer in layers:
        part = new.get_submodule(layer.name)
        exact = network.get_submodule(layer.name).weight
        built = torch.einsum(
            "oraa,rsft,sibb->oift", part.expand.weight, part.core.weight, part.reduce.weight
        )
        error = torch.linalg.vector_norm(built - exact) / torch.linalg.vector_norm(exact)
        assert layer.relative_error == pytest.approx(error.item(), rel=1e-4)
        # The directions are those of the weight that it computes with, not of the raw one.
        outer, inner = channel_factors(exact, layer.rank)
        least = torch.linalg.vector_norm(projected(exact, outer, inner) - exact)
        assert error.item() == pytest.approx((least / exact.norm()).item(), rel=1e-4)
        assert layer.parameters_before == exact.numel()
        assert layer.parameters_after == sum(p.numel() for p in part.parameters())
        assert layer.rank == exact.shape[0] // 4
    saved = sum(layer.parameters_before - layer.parameters_after for layer in layers)
    counts = [sum(p.numel() for p in m.parameters()) for m in (network, new)]
    assert counts[0] - counts[1] == saved > 0


def test_the_new_network_is_one_like_those_trained_directly() -> None:
    network = trained_network(damping=0.1).train()
    state = torch.get_rng_state()
    new, _ = decompose(network, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert damping_of(new) == 0.1
    assert all(module.training for module in new.modules())
    again = create_model(**new.settings())
    again.load_state_dict(new.state_dict(), strict=True)
    x = spectrograms()
    assert torch.equal(again.eval()(x), new.eval()(x))
    torch.testing.assert_close(fold_damping(again)(x), new(x), rtol=1e-5, atol=1e-5)
    new.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())


def test_any_numbers_of_channels_are_decomposed() -> None:
    channels = ((6, 5, 3, 1, 7), (9, 4, 12, 2), (8,))
    network = trained_network(channels=channels, damping=0.1)
    for z in (1, 4):
        new, layers = decompose(network, z)
        assert new.settings()["channels"] == [list(row) for row in channels]
        assert new(spectrograms()).isfinite().all()
        for layer in layers:
            conv = network.get_submodule(layer.name)
            assert layer.rank == max(1, conv.out_channels // z)
            # Nothing is lost where the inside has room for the rank of both unfoldings.
            c_out, c_in, *taps = conv.weight.shape
            needed = max(min(c_out, c_in * math.prod(taps)), min(c_in, c_out * math.prod(taps)))
            fits = layer.rank >= needed
            assert (layer.relative_error < 1e-6) == fits, layer.name


class Halve(nn.Module):
    """Stands for a pruning mask: some weights are zero."""

    def forward(self, weight: Tensor) -> Tensor:
        flat = torch.arange(weight.numel(), device=weight.device).reshape(weight.shape)
        return weight * (flat % 2)


def test_masks_are_folded_and_the_damping_is_kept() -> None:
    network = trained_network(damping=0.1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            parametrize.register_parametrization(module, "weight", Halve())
    x = spectrograms()
    new, _ = decompose(network, 1)
    with torch.no_grad():
        torch.testing.assert_close(new(x), network(x), rtol=1e-5, atol=1e-5)
    assert damping_of(new) == 0.1
    stacked = new.stem.conv.parametrizations.weight
    assert [type(one) for one in stacked] == [FrequencyDamping]


def test_wrong_use_is_refused() -> None:
    network = trained_network()
    with pytest.raises(ValueError, match="decomposed already"):
        decompose(decompose(network, 4)[0], 2)
    for z in (0, 65, True):
        with pytest.raises(ValueError, match=rf"decomposition = {z}: must be a whole number"):
            decompose(network, z)
    folded = copy.deepcopy(network)
    folded.stage1.block1.norm1 = nn.Identity()
    with pytest.raises(ValueError, match=r"stage1\.block1\.norm1 is not a .* before folding"):
        decompose(folded, 4)
    biased = copy.deepcopy(network)
    biased.stage1.block2.conv1 = nn.Conv2d(8, 8, 3, padding=1)
    with pytest.raises(ValueError, match=r"stage1\.block2\.conv1 is not a"):
        decompose(biased, 4)


def test_all_three_parts_of_a_damped_one_are_damped_where_they_have_an_edge() -> None:
    part = DecomposedConv2d(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 4, 1))
    damp(part, 0.5)
    assert [parametrize.is_parametrized(conv) for conv in part.children()] == [False, True, False]
