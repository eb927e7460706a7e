"""What the blocks of networks make of the same recordings, compared block by block.

The feature map at the end of a block, (C, F', T') for one recording, becomes rows of C features:
one for each cell of a ``grid`` over frequency and time, the mean of the map over that cell. With
(1, 1), the default, that is one row for each recording, the mean over all positions: what two
networks know about the recordings, wherever in the spectrogram. With more cells, where counts, too.
Cells are shares of the map, so that maps of different sizes give rows for the same places; a map
with fewer positions than cells repeats some. Nothing larger than these rows is kept, whatever the
size of the maps.

(Raghu et al. take every position as an example of its own, which needs maps of equal size and, for
a first block of some 10 000 positions a clip, much memory; Kornblith et al. take every position of
every channel as a feature of its own.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from stapes.bundle import Bundle
from stapes.data import Clip
from stapes.errors import AudioError, DataError, StapesError
from stapes.explain.recordings import spectrograms
from stapes.explain.similarity import ConstantError, Representation, compare
from stapes.models.tracing import evaluating

__all__ = ["PairSimilarity", "Representations", "block_activations", "compare_representations"]

Floats = NDArray[np.float64]

_MEASURES = ("svcca", "linear_cka", "svcca_by_chance", "linear_cka_by_chance")


def block_activations(
    network: nn.Module,
    inputs: Tensor | Iterable[Tensor],
    blocks: Sequence[str] | None = None,
    *,
    grid: tuple[int, int] = (1, 1),
) -> dict[str, NDArray[np.float32]]:
    """What comes out of the blocks of a network.

    The network is run in evaluation mode without gradients and is not changed.

    Args:
        network: with ``forward_features``.
        inputs: normalised spectrograms (B, C, F, T), or batches of such.
        blocks: names of modules that give maps (B, C, F', T') or rows of tokens (B, T', C); none:
            those at which the network's blocks end.
        grid: cells over frequency and time.

    Returns:
        For each block (n, C): a row for each cell (frequency first, then time) of each input.

    Raises:
        StapesError: the network has no such module, does not use it, or it gives no map.
        ValueError: no inputs, or a grid below (1, 1).
    """
    if min(grid) < 1:
        raise ValueError(f"grid = {grid!r}: must be 1 or more along both axes")
    names = _block_names(network) if blocks is None else tuple(blocks)
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules:
            raise StapesError(
                f"'{name}': the network has no such module; its blocks end at "
                f"{', '.join(_block_names(network))}."
            )
    weights = next(network.parameters(), torch.zeros(()))
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with ExitStack() as stack:
        stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        for name in names:
            # Kept as rows at once: modules behind may change the map in place.
            handle = modules[name].register_forward_hook(
                lambda _module, _given, output, name=name: rows[name].append(
                    _rows(output, grid, name)
                )
            )
            stack.callback(handle.remove)
        n_batches = 0
        for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
            n_batches += 1
            x = batch.to(device=weights.device, dtype=torch.float32)
            network.forward_features(x)  # type: ignore[operator]
            for name in names:
                if len(rows[name]) < n_batches:
                    raise StapesError(f"'{name}': the network does not use this module.")
                del rows[name][n_batches:]  # used twice: its first output ends the block
    if not n_batches:
        raise ValueError("no inputs: at least one is needed")
    return {name: torch.cat(parts).numpy() for name, parts in rows.items()}


def _block_names(network: nn.Module) -> tuple[str, ...]:
    if not hasattr(network, "blocks"):
        raise StapesError("This network does not say where its blocks end.")
    names: tuple[str, ...] = network.blocks()  # type: ignore[operator]
    return names


def _rows(output: Any, grid: tuple[int, int], name: str) -> Tensor:
    """(B x cells, C) on the CPU of a map (B, C, F', T') or of tokens (B, T', C)."""
    if isinstance(output, Tensor) and output.ndim == 3:
        output = output.transpose(1, 2).unsqueeze(2)
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise StapesError(f"'{name}': this module gives no feature map.")
    cells = adaptive_avg_pool2d(output.float(), grid)  # (B, C, *grid)
    return cells.flatten(2).transpose(1, 2).flatten(0, 1).cpu()


@dataclass(frozen=True, eq=False)
class PairSimilarity:
    """Every block of one network against every block of another.

    Attributes:
        first: name of the one network.
        second: name of the other.
        svcca: (K, L), K blocks of the first and L of the second. NaN in a row or column: that
            block answers the same to all recordings.
        linear_cka: (K, L).
        svcca_by_chance: (K, L), see :mod:`stapes.explain.similarity`.
        linear_cka_by_chance: (K, L).
    """

    first: str
    second: str
    svcca: Floats
    linear_cka: Floats
    svcca_by_chance: Floats
    linear_cka_by_chance: Floats


@dataclass(frozen=True, eq=False)
class Representations:
    """Networks compared in pairs.

    Attributes:
        blocks: of each network, by its name: names of the modules at which its blocks end.
        features: of each network, for each of its blocks: channels.
        directions: of each network, for each of its blocks: singular directions that SVCCA keeps;
            0 where the block answers the same to all recordings.
        pairs: every two networks, in the order they were given.
        n_recordings: that the networks answered to.
        n_examples: rows that were compared: recordings times cells.
    """

    blocks: dict[str, tuple[str, ...]]
    features: dict[str, tuple[int, ...]]
    directions: dict[str, tuple[int, ...]]
    pairs: tuple[PairSimilarity, ...]
    n_recordings: int
    n_examples: int

    def matched(self, pair: PairSimilarity) -> tuple[str, ...]:
        """Blocks that both networks of a pair have at the same place; none: they differ in kind.

        The k-th of them is row and column k of the pair.
        """
        shared = []
        for one, other in zip(self.blocks[pair.first], self.blocks[pair.second], strict=False):
            if one != other:
                break
            shared.append(one)
        return tuple(shared)

    def summary(self) -> dict[str, object]:
        """All of it as plain JSON values."""
        return {
            "n_recordings": self.n_recordings,
            "n_examples": self.n_examples,
            "networks": {
                name: {
                    "blocks": list(self.blocks[name]),
                    "features": list(self.features[name]),
                    "directions": list(self.directions[name]),
                }
                for name in self.blocks
            },
            "pairs": [
                {"first": pair.first, "second": pair.second, **_matrices(pair)}
                for pair in self.pairs
            ],
        }


def _matrices(pair: PairSimilarity) -> dict[str, list[list[float | None]]]:
    return {
        measure: [
            [None if np.isnan(value) else float(value) for value in row]
            for row in getattr(pair, measure)
        ]
        for measure in _MEASURES
    }


def compare_representations(
    models: Mapping[str, Bundle],
    clips: Sequence[Clip | str | Path],
    *,
    grid: tuple[int, int] = (1, 1),
    variance: float = 0.99,
    unreadable: Callable[[AudioError], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Representations:
    """Compare what the blocks of models make of the same recordings, every two models.

    Args:
        models: two or more by name, such as one fine-tuned, the same with its first weights, and
            with random ones. Each hears the recordings through its own front end.
        clips: recordings; the middle window of each is used. As many as the widest block has
            channels, or more, give the clearest answer; values by chance tell how few are too few.
        grid: cells over frequency and time, see the module's text.
        variance: share that SVCCA keeps.
        unreadable: told about each recording that cannot be read, which is then left out; none:
            the first one is an error.
        progress: called with (clips done, clips in all), over all models.

    Raises:
        AudioError: a recording cannot be read.
        DataError: fewer than two recordings that can be read.
        StapesError: a network does not say where its blocks end, or gives values that are not
            finite.
        ValueError: fewer than two models, or another argument out of range.
    """
    if len(models) < 2:
        raise ValueError(f"{len(models)} models: two or more are needed")
    for bundle in models.values():  # before any work is done
        _block_names(bundle.network)
    left = dict(enumerate(clips))  # what can be read

    def heard(bundle: Bundle, number: int) -> Iterator[Tensor]:
        for done, (place, clip) in enumerate(list(left.items()), start=1):
            try:
                yield from spectrograms(bundle, [clip])
            except AudioError as error:
                if unreadable is None or number:  # rows are of the same recordings in all models
                    raise
                unreadable(error)
                del left[place]
            if progress is not None:
                progress(number * len(clips) + done, len(models) * len(clips))
        if len(left) < 2:
            raise DataError(
                f"Comparing networks needs two or more recordings, and {len(left)} can be read."
            )

    found: dict[str, list[Representation | None]] = {}
    features = {}
    for number, (name, bundle) in enumerate(models.items()):
        rows = block_activations(bundle.network, heard(bundle, number), grid=grid)
        found[name] = [_taken_apart(rows[block], variance, f"{name}, {block}") for block in rows]
        features[name] = tuple(part.shape[1] for part in rows.values())
    return Representations(
        blocks={name: tuple(_block_names(bundle.network)) for name, bundle in models.items()},
        features=features,
        directions={name: tuple(r.directions if r else 0 for r in found[name]) for name in models},
        pairs=tuple(_pair(a, found[a], b, found[b]) for a, b in combinations(models, 2)),
        n_recordings=len(left),
        n_examples=len(left) * grid[0] * grid[1],
    )


def _taken_apart(rows: NDArray[np.float32], variance: float, name: str) -> Representation | None:
    if not np.isfinite(rows).all():
        raise StapesError(f"{name}: gives values that are not finite; the model is damaged.")
    try:
        return Representation(rows, variance=variance)
    except ConstantError:
        return None


def _pair(
    first: str,
    rows: Sequence[Representation | None],
    second: str,
    columns: Sequence[Representation | None],
) -> PairSimilarity:
    found = np.full((len(_MEASURES), len(rows), len(columns)), np.nan)
    for k, one in enumerate(rows):
        for m, other in enumerate(columns):
            if one is not None and other is not None:
                similarity = compare(one, other)
                found[:, k, m] = [getattr(similarity, measure) for measure in _MEASURES]
    return PairSimilarity(first, second, *found)
