"""When each layer of the C network computes, and where its maps lie.

The network computes depth first over time: ``chunk`` columns of the spectrogram go through all
layers, and each map keeps only the columns that will be needed again. How many that are at most is
found here by playing the schedule through, which depends on nothing but the layers and the number
of columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from stapes.deploy.c99.tables import Numbers
from stapes.models.quantized import ActivationQuantizer

__all__ = ["VECTOR", "Layer", "Map", "place_maps", "usual_chunk"]

# Cells of the largest vector.
VECTOR = 16
# Places of a chunk behind the stem that fit the first cache: more are no faster. And what part of
# them later layers wait for.
_PLACES = 256
_WORTH = 4


@dataclass(eq=False)
class Map:
    """A map of the network, as ``stapes_map`` of ``layers.h``."""

    channels: int
    rows: int
    bins: int
    columns: int
    level: int  # how often it was pooled; maps of a level share their pitch
    scale: float = 0.0
    zero: int = 0
    margin: int = 0
    gap: int = 0
    pitch: int = 0
    capacity: int = 0
    offset: int = 0

    @property
    def stride(self) -> int:
        """Cells between two rows."""
        return _aligned(self.capacity * self.pitch)

    @property
    def lead(self) -> int:
        """Cells that are kept for the zeros in front of the first bin."""
        return _aligned(self.gap)

    @property
    def cells(self) -> int:
        """Cells of the whole map."""
        return self.lead + self.rows * self.stride


@dataclass(eq=False)
class Layer:
    """A layer of the network, as ``stapes_layer`` of ``layers.h``."""

    name: str
    kind: str  # "CONVOLUTION", "SPARSE", "POOL" or "MEAN"
    source: Map
    target: Map | None
    columns: int
    reach: int = 1
    lead: int = 0
    step: int = 1
    batch: int = 1
    shortcut: Map | None = None
    relu: bool = False
    padding: int = 0  # along frequency
    numbers: Numbers | None = None
    levels: ActivationQuantizer | None = None  # of the sums, in front of a shortcut


def usual_chunk(n_bins: int) -> int:
    """Columns of a spectrogram of F = ``n_bins`` that are computed at once: enough to be fast."""
    # The stem halves both axes: places are bins / 2 times columns / 2.
    return 2 * max(1, _PLACES // (n_bins // 2))


def place_maps(maps: Sequence[Map], layers: Sequence[Layer], n_frames: int, chunk: int) -> int:
    """Decide sizes and addresses of all maps, and for how many columns a layer waits; in place.

    Args:
        maps: in the order of the network, those of a level together.
        layers: in the order of the network.
        n_frames: T of the spectrogram.
        chunk: columns of the spectrogram that go through the layers at once.

    Returns:
        The cells that all maps take.
    """
    for layer in layers:
        layer.source.gap = max(layer.source.gap, layer.padding)
    for _, level in itertools.groupby(maps, lambda one: one.level):
        members = list(level)
        gap = max(one.gap for one in members)
        for one in members:
            one.pitch = one.bins + gap
    # Behind a pooling there are few bins left: columns gather until they are worth a call.
    first = layers[0].target
    assert first is not None
    enough = min(_PLACES, chunk * first.pitch // 2) // _WORTH
    pooled = [one.target for one in layers if one.kind == "POOL"]
    for layer in layers:
        if layer.numbers is not None and layer.source in pooled:
            layer.batch = max(1, -(-enough // layer.source.pitch))
    most, kept = _play(maps, layers, n_frames, chunk)
    for one, columns in zip(maps, most, strict=True):
        one.capacity = columns
    lasting = [one for one, columns in zip(maps, kept, strict=True) if columns]
    end = 0
    for one in lasting:
        one.offset = end + one.lead
        end += one.cells
    end = _place_passing([one for one in maps if one not in lasting], layers, end)
    # What is free in front of them so that they begin where a vector does, and what a vector
    # may read behind them.
    return end + 2 * VECTOR


def _place_passing(maps: Sequence[Map], layers: Sequence[Layer], start: int) -> int:
    """Addresses of maps that are empty between chunks: two may share one while not both live.

    Returns:
        The first cell behind them.
    """
    life = {}
    for one in maps:
        uses = [
            i
            for i, layer in enumerate(layers)
            if one in (layer.source, layer.target, layer.shortcut)
        ]
        life[id(one)] = (min(uses), max(uses))
    ends: list[tuple[int, int, Map]] = []
    for one in sorted(maps, key=lambda m: -m.cells):
        first, last = life[id(one)]
        at = start
        for low, high, other in sorted(ends, key=lambda e: e[0]):
            apart = life[id(other)][1] < first or last < life[id(other)][0]
            if not apart and low < at + one.cells:
                at = max(at, high)
        one.offset = at + one.lead
        ends.append((at, at + one.cells, one))
    return max((high for _, high, _ in ends), default=start)


def _play(
    maps: Sequence[Map], layers: Sequence[Layer], n_frames: int, chunk: int
) -> tuple[list[int], list[int]]:
    """What ``network.c`` does with the columns of a window, without arithmetic.

    Returns:
        Of each map, the most columns that it holds, and the most that it keeps for later.
    """
    index = {id(one): i for i, one in enumerate(maps)}
    first = [-one.margin for one in maps]
    end = [0 for one in maps]
    end[0] = 1
    nexts = [0 for _ in layers]
    most = [e - f for e, f in zip(end, first, strict=True)]
    kept = list(most)
    frames = 0
    while frames < n_frames:
        frames = min(frames + chunk, n_frames)
        # One column of zeros before the first, and one behind the last.
        columns = frames + 1 + (frames == n_frames)
        end[0] = (columns + 1) // 2
        most[0] = max(most[0], end[0] - first[0])
        for i, layer in enumerate(layers):
            ready = (
                end[index[id(layer.source)]] + layer.lead - layer.reach + layer.step
            ) // layer.step
            ready = min(ready, layer.columns)
            if ready - nexts[i] < layer.batch and ready < layer.columns:
                continue
            nexts[i] = ready
            if layer.target is not None:
                target = index[id(layer.target)]
                end[target] = ready
                if ready == layer.columns:
                    end[target] += layer.target.margin
                most[target] = max(most[target], end[target] - first[target])
        needed = list(end)
        for i, layer in enumerate(layers):
            source = index[id(layer.source)]
            needed[source] = min(needed[source], nexts[i] * layer.step - layer.lead)
            if layer.shortcut is not None:
                other = index[id(layer.shortcut)]
                needed[other] = min(needed[other], nexts[i])
        for i, least in enumerate(needed):
            first[i] = max(first[i], least)
            kept[i] = max(kept[i], end[i] - first[i])
    return most, kept


def _aligned(cells: int) -> int:
    return -(-cells // VECTOR) * VECTOR
