"""The training loop: schedule, forward, backward, step, evaluate, save.

All randomness is a function of (seed, epoch, step, process), so a checkpoint needs no random
state and a resumed run continues to the same weights, bit for bit, on the same machine with the
same number of threads and processes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stapes.augment import Mixup, apply_mixup
from stapes.compression import Pruner
from stapes.config import Recipe
from stapes.errors import ConfigError, ModelFileError, StapesError
from stapes.features import BandNormalizer
from stapes.files import appending
from stapes.training.augmentation import augment_batch
from stapes.training.averaging import WeightAverage, estimate_batch_norm
from stapes.training.checkpoints import (
    Progress,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from stapes.training.groups import freeze_blocks, parameter_groups
from stapes.training.objective import (
    balanced_class_weights,
    distillation_loss,
    soft_cross_entropy,
)
from stapes.training.schedule import learning_rate

__all__ = ["ExampleSource", "Examples", "Teacher", "fit", "read_log"]

# A checkpoint is written at the end of an epoch when the last one is this old, and inside long
# epochs after this many steps. Neither changes the result.
_SAVE_SECONDS = 5.0
_SAVE_STEPS = 200

# First words of the seeds, so that streams never coincide (a seed's trailing zeros do not count).
_ORDER, _WINDOWS, _BATCH = 11, 12, 13


class ExampleSource(Protocol):
    """What the loop needs of the feature store."""

    def n_windows(self, index: int) -> int:
        """Windows of a clip."""

    def take(self, indices: NDArray[np.int64], windows: NDArray[np.int64]) -> Tensor:
        """Features (B, C, F, T), float32, before normalisation."""


class Teacher(Protocol):
    """What the loop needs of the models that teach (see :mod:`stapes.training.distillation`)."""

    @property
    def weight(self) -> float:
        """Part of the loss that is about them."""

    @property
    def temperature(self) -> float:
        """That they and the student are softened with."""

    def prepare(self, device: torch.device) -> None:
        """Compute what is computed once."""

    def take(
        self, indices: NDArray[np.int64], windows: NDArray[np.int64], mixup: Mixup | None
    ) -> Tensor:
        """Softened targets (B, K), float32, of what the source gives for the same numbers."""


@dataclass(frozen=True)
class Examples:
    """Clips to train on and to validate on.

    Attributes:
        source: gives features by clip index.
        targets: (M,) class of every clip of the source.
        train: indices of the training part.
        validation: indices of the validation part, may be empty.
        n_classes: K.
        frame_rate: spectrogram frames per second.
        decibel: (F,) what a band changes by when the sound gets one decibel louder.
        originals: clips of the source from this number on are variants of those before; none:
            there are none.
        teacher: models to learn from besides the labels; none: labels only.
    """

    source: ExampleSource
    targets: NDArray[np.int64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    n_classes: int
    frame_rate: float
    decibel: Tensor
    originals: int | None = None
    teacher: Teacher | None = None


def fit(
    network: nn.Module,
    normalizer: BandNormalizer,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    fingerprint: str,
    accelerator: Accelerator,
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a network in place, resuming from ``folder`` if a run was interrupted there.

    With ``recipe.pruning`` the network ends with its masks on (see
    :mod:`stapes.compression.masks`). Only epochs whose masks are final can be the best one, wait
    for a better one, or be part of an equal average: an earlier network is larger than asked for.

    Args:
        network: freshly built; ends with the final (averaged or best) weights.
        normalizer: fitted to the training part; stays as it is.
        examples: training and validation clips.
        recipe: resolved.
        seed: of all randomness in the loop.
        folder: where ``checkpoint.safetensors`` and ``log.jsonl`` live.
        fingerprint: of data, recipe and seed; a checkpoint of another run is refused.
        accelerator: device, precision and processes.
        on_step: called with (epochs done, epochs in all, fraction of the present epoch).
        on_epoch: called with each new row of the log.

    Returns:
        The log: one row per epoch with epoch, learning_rate, train_loss, train_accuracy,
        seconds, and validation_loss and validation_accuracy where there is a validation part.

    Raises:
        ConfigError: batches too small to be shared among the processes; a network that cannot be
            pruned as the recipe asks.
        StapesError: the loss is no longer a number; the disk is full.
        ModelFileError: the checkpoint or the log is damaged or belongs to another run.
    """
    config = recipe.training
    epochs = config.epochs
    if epochs == "auto":
        raise ValueError("the recipe must be resolved before training")
    n_batches = math.ceil(len(examples.train) / config.batch_size)
    if len(examples.train) // n_batches < accelerator.num_processes:
        raise ConfigError(
            f"training.batch_size = {config.batch_size}: batches of {len(examples.train)} clips "
            f"are too small for {accelerator.num_processes} processes; start fewer."
        )
    device, main = accelerator.device, accelerator.is_main_process
    normalizer.to(device)
    teacher = examples.teacher
    if teacher is not None:
        with accelerator.main_process_first():
            teacher.prepare(device)
    # A third faster or more on a CPU for these shapes.
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Before the network is wrapped and its state restored: masks are part of both.
    pruner = None
    if recipe.pruning.method != "none":
        pruner = Pruner(network, recipe.pruning, epochs)
    make = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    frozen = freeze_blocks(network, recipe.initialization.frozen_blocks)
    groups = parameter_groups(
        network, config.weight_decay, config.layer_decay, decay_all=config.decayed == "all"
    )
    optimizer: Any = make(groups, lr=config.learning_rate, fused=True)
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    # That gave the network a forward of low precision for good, and what is trained in it would be
    # scored, quantised and validated in it too. The step below says itself where it wants it.
    for name in ("forward", "_original_forward"):
        network.__dict__.pop(name, None)
    average = None
    if config.averaging != "none":
        average = WeightAverage(
            network, config.averaging_decay if config.averaging == "ema" else None
        )
    best: dict[str, Tensor] = {}
    class_weights = None
    if config.class_weighting == "balanced":
        class_weights = balanced_class_weights(
            examples.targets[examples.train], examples.n_classes
        ).to(device)

    checkpoint, log = folder / "checkpoint.safetensors", folder / "log.jsonl"
    progress = Progress()
    restored = load_checkpoint(checkpoint, fingerprint)
    _agree(restored[0] if restored is not None else progress, accelerator, folder)
    if restored is not None:
        progress, tensors = restored
        network.load_state_dict(_under("network.", tensors))
        restore_optimizer(optimizer, _under("optimizer.", tensors))
        if average is not None:
            average.load(_under("average.", tensors), progress.average_updates)
        best = _under("best.", tensors)
        if accelerator.scaler is not None and progress.scaler:
            accelerator.scaler.load_state_dict(progress.scaler)
        if not main:  # the stored sums are those of all processes together
            progress.loss_sum = progress.correct = 0.0
            progress.examples = 0
    history = _open_log(log, progress.log_bytes) if main else []

    def save(sums: Tensor) -> None:
        progress.loss_sum, progress.correct = float(sums[0]), float(sums[1])
        progress.examples = round(float(sums[2]))
        progress.average_updates = average.updates if average is not None else 0
        if accelerator.scaler is not None:
            progress.scaler = accelerator.scaler.state_dict()
        tensors = _prefixed("network.", network.state_dict())
        tensors |= _prefixed("optimizer.", optimizer_tensors(optimizer))
        tensors |= _prefixed("average.", average.state() if average is not None else {})
        tensors |= _prefixed("best.", best)
        save_checkpoint(checkpoint, fingerprint, progress, tensors)

    saved_at = started = time.monotonic()
    seconds_before = progress.seconds
    with torch.random.fork_rng(), _reproducible_convolutions():
        while not progress.finished:
            epoch = progress.epoch
            batches = _batches(examples, config.batch_size, seed, epoch)
            sums = torch.tensor(
                [progress.loss_sum, progress.correct, progress.examples],
                dtype=torch.float32 if device.type == "mps" else torch.float64,  # mps has no other
                device=device,
            )
            network.train()
            for module in frozen:
                module.eval()
            for step in range(progress.step, len(batches)):
                rate = learning_rate(config, epoch + step / len(batches))
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["rate_scale"]
                if pruner is not None:
                    pruner.update(epoch, step, len(batches))
                clips, windows = (
                    np.array_split(part, accelerator.num_processes)[accelerator.process_index]
                    for part in batches[step]
                )
                entropy = [_BATCH, seed, epoch, step, accelerator.process_index + 1]
                rng = np.random.default_rng(entropy)
                torch.manual_seed(int(rng.integers(2**63)))  # for networks with dropout
                x = examples.source.take(clips, windows).to(device, non_blocking=True)
                hard = torch.from_numpy(examples.targets[clips]).to(device)
                x, mixup = augment_batch(
                    x,
                    recipe.augment,
                    normalizer,
                    rng,
                    frame_rate=examples.frame_rate,
                    decibel=examples.decibel,
                )
                targets = F.one_hot(hard, examples.n_classes).float()
                if mixup is not None:
                    targets = apply_mixup(targets, mixup)
                with accelerator.autocast():
                    logits = wrapped(x)
                loss = soft_cross_entropy(
                    logits.float(),
                    targets,
                    label_smoothing=config.label_smoothing,
                    class_weights=class_weights,
                )
                if teacher is not None:
                    said = teacher.take(clips, windows, mixup)
                    taught = distillation_loss(logits.float(), said.to(device), teacher.temperature)
                    loss = torch.lerp(loss, taught, teacher.weight)
                # Processes get slices that may differ by one clip: weigh them so that the mean of
                # their gradients is the gradient of the whole batch.
                share = len(clips) * accelerator.num_processes / len(batches[step][0])
                accelerator.backward(loss * share)
                if config.gradient_clip is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), config.gradient_clip)
                optimizer.step()
                optimizer.zero_grad()
                if average is not None and config.averaging == "ema":
                    average.update(network)
                with torch.no_grad():
                    right = (logits.argmax(1) == hard).sum()
                    sums += torch.stack(
                        [loss.detach() * len(clips), right, hard.new_tensor(len(clips))]
                    )
                if on_step is not None:
                    on_step(epoch, epochs, (step + 1) / len(batches))
                if (step + 1) % _SAVE_STEPS == 0 and step + 1 < len(batches):
                    progress.step = step + 1
                    progress.seconds = seconds_before + time.monotonic() - started
                    reduced = accelerator.reduce(sums, reduction="sum")
                    _refuse_not_finite(float(reduced[0]), "training", epoch)
                    if main:
                        save(reduced)
                        saved_at = time.monotonic()

            total = accelerator.reduce(sums, reduction="sum").cpu()
            _refuse_not_finite(float(total[0]), "training", epoch)
            progress.epoch, progress.step = epoch + 1, 0
            settled = pruner is None or pruner.settled(progress.epoch, len(batches))
            if average is not None and config.averaging == "equal" and settled:
                since = progress.epoch - config.averaging_start_epoch
                if since > 0 and since % config.averaging_every_epochs == 0:
                    average.update(network)
            row: dict[str, Any] = {
                "epoch": progress.epoch,
                "learning_rate": rate,
                "train_loss": float(total[0] / total[2]),
                "train_accuracy": float(total[1] / total[2]),
            }
            if examples.validation.size:
                current = _evaluated_state(network, average)
                measured = torch.tensor(
                    _validate(network, current, normalizer, examples), device=device
                )
                loss_now, accuracy_now = broadcast(measured).tolist()
                _refuse_not_finite(loss_now, "validation", epoch)
                row |= {"validation_loss": loss_now, "validation_accuracy": accuracy_now}
                if settled and (progress.best_loss is None or loss_now < progress.best_loss):
                    progress.best_loss, progress.best_epoch = loss_now, progress.epoch
                    if config.early_stopping_epochs is not None:
                        best = {k: v.detach().clone() for k, v in current.items()}
            patience = config.early_stopping_epochs
            progress.finished = progress.epoch >= epochs or (
                patience is not None
                and settled
                and examples.validation.size > 0
                and progress.epoch - progress.best_epoch >= patience
            )
            progress.seconds = seconds_before + time.monotonic() - started
            row["seconds"] = round(progress.seconds, 3)
            if main:
                progress.log_bytes = _append(log, row)
                history.append(row)
                if on_epoch is not None:
                    on_epoch(row)
                if progress.finished or time.monotonic() - saved_at > _SAVE_SECONDS:
                    save(torch.zeros(3))
                    saved_at = time.monotonic()
            progress.loss_sum = progress.correct = 0.0
            progress.examples = 0

        if best:
            network.load_state_dict(best)
        elif average is not None and average.updates:
            network.load_state_dict(average.state())
            if config.averaging == "equal":
                estimate_batch_norm(
                    network, _plain_batches(examples, normalizer, config.batch_size)
                )
    network.eval()
    return history


