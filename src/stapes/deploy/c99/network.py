"""The network's half of the C sources: maps, layers and weights as constant tables.

The C code (``source/network.c``) is the same for every CP-ResNet; what is generated is data. It
computes depth first over time: ``chunk`` columns of the spectrogram go through all layers, and each
map keeps only the columns that will be needed again. How many that are at most is found here by
playing the schedule through, which depends on nothing but the layers and the number of columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stapes.deploy.c99.part import Part
from stapes.deploy.c99.text import Values, comment, define, number, table
from stapes.errors import ConfigError
from stapes.models.cp_resnet import BasicBlock, CpResNet
from stapes.models.decomposition import DecomposedConv2d
from stapes.models.folding import fold_batch_norm
from stapes.models.quantized import ActivationQuantizer, QuantizedConv2d, is_quantized

__all__ = ["network_part"]

# Density of the weights below which the sparse form is faster, as measured with AVX-512, where the
# dense form gains most from the registers.
_SPARSE_BELOW = 0.4
# Cells of the largest vector.
_VECTOR = 16
# Places of a chunk behind the stem that fit the first cache: more are no faster. And what part of
# them later layers wait for.
_PLACES = 256
_WORTH = 4
_CELL = 4  # bytes
_NONE = 255
_MAX_JUMP = 65535


def network_part(
    network: nn.Module,
    n_bins: int,
    n_frames: int,
    *,
    chunk: int | None = None,
    sparse: bool | None = None,
) -> Part:
    """Constants of ``network.c`` for a CP-ResNet, float or int8.

    Args:
        network: with or without damping, masks and batch norms; it is not changed.
        n_bins: F of the spectrogram.
        n_frames: T of the spectrogram, of one window.
        chunk: columns that go through the network at once; fewer take less RAM and are slower;
            none: as many as it takes to be fast.
        sparse: whether layers hold and multiply only their weights that are not zero; none: those
            for which that is faster on a processor with vectors (int8 ones never: eight bits are
            multiplied many at a time; on one without, sparse is faster below a third or so).

    Raises:
        ConfigError: another network, a window that is too short for it, or a chunk out of range.
    """
    if not isinstance(network, CpResNet):
        raise ConfigError(
            f"C export: a network of the kind {type(network).__name__} has no C implementation; "
            "only cp_resnet has; export to ONNX."
        )
    if min(n_bins, n_frames) < network.min_input_size:
        raise ConfigError(
            f"C export: {n_bins} frequency bins and {n_frames} frames are too few: this network "
            f"needs {network.min_input_size} of each (a longer window, a shorter hop, more bands)."
        )
    if chunk is not None and not 1 <= chunk <= 4096:
        raise ConfigError(f"C export: chunk = {chunk}: 1 to 4096 columns are computed at once.")
    # The stem halves both axes.
    chunk = chunk or 2 * max(1, _PLACES // (n_bins // 2))
    return _Program(network, n_bins, n_frames, chunk, sparse).part()


@dataclass(eq=False)
class _Map:
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
        return _aligned(self.capacity * self.pitch)

    @property
    def lead(self) -> int:
        """Cells that are kept for the zeros in front of the first bin."""
        return _aligned(self.gap)

    @property
    def cells(self) -> int:
        return self.lead + self.rows * self.stride


@dataclass(eq=False)
class _Layer:
    """A layer of the network, as ``stapes_layer`` of ``layers.h``."""

    name: str
    kind: str  # "CONVOLUTION", "SPARSE", "POOL" or "MEAN"
    source: _Map
    target: _Map | None
    columns: int
    reach: int = 1
    lead: int = 0
    step: int = 1
    batch: int = 1
    shortcut: _Map | None = None
    relu: bool = False
    padding: int = 0  # along frequency
    numbers: _Numbers | None = None
    levels: ActivationQuantizer | None = None  # of the sums, in front of a shortcut


@dataclass
class _Numbers:
    """Numbers of a convolution as the executor reads them.

    Attributes:
        weight: (C_out, rows, taps) float32, or (C_out, rows, taps, 4) int8 with C_out a multiple
            of 4; rows of the input that are ``stride`` rows apart.
        places: of each tap, row, column and bin.
        bias: (C_out,)
        sums: int8: (C_out,), each channel's weights added up.
        factors: int8: (C_out,), what a unit of the integer sums stands for.
    """

    weight: NDArray[np.generic]
    places: list[tuple[int, int, int]]
    stride: int
    bias: NDArray[np.float32]
    sums: NDArray[np.int32] | None = None
    factors: NDArray[np.float32] | None = None


@dataclass
class _Tables:
    """The constant arrays that all layers share."""

    weights: list[NDArray[np.generic]] = field(default_factory=list)
    biases: list[NDArray[np.float32]] = field(default_factory=list)
    starts: list[NDArray[np.int32]] = field(default_factory=list)
    factors: list[NDArray[np.float32]] = field(default_factory=list)
    taps: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    jumps: list[int] = field(default_factory=list)


class _Program:
    """A network as maps and layers.

    Args:
        network, n_bins, n_frames, chunk, sparse: as :func:`network_part`.
    """

    def __init__(
        self, network: CpResNet, n_bins: int, n_frames: int, chunk: int, sparse: bool | None
    ) -> None:
        self.n_frames, self.chunk, self.sparse = n_frames, chunk, sparse
        self.int8 = is_quantized(network)
        self.network = network if self.int8 else fold_batch_norm(network)
        self.maps: list[_Map] = []
        self.layers: list[_Layer] = []
        features = self._walk(n_bins)
        self._place()
        # In int8 four channels lie together, the last of them with some that do not exist.
        self.features = 4 * features.rows if self.int8 else features.rows
        # With times, totals, lead and frames.
        self.ram = _CELL * (self.cells + 2 * len(self.maps) + len(self.layers) + self.features + 2)

    # --- from modules to layers ---------------------------------------------------------------

    def _walk(self, n_bins: int) -> _Map:
        """Lay the network out; returns the feature map."""
        x = self._stem(n_bins)
        for stage in ("stage1", "stage2", "stage3"):
            for name, part in self.network.get_submodule(stage).named_children():
                if isinstance(part, BasicBlock):
                    x = self._block(f"{stage}.{name}", part, x)
                else:
                    assert isinstance(part, nn.MaxPool2d)
                    x = self._pool(f"{stage}.{name}", x)
        self.layers.append(_Layer("mean", "MEAN", x, None, x.columns))
        return x

    def _map(
        self, channels: int, bins: int, columns: int, level: int, levels: nn.Module | None
    ) -> _Map:
        rows = -(-channels // 4) if self.int8 else channels
        made = _Map(channels, rows, bins, columns, level)
        if self.int8:
            assert isinstance(levels, ActivationQuantizer)
            made.scale, made.zero = _level(levels)
        self.maps.append(made)
        return made

    def _stem(self, n_bins: int) -> _Map:
        conv = self.network.get_submodule("stem.conv")
        relu = self.network.get_submodule("stem.relu")
        assert isinstance(conv, nn.Conv2d | QuantizedConv2d)
        weight = conv.weight.detach().cpu().numpy()
        assert weight.shape[2:] == (5, 5)
        bins, columns = ((n - 1) // 2 for n in (n_bins, self.n_frames))
        # Even and odd places lie apart, four parts for each channel.
        size = 4 * self.network.in_channels, max(n_bins // 2 + 1, bins + 2), columns + 2
        levels = conv.input if isinstance(conv, QuantizedConv2d) else None
        x = self._map(*size, -1, levels)
        y = self._map(len(weight), bins, columns, 0, relu)
        numbers = self._stem_numbers(conv, weight)
        self.layers.append(
            _Layer("stem", "CONVOLUTION", x, y, columns, reach=3, relu=True, numbers=numbers)
        )
        return y

    def _block(self, name: str, block: BasicBlock, x: _Map) -> _Map:
        y = self._convolve(f"{name}.conv1", block.conv1, x, block.relu1)
        shortcut = x
        if not isinstance(block.shortcut, nn.Identity):
            conv = block.shortcut.get_submodule("conv")
            shortcut = self._convolve(f"{name}.shortcut", conv, x)
        return self._convolve(f"{name}.conv2", block.conv2, y, block.relu2, shortcut=shortcut)

    def _convolve(
        self,
        name: str,
        conv: nn.Module,
        x: _Map,
        relu: nn.Module | None = None,
        *,
        shortcut: _Map | None = None,
    ) -> _Map:
        """A convolution, a shortcut to be added to it, and a ReLU or the quantiser in its place."""
        if isinstance(conv, DecomposedConv2d):
            x = self._convolve(f"{name}.reduce", conv.reduce, x)
            x = self._convolve(f"{name}.core", conv.core, x)
            return self._convolve(f"{name}.expand", conv.expand, x, relu, shortcut=shortcut)
        if not isinstance(conv, nn.Conv2d | QuantizedConv2d) or not _keeps_size(conv):
            raise ConfigError(
                f"C export: {name}, {conv}, has no C implementation; only convolutions have that "
                "cp_resnet makes by itself; export to ONNX."
            )
        levels = conv.output if isinstance(conv, QuantizedConv2d) else None
        weight = conv.weight.detach().cpu().numpy()
        high, wide = weight.shape[2:]
        y = self._map(len(weight), x.bins, x.columns, x.level, relu or levels)
        x.margin = max(x.margin, wide // 2)
        self.layers.append(
            _Layer(
                name,
                "SPARSE" if self._is_sparse(weight) else "CONVOLUTION",
                x,
                y,
                x.columns,
                reach=wide,
                lead=wide // 2,
                shortcut=shortcut,
                relu=relu is not None,
                padding=high // 2,
                numbers=self._numbers(conv, weight),
                levels=levels if shortcut else None,
            )
        )
        return y

    def _is_sparse(self, weight: NDArray[np.generic]) -> bool:
        if self.sparse is not None:
            return self.sparse
        return not self.int8 and int(np.count_nonzero(weight)) < _SPARSE_BELOW * weight.size

    def _numbers(self, conv: nn.Conv2d | QuantizedConv2d, weight: NDArray[np.generic]) -> _Numbers:
        """Of a convolution of stride 1."""
        high, wide = weight.shape[2:]
        places = [(0, t, f) for t in range(wide) for f in range(high)]
        weight = weight.transpose(0, 1, 3, 2).reshape(*weight.shape[:2], high * wide)
        if self.int8:
            weight = _fours(_fours(weight, 0), 1)
            weight = weight.reshape(len(weight), -1, 4, high * wide).swapaxes(2, 3)
        return _with_bias(conv, weight, places, 1)

    def _stem_numbers(
        self, conv: nn.Conv2d | QuantizedConv2d, weight: NDArray[np.generic]
    ) -> _Numbers:
        """Of the stem: tap (f, t) reads part 2 (f % 2) + t % 2."""
        channels, inside = weight.shape[:2]
        taps = [(f, t) for t in range(5) for f in range(5)]
        if not self.int8:
            places = [(2 * (f % 2) + t % 2, t // 2, f // 2) for f, t in taps]
            return _with_bias(
                conv, weight.transpose(0, 1, 3, 2).reshape(channels, inside, 25), places, 4
            )
        parts = np.zeros((channels, inside, 3, 3, 4), np.int8)
        for f, t in taps:
            parts[:, :, t // 2, f // 2, 2 * (f % 2) + t % 2] = weight[:, :, f, t]
        parts = _fours(parts.reshape(channels, inside, 9, 4), 0)
        return _with_bias(conv, parts, [(0, t, f) for t in range(3) for f in range(3)], 1)

    def _pool(self, name: str, x: _Map) -> _Map:
        y = _Map(x.channels, x.rows, x.bins // 2, x.columns // 2, x.level + 1, x.scale, x.zero)
        self.maps.append(y)
        self.layers.append(_Layer(name, "POOL", x, y, y.columns, reach=2, step=2))
        return y

    # --- where maps lie -----------------------------------------------------------------------

    def _place(self) -> None:
        """Decide sizes and addresses of all maps."""
        for layer in self.layers:
            layer.source.gap = max(layer.source.gap, layer.padding)
        for _, maps in itertools.groupby(self.maps, lambda one: one.level):
            members = list(maps)
            gap = max(one.gap for one in members)
            for one in members:
                one.pitch = one.bins + gap
        # Behind a pooling there are few bins left: columns gather until they are worth a call.
        first = self.layers[0].target
        assert first is not None
        enough = min(_PLACES, self.chunk * first.pitch // 2) // _WORTH
        pooled = [one.target for one in self.layers if one.kind == "POOL"]
        for layer in self.layers:
            if layer.numbers is not None and layer.source in pooled:
                layer.batch = max(1, -(-enough // layer.source.pitch))
        most, kept = self._play()
        for one, columns in zip(self.maps, most, strict=True):
            one.capacity = columns
        lasting = [one for one, columns in zip(self.maps, kept, strict=True) if columns]
        end = 0
        for one in lasting:
            one.offset = end + one.lead
            end += one.cells
        end = self._place_passing([one for one in self.maps if one not in lasting], end)
        # What is free in front of them so that they begin where a vector does, and what a vector
        # may read behind them.
        self.cells = end + 2 * _VECTOR

    def _place_passing(self, maps: list[_Map], start: int) -> int:
        """Addresses of maps that are empty between chunks: two may share one while not both live.

        Returns:
            The first cell behind them.
        """
        life = {}
        for one in maps:
            uses = [
                i
                for i, layer in enumerate(self.layers)
                if one in (layer.source, layer.target, layer.shortcut)
            ]
            life[id(one)] = (min(uses), max(uses))
        ends: list[tuple[int, int, _Map]] = []
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

    def _play(self) -> tuple[list[int], list[int]]:
        """What ``network.c`` does with the columns of a window, without arithmetic.

        Returns:
            Of each map, the most columns that it holds, and the most that it keeps for later.
        """
        index = {id(one): i for i, one in enumerate(self.maps)}
        first = [-one.margin for one in self.maps]
        end = [0 for one in self.maps]
        end[0] = 1
        nexts = [0 for _ in self.layers]
        most = [e - f for e, f in zip(end, first, strict=True)]
        kept = list(most)
        frames = 0
        while frames < self.n_frames:
            frames = min(frames + self.chunk, self.n_frames)
            # One column of zeros before the first, and one behind the last.
            columns = frames + 1 + (frames == self.n_frames)
            end[0] = (columns + 1) // 2
            most[0] = max(most[0], end[0] - first[0])
            for i, layer in enumerate(self.layers):
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
            for i, layer in enumerate(self.layers):
                source = index[id(layer.source)]
                needed[source] = min(needed[source], nexts[i] * layer.step - layer.lead)
                if layer.shortcut is not None:
                    other = index[id(layer.shortcut)]
                    needed[other] = min(needed[other], nexts[i])
            for i, least in enumerate(needed):
                first[i] = max(first[i], least)
                kept[i] = max(kept[i], end[i] - first[i])
        return most, kept

    # --- text ---------------------------------------------------------------------------------

    def part(self) -> Part:
        """The tables as C."""
        tables = _Tables()
        maps = [_map_entry(one) for one in self.maps]
        layers = [self._layer_entry(one, tables) for one in self.layers]
        arrays: list[tuple[str, str, str, Values]] = [
            ("", "int32_t", "taps", tables.taps),
            ("", "int8_t" if self.int8 else "float", "weights", _joined(tables.weights)),
            ("", "float", "biases", _joined(tables.biases)),
            ("", "uint16_t", "counts", tables.counts or [0]),
            ("", "uint16_t", "jumps", tables.jumps or [0]),
            *self._head(),
        ]
        if self.int8:
            arrays += [
                ("", "int32_t", "starts", _joined(tables.starts)),
                ("", "float", "factors", _joined(tables.factors)),
            ]
        flash = sum(_SIZES[kind] * len(values) for _, kind, _, values in arrays)
        flash += _MAP_BYTES * len(maps) + _LAYER_BYTES * len(layers)
        header = [
            "/* --- network --- */\n",
            "#include <stdint.h>\n",
            define("STAPES_INT8", self.int8, "uint8 levels and int8 weights, not float32"),
            define("STAPES_CHUNK", self.chunk, "columns that are computed at once"),
            define("STAPES_MAPS", len(maps)),
            define("STAPES_LAYERS", len(layers)),
            define("STAPES_CELLS", self.cells, "of all maps, four bytes each"),
            define("STAPES_ALIGNMENT", _CELL * _VECTOR, "bytes"),
            define("STAPES_FEATURES", self.features),
            "",
            define("STAPES_NETWORK_RAM", self.ram),
            define("STAPES_NETWORK_FLASH", flash),
            "",
        ]
        source = [
            "/* --- network --- */\n",
            '#include "layers.h"\n',
            _entries("stapes_map", "maps", "STAPES_MAPS", maps),
            _entries("stapes_layer", "layers", "STAPES_LAYERS", layers),
        ]
        source += [
            (comment(said) + "\n" if said else "") + table(kind, name, values)
            for said, kind, name, values in arrays
        ]
        return Part("\n".join(header), "\n".join(source), flash=flash, ram=self.ram)

    def _head(self) -> list[tuple[str, str, str, Values]]:
        """The head, for totals over the places of the feature map in place of its means."""
        conv = self.network.get_submodule("head.conv")
        assert isinstance(conv, nn.Conv2d | QuantizedConv2d)
        features = self.layers[-1].source
        weight = conv.weight.detach().cpu().double().numpy()[:, :, 0, 0]
        if isinstance(conv, QuantizedConv2d):
            weight = _fours(weight, 1) * conv.multiplier().cpu().double().numpy()[:, None]
        weight = weight / (features.bins * features.columns)
        return [
            ("", "float", "head", weight.astype(np.float32).reshape(-1)),
            ("", "float", "head_bias", _bias(conv)),
        ]

    def _layer_entry(self, layer: _Layer, tables: _Tables) -> str:
        index = {id(one): i for i, one in enumerate(self.maps)}
        x, y = layer.source, layer.target
        fields: dict[str, int | str] = {
            "kind": f"STAPES_{layer.kind}",
            "in": index[id(x)],
            "out": _NONE if y is None else index[id(y)],
            "shortcut": _NONE if layer.shortcut is None else index[id(layer.shortcut)],
            "relu": int(layer.relu),
            "reach": layer.reach,
            "lead": layer.lead,
            "step": layer.step,
            "batch": layer.batch,
            "columns": layer.columns,
        }
        if layer.levels is not None:
            scale, fields["zero"] = _level(layer.levels)
            fields["scale"] = number("float", scale)
        if layer.numbers is not None:
            fields |= self._fill(layer, layer.numbers, tables)
        text = ", ".join(f".{key} = {value}" for key, value in fields.items())
        return f"    {comment(layer.name)}\n    {{{text}}},"

    def _fill(self, layer: _Layer, numbers: _Numbers, tables: _Tables) -> dict[str, int]:
        """Append a convolution's numbers to the tables; returns where."""
        x, weight = layer.source, numbers.weight
        offsets = [row * x.stride + column * x.pitch + f for row, column, f in numbers.places]
        fields = {
            "padding": layer.padding,
            "in_rows": weight.shape[1],
            "out_rows": len(weight) // 4 if self.int8 else len(weight),
            "in_stride": numbers.stride * x.stride,
            "first_weight": sum(part.size for part in tables.weights),
            "first_bias": sum(part.size for part in tables.biases),
        }
        tables.biases.append(numbers.bias)
        if numbers.sums is not None and numbers.factors is not None:
            tables.starts.append(-x.zero * numbers.sums)
            tables.factors.append(numbers.factors)
        if layer.kind == "SPARSE":
            fields |= {"first_count": len(tables.counts), "first_jump": len(tables.jumps)}
            places = np.arange(weight.shape[1])[:, None] * fields["in_stride"] + np.array(offsets)
            if self.int8:
                places = 4 * places[..., None] + np.arange(4)
            _pack_sparse(weight, places.reshape(-1), tables)
        else:
            fields |= {"taps": len(offsets), "first_tap": len(tables.taps)}
            tables.taps += offsets
            tables.weights += _fours_of(weight) if self.int8 else _groups(weight)
        return fields


