from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import BANDS, CLASSES, FRAMES, Planted, fit_planted
from torch import nn

from stapes.compression import finish, prune, remove_channels
from stapes.compression.masks import prunable_layers
from stapes.config import Recipe, load_recipe
from stapes.errors import ConfigError, ModelFileError, StapesError
from stapes.features import BandNormalizer
from stapes.models import count_complexity, create_model
from stapes.training.devices import make_accelerator
from stapes.training.loop import Examples, fit


def _recipe(*overrides: str) -> Recipe:
    return load_recipe(
        "small",
        ["training.epochs=4", "training.batch_size=8", "augment.time_masks=1",
         "augment.frequency_masks=1", *overrides],
    )  # fmt: skip


def _network() -> nn.Module:
    torch.manual_seed(1)
    return create_model(
        "cp_resnet", n_classes=CLASSES, in_channels=1, rho=2, width=4, blocks=(2, 0, 0),
        damping=0.1,
    )  # fmt: skip


def _fit(
    folder: Path,
    recipe: Recipe,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
    validation: int = 0,
    fingerprint: str = "x",
    seed: int = 0,
    network: nn.Module | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    network = network or _network()
    history = fit_planted(
        network, folder, recipe, on_step=on_step, validation=validation, fingerprint=fingerprint,
        seed=seed,
    )  # fmt: skip
    return network, history


def _same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def _without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def test_it_learns_what_is_planted(tmp_path: Path) -> None:
    network, history = _fit(
        tmp_path,
        _recipe("training.epochs=40", "training.learning_rate=0.02", "augment.mixup_alpha=0"),
    )
    source = Planted()
    with torch.inference_mode():
        logits = network(torch.from_numpy(source.x[:, 0]))
    assert (logits.argmax(1).numpy() == source.targets).mean() > 0.9
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert [row["epoch"] for row in history] == list(range(1, 41))
    assert [
        json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ] == history


VARIANTS = {
    "ema": ("training.averaging=ema",),
    "equal": ("training.averaging=equal", "training.averaging_start_epoch=1"),
    "early": ("training.early_stopping_epochs=2", "training.validation_fraction=0.2"),
    "plain": ("training.averaging=none", "training.optimizer=adam", "training.gradient_clip=1.0"),
    "pruned": ("pruning.method=magnitude", "pruning.keep=0.4", "pruning.ramp_epochs=2.3"),
    "pruned for good": (
        "pruning.method=magnitude", "pruning.keep=0.4", "pruning.ramp_epochs=2",
        "pruning.returning=false", "training.averaging=equal", "training.averaging_start_epoch=1",
    ),
    "channels": (
        "pruning.method=channels", "pruning.keep=0.6", "pruning.start_epoch=0.4",
        "pruning.ramp_epochs=1.9",
    ),
    "channels for good": (
        "pruning.method=channels", "pruning.keep=0.6", "pruning.ramp_epochs=2",
        "pruning.returning=false", "pruning.scope=layer", "training.early_stopping_epochs=1",
        "training.validation_fraction=0.2",
    ),
    "balanced": ("training.class_weighting=balanced", "training.label_smoothing=0.1"),
    "layers": (
        "training.layer_decay=0.5", "initialization.frozen_blocks=1", "training.averaging=equal",
        "training.averaging_start_epoch=1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_ends_with_the_same_weights_to_the_bit(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Save at every chance, also inside epochs (here: after every second batch).
    monkeypatch.setattr("stapes.training.loop._SAVE_SECONDS", 0.0)
    monkeypatch.setattr("stapes.training.loop._SAVE_STEPS", 2)
    recipe = _recipe(*VARIANTS[variant])
    validation = 6 if "training.early_stopping_epochs" in " ".join(VARIANTS[variant]) else 0
    whole, history = _fit(tmp_path / "whole", recipe, validation=validation)

    steps_until_stop = iter([1, 3, 4, 7, 2])

    class Killed(BaseException):
        pass

    for limit in steps_until_stop:
        seen = 0

        def stop(*_: object, limit: int = limit) -> None:
            nonlocal seen
            seen += 1
            if seen == limit:
                raise Killed

        try:
            _fit(tmp_path / "stopped", recipe, on_step=stop, validation=validation)
        except Killed:
            continue
        break
    resumed, resumed_history = _fit(tmp_path / "stopped", recipe, validation=validation)
    assert _same(whole, resumed)
    assert _without_time(resumed_history) == _without_time(history)
    # A finished run started again gives the same weights without training.
    again, _ = _fit(tmp_path / "stopped", recipe, on_step=stop, validation=validation)
    assert _same(whole, again)


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    a, _ = _fit(tmp_path / "a", _recipe())
    torch.rand(5)  # other random state outside
    b, _ = _fit(tmp_path / "b", _recipe())
    c, _ = _fit(tmp_path / "c", _recipe(), seed=1)
    assert _same(a, b)
    assert not _same(a, c)


def test_training_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    _network()  # seeds; so does the one that _fit builds before it trains
    before = torch.get_rng_state()
    _fit(tmp_path, _recipe())
    assert torch.equal(torch.get_rng_state(), before)


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    recipe = _recipe(
        "training.epochs=40", "training.learning_rate=0.05", "training.early_stopping_epochs=3",
        "training.validation_fraction=0.2", "training.averaging=none",
    )  # fmt: skip
    network, history = _fit(tmp_path, recipe, validation=9)
    losses = [row["validation_loss"] for row in history]
    best = int(np.argmin(losses))
    assert len(history) == best + 1 + 3 or len(history) == 40
    source = Planted()
    with torch.inference_mode():
        logits = network(torch.from_numpy(source.x[:9, 0]))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(source.targets[:9]))
    assert float(loss) == pytest.approx(losses[best], rel=1e-4)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    _fit(tmp_path, _recipe(), fingerprint="one")
    with pytest.raises(ModelFileError, match="other data, recipe or seed"):
        _fit(tmp_path, _recipe(), fingerprint="two")


def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    _fit(tmp_path, _recipe())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelFileError, match="damaged checkpoint"):
        _fit(tmp_path, _recipe())


def test_an_exploding_loss_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StapesError, match="lower training"):
        _fit(tmp_path, _recipe("training.learning_rate=1e30", "training.schedule=constant"))


