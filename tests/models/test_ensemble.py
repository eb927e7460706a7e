"""Networks averaged: against the mean taken by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from stapes.errors import StapesError
from stapes.explain import effective_receptive_field
from stapes.features import BandNormalizer
from stapes.models import create_model, receptive_field
from stapes.models.blocks import block_plan
from stapes.models.ensemble import Ensemble, EnsembleMember

BINS = 48


def member(seed: int, name: str = "cp_resnet", **options: Any) -> EnsembleMember:
    """A network with random weights and random statistics."""
    generator = torch.Generator().manual_seed(seed)
    options = options or {"width": 4, "rho": 2, "blocks": (2, 1, 0)}
    network = create_model(name, n_classes=5, in_channels=2, generator=generator, **options)
    normalizer = BandNormalizer(2, BINS)
    normalizer.mean.copy_(torch.randn(2, BINS, 1, generator=generator))
    normalizer.std.copy_(torch.rand(2, BINS, 1, generator=generator) + 0.5)
    return EnsembleMember(normalizer, network).eval()


def small_image_network(seed: int) -> EnsembleMember:
    return member(seed, "timm", architecture="tf_efficientnet_lite0", blocks=2)


def spectrograms(bins: int = BINS) -> torch.Tensor:
    return torch.randn(6, 2, bins, 60, generator=torch.Generator().manual_seed(9))


def test_it_answers_with_the_mean_of_different_networks_each_with_its_own_statistics() -> None:
    parts = [member(0), small_image_network(1), member(2, width=6, rho=1, blocks=(1, 0, 0))]
    # So that the answers are far apart: the mean of logits would be another one.
    with torch.no_grad():
        parts[0].network.head.norm.weight.mul_(20)
    ensemble = Ensemble(parts, BINS).eval()
    x = spectrograms()
    with torch.no_grad():
        each = [
            part.network((x - part.normalizer.mean) / part.normalizer.std).double().softmax(1)
            for part in parts
        ]
        found = ensemble(x).double().softmax(1)
    expected = torch.stack(each).mean(0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    logits = torch.stack([p.log() for p in each]).mean(0).softmax(1)
    assert (logits - expected).abs().max() > 0.01


def test_a_member_that_is_sure_does_not_make_the_answer_infinite() -> None:
    parts = [member(0), member(1)]
    with torch.no_grad():
        parts[0].network.head.norm.weight.mul_(1e4)
    logits = Ensemble(parts, BINS).eval()(spectrograms())
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(6))


def test_settings_rebuild_a_mixed_ensemble() -> None:
    ensemble = Ensemble([member(0), small_image_network(1)], BINS).eval()
    again = create_model(**json.loads(json.dumps(ensemble.settings()))).eval()
    again.load_state_dict(ensemble.state_dict(), strict=True)
    torch.testing.assert_close(again(spectrograms()), ensemble(spectrograms()), atol=0, rtol=0)
    names = [settings["name"] for settings in ensemble.settings()["members"]]
    assert names == ["cp_resnet", "timm"]


def test_a_head_of_its_own_reads_the_answers_and_is_rebuilt() -> None:
    ensemble = Ensemble([member(0), member(1)], BINS).eval()
    ensemble.reset_classifier(3, generator=torch.Generator().manual_seed(0))
    assert ensemble.head is not None
    x = spectrograms()
    with torch.no_grad():
        answers = torch.cat([part(x) for part in ensemble.members], dim=1)
        expected = answers @ ensemble.head.weight.T + ensemble.head.bias
        torch.testing.assert_close(ensemble(x), expected)
    again = create_model(**json.loads(json.dumps(ensemble.settings()))).eval()
    again.load_state_dict(ensemble.state_dict(), strict=True)
    torch.testing.assert_close(again(x), ensemble(x), atol=0, rtol=0)


def test_an_ensemble_may_be_a_member() -> None:
    inner = Ensemble([member(0), member(1)], BINS)
    outer = Ensemble(
        [EnsembleMember(BandNormalizer(2, BINS), inner), member(2)], BINS
    ).eval()  # fmt: skip
    x = spectrograms()
    with torch.no_grad():
        expected = (inner(x).softmax(1) + outer.members[1](x).exp()) / 2
        torch.testing.assert_close(outer(x).softmax(1), expected)
    again = create_model(**json.loads(json.dumps(outer.settings())))
    again.load_state_dict(outer.state_dict(), strict=True)


def test_other_numbers_of_bands_are_normalised_by_statistics_in_between() -> None:
    part = member(0)
    ramp = torch.arange(BINS, dtype=torch.float32)[None, :, None].expand(2, -1, -1)
    part.normalizer.mean.copy_(ramp)
    part.normalizer.std.fill_(2.0)
    x = torch.zeros(1, 2, 2 * BINS, 40)
    found = part._normalized(x)[0, 0, :, 0]
    # Band i of twice as many lies at (i + 0.5) / 2 - 0.5 of the others, kept within their ends.
    place = ((torch.arange(2 * BINS) + 0.5) / 2 - 0.5).clamp(0, BINS - 1)
    torch.testing.assert_close(found, -place / 2)


def test_members_are_its_blocks() -> None:
    ensemble = Ensemble([member(0), member(1)], BINS)
    plan = block_plan(ensemble)
    assert plan.names == ("members.0", "members.1")
    assert all(plan.block_of[n] == int(n.split(".")[1]) for n in ensemble.state_dict())


def test_it_sees_as_much_as_its_members() -> None:
    part = member(0)
    ensemble = Ensemble([part, member(1)], BINS)
    assert receptive_field(ensemble) == receptive_field(part.network)


def test_what_does_not_go_together_is_named() -> None:
    with pytest.raises(ValueError, match="needs members"):
        create_model("ensemble", n_classes=2)
    with pytest.raises(ValueError, match=r"differ in n_classes: \[2, 3\]"):
        create_model("ensemble", n_classes=2, members=(
            {"name": "cp_resnet", "width": 2}, {"name": "cp_resnet", "width": 2, "n_classes": 3},
        ))  # fmt: skip
    with pytest.raises(ValueError, match="n_classes = 2: the members of the ensemble have 3"):
        create_model(
            "ensemble", n_classes=2, members=({"name": "cp_resnet", "width": 2, "n_classes": 3},)
        )
    int8 = create_model("cp_resnet", n_classes=2, width=2, precision="int8")
    with pytest.raises(ValueError, match="int8 network cannot be a member"):
        EnsembleMember(BandNormalizer(1, BINS), int8)


def test_the_receptive_field_of_an_ensemble_is_that_of_its_widest_member() -> None:
    small: dict[str, Any] = {"name": "cp_resnet", "rho": 0, "width": 4, "blocks": (1, 0, 0)}
    large = small | {"rho": 7, "blocks": (4, 3, 0)}
    expected = receptive_field(create_model(**large, n_classes=3))
    for members in ([small, large], [large, small]):
        described = [one | {"n_classes": 3, "in_channels": 1} for one in members]
        network = create_model("ensemble", n_classes=3, members=described, n_bins=64)
        assert receptive_field(network) == expected
        with pytest.raises(StapesError, match="give one of its members"):
            effective_receptive_field(network, torch.randn(1, 1, 64, 70))
