"""What a network costs: parameters, bytes, activations, multiply-accumulate operations.

Counting rules. Challenges for small networks have counted in two ways, and a pruned network looks
very different in them, so both are given and named:

- DCASE 2020, task 1B: parameters that are not zero (``nonzero_parameters``), and their bytes.
- DCASE since 2022, task 1: all parameters and all multiply-accumulate operations (``parameters``,
  ``macs``); a zero is stored and multiplied like any other weight.

One multiply-accumulate operation (MAC) is one product of a weight, or of another value of a matrix
product, with an activation, those with the zeros around a map included. Additions of biases,
normalisation, pooling and pointwise operations are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from stapes.models.tracing import meta_input, run_on_meta

__all__ = ["Complexity", "LayerComplexity", "count_complexity"]


@dataclass(frozen=True, slots=True)
class LayerComplexity:
    """Cost of one layer: a module with parameters of its own, or with multiplications.

    Attributes:
        name: as in ``named_modules``.
        kind: its class.
        output_shape: of its last call, batch included.
        parameters: trainable or not, without those of its submodules.
        nonzero_parameters: those that the layer computes with and that are not zero.
        macs: multiply-accumulate operations of all its calls, without its submodules'.
        nonzero_macs: the same, without those with a weight of zero.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    nonzero_parameters: int
    macs: int
    nonzero_macs: int

    @property
    def output_bytes(self) -> int:
        """Of its last output, at four bytes a value."""
        return 4 * math.prod(self.output_shape)


@dataclass(frozen=True, slots=True)
class Complexity:
    """Cost of a network.

    Bytes are those of the tensors; names, settings and labels of a model file come on top. A
    ``sparse`` size stores each kernel (weights of two or more axes) as one bit for each position
    and its non-zero values, where that is smaller than all of its values. Weights that are stored
    as 8-bit integers take one byte in every column.

    Attributes:
        parameters: trainable or not, batch norm included; a shared one counts once.
        nonzero_parameters: of the weights that the network computes with, so that damped and
            pruned weights count as what they are after folding.
        bytes_float32: parameters and batch-norm statistics at four bytes each.
        bytes_float32_sparse: the same, zeros stored as bits.
        bytes_float16: the same at two bytes, the normalisation layers at four (their statistics
            do not fit half precision).
        bytes_float16_sparse: the same, zeros stored as bits.
        bytes_int8: as after quantisation: kernels of two-dimensional convolutions and linear
            layers at one byte a weight, with a scale and a bias of four bytes for each of their
            output channels. A batch norm that reads what such a layer made, alone, goes into
            those and takes nothing; another one keeps a scale and a shift. All else at four
            bytes. The scales of activations, five bytes each, are known once they are there.
        bytes_int8_sparse: the same, zeros stored as bits.
        macs: multiply-accumulate operations for the given input, zeros multiplied too.
        nonzero_macs: without those with a weight of zero.
        peak_activation_bytes: most bytes of activations that are needed at once, at four bytes a
            value, while the operations run one after the other: a result from the operation that
            makes it to the last one that reads it, the input and the output of the network
            included. Views and operations in place take nothing of their own. A runtime that
            computes in eight bits needs a quarter. What a real runtime adds (working memory of
            its kernels, fragmentation) or saves (fusing, tiling) is its own.
        layers: one by one, in the order of use.
    """

    parameters: int
    nonzero_parameters: int
    bytes_float32: int
    bytes_float32_sparse: int
    bytes_float16: int
    bytes_float16_sparse: int
    bytes_int8: int
    bytes_int8_sparse: int
    macs: int
    nonzero_macs: int
    peak_activation_bytes: int
    layers: tuple[LayerComplexity, ...]