def test_accelerator_refuses_a_device_that_is_not_there() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(StapesError, match="--device mps: not available"):
        make_accelerator("mps", "auto")
    with pytest.raises(StapesError, match="float16"):
        make_accelerator("cpu", "float16")


def test_without_a_validation_part_nothing_stops_early(tmp_path: Path) -> None:
    recipe = _recipe("training.early_stopping_epochs=1", "training.validation_fraction=0.2")
    _, history = _fit(tmp_path, recipe)
    assert len(history) == 4


def test_a_full_disk_under_the_log_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stapes.training.loop.json.dumps", full)
    with pytest.raises(StapesError, match=r"log\.jsonl: the disk is full"):
        _fit(tmp_path, _recipe())


def test_a_log_that_does_not_fit_its_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    _fit(tmp_path, _recipe())
    log = tmp_path / "log.jsonl"
    content = log.read_bytes()
    log.write_bytes(content[:-5])
    with pytest.raises(ModelFileError, match="shorter than its checkpoint"):
        _fit(tmp_path, _recipe())
    log.write_bytes(b"?" * len(content))
    with pytest.raises(ModelFileError, match="cannot read this training log"):
        _fit(tmp_path, _recipe())


def test_batches_too_small_for_the_processes_are_refused(tmp_path: Path) -> None:
    class Five:
        num_processes = 5

    with pytest.raises(ConfigError, match="too small for 5 processes"):
        fit(
            _network(), BandNormalizer(1, BANDS),
            Examples(
                Planted(), Planted().targets, np.arange(9), np.arange(0), CLASSES, 10.0,
                torch.ones(BANDS),
            ),
            _recipe("training.batch_size=4"), seed=0, folder=tmp_path, fingerprint="x",
            accelerator=Five(),  # type: ignore[arg-type]
        )  # fmt: skip


def test_a_machine_that_lacks_the_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where --out is a folder of each machine's own: the first process is in its third epoch."""
    monkeypatch.setattr("stapes.training.loop.broadcast", lambda _: torch.tensor([2, 0]))
    with pytest.raises(StapesError, match="goes on from epoch 3, this one from epoch 1; --out has"):
        _fit(tmp_path, _recipe())


def test_a_second_run_may_choose_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_accelerator("cpu", "float32").device == torch.device("cpu")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu:0")
    assert make_accelerator("cpu", "float32").device == torch.device("cpu:0")
    monkeypatch.undo()
    assert make_accelerator("cpu", "float32").device == torch.device("cpu")


