"""What happens to a trained network before it is scored and stored: pruning is made final, and the
precision becomes that of the device."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from stapes.compression import (
    finish,
    finish_qat,
    half_precision,
    prepare_qat,
    remove_channels,
)
from stapes.config import PruningConfig, Recipe
from stapes.features import BandNormalizer
from stapes.models import count_complexity
from stapes.training.loop import Examples, fit
from stapes.training.reporter import Reporter

__all__ = ["discard_reduction", "reduce_network"]

_AWARE = "aware"  # subfolder of the fine-tuning's checkpoint
_LARGEST_DROP = 0.005  # half a point
_MOST_JUDGED = 512  # training clips that judge the drop where there is no validation part
_BATCH = 32

# First word of the seed that draws calibration clips.
_CALIBRATION = 21


def reduce_network(
    network: nn.Module,
    normalizer: BandNormalizer,
    examples: Examples,
    recipe: Recipe,
    *,
    parameters: int,
    seed: int,
    folder: Path,
    fingerprint: str,
    accelerator: Accelerator,
    reporter: Reporter,
) -> tuple[nn.Module, dict[str, Any]]:
    """Make pruning final and change the precision as the recipe says.

    Args:
        network: trained, on the CPU; not used any more afterwards.
        normalizer: of its inputs, on the CPU.
        examples: what it was trained on; calibrates the activations and judges the drop.
        recipe: resolved.
        parameters: of the network before anything was pruned.
        seed: draws the calibration clips, and of a fine-tuning.
        folder: where a fine-tuning keeps its checkpoint.
        fingerprint: of the run.
        accelerator: for a fine-tuning.
        reporter: told about progress.

    Returns:
        The network in evaluation mode, and what was done, as plain values for the model file.
    """
    facts: dict[str, Any] = {}
    if recipe.pruning.method != "none":
        network = finish(network)
        if recipe.pruning.method == "channels":
            network = remove_channels(network)
        shape = next(_inputs(examples.train[:1], normalizer, examples)).shape
        facts["pruning"] = {
            "method": recipe.pruning.method,
            "parameters_before": parameters,
            "parameters_after": count_complexity(network, shape).nonzero_parameters,
        }
    precision = recipe.quantization.precision
    if precision == "float16":
        network = half_precision(network)
    elif precision == "int8":

        def tune(aware: nn.Module, fine: Recipe) -> None:
            (folder / _AWARE).mkdir(parents=True, exist_ok=True)
            fit(
                aware,
                normalizer,
                examples,
                fine,
                seed=seed,
                folder=folder / _AWARE,
                fingerprint=fingerprint,
                accelerator=accelerator,
                on_step=lambda done, total, part: reporter.progress(
                    "Fine-tuning for int8", done + part, total
                ),
            )
            normalizer.cpu().eval()

        network, facts["quantization"] = _to_int8(
            network, normalizer, examples, recipe, seed=seed, tune=tune
        )
    return network.eval(), facts


def discard_reduction(folder: Path) -> None:
    """Remove what :func:`reduce_network` kept for being resumed."""
    shutil.rmtree(folder / _AWARE, ignore_errors=True)


def _to_int8(
    network: nn.Module,
    normalizer: BandNormalizer,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    tune: Callable[[nn.Module, Recipe], None],
) -> tuple[nn.Module, dict[str, Any]]:
    """The int8 network, fine-tuned by ``tune`` where that is due, and what it cost."""
    config = recipe.quantization
    # Ranges come from clips that the network was trained on: never from the test part.
    drawn = np.random.default_rng([_CALIBRATION, seed]).permutation(examples.train)
    batches = list(_inputs(drawn[: config.calibration_clips], normalizer, examples))
    aware = prepare_qat(network, batches)
    quantized = finish_qat(aware)  # what quantize gives; fine-tuning starts exactly there
    judges = examples.validation if examples.validation.size else drawn[:_MOST_JUDGED]
    accuracy = _accuracy(network, judges, normalizer, examples)
    facts: dict[str, Any] = {
        "judged_on": "validation" if examples.validation.size else "training",
        "accuracy_before": accuracy,
        "accuracy_after": _accuracy(quantized, judges, normalizer, examples),
        "aware_epochs": 0,
    }
    drop = accuracy - facts["accuracy_after"]
    if config.aware == "always" or (config.aware == "auto" and drop > _LARGEST_DROP):
        training = recipe.training.model_copy(
            update={
                "epochs": config.aware_epochs,
                "learning_rate": config.aware_learning_rate,
                "schedule": "cosine",
                "warmup_epochs": 0.0,
                "constant_epochs": 0.0,
                "decay_end_epoch": None,
                "averaging": "none",
                "early_stopping_epochs": None,
            }
        )
        tune(aware, recipe.model_copy(update={"training": training, "pruning": PruningConfig()}))
        aware.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        tuned = finish_qat(aware)
        found = _accuracy(tuned, judges, normalizer, examples)
        # A few epochs can also do harm: then what was calibrated stays.
        if config.aware == "always" or found > facts["accuracy_after"]:
            quantized = tuned
            facts |= {"accuracy_after": found, "aware_epochs": config.aware_epochs}
    return quantized, facts


def _inputs(
    clips: NDArray[np.int64], normalizer: BandNormalizer, examples: Examples
) -> Iterator[Tensor]:
    """Normalised first windows in batches."""
    for start in range(0, len(clips), _BATCH):
        part = clips[start : start + _BATCH]
        x: Tensor = normalizer(examples.source.take(part, np.zeros(len(part), dtype=np.int64)))
        yield x


@torch.inference_mode()
def _accuracy(
    network: nn.Module, clips: NDArray[np.int64], normalizer: BandNormalizer, examples: Examples
) -> float:
    network.eval()
    found = torch.cat([network(x).argmax(1) for x in _inputs(clips, normalizer, examples)])
    return float((found.numpy() == examples.targets[clips]).mean())
