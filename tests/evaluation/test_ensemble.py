"""Models averaged: against means taken by hand and scikit-learn's kappa."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

import stapes
from stapes.bundle import Bundle, load_bundle, save_bundle
from stapes.compression import half_precision, quantize
from stapes.config import load_recipe, resolve
from stapes.errors import ModelFileError, StapesError
from stapes.evaluation.crossval import FoldPredictions
from stapes.evaluation.ensemble import (
    ensemble,
    member_agreement,
    members_of_run,
    score_ensemble,
)
from stapes.evaluation.metrics import score
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model

LABELS = ("kick", "snare", "hat")


def make_bundle(seed: int, *settings: str, **options: Any) -> Bundle:
    """Random weights and statistics, answers that differ from one recording to another."""
    recipe = load_recipe(
        "small", ["audio.window_seconds=0.5", "features.n_mels=32", "model.width=4", *settings]
    )
    recipe = resolve(recipe, sample_rates=[8000], durations=[0.5])
    frontend = create_frontend(sample_rate=8000, **recipe.features.model_dump())
    generator = torch.Generator().manual_seed(seed)
    normalizer = BandNormalizer(1, frontend.n_bins)
    normalizer.mean.copy_(torch.randn(normalizer.mean.shape, generator=generator) - 40)
    normalizer.std.copy_(torch.rand(normalizer.std.shape, generator=generator) * 5 + 5)
    options = {"name": "cp_resnet", "rho": 2, "width": 4, "blocks": (2, 0, 0), **options}
    network = create_model(n_classes=3, in_channels=1, generator=generator, **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # so that the last norm is not zero
            module.weight.data.fill_(1.5)
    metadata = {
        "split": "1",
        "seed": seed,
        "score": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "data": {"name": "drums", "train_clips": 10 + seed, "licence": "CC0", "citation": ""},
        "versions": {"stapes": "0"},
    }
    return Bundle(frontend, normalizer, network.eval(), LABELS, recipe, metadata)


def half(bundle: Bundle) -> Bundle:
    return replace(bundle, network=half_precision(bundle.network), precision="float16")


def saved(path: Path, bundle: Bundle) -> Path:
    save_bundle(bundle, path)
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return saved(tmp_path / "first.safetensors", make_bundle(0))


def windows() -> torch.Tensor:
    return 0.1 * torch.randn(8, 1, 4000, generator=torch.Generator().manual_seed(3))


# --- one file of several ----------------------------------------------------------------------


def test_the_file_predicts_the_mean_of_its_members(first: Path, tmp_path: Path) -> None:
    paths = [
        first,
        saved(tmp_path / "second.safetensors", make_bundle(1, width=6, damping=0.1)),
        saved(tmp_path / "third.safetensors", make_bundle(2, decomposition=2)),
    ]
    joint = saved(tmp_path / "joint.safetensors", ensemble(paths))
    each = [stapes.load(path).probabilities(windows()) for path in paths]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(each, 2)) > 0.05
    found = stapes.load(joint)
    np.testing.assert_allclose(found.probabilities(windows()), np.mean(each, 0), atol=1e-6)
    # A recording of several windows, through all the rest.
    waveform = windows().numpy().reshape(-1)
    expected = np.mean([stapes.load(p).classify(waveform, 8000).probabilities for p in paths], 0)
    np.testing.assert_allclose(found.classify(waveform, 8000).probabilities, expected, atol=1e-6)


def test_networks_of_several_kinds_and_an_ensemble_are_members(first: Path, tmp_path: Path) -> None:
    network = create_model(
        "timm", n_classes=3, in_channels=1, architecture="tf_efficientnet_lite0", blocks=2,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    image = replace(make_bundle(3), network=network.eval())
    paths = [first, saved(tmp_path / "image.safetensors", image)]
    pair = saved(tmp_path / "pair.safetensors", ensemble(paths))
    other = saved(tmp_path / "other.safetensors", make_bundle(4))
    joint = saved(tmp_path / "joint.safetensors", ensemble([pair, other]))
    a, b, c = (stapes.load(path).probabilities(windows()) for path in [*paths, other])
    found = stapes.load(joint).probabilities(windows())
    np.testing.assert_allclose(found, ((a + b) / 2 + c) / 2, atol=1e-6)
    names = [m["network"] for m in load_bundle(pair).metadata["members"]]
    assert names == ["cp_resnet", "tf_efficientnet_lite0"]


def test_float16_members_stay_float16_to_the_bit(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{i}.safetensors", half(make_bundle(i))) for i in range(2)]
    joint = saved(tmp_path / "joint.safetensors", ensemble(paths))
    bundle = load_bundle(joint)
    assert bundle.precision == "float16"
    assert joint.stat().st_size < 2.5 * paths[0].stat().st_size
    for i, path in enumerate(paths):
        member = load_bundle(path)
        for part in ("network", "normalizer"):
            own = getattr(member, part).state_dict()
            kept = getattr(bundle.network.members[i], part).state_dict()
            assert own.keys() == kept.keys()
            assert all(torch.equal(own[name], kept[name]) for name in own)
    mixed = ensemble([paths[0], saved(tmp_path / "f.safetensors", make_bundle(5))])
    assert mixed.precision == "float32"


def test_it_says_where_its_members_come_from(first: Path, tmp_path: Path) -> None:
    paths = [first, saved(tmp_path / "second.safetensors", make_bundle(1))]
    bundle = ensemble(paths, command="stapes ensemble ...")
    assert bundle.labels == LABELS
    facts = bundle.metadata
    assert [m["seed"] for m in facts["members"]] == [0, 1]
    assert len({m["sha256"] for m in facts["members"]}) == 2
    assert facts["members"][0]["accuracy"] == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert facts["data"] == {"name": "drums", "train_clips": 11, "licence": "CC0", "citation": ""}
    assert facts["command"] == "stapes ensemble ..."
    assert "score" not in facts, "nobody has measured it yet"


def test_the_same_members_give_the_same_bytes(first: Path, tmp_path: Path) -> None:
    paths = [first, saved(tmp_path / "second.safetensors", make_bundle(1))]
    files = [saved(tmp_path / f"joint{i}.safetensors", ensemble(paths)) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def _with_nan(bundle: Bundle) -> Bundle:
    with torch.no_grad():
        next(bundle.network.parameters()).view(-1)[3] = float("nan")
    return bundle


def _with_nan_statistics(bundle: Bundle) -> Bundle:
    bundle.normalizer.std[0, 2] = float("inf")
    return bundle


def _int8(bundle: Bundle) -> Bundle:
    calibration = [torch.randn(4, 1, 32, 40)]
    return replace(bundle, network=quantize(bundle.network, calibration), precision="int8")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: replace(make_bundle(1), labels=("snare", "kick", "hat")),
         "labels in another order than"),
        (lambda: replace(make_bundle(1), labels=("kick", "snare", "clap")),
         r"other labels \('clap' is in one only\)"),
        (lambda: make_bundle(1, "features.n_mels=40"), r"front end differs .*\(n_mels = 40 inst"),
        (lambda: make_bundle(1, "audio.window_seconds=0.25"),
         r"audio differs .*\(window_seconds = 0.25 instead of 0.5\)"),
        (lambda: _with_nan(make_bundle(1)), r"stem\..* holds values that are not finite"),
        (lambda: _with_nan_statistics(make_bundle(1)), "std holds values that are not finite"),
        (lambda: _int8(make_bundle(1)), "int8 model cannot be a member"),
        (lambda: make_bundle(0), r"the same model as .*first\.safetensors"),
    ],
)  # fmt: skip
def test_a_member_that_does_not_fit_is_named(
    other: Callable[[], Bundle], message: str, first: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "odd.safetensors", other())
    with pytest.raises(StapesError, match=rf"odd\.safetensors: .*{message}"):
        ensemble([first, path])


def test_a_corrupted_member_is_named(first: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.safetensors", make_bundle(1))
    content = bytearray(path.read_bytes())
    for damaged in (content[:-40], bytes([*content[:-9], content[-9] ^ 1, *content[-8:]]), b""):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"odd\.safetensors"):
            ensemble([first, path])


def test_a_corrupted_ensemble_is_refused(first: Path, tmp_path: Path) -> None:
    second = saved(tmp_path / "second.safetensors", make_bundle(1))
    joint = saved(tmp_path / "joint.safetensors", ensemble([first, second]))
    content = bytearray(joint.read_bytes())
    content[len(content) * 3 // 4] ^= 1  # in the second member's weights
    joint.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"joint\.safetensors: .*damaged"):
        stapes.load(joint)


def test_one_model_is_no_ensemble(first: Path, tmp_path: Path) -> None:
    with pytest.raises(StapesError, match="two models or more"):
        ensemble([first])
    with pytest.raises(StapesError, match="no models of folds and seeds"):
        members_of_run(tmp_path)


def test_models_of_a_run_come_in_the_order_of_their_seeds(tmp_path: Path) -> None:
    expected = []
    for fold, seed in (("1", 2), ("1", 10), ("2", 0)):
        path = tmp_path / fold / f"seed-{seed}" / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.touch()
        expected.append(path)
    (tmp_path / "model.safetensors").touch()
    assert members_of_run(tmp_path) == expected


# --- how well, and how alike ------------------------------------------------------------------


def probabilities(n_members: int, n_clips: int, seed: int = 0, n_classes: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n_clips, n_classes)) * 1.5
    p = np.exp(common + rng.normal(size=(n_members, n_clips, n_classes)))
    return p / p.sum(-1, keepdims=True)


def test_agreement_is_that_of_scikit_learn() -> None:
    p = probabilities(4, 200)
    found = member_agreement(p)
    names = p.argmax(-1)
    pairs = list(itertools.combinations(names, 2))
    assert found.pairs == pytest.approx(np.mean([np.mean(a == b) for a, b in pairs]))
    assert found.kappa == pytest.approx(np.mean([cohen_kappa_score(a, b) for a, b in pairs]))
    assert found.unanimous == np.mean([len(set(column)) == 1 for column in names.T])
    assert found.unanimous < found.pairs < 1


def test_agreement_at_its_ends() -> None:
    one = probabilities(1, 50)
    same = member_agreement(np.concatenate([one, one]))
    assert (same.pairs, same.unanimous, same.kappa) == (1, 1, 1)
    shifted = member_agreement(np.concatenate([one, np.roll(one, 1, axis=2)]))
    assert (shifted.pairs, shifted.unanimous) == (0, 0)
    assert shifted.kappa is not None
    assert shifted.kappa < 0
    always = member_agreement(np.broadcast_to([0.7, 0.3], (3, 5, 2)))
    assert (always.pairs, always.kappa) == (1, None)
    with pytest.raises(ValueError, match="two or more members"):
        member_agreement(one)


def predictions(p: np.ndarray, targets: np.ndarray, name: str, first: int = 0) -> FoldPredictions:
    return FoldPredictions(name, p, targets, first + np.arange(len(targets)) // 2)


def test_an_ensemble_is_scored_on_the_mean_with_each_clip_once() -> None:
    rng = np.random.default_rng(5)
    targets = [rng.integers(0, 4, 60), rng.integers(0, 4, 40)]
    p = [probabilities(3, 60, 1), probabilities(3, 40, 2)]
    for fold, t in zip(p, targets, strict=True):  # the right class often leads
        fold[:, np.arange(len(t)), t] += 0.25
        fold /= fold.sum(-1, keepdims=True)
    members = [
        [predictions(p[0][m], targets[0], "1"), predictions(p[1][m], targets[1], "2", 100)]
        for m in range(3)
    ]
    labels = ("a", "b", "c", "d")
    found = score_ensemble(members, labels)
    mean = np.concatenate([fold.mean(0) for fold in p])
    every, groups = np.concatenate(targets), np.r_[np.arange(60) // 2, 100 + np.arange(40) // 2]
    assert found.score == score(mean, every, groups, labels)
    assert found.folds.names == ("1", "2")
    assert found.folds.folds[1] == score(p[1].mean(0), targets[1], groups[60:], labels)
    own = [np.concatenate([fold[m] for fold in p]) for m in range(3)]
    accuracies = [float(np.mean(one.argmax(1) == every)) for one in own]
    assert [s.accuracy.value for s in found.members] == pytest.approx(accuracies)
    assert found.gain.value == pytest.approx(found.score.accuracy.value - np.mean(accuracies))
    assert found.gain.low < found.gain.value < found.gain.high
    assert found.agreement == member_agreement(own)
    assert found.to_json()["agreement"]["pairs"] == found.agreement.pairs
    assert found.to_json()["score"]["accuracy"]["value"] == found.score.accuracy.value


def test_members_that_judged_other_clips_are_refused() -> None:
    p, targets = probabilities(2, 10), np.arange(10) % 4
    one, other = predictions(p[0], targets, "1"), predictions(p[1], targets[::-1], "1")
    with pytest.raises(ValueError, match="the same clips"):
        score_ensemble([[one], [other]], tuple("abcd"))
    with pytest.raises(ValueError, match="the same clips"):
        score_ensemble([[one], [one, one]], tuple("abcd"))
    with pytest.raises(ValueError, match="two members"):
        score_ensemble([[one]], tuple("abcd"))
