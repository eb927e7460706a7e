"""Pruning and precision as parts of a run, on a few real drum hits."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import stapes
from stapes.data import load_dataset
from stapes.errors import ConfigError, StapesError
from stapes.models import count_complexity
from stapes.training.finished import quantize_run

HITS = Path(__file__).resolve().parents[2] / "examples" / "drum-hits"
LABELS = ("kick", "snare", "hi-hat")
TINY = (
    "training.epochs=4", "model.width=8", "model.blocks=[2, 1, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5", "training.batch_size=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def hits() -> stapes.Dataset:
    """Every fourth hit of three classes."""
    dataset = load_dataset(HITS)
    clips = [clip for clip in dataset.clips if clip.label in LABELS][::4]
    return dataclasses.replace(dataset, clips=tuple(clips), labels=tuple(sorted(LABELS)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plain(
    hits: stapes.Dataset, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> stapes.training.TrainResult:
    out = tmp_path_factory.mktemp("plain") / "run"
    return train(hits, cache, out)


def train(
    hits: stapes.Dataset, cache: Path, out: Path, *overrides: str, **options: object
) -> stapes.training.TrainResult:
    return stapes.train(
        hits,
        recipe=stapes.load_recipe("small", [*TINY, *overrides]),
        out=out,
        cache=cache,
        **options,  # type: ignore[arg-type]
    )


def cost(path: Path) -> stapes.models.Complexity:
    bundle = stapes.load_bundle(path)
    return count_complexity(bundle.network, (1, 1, 32, 60))


def test_pruned_run_has_its_number_of_parameters_and_a_smaller_file(
    hits: stapes.Dataset, cache: Path, plain: stapes.training.TrainResult, tmp_path: Path
) -> None:
    result = train(
        hits, cache, tmp_path / "run", "pruning.method=magnitude", "pruning.keep_parameters=1500"
    )
    found = cost(result.model)
    assert found.nonzero_parameters == 1500
    assert found.parameters == cost(plain.model).parameters
    assert result.model.stat().st_size < plain.model.stat().st_size
    network = stapes.load_bundle(result.model).network
    assert network.settings()["damping"] == 0.1, "still a damped network, without masks"
    assert not any("mask" in name for name in network.state_dict())
    facts = result.members[0].bundle.metadata["reduction"]["pruning"]
    assert facts["parameters_after"] == 1500
    again = stapes.evaluate(result.model, result.members[0].folder / "test.csv", cache=cache)
    np.testing.assert_allclose(again.probabilities, result.members[0].probabilities, atol=1e-6)


def test_channels_shrink_the_tensors(
    hits: stapes.Dataset, cache: Path, plain: stapes.training.TrainResult, tmp_path: Path
) -> None:
    result = train(
        hits, cache, tmp_path / "run",
        "pruning.method=channels", "pruning.keep=0.5", "quantization.precision=float16",
    )  # fmt: skip
    before, after = cost(plain.model), cost(result.model)
    assert 0.4 * before.parameters < after.parameters <= 0.5 * before.parameters
    assert after.macs < before.macs
    bundle = stapes.load_bundle(result.model)
    assert bundle.precision == "float16"
    assert "channels" in bundle.network.settings()
    again = stapes.evaluate(result.model, result.members[0].folder / "test.csv", cache=cache)
    np.testing.assert_allclose(again.probabilities, result.members[0].probabilities, atol=1e-6)


def test_quantising_a_run_gives_what_training_with_int8_would_have_given(
    hits: stapes.Dataset, cache: Path, plain: stapes.training.TrainResult, tmp_path: Path
) -> None:
    later = quantize_run(plain.folder, "int8", out=tmp_path / "later", cache=cache)
    at_once = train(hits, cache, tmp_path / "at-once", "quantization.precision=int8")
    one, other = (stapes.load_bundle(r.model).network.state_dict() for r in (later, at_once))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.dtype == torch.int8 for tensor in one.values())
    assert later.score.accuracy == at_once.score.accuracy
    assert later.model.stat().st_size < 0.5 * plain.model.stat().st_size
    # It stays close to the network it was made of, and a second call takes it from disk.
    np.testing.assert_allclose(
        later.members[0].probabilities, plain.members[0].probabilities, atol=0.05
    )
    bytes_before = later.model.read_bytes()
    quantize_run(plain.folder, "int8", out=tmp_path / "later", cache=cache)
    assert later.model.read_bytes() == bytes_before
    assert not list(later.folder.rglob("aware")), "the fine-tuning's checkpoint is not kept"
    with pytest.raises(StapesError, match="int8 already"):
        quantize_run(later.folder, "int8", out=tmp_path / "twice", cache=cache)


def test_fine_tuning_with_quantisation_in_the_loop_keeps_pruned_weights_zero(
    hits: stapes.Dataset, cache: Path, tmp_path: Path
) -> None:
    result = train(
        hits, cache, tmp_path / "run",
        "pruning.method=magnitude", "pruning.keep=0.5", "quantization.precision=int8",
        "quantization.aware=always", "quantization.aware_epochs=2",
        "quantization.aware_learning_rate=1e-3",
    )  # fmt: skip
    facts = result.members[0].bundle.metadata["reduction"]["quantization"]
    assert facts["aware_epochs"] == 2
    never = train(
        hits, cache, tmp_path / "never",
        "pruning.method=magnitude", "pruning.keep=0.5", "quantization.precision=int8",
        "quantization.aware=never",
    )  # fmt: skip
    tuned, plain = (stapes.load_bundle(r.model).network.state_dict() for r in (result, never))
    kernels = [name for name, tensor in plain.items() if tensor.dtype == torch.int8]
    assert any(not torch.equal(tuned[name], plain[name]) for name in kernels), "it learned"
    # Rounding may add zeros to those of pruning, and fine-tuning may take those back: count both.
    zeros = sum(int((tuned[name] == 0).sum()) for name in kernels)
    weights = sum(tuned[name].numel() for name in kernels)
    assert zeros / weights > 0.45


def test_a_cross_validated_run_is_quantised_fold_by_fold(
    hits: stapes.Dataset, cache: Path, tmp_path: Path
) -> None:
    before = train(hits, cache, tmp_path / "run", "training.epochs=1", folds=2)
    after = quantize_run(tmp_path / "run", "float16", cache=cache)
    assert after.folder == tmp_path / "run-float16"
    assert [m.split.name for m in after.members] == [m.split.name for m in before.members]
    for one, other in zip(before.members, after.members, strict=True):
        np.testing.assert_array_equal(one.split.test, other.split.test)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=2e-3)
    assert stapes.load_bundle(after.model).precision == "float16"


def test_quantising_a_cross_validated_run_calibrates_on_no_clip_that_was_set_aside(
    hits: stapes.Dataset, cache: Path, tmp_path: Path
) -> None:
    before = train(
        hits, cache, tmp_path / "run", "training.epochs=1", "training.validation_fraction=0.3",
        folds=2, seed=5, n_seeds=2, final=False,
    )  # fmt: skip
    after = quantize_run(before.folder, "int8", cache=cache)
    assert len(after.members) == 4
    for one, other in zip(before.members, after.members, strict=True):
        for part in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(one.split, part), getattr(other.split, part))
        assert one.split.validation.size
        facts = other.bundle.metadata["reduction"]["quantization"]
        assert facts["accuracy_before"] == pytest.approx(one.history[-1]["validation_accuracy"])


def test_a_run_with_a_forced_split_is_quantised(
    hits: stapes.Dataset, cache: Path, tmp_path: Path
) -> None:
    shared = tuple(
        dataclasses.replace(clip, group=f"g{i % 7}", split="test" if i % 3 == 0 else "train")
        for i, clip in enumerate(hits.clips)
    )
    dataset = dataclasses.replace(hits, clips=shared)
    before = train(dataset, cache, tmp_path / "run", "training.epochs=1", force=True)
    after = quantize_run(before.folder, "float16", cache=cache)
    np.testing.assert_array_equal(before.members[0].split.test, after.members[0].split.test)
    assert any("both sides" in note for note in after.notes)


def test_quantising_says_what_pruning_took_away(
    hits: stapes.Dataset, cache: Path, tmp_path: Path
) -> None:
    pruned = train(
        hits, cache, tmp_path / "run", "training.epochs=1", "pruning.method=channels",
        "pruning.keep=0.5",
    )  # fmt: skip
    later = quantize_run(pruned.folder, "float16", cache=cache)
    facts = [r.members[0].bundle.metadata["reduction"]["pruning"] for r in (pruned, later)]
    assert facts[0] == facts[1]
    assert facts[0]["parameters_before"] > 1.5 * facts[0]["parameters_after"]


def test_a_target_that_cannot_be_met_is_refused_before_any_work(
    hits: stapes.Dataset, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"keep_parameters = 20: the network needs \d+ at least"):
        train(
            hits, cache, tmp_path / "run",
            "pruning.method=magnitude", "pruning.keep_parameters=20",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_wrong_use_is_one_sentence(
    plain: stapes.training.TrainResult, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="more than the section quantization"):
        quantize_run(
            plain.folder, "int8", overrides=["training.epochs=9"], out=tmp_path / "x", cache=cache
        )
    with pytest.raises(StapesError, match="no run folder"):
        quantize_run(tmp_path, "int8", cache=cache)
    (tmp_path / "plan.json").write_text("{}")  # as a search leaves one
    with pytest.raises(StapesError, match="no run folder"):
        quantize_run(tmp_path, "int8", cache=cache)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(plain.folder, unfinished)
    (unfinished / "held-out" / "seed-0" / "model.safetensors").unlink()
    with pytest.raises(StapesError, match="not finished"):
        quantize_run(unfinished, "int8", cache=cache)
    assert not (tmp_path / "unfinished-int8").exists(), "nothing is left of what was refused"
    (unfinished / "plan.json").write_text("[{")
    with pytest.raises(StapesError, match=r"plan\.json: damaged"):
        quantize_run(unfinished, "int8", cache=cache)
