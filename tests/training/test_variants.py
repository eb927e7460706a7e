"""Training on recordings and their variants of other pitch and pace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hits import write_few_hits
from torch import Tensor

import stapes
from stapes.data.loader import FeatureStore, WithVariants
from stapes.training.loop import Examples, fit

TINY = (
    "training.epochs=2", "model.width=4", "model.blocks=[2, 1, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5", "training.batch_size=16", "training.averaging=none",
    "augment.mixup_alpha=0",
)  # fmt: skip
VARIED = ("augment.pitch_semitones=2", "augment.time_stretch=[0.9, 1.2]")
MODES = {
    "one": (*VARIED, "augment.waveform_variants=2"),
    "all": (*VARIED, "augment.waveform_variants=1", "augment.variants_per_epoch=all"),
}


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few_hits(tmp_path_factory.mktemp("hits"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plain(hits: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("plain") / "run"
    return stapes.train(hits, overrides=TINY, out=out, cache=cache)


def _weights(result: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = result.members[0].bundle.network.state_dict()
    return state


def _same(a: Any, b: Any) -> bool:
    left, right = _weights(a), _weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("mode", MODES)
def test_only_training_clips_are_varied_and_only_for_training(
    mode: str, hits: Path, cache: Path, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    varied: set[int] = set()
    taken: list[tuple[int, ...]] = []
    given: list[Examples] = []
    variant, take = FeatureStore.variant, WithVariants.take

    def watched_variant(self: FeatureStore, index: int, *rest: Any) -> Any:
        varied.add(index)
        return variant(self, index, *rest)

    def watched_take(self: WithVariants, indices: Any, windows: Any) -> Tensor:
        taken.append(tuple(int(i) for i in indices))
        return take(self, indices, windows)

    def watched_fit(network: Any, normalizer: Any, examples: Examples, *rest: Any, **more: Any):
        given.append(examples)
        return fit(network, normalizer, examples, *rest, **more)

    monkeypatch.setattr(FeatureStore, "variant", watched_variant)
    monkeypatch.setattr(WithVariants, "take", watched_take)
    monkeypatch.setattr("stapes.training.members.fit", watched_fit)
    found = stapes.train(
        hits,
        overrides=[*TINY, *MODES[mode], "training.validation_fraction=0.2"],
        out=tmp_path / "run",
        cache=cache,
    )
    split, n_clips = found.members[0].split, len(found.dataset)
    assert split.validation.size
    assert varied <= set(split.train.tolist())
    copies = 2 if mode == "all" else 1
    assert len(given[0].train) == copies * len(split.train)
    # The parts of two epochs; and validation after each, on originals.
    trained = [i for batch in taken for i in batch if i % n_clips in set(split.train.tolist())]
    assert len(trained) == 2 * copies * len(split.train)
    validated = [i for batch in taken for i in batch if i in set(split.validation.tolist())]
    assert sorted(validated) == sorted([*split.validation.tolist()] * 2)
    assert sum(map(len, taken)) == len(trained) + len(validated)
    if mode == "all":
        assert sorted(trained) == sorted([*given[0].train.tolist()] * 2), "each once an epoch"
        assert varied == set(split.train.tolist())
    np.testing.assert_array_equal(
        given[0].targets[given[0].train], np.tile(found.dataset.targets[split.train], copies)
    )


@pytest.mark.parametrize("mode", MODES)
def test_statistics_and_scores_are_of_originals(
    mode: str, hits: Path, cache: Path, plain: Any, tmp_path: Path
) -> None:
    found = stapes.train(hits, overrides=[*TINY, *MODES[mode]], out=tmp_path / "run", cache=cache)
    again = stapes.train(
        hits, overrides=[*TINY, *MODES[mode]], out=tmp_path / "again", cache=tmp_path / "empty"
    )
    for name, value in plain.members[0].bundle.normalizer.state_dict().items():
        assert torch.equal(value, found.members[0].bundle.normalizer.state_dict()[name])
    assert not _same(found, plain)
    assert _same(found, again), "the cache decides nothing"
    result = stapes.evaluate(found.model, found.members[0].folder / "test.csv", cache=tmp_path)
    np.testing.assert_allclose(result.probabilities, found.members[0].probabilities, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_run_ends_with_the_same_weights_to_the_bit(
    mode: str, hits: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str) -> Any:
        return stapes.train(hits, overrides=[*TINY, *MODES[mode]], out=tmp_path / name, cache=cache)

    whole = train("whole")
    monkeypatch.setattr("stapes.training.loop._SAVE_SECONDS", 0.0)
    monkeypatch.setattr("stapes.training.loop._SAVE_STEPS", 1)
    take, calls = WithVariants.take, 0

    def killed(self: WithVariants, indices: Any, windows: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls in (2, 5):
            raise KeyboardInterrupt
        return take(self, indices, windows)

    monkeypatch.setattr(WithVariants, "take", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train("stopped")
    assert _same(train("stopped"), whole)


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_is_estimated_from_originals(
    mode: str, hits: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stapes.training import loop

    estimated: list[Tensor] = []

    def watched(network: Any, batches: Any) -> None:
        estimated.extend(batches)

    monkeypatch.setattr(loop, "estimate_batch_norm", watched)
    equal = ("training.averaging=equal", "training.averaging_start_epoch=1")
    found = stapes.train(
        hits, overrides=[*TINY, *MODES[mode], *equal], out=tmp_path / "run", cache=cache
    )
    bundle, train = found.members[0].bundle, found.members[0].split.train
    store = FeatureStore(
        found.dataset.clips, found.scans, bundle.frontend, found.recipe.audio, cache
    )
    expected = bundle.normalizer(store.take(train, np.zeros(len(train), np.int64)))
    assert torch.equal(torch.cat(estimated), expected)