def _left(network: nn.Module) -> int:
    return count_complexity(network, (1, 1, BANDS, FRAMES)).nonzero_parameters


AVERAGING = {
    "none": ("training.averaging=none",),
    "ema": ("training.averaging=ema",),
    # Snapshots of every third epoch: the last one is older than the final masks.
    "equal": ("training.averaging=equal", "training.averaging_every_epochs=3"),
    "best": ("training.early_stopping_epochs=9", "training.validation_fraction=0.2"),
    "best of ema": (
        "training.averaging=ema", "training.early_stopping_epochs=9",
        "training.validation_fraction=0.2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("ramp_epochs", [0, 2.3, 4, 7])
@pytest.mark.parametrize("averaging", AVERAGING)
def test_pruning_ends_at_the_target_whatever_is_averaged(
    tmp_path: Path, averaging: str, ramp_epochs: float
) -> None:
    total = sum(p.numel() for p in _network().parameters())
    recipe = _recipe(
        "training.epochs=7", "pruning.method=magnitude", "pruning.keep=0.4",
        f"pruning.ramp_epochs={ramp_epochs}", *AVERAGING[averaging],
    )  # fmt: skip
    validation = 6 if averaging.startswith("best") else 0
    network, _ = _fit(tmp_path, recipe, validation=validation)
    assert _left(network) == int(0.4 * total)
    x = torch.from_numpy(Planted().x[:, 0])
    with torch.inference_mode():
        before = network(x)
        torch.testing.assert_close(finish(network)(x), before, rtol=0, atol=1e-5)
    assert _left(network) == int(0.4 * total)


def test_channels_pruned_in_training_can_be_taken_out(tmp_path: Path) -> None:
    recipe = _recipe(
        "training.epochs=6", "pruning.method=channels", "pruning.keep=0.5",
        "pruning.ramp_epochs=3",
    )  # fmt: skip
    network, _ = _fit(tmp_path, recipe)
    total = sum(p.numel() for p in _network().parameters())
    x = torch.from_numpy(Planted().x[:, 0])
    smaller = remove_channels(network)
    assert 0.4 * total < sum(p.numel() for p in smaller.parameters()) <= 0.5 * total
    with torch.inference_mode():
        torch.testing.assert_close(smaller(x), network(x), rtol=1e-5, atol=1e-5)


def test_only_epochs_after_the_ramp_can_be_the_best(tmp_path: Path) -> None:
    """The dense network is better at first, and patience is shorter than the ramp."""
    recipe = _recipe(
        "training.epochs=12", "training.learning_rate=0.05", "training.averaging=none",
        "training.early_stopping_epochs=2", "training.validation_fraction=0.2",
        "training.schedule=constant", "pruning.method=magnitude", "pruning.keep_parameters=60",
        "pruning.start_epoch=5", "pruning.ramp_epochs=2",
    )  # fmt: skip
    network, history = _fit(tmp_path, recipe, validation=9)
    losses = [row["validation_loss"] for row in history]
    assert min(losses[:5]) < min(losses[7:])  # else this test shows nothing
    # Masks are final from the first step of epoch 8 on.
    best = 7 + int(np.argmin(losses[7:]))
    assert len(history) == min(best + 1 + 2, 12)
    assert _left(network) == 60
    source = Planted()
    with torch.inference_mode():
        logits = network(torch.from_numpy(source.x[:9, 0]))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(source.targets[:9]))
    assert float(loss) == pytest.approx(losses[best], rel=1e-4)


def test_a_target_out_of_reach_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pruning\.keep_parameters = 5: the network needs"):
        _fit(
            tmp_path,
            _recipe(
                "pruning.method=magnitude", "pruning.keep_parameters=5", "pruning.ramp_epochs=1"
            ),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_network_pruned_in_one_shot_is_fine_tuned_with_its_zeros(tmp_path: Path) -> None:
    network = prune(_network(), keep=0.5)
    zeros = [layer.weight == 0 for layer in prunable_layers(network).values()]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    _fit(tmp_path, _recipe(), network=network)
    for layer, zero in zip(prunable_layers(network).values(), zeros, strict=True):
        assert torch.equal(layer.weight == 0, zero)
    assert not any(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert _left(network) == sum(p.numel() for p in _network().parameters()) // 2