def count_complexity(model: nn.Module, input_shape: Sequence[int]) -> Complexity:
    """Count what a network costs for one input.

    >>> cost = count_complexity(nn.Conv2d(2, 4, 3, padding=1), (1, 2, 10, 10))
    >>> cost.parameters, cost.macs, cost.peak_activation_bytes
    (76, 7200, 2400)

    Args:
        model: any network that takes one tensor. It is not changed.
        input_shape: of that tensor, batch included; MACs and activations are for the whole batch.
    """
    modules = dict(model.named_modules())
    x = meta_input(model, input_shape)
    integers = {name: found for name, module in modules.items() if (found := _eight_bits(module))}
    roundings = {name for name, found in integers.items() if "weight" not in found}
    watcher = _Watcher(x, set(integers), roundings)
    shapes: dict[str, tuple[int, ...]] = {}

    def leave(name: str, output: Any) -> None:
        watcher.leave(name, output)
        if isinstance(output, Tensor):
            shapes.pop(name, None)  # the order is that of the last call
            shapes[name] = tuple(output.shape)

    output = run_on_meta(model, x, watcher, enter=watcher.enter, leave=leave)
    watcher.keep(output)
    folded = {
        norm
        for norm, layers in watcher.norms.items()
        if len(layers) == 1 and isinstance(modules.get(layers[0] or ""), nn.Conv2d | nn.Linear)
    }
    stored = {name: _stored(module, name in folded) for name, module in modules.items()}
    layers = []
    for name, shape in shapes.items():
        own = [tensor for tensor in stored[name] if tensor.is_parameter]
        parameters = sum(tensor.numel for tensor in own)
        macs = watcher.macs.get(name, 0)
        if parameters or macs:
            layers.append(
                LayerComplexity(
                    name=name,
                    kind=parametrize.type_before_parametrizations(modules[name]).__name__,
                    output_shape=shape,
                    parameters=parameters,
                    nonzero_parameters=sum(tensor.nonzero for tensor in own),
                    macs=macs,
                    nonzero_macs=_nonzero_macs(macs, own),
                )
            )
    once = {tensor.identity: tensor for own in stored.values() for tensor in own}
    tensors = list(once.values())
    return Complexity(
        parameters=sum(tensor.numel for tensor in tensors if tensor.is_parameter),
        nonzero_parameters=sum(tensor.nonzero for tensor in tensors if tensor.is_parameter),
        bytes_float32=sum(tensor.dense(0) for tensor in tensors),
        bytes_float32_sparse=sum(tensor.sparse(0) for tensor in tensors),
        bytes_float16=sum(tensor.dense(1) for tensor in tensors),
        bytes_float16_sparse=sum(tensor.sparse(1) for tensor in tensors),
        bytes_int8=sum(tensor.dense(2) for tensor in tensors),
        bytes_int8_sparse=sum(tensor.sparse(2) for tensor in tensors),
        macs=sum(watcher.macs.values()),
        nonzero_macs=sum(
            _nonzero_macs(macs, [t for t in stored.get(name, ()) if t.is_parameter])
            for name, macs in watcher.macs.items()
        ),
        peak_activation_bytes=watcher.peak_bytes(),
        layers=tuple(layers),
    )


@dataclass(frozen=True, slots=True)
class _Stored:
    """One tensor of a network.

    Attributes:
        identity: the same for a tensor that is shared.
        numel: number of its values.
        nonzero: of the values that the network computes with.
        is_parameter: and not a statistic or a scale.
        widths: bytes a value in float32, float16 and int8.
        extra: bytes that come with it in int8.
    """

    identity: int
    numel: int
    nonzero: int
    is_parameter: bool
    is_kernel: bool
    widths: tuple[int, int, int]
    extra: int

    def dense(self, column: int) -> int:
        return self.numel * self.widths[column] + (self.extra if column == 2 else 0)

    def sparse(self, column: int) -> int:
        dense = self.dense(column)
        if not self.is_kernel:
            return dense
        zeros = (self.numel - self.nonzero) * self.widths[column]
        return min(dense, dense - zeros + math.ceil(self.numel / 8))


def _stored(module: nn.Module, folded: bool) -> list[_Stored]:
    """Tensors of a module's own; ``folded``: it disappears when the network is quantised."""
    parameters = _own_parameters(module)
    buffers = {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set and buffer.is_floating_point()
    }
    integers = _eight_bits(module)
    buffers |= integers
    if any(buffer.dtype == torch.int8 for buffer in integers.values()):
        # A quantised layer: what was its weight and its bias.
        parameters |= {n: b for n, b in buffers.items() if b.dtype == torch.int8 or n == "bias"}
    stored = []
    for name, tensor in (buffers | parameters).items():
        is_parameter = name in parameters
        with torch.no_grad():
            nonzero = int(torch.count_nonzero(getattr(module, name)))
        int8, extra = _int8_bytes(module, name, folded)
        widths = (4, 4 if isinstance(module, _NORMS) else 2, int8)
        stored.append(
            _Stored(
                identity=id(tensor),
                numel=tensor.numel(),
                nonzero=nonzero,
                is_parameter=is_parameter,
                is_kernel=is_parameter and tensor.ndim > 1,
                widths=(1, 1, 1) if name in integers else widths,
                extra=extra,
            )
        )
    return stored


def _int8_bytes(module: nn.Module, name: str, folded: bool) -> tuple[int, int]:
    """Bytes of each value after quantisation, and of what comes with the tensor."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        channels = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        # A scale and a bias for each output channel; the bias that was there is that one.
        return (1, 8 * channels) if name == "weight" else (0, 0)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        # In evaluation two numbers a channel: weight and bias go into the statistics.
        learned = name in ("weight", "bias") and module.running_mean is not None
        return 0 if folded or learned else 4, 0
    return 4, 0


def _eight_bits(module: nn.Module) -> dict[str, Tensor]:
    """Buffers of 8-bit integers: a layer or a rounding that was quantised."""
    return {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.dtype in (torch.int8, torch.uint8)
    }


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by the name that the module computes with; for a parametrized one the raw one."""
    if isinstance(module, parametrize.ParametrizationList):
        return {}  # listed under the weight that it makes
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    if parametrize.is_parametrized(module):
        for name, stacked in module.get_submodule("parametrizations").named_children():
            own[name] = stacked.get_parameter("original")
    return own


