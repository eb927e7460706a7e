"""What comes out of blocks, and networks compared by it, from recordings on."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from stapes.bundle import Bundle
from stapes.config import Recipe
from stapes.errors import AudioError, DataError, StapesError
from stapes.explain.recordings import spectrograms
from stapes.explain.representations import block_activations, compare_representations
from stapes.explain.similarity import linear_cka, svcca
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model

RATE, WINDOW = 8000, 8000


class InPlace(nn.Module):
    """Two blocks of which the second overwrites what the first gave."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 3, 3, padding=1)
        self.two = nn.ReLU(inplace=True)
        self.unused = nn.Identity()
        self.dropout = nn.Dropout(0.5)

    def forward_features(self, x: Tensor) -> Tensor:
        result: Tensor = self.dropout(self.two(self.one(x)))
        return result

    def blocks(self) -> tuple[str, ...]:
        return ("one", "two")


def network(seed: int = 0, **options: object) -> nn.Module:
    options = {"n_classes": 2, "rho": 3, "width": 8, "blocks": [2, 1, 0], **options}
    return create_model("cp_resnet", generator=torch.Generator().manual_seed(seed), **options)


def test_rows_are_means_over_positions_of_what_each_block_gives() -> None:
    parts, x = InPlace(), torch.randn(5, 1, 8, 12)
    found = block_activations(parts, x)
    with torch.no_grad():
        maps = parts.one(x)
    assert list(found) == ["one", "two"]
    np.testing.assert_allclose(found["one"], maps.mean(dim=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["two"], maps.relu().mean(dim=(2, 3)), atol=1e-6)


def test_a_grid_gives_a_row_for_each_cell_frequency_first() -> None:
    parts, x = InPlace(), torch.randn(5, 1, 8, 12)
    with torch.no_grad():
        maps = parts.one(x)
    found = block_activations(parts, x, ["one"], grid=(2, 3))["one"]
    cells = maps.reshape(5, 3, 2, 4, 3, 4).mean(dim=(3, 5))  # (B, C, 2, 3)
    np.testing.assert_allclose(found, cells.permute(0, 2, 3, 1).reshape(30, 3), atol=1e-6)
    single = block_activations(parts, x, ["one"], grid=(8, 12))["one"]
    np.testing.assert_allclose(single, maps.permute(0, 2, 3, 1).reshape(-1, 3), atol=1e-6)


def test_batches_give_the_same_as_one() -> None:
    model, x = network(), torch.randn(5, 1, 32, 40)
    whole = block_activations(model, x)
    parts = block_activations(model, iter([x[:2], x[2:]]))
    assert tuple(whole) == model.blocks()
    for name in whole:
        assert whole[name].shape[0] == 5
        np.testing.assert_allclose(whole[name], parts[name], atol=1e-6)


def test_the_last_block_of_a_network_gives_its_feature_map() -> None:
    for model in (
        network(),
        create_model("timm", n_classes=2, architecture="resnet10t"),
        create_model("timm", n_classes=2, architecture="vit_tiny_patch16_224"),
    ):
        x = torch.randn(2, 1, 64, 96)
        found = block_activations(model, x)
        assert tuple(found) == model.blocks()
        with torch.no_grad():
            features = model.eval().forward_features(x)
        last = found[model.blocks()[-1]]
        assert last.shape == (2, model.n_features)
        if "vit" not in str(model.settings().get("architecture")):  # one norm more behind it
            np.testing.assert_allclose(last, features.mean(dim=(2, 3)), atol=1e-5)


def test_nothing_is_left_behind() -> None:
    parts = InPlace().train()
    parts.two.eval()
    state = torch.get_rng_state()
    with pytest.raises(StapesError, match="'unused': the network does not use this module"):
        block_activations(parts, torch.randn(1, 1, 8, 8, generator=torch.Generator()), ["unused"])
    with pytest.raises(RuntimeError):
        block_activations(parts, torch.zeros(1, 4, 8, 8))
    block_activations(parts, torch.zeros(1, 1, 8, 8))
    assert not any(module._forward_hooks for module in parts.modules())
    assert [m.training for m in (parts, parts.one, parts.two, parts.dropout)] == [
        True, True, False, True
    ]  # fmt: skip
    assert all(p.requires_grad and p.grad is None for p in parts.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_gives_no_rows_is_explained() -> None:
    parts, x = InPlace(), torch.zeros(1, 1, 8, 8)
    with pytest.raises(
        StapesError, match=r"'three': .* no such module; its blocks end at one, two"
    ):
        block_activations(parts, x, ["three"])
    with pytest.raises(StapesError, match="does not say where its blocks end"):
        block_activations(nn.Identity(), x)
    with pytest.raises(ValueError, match="no inputs"):
        block_activations(parts, [])
    with pytest.raises(ValueError, match="grid = "):
        block_activations(parts, x, grid=(0, 1))
    with pytest.raises(StapesError, match="'inner': this module gives no feature map"):
        block_activations(Flat(), x, ["inner"])


class Flat(nn.Module):
    """Its only module gives vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Flatten()

    def forward_features(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


@pytest.fixture
def bundle() -> Bundle:
    """A model with a normalisation that matters."""
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "audio": {"sample_rate": RATE, "channels": 1, "window_seconds": WINDOW / RATE},
            "features": {"name": "log_mel", "n_fft": 512, "hop_length": 128, "n_mels": 40},
        }
    )
    frontend = create_frontend(sample_rate=RATE, **recipe.features.model_dump())
    normalizer = BandNormalizer(1, 40)
    rng = np.random.default_rng(0)
    normalizer.fit(rng.normal(-40, rng.uniform(1, 30, (40, 1)), (8, 1, 40, 63)))
    return Bundle(frontend, normalizer, network(), ("a", "b"), recipe)


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(1)
    paths = [tmp_path / f"{i}.wav" for i in range(12)]
    seconds = np.arange(WINDOW) / RATE
    for path in paths:
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 3500) * seconds)
        wave = tone + rng.normal(0, rng.uniform(0.001, 0.1), WINDOW)
        soundfile.write(path, wave.astype(np.float32), RATE, subtype="FLOAT")
    return paths


def test_a_model_is_like_itself_and_as_like_others_as_the_measures_say(
    bundle: Bundle, sounds: list[Path]
) -> None:
    other = replace(bundle, network=network(7))
    told: list[tuple[int, int]] = []
    found = compare_representations(
        {"trained": bundle, "same": copy.deepcopy(bundle), "other": other},
        sounds,
        progress=lambda done, total: told.append((done, total)),
    )
    assert [(p.first, p.second) for p in found.pairs] == [
        ("trained", "same"), ("trained", "other"), ("same", "other")
    ]  # fmt: skip
    assert told == [(done, 36) for done in range(1, 37)]
    assert (found.n_recordings, found.n_examples) == (12, 12)
    names = bundle.network.blocks()
    assert found.blocks == dict.fromkeys(("trained", "same", "other"), names)
    assert found.features["trained"] == (8, 8, 8, 16)
    same, differs, again = found.pairs
    np.testing.assert_allclose(np.diag(same.svcca), 1, atol=1e-6)
    np.testing.assert_allclose(np.diag(same.linear_cka), 1, atol=1e-6)
    np.testing.assert_array_equal(differs.svcca, again.svcca)
    assert found.matched(differs) == names
    # By hand, through the same chain.
    x = torch.cat(list(spectrograms(bundle, sounds)))
    rows, columns = (block_activations(b.network, x) for b in (bundle, other))
    for k, one in enumerate(names):
        for m, two in enumerate(names):
            assert differs.svcca[k, m] == pytest.approx(svcca(rows[one], columns[two]), abs=1e-5)
            assert differs.linear_cka[k, m] == pytest.approx(
                linear_cka(rows[one], columns[two]), abs=1e-5
            )
    assert differs.linear_cka[2, 2] < 0.999
    assert np.all(differs.svcca_by_chance > 0)
    assert np.all(differs.linear_cka_by_chance > 0)


def test_networks_of_another_kind_are_compared_all_with_all(
    bundle: Bundle, sounds: list[Path]
) -> None:
    image = replace(bundle, network=create_model("timm", n_classes=2, architecture="resnet10t"))
    found = compare_representations({"small": bundle, "image": image}, sounds, grid=(2, 2))
    (pair,) = found.pairs
    assert pair.svcca.shape == (4, 5)
    assert found.matched(pair) == ()
    assert found.n_examples == 48
    assert np.isfinite(pair.linear_cka).all()


def test_of_a_cut_network_the_blocks_that_it_has_are_matched(
    bundle: Bundle, sounds: list[Path]
) -> None:
    torch.manual_seed(0)
    whole = create_model("timm", n_classes=2, architecture="resnet10t")
    cut = create_model("timm", n_classes=2, architecture="resnet10t", blocks=3)
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if k in cut.state_dict()
                         and v.shape == cut.state_dict()[k].shape}, strict=False)  # fmt: skip
    models = {"whole": replace(bundle, network=whole), "cut": replace(bundle, network=cut)}
    found = compare_representations(models, sounds)
    (pair,) = found.pairs
    assert found.matched(pair) == ("body.act1", "body.layer1", "body.layer2")
    np.testing.assert_allclose(np.diag(pair.linear_cka), 1, atol=1e-6)


def test_a_dead_block_has_no_similarity(bundle: Bundle, sounds: list[Path]) -> None:
    dead = network(3)
    with torch.no_grad():
        for parameter in dead.get_submodule(dead.blocks()[-1]).parameters():
            parameter.zero_()
        for name, parameter in dead.named_parameters():
            if name.startswith(dead.blocks()[0]):
                parameter.zero_()
    found = compare_representations({"a": bundle, "b": replace(bundle, network=dead)}, sounds)
    (pair,) = found.pairs
    assert np.isnan(pair.svcca[:, 0]).all()
    assert np.isnan(pair.linear_cka[:, -1]).all()
    assert found.directions["b"][0] == 0
    assert min(found.directions["a"]) > 0
    tree = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert tree["pairs"][0]["svcca"][0][0] is None
    assert tree["networks"]["b"]["blocks"] == list(dead.blocks())


def test_what_cannot_be_read_is_left_out_of_all_or_raised(
    bundle: Bundle, sounds: list[Path]
) -> None:
    bad = sounds[0].with_name("bad.wav")
    bad.write_bytes(b"no sound")
    models = {"a": bundle, "b": replace(bundle, network=network(7))}
    with pytest.raises(AudioError, match=r"bad\.wav"):
        compare_representations(models, [sounds[0], bad, sounds[1]])
    told: list[AudioError] = []
    # The bad one twice, among good ones: each place is left out, and told of once.
    found = compare_representations(
        models, [sounds[0], bad, *sounds[1:], bad], unreadable=told.append
    )
    assert [error.path for error in told] == [bad, bad]
    assert found.n_recordings == 12
    plain = compare_representations(models, sounds)
    np.testing.assert_array_equal(found.pairs[0].svcca, plain.pairs[0].svcca)
    with pytest.raises(DataError, match="two or more recordings, and 1 can be read"):
        compare_representations(models, [sounds[0], bad], unreadable=told.append)
    with pytest.raises(DataError, match="and 0 can be read"):
        compare_representations(models, [bad], unreadable=told.append)


def test_what_cannot_be_compared(bundle: Bundle, sounds: list[Path]) -> None:
    with pytest.raises(ValueError, match="two or more are needed"):
        compare_representations({"a": bundle}, sounds)
    damaged = copy.deepcopy(bundle)
    with torch.no_grad():
        next(damaged.network.parameters()).fill_(float("nan"))
    with pytest.raises(StapesError, match=r"b, stem: gives values that are not finite"):
        compare_representations({"a": bundle, "b": damaged}, sounds)
    with pytest.raises(StapesError, match="does not say where its blocks end"):
        compare_representations({"a": bundle, "b": replace(bundle, network=nn.ReLU())}, sounds)
    with pytest.raises(ValueError, match="variance"):
        compare_representations({"a": bundle, "b": damaged}, sounds, variance=0)
