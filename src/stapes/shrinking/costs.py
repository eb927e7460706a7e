"""What a model costs: exact bytes of its file, and multiply-accumulates per second of audio.

A candidate's cost is known before it is trained. How many numbers its file holds follows from its
recipe; the network is built with no zeros but the pruned ones, which lie evenly over the layers.
That is the largest file that so many weights can give. With n weights in a layer, k of them left,
w bytes each, the layer takes

    min(w n, w k + ceil(n / 8))        (all values, or positions as bits and what is left)

This is concave in k, with the same slope for all layers up to the same part of n, so no other
distribution of a given sum over the layers takes more.

Pruned channels are different: a channel that goes takes norms and scales with it, and a different
number of products in every layer. For them the even distribution is a guess, and the trained
network is measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from stapes.bundle import Bundle, file_size
from stapes.compression import finish, prune, prune_channels
from stapes.compression.quantization import half_precision
from stapes.config import Recipe
from stapes.data import Split
from stapes.evaluation.metrics import Score, score
from stapes.features import BandNormalizer
from stapes.models import count_complexity
from stapes.models.quantized import int8_structure
from stapes.shrinking.limits import Limits
from stapes.training.members import Run

__all__ = ["Cost", "Gauge"]

# What the header of a trained model may hold more than that of an untrained one, compressed: how
# the reduction went, and numbers with other digits.
_HEADER_MARGIN = 300
# What uneven channels may cost more than even ones; trained ones were seen to stay below mostly.
_UNEVEN_BYTES, _UNEVEN_MACS = 1.01, 1.1
# The full score (confusion, classes) goes into the file if it takes less than this part of it.
_SCORE_PART = 0.03
# What the search says of itself in the file, of the usual length.
_ANY_SEARCH = {
    "file_bytes": 123_456,
    "macs_per_second": 12_345_678,
    "trials": 16,
    "trial": 12,
    "validation_clips": 123,
    "validation_accuracy": [0.8765, 0.8123, 0.9234],
}


@dataclass(frozen=True)
class Cost:
    """What a model costs on a device.

    Attributes:
        file_bytes: of the model file, header included.
        macs_per_second: multiply-accumulates per second of audio, zeros multiplied too.
        parameters: of the network, batch norm included.
        nonzero_parameters: those that are not zero.
    """

    file_bytes: int
    macs_per_second: float
    parameters: int
    nonzero_parameters: int


class Gauge:
    """Measures trained models and recipes, as they would be delivered.

    Args:
        run: the run to shrink.
        split: its split, whose test part will score the result.
        limits: what the model may cost.
        command: the command line, for the model file.
    """

    def __init__(self, run: Run, split: Split, limits: Limits, command: str) -> None:
        self._run, self._split, self._command = run, split, command
        self._limits = limits
        audio = run.recipe.audio
        assert not isinstance(audio.window_seconds, str)
        self._seconds = audio.window_seconds
        self._input = (
            1,
            run.frontend.out_channels(audio.channels),
            run.frontend.n_bins,
            run.frontend.n_frames(run.store.window),
        )
        self._known: dict[str, Cost] = {}
        teaching = run.teaching
        self._teachers = [] if teaching is None else teaching.describe(split.name)
        # A score has about as many digits whatever the predictions.
        self._any_score = self._of_chance()
        self._keep_score = self._score_fits()

    def expect(self, recipe: Recipe) -> Cost:
        """Cost of the model that a recipe will give, before it is trained.

        Never below the trained one's, except with pruned channels.

        Raises:
            ConfigError: the recipe asks to prune more than its network can lose.
        """
        key = recipe.model_dump_json(include={"model", "pruning", "quantization"})
        if key not in self._known:
            self._known[key] = self._expected(recipe)
        return self._known[key]

    def measure(self, bundle: Bundle) -> Cost:
        """Cost of a trained model, with the metadata that it will be delivered with."""
        facts = self.metadata(bundle.metadata, self._any_score, _ANY_SEARCH)
        return self._cost(replace(bundle, metadata=facts), bundle.network)

    def metadata(
        self, facts: Mapping[str, Any], scored: Score | None, search: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Metadata of the delivered model.

        Args:
            facts: of the trained model.
            scored: on the test part; none: there is none.
            search: how it was found.
        """
        kept = {**facts, "score": None, "command": self._command, "shrink": _shorter(dict(search))}
        data = dict(kept.get("data", {}))
        data["test_clips"] = len(self._split.test)
        kept["data"] = data
        if scored is not None:
            if self._keep_score:
                kept["score"] = _shorter(scored.to_json())
            kept["shrink"]["test_accuracy"] = _shorter(
                [scored.accuracy.value, scored.accuracy.low, scored.accuracy.high]
            )
        return kept

    def _expected(self, recipe: Recipe) -> Cost:
        network = replace(self._run, recipe=recipe).new_network(seed=0)
        _without_zeros(network)
        pruning = recipe.pruning
        if pruning.method == "magnitude":
            # Layer by layer, whatever the recipe's scope: see this module's header.
            network = finish(
                prune(
                    network,
                    scope="layer",
                    keep=pruning.keep,
                    keep_parameters=pruning.keep_parameters,
                )
            )
        elif pruning.method == "channels":
            network = prune_channels(
                network,
                scope="layer",
                keep=pruning.keep,
                keep_parameters=pruning.keep_parameters,
            )
        precision = recipe.quantization.precision
        stored = network
        if precision == "int8":
            stored = _int8(network)
        elif precision == "float16":
            stored = half_precision(network)
        normalizer = BandNormalizer(self._input[1], self._input[2])
        _without_zeros(normalizer)
        bundle = Bundle(
            self._run.frontend,
            normalizer,
            stored.eval(),
            self._run.dataset.labels,
            recipe,
            self.metadata(self._any_facts(), self._any_score, _ANY_SEARCH),
            precision,
        )
        cost = self._cost(bundle, network)
        bytes_, macs = cost.file_bytes + _HEADER_MARGIN, cost.macs_per_second
        if pruning.method == "channels":
            bytes_, macs = math.ceil(bytes_ * _UNEVEN_BYTES), macs * _UNEVEN_MACS
        return replace(cost, file_bytes=bytes_, macs_per_second=macs)

    def _cost(self, bundle: Bundle, network: nn.Module) -> Cost:
        count = count_complexity(network, self._input)
        return Cost(
            file_bytes=file_size(bundle),
            macs_per_second=count.macs / self._seconds,
            parameters=count.parameters,
            nonzero_parameters=count.nonzero_parameters,
        )

    def _of_chance(self) -> Score | None:
        part = self._split.test
        if not part.size:
            return None
        labels = self._run.dataset.labels
        chance = np.random.default_rng(0).dirichlet(np.ones(len(labels)), len(part))
        return score(chance, self._run.dataset.targets[part], self._run.groups[part], labels)

    def _score_fits(self) -> bool:
        if self._any_score is None or self._limits.file_bytes is None:
            return True
        text = json.dumps(_shorter(self._any_score.to_json()), separators=(",", ":"))
        return len(zlib.compress(text.encode(), 9)) <= _SCORE_PART * self._limits.file_bytes

    def _any_facts(self) -> dict[str, Any]:
        """As many and as long as those of a trained model."""
        digest = hashlib.sha256(b"any").hexdigest()
        dataset = self._run.dataset
        return {
            "fingerprint": digest,
            "seed": 0,
            "split": self._split.name,
            "data": {
                "name": dataset.name,
                "train_clips": len(self._split.train),
                "sha256": digest[::-1],
                "licence": dataset.licence,
                "citation": dataset.citation,
            },
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            **({"teachers": self._teachers} if self._teachers else {}),
        }


def _int8(network: nn.Module) -> nn.Module:
    """The structure of the quantised network with ones, and zeros where the network has them."""
    structure = int8_structure(network)
    _without_zeros(structure)
    for name, tensor in structure.state_dict().items():
        if tensor.dtype == torch.int8:
            layer = network.get_submodule(name.removesuffix(".weight"))
            tensor.mul_(cast(Tensor, layer.weight) != 0)  # as it computes: damped, masked
    return structure


@torch.no_grad()
def _without_zeros(module: nn.Module) -> None:
    """Fill parameters and buffers with ones: a fresh network's zeros would be stored as bits."""
    for tensor in module.state_dict().values():  # the tensors themselves, not copies
        tensor.fill_(1)


def _shorter(tree: Any) -> Any:
    """The same with four digits of every number that is not whole, to save bytes of the header."""
    if isinstance(tree, float):
        return float(f"{tree:.4g}")
    if isinstance(tree, dict):
        return {key: _shorter(value) for key, value in tree.items()}
    return [_shorter(value) for value in tree] if isinstance(tree, list | tuple) else tree