_SIZES = {"int8_t": 1, "uint16_t": 2, "int32_t": 4, "float": 4}
# Of stapes_map and stapes_layer.
_MAP_BYTES = 28
_LAYER_BYTES = 52


def _aligned(cells: int) -> int:
    return -(-cells // _VECTOR) * _VECTOR


def _level(quantizer: ActivationQuantizer) -> tuple[float, int]:
    return float(quantizer.scale), int(quantizer.zero_point)


def _keeps_size(conv: nn.Conv2d | QuantizedConv2d) -> bool:
    """Whether a convolution has stride 1 and as many zeros around its input as keep the size."""
    if isinstance(conv, QuantizedConv2d):
        return True  # those of cp_resnet, whose settings rebuild no other
    high, wide = conv.kernel_size
    return (
        (high % 2, wide % 2) == (1, 1)
        and (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
        and (conv.padding, conv.padding_mode) == ((high // 2, wide // 2), "zeros")
    )


def _bias(conv: nn.Conv2d | QuantizedConv2d) -> NDArray[np.float32]:
    if conv.bias is None:
        return np.zeros(len(conv.weight), np.float32)
    bias: NDArray[np.float32] = conv.bias.detach().cpu().numpy()
    return bias


def _with_bias(
    conv: nn.Conv2d | QuantizedConv2d,
    weight: NDArray[np.generic],
    places: list[tuple[int, int, int]],
    stride: int,
) -> _Numbers:
    if not isinstance(conv, QuantizedConv2d):
        return _Numbers(weight, places, stride, _bias(conv))
    factors = conv.multiplier().cpu().numpy()
    sums = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.int32)
    return _Numbers(weight, places, stride, _fours(_bias(conv), 0), sums, _fours(factors, 0))


def _fours(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Zeros behind the last along an axis, up to a multiple of four."""
    more = [(0, 0)] * values.ndim
    more[axis] = (0, -values.shape[axis] % 4)
    return np.pad(values, more)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([part.reshape(-1) for part in parts])


def _groups(weight: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Groups of 8 output channels, then of 4, 2 and 1 for the rest, innermost: (rows, taps, 8)."""
    start = 0
    while start < len(weight):
        size = next(size for size in (8, 4, 2, 1) if size <= len(weight) - start)
        yield np.moveaxis(weight[start : start + size], 0, -1)
        start += size


def _fours_of(weight: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """Groups of 4 output channels, each (rows, taps, 4, 4)."""
    return [np.moveaxis(weight[i : i + 4], 0, -2) for i in range(0, len(weight), 4)]


def _pack_sparse(weight: NDArray[np.generic], places: NDArray[np.int64], tables: _Tables) -> None:
    """Append the weights that are not zero, and how far their places lie apart.

    Args:
        weight: (C_out, ...).
        places: of the weights of a channel, flat.
        tables: to append to.
    """
    order = np.argsort(places)
    values: list[np.generic] = []
    for row in weight.reshape(len(weight), -1)[:, order]:
        at, before = 0, len(values)
        for place, value in zip(places[order][row != 0], row[row != 0], strict=True):
            # A weight of zero on the way where one jump does not reach.
            while place - at > _MAX_JUMP:
                values.append(row.dtype.type(0))
                tables.jumps.append(_MAX_JUMP)
                at += _MAX_JUMP
            values.append(value)
            tables.jumps.append(int(place) - at)
            at = int(place)
        tables.counts.append(len(values) - before)
    tables.weights.append(np.array(values, dtype=weight.dtype))


def _map_entry(one: _Map) -> str:
    fields: dict[str, int | str] = {
        "offset": one.offset,
        "stride": one.stride,
        "rows": one.rows,
        "bins": one.bins,
        "pitch": one.pitch,
        "gap": one.gap,
        "margin": one.margin,
        "columns": one.columns,
        "scale": number("float", one.scale),
        "zero": one.zero,
    }
    text = ", ".join(f".{key} = {value}" for key, value in fields.items())
    return f"    {{{text}}},"


def _entries(kind: str, name: str, count: str, entries: Sequence[str]) -> str:
    lines = "\n".join(entries)
    return f"const {kind} stapes_{name}[{count}] = {{\n{lines}\n}};\n"