def _refuse_not_finite(loss: float, part: str, epoch: int) -> None:
    if not math.isfinite(loss):
        raise StapesError(
            f"The {part} loss is no longer a finite number in epoch {epoch + 1}; lower "
            "training.learning_rate or set training.gradient_clip."
        )


def _batches(
    examples: Examples, batch_size: int, seed: int, epoch: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The epoch's batches as (clips, window of each clip), sizes equal to within one clip.

    Every clip comes once per epoch, long ones with one window drawn at random, so that a long
    recording does not outweigh a short one.
    """
    order = np.random.default_rng([_ORDER, seed, epoch + 1]).permutation(examples.train)
    counts = np.array([examples.source.n_windows(int(i)) for i in order])
    windows = np.random.default_rng([_WINDOWS, seed, epoch + 1]).integers(0, counts)
    n_batches = math.ceil(len(order) / batch_size)
    return list(
        zip(np.array_split(order, n_batches), np.array_split(windows, n_batches), strict=True)
    )


def _plain_batches(
    examples: Examples, normalizer: BandNormalizer, batch_size: int
) -> Iterator[Tensor]:
    """The training clips without augmentation and variants, first windows."""
    clips = examples.train
    if examples.originals is not None:
        clips = clips[clips < examples.originals]
    first = np.zeros(len(clips), dtype=np.int64)
    for start in range(0, len(first), batch_size):
        part = slice(start, start + batch_size)
        x = examples.source.take(clips[part], first[part])
        yield normalizer(x.to(normalizer.mean.device))


def _evaluated_state(network: nn.Module, average: WeightAverage | None) -> dict[str, Tensor]:
    return network.state_dict() if average is None or not average.updates else average.state()


@torch.no_grad()
def _validate(
    network: nn.Module, state: dict[str, Tensor], normalizer: BandNormalizer, examples: Examples
) -> tuple[float, float]:
    """Loss and accuracy of ``state`` on the first window of every validation clip."""
    training = network.training
    kept = {name: value.detach().clone() for name, value in network.state_dict().items()}
    loss = right = 0.0
    try:
        network.load_state_dict(state)
        network.eval()
        for start in range(0, len(examples.validation), 64):
            clips = examples.validation[start : start + 64]
            x = examples.source.take(clips, np.zeros(len(clips), dtype=np.int64))
            logits = network(normalizer(x.to(normalizer.mean.device))).float()
            targets = torch.from_numpy(examples.targets[clips]).to(logits.device)
            loss += float(F.cross_entropy(logits, targets, reduction="sum"))
            right += int((logits.argmax(1) == targets).sum())
    finally:
        network.load_state_dict(kept)
        network.train(training)
    return loss / len(examples.validation), right / len(examples.validation)


def _agree(progress: Progress, accelerator: Accelerator, folder: Path) -> None:
    """Refuse processes that would begin at different steps: they would wait for each other.

    Raises:
        StapesError: this process has another checkpoint than the first one, or none.
    """
    ours = [progress.epoch, progress.step]
    theirs = broadcast(torch.tensor(ours, device=accelerator.device)).tolist()
    if ours != theirs:
        raise StapesError(
            f"{folder}: the first process goes on from epoch {theirs[0] + 1}, this one from epoch "
            f"{ours[0] + 1}; --out has to be on storage that all machines share."
        )


class _reproducible_convolutions:
    """cuDNN picks the same algorithms every time while this is entered."""

    def __enter__(self) -> None:
        backend = torch.backends.cudnn
        self._before = (backend.deterministic, backend.benchmark)
        backend.deterministic, backend.benchmark = True, False

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self._before


def _open_log(path: Path, length: int) -> list[dict[str, Any]]:
    """Cut the log to the checkpoint's length (later rows will be written again) and read it."""
    with appending(path) as file:
        if file.tell() < length:
            raise ModelFileError(
                f"{path}: shorter than its checkpoint says; delete both to train from the start."
            )
        file.truncate(length)
    return read_log(path)


def _append(path: Path, row: dict[str, Any]) -> int:
    with appending(path) as file:
        file.write(json.dumps(row).encode() + b"\n")
        return file.tell()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a training log.

    Raises:
        ModelFileError: missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{path}: cannot read this training log ({error}); delete its folder to train again."
        ) from None


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
