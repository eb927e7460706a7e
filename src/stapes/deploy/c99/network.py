"""The network's half of the C sources: maps, layers and weights as constant tables.

The C code (``source/network.c``) is the same for every CP-ResNet; what is generated is data. It
computes depth first over time (see :mod:`~stapes.deploy.c99.schedule`). Here a network is laid out
as layers between maps, and written as C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stapes.deploy.c99.part import Part
from stapes.deploy.c99.schedule import VECTOR, Layer, Map, place_maps, usual_chunk
from stapes.deploy.c99.tables import (
    Tables,
    convolution_numbers,
    head_numbers,
    joined,
    stem_numbers,
)
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
_CELL = 4  # bytes
_NONE = 255


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
    return _Program(network, n_bins, n_frames, chunk or usual_chunk(n_bins), sparse).part()


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
        self.maps: list[Map] = []
        self.layers: list[Layer] = []
        features = self._walk(n_bins)
        self.cells = place_maps(self.maps, self.layers, n_frames, chunk)
        # In int8 four channels lie together, the last of them with some that do not exist.
        self.features = 4 * features.rows if self.int8 else features.rows
        # With times, totals, lead and frames.
        self.ram = _CELL * (self.cells + 2 * len(self.maps) + len(self.layers) + self.features + 2)

    # --- from modules to layers ---------------------------------------------------------------

    def _walk(self, n_bins: int) -> Map:
        """Lay the network out; returns the feature map."""
        x = self._stem(n_bins)
        for stage in ("stage1", "stage2", "stage3"):
            for name, part in self.network.get_submodule(stage).named_children():
                if isinstance(part, BasicBlock):
                    x = self._block(f"{stage}.{name}", part, x)
                else:
                    assert isinstance(part, nn.MaxPool2d)
                    x = self._pool(f"{stage}.{name}", x)
        self.layers.append(Layer("mean", "MEAN", x, None, x.columns))
        return x

    def _map(
        self, channels: int, bins: int, columns: int, level: int, levels: nn.Module | None
    ) -> Map:
        rows = -(-channels // 4) if self.int8 else channels
        made = Map(channels, rows, bins, columns, level)
        if self.int8:
            assert isinstance(levels, ActivationQuantizer)
            made.scale, made.zero = _level(levels)
        self.maps.append(made)
        return made

    def _stem(self, n_bins: int) -> Map:
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
        numbers = stem_numbers(conv, weight)
        self.layers.append(
            Layer("stem", "CONVOLUTION", x, y, columns, reach=3, relu=True, numbers=numbers)
        )
        return y

    def _block(self, name: str, block: BasicBlock, x: Map) -> Map:
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
        x: Map,
        relu: nn.Module | None = None,
        *,
        shortcut: Map | None = None,
    ) -> Map:
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
            Layer(
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
                numbers=convolution_numbers(conv, weight),
                levels=levels if shortcut else None,
            )
        )
        return y

    def _is_sparse(self, weight: NDArray[np.generic]) -> bool:
        if self.sparse is not None:
            return self.sparse
        return not self.int8 and int(np.count_nonzero(weight)) < _SPARSE_BELOW * weight.size

    def _pool(self, name: str, x: Map) -> Map:
        y = Map(x.channels, x.rows, x.bins // 2, x.columns // 2, x.level + 1, x.scale, x.zero)
        self.maps.append(y)
        self.layers.append(Layer(name, "POOL", x, y, y.columns, reach=2, step=2))
        return y

    # --- text ---------------------------------------------------------------------------------

    def part(self) -> Part:
        """The tables as C."""
        tables = Tables()
        maps = [_map_entry(one) for one in self.maps]
        layers = [self._layer_entry(one, tables) for one in self.layers]
        conv = self.network.get_submodule("head.conv")
        assert isinstance(conv, nn.Conv2d | QuantizedConv2d)
        features = self.layers[-1].source
        head, head_bias = head_numbers(conv, features.bins * features.columns)
        arrays: list[tuple[str, str, Values]] = [
            ("int32_t", "taps", tables.taps),
            ("int8_t" if self.int8 else "float", "weights", joined(tables.weights)),
            ("float", "biases", joined(tables.biases)),
            ("uint16_t", "counts", tables.counts or [0]),
            ("uint16_t", "jumps", tables.jumps or [0]),
            ("float", "head", head),
            ("float", "head_bias", head_bias),
        ]
        if self.int8:
            arrays += [
                ("int32_t", "starts", joined(tables.starts)),
                ("float", "factors", joined(tables.factors)),
            ]
        flash = sum(_SIZES[kind] * len(values) for kind, _, values in arrays)
        flash += _MAP_BYTES * len(maps) + _LAYER_BYTES * len(layers)
        header = [
            "/* --- network --- */\n",
            "#include <stdint.h>\n",
            define("STAPES_INT8", self.int8, "uint8 levels and int8 weights, not float32"),
            define("STAPES_CHUNK", self.chunk, "columns that are computed at once"),
            define("STAPES_MAPS", len(maps)),
            define("STAPES_LAYERS", len(layers)),
            define("STAPES_CELLS", self.cells, "of all maps, four bytes each"),
            define("STAPES_ALIGNMENT", _CELL * VECTOR, "bytes"),
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
        source += [table(kind, name, values) for kind, name, values in arrays]
        return Part("\n".join(header), "\n".join(source), flash=flash, ram=self.ram)

    def _layer_entry(self, layer: Layer, tables: Tables) -> str:
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
            fields["padding"] = layer.padding
            fields |= tables.add(
                layer.numbers,
                stride=x.stride,
                pitch=x.pitch,
                zero=x.zero,
                sparse=layer.kind == "SPARSE",
            )
        text = ", ".join(f".{key} = {value}" for key, value in fields.items())
        return f"    {comment(layer.name)}\n    {{{text}}},"


_SIZES = {"int8_t": 1, "uint16_t": 2, "int32_t": 4, "float": 4}
# Of stapes_map and stapes_layer.
_MAP_BYTES = 28
_LAYER_BYTES = 52


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


def _map_entry(one: Map) -> str:
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