def _nonzero_macs(macs: int, own: Sequence[_Stored]) -> int:
    kernels = [tensor for tensor in own if tensor.is_kernel]
    # Each weight of a kernel is used equally often; without one, activations are multiplied.
    return macs * kernels[0].nonzero // kernels[0].numel if len(kernels) == 1 else macs


@dataclass(slots=True)
class _Life:
    """When a piece of memory that depends on the input is needed, in numbers of operations."""

    storage: torch.UntypedStorage  # kept so that no identity is used twice; it holds nothing
    n_bytes: int
    born: int
    reads: int = 0
    last_read: int | None = None
    maker: str | None = None  # the layer whose multiplications made it


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiplications of each module and follows the activations' lives.

    Args:
        x: the network's input.
        wholes: modules that compute with integers. Here they do so in floating point, which
            takes several steps, but each of them stands for one.
        roundings: those among them that only round, which stands for work in place.
    """

    def __init__(self, x: Tensor, wholes: set[str], roundings: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, int] = {}
        self._path: list[str] = []
        self._wholes, self._roundings = wholes, roundings
        self._inside = 0  # of how many wholes
        self._calls: Counter[str] = Counter()  # of layers with multiplications
        self._lives: dict[int, _Life] = {}
        self._shared: list[torch.UntypedStorage] = []  # kept for the same reason as a life's
        self._norms: list[tuple[str, _Life]] = []  # each call and what it reads
        self._time = 0
        self._begin(x)

    def enter(self, name: str) -> None:
        """A module begins."""
        self._path.append(name)
        if name in self._wholes:
            self._time += not self._inside
            self._inside += 1

    def leave(self, name: str, output: Any) -> None:
        """A module has ended."""
        self._path.pop()
        if name in self._wholes:
            self._inside -= 1
            if not self._inside:
                self._forget_steps(name in self._roundings, output)

    def _forget_steps(self, in_place: bool, output: Any) -> None:
        """Leave of a whole's own memory what it returns; that shares its input's if in place."""
        made = {_memory(tensor) for tensor in _tensors(output)}
        read = [life for life in self._lives.values() if life.born < self._time == life.last_read]
        for key, life in self._lives.items():
            if life.born == self._time:
                if key not in made:
                    life.n_bytes = 0
                elif in_place and len(read) == 1:
                    self._shared.append(life.storage)
                    self._lives[key] = read[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        operation = str(func.overloadpacket.__name__)
        name = self._path[-1] if self._path else ""
        macs = _macs(operation, args, output)
        if macs:
            self.macs[name] = self.macs.get(name, 0) + macs
            self._calls[name] += 1
        inputs = {
            key: life
            for tensor in _tensors((args, kwargs))
            if (life := self._lives.get(key := _memory(tensor))) is not None
        }
        if inputs:  # something that depends on the network's input
            self._time += not self._inside
            if operation.endswith("batch_norm") or "_batch_norm_" in operation:
                self._norms.append((name, next(iter(inputs.values()))))
            for life in inputs.values():
                life.reads += 1
                life.last_read = self._time
            for tensor in _tensors(output):
                if _memory(tensor) not in self._lives:
                    self._begin(tensor, name if macs else None)
        return output

    def _begin(self, tensor: Tensor, maker: str | None = None) -> None:
        storage = tensor.untyped_storage()
        width = tensor.element_size()
        n_bytes = storage.nbytes() // width * (4 if tensor.is_floating_point() else width)
        self._lives[_memory(tensor)] = _Life(storage, n_bytes, self._time, maker=maker)

    def keep(self, output: Any) -> None:
        """The network returned this: it is needed to the end."""
        for tensor in _tensors(output):
            if _memory(tensor) in self._lives:
                self._lives[_memory(tensor)].last_read = self._time

    def peak_bytes(self) -> int:
        """Most that is needed during any operation."""
        changes = [0] * (self._time + 2)
        for life in {id(life): life for life in self._lives.values()}.values():
            # What nobody reads (the positions of the maxima of a pooling) need not be made.
            if life.last_read is not None:
                changes[life.born] += life.n_bytes
                changes[life.last_read + 1] -= life.n_bytes
        return max(accumulate(changes))

    @property
    def norms(self) -> dict[str, list[str | None]]:
        """For each batch norm and call the layer that made what it reads, if it is the only reader.

        And if that layer made nothing else.
        """
        found: dict[str, list[str | None]] = {}
        for norm, life in self._norms:
            alone = life.maker is not None and life.reads == self._calls[life.maker] == 1
            found.setdefault(norm, []).append(life.maker if alone else None)
        return found


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _macs(name: str, args: Sequence[Any], output: Any) -> int:
    if name == "convolution":
        x, weight = args[:2]
        # weight: (C_out, C_in / groups, taps...); transposed: (C_in, C_out / groups, taps...).
        # Either way one product for each value on the strided side, channel of a group and tap.
        side = x if args[6] else output
        return int(side.numel() * math.prod(weight.shape[1:]))
    if name in ("mm", "bmm"):
        return int(output.numel() * args[0].shape[-1])
    if name in ("addmm", "baddbmm"):
        return int(output.numel() * args[1].shape[-1])
    return 0
