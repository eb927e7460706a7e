"""Receptive fields, computed from what a network does to a spectrogram.

Along one axis, unit ``i`` of a map sees the input positions::

    offset + i * stride,  ...,  offset + i * stride + size - 1

The input itself is (size, stride, offset) = (1, 1, 0). A convolution or pooling with kernel ``k``,
step ``s``, dilation ``d`` and ``p`` zeros in front reads the units ``i*s - p + d*j``, ``j < k``, of
the map before it, so it makes of that map's (size, stride, offset)::

    size   + d * (k - 1) * stride       the last unit read sees this much further
    stride * s
    offset - p * stride

Where branches meet (a residual sum, a concatenation), a unit sees from the first position that
any branch sees to the last one. Pointwise operations and batch norm in evaluation change nothing.
What follows a global pooling sees the whole input; where that gates a map (squeeze and
excitation), the map keeps its own field and is marked as having global context.

The network is run once without arithmetic and every operation is watched, so functional calls,
branches and parametrized weights are all seen. What the network does is what counts; an operation
that is not known here is refused only if it lies on the way to the answer.

:func:`published_receptive_field` counts as the authors of CP-ResNet do, so that their tables and
figures can be compared with; that is not what the units see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stapes.models.cp_resnet import BasicBlock, cp_resnet
from stapes.models.tracing import input_channels, meta_input, run_on_meta

__all__ = [
    "AxisField",
    "ReceptiveField",
    "layer_receptive_fields",
    "published_receptive_field",
    "receptive_field",
]

# Large enough for every pooling of a deep network; it costs nothing, nothing is computed.
_DEFAULT_SIZE = (512, 512)


@dataclass(frozen=True, slots=True)
class AxisField:
    """What the units of a map see along one axis of the input.

    Attributes:
        size: input positions that one unit sees (those in the zeros around the input included).
        stride: positions between the fields of neighbouring units.
        offset: first position that unit 0 sees; negative inside the zeros in front.
    """

    size: int
    stride: int
    offset: int

    @property
    def centre(self) -> float:
        """Input position in the middle of unit 0's field."""
        return self.offset + (self.size - 1) / 2


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What the units of a map see of the input.

    Attributes:
        frequency: along frequency, in bins.
        time: along time, in frames.
        global_context: whether a global pooling also gates the map, so that the whole input has
            some say in every unit.
    """

    frequency: AxisField
    time: AxisField
    global_context: bool = False


def receptive_field(
    model: nn.Module, *, input_size: tuple[int, int] | None = None
) -> ReceptiveField:
    """Receptive field of the units of a network's feature map.

    The feature map is what ``forward_features`` returns, or, for a network without it, the last
    map before everything is pooled.

    >>> receptive_field(nn.Sequential(nn.Conv2d(1, 1, 5, stride=2), nn.MaxPool2d(2))).time
    AxisField(size=7, stride=4, offset=0)

    Args:
        model: any network of convolutions, pooling and branches on (B, C, F, T).
        input_size: frequency bins and frames to run it with; none: enough for any network. Only
            a network that accepts no other size needs it.

    Raises:
        ValueError: an operation that has no receptive field of this kind lies on the way, or the
            network never has a map.
    """
    method = "forward_features" if hasattr(model, "forward_features") else "forward"
    watcher, output = _watch(model, input_size, method)
    found = watcher.found(output)
    if not isinstance(found, ReceptiveField):
        map_of_wholes = isinstance(found, _Whole) and output.ndim == 4
        if map_of_wholes and tuple(output.shape[2:]) != (1, 1):
            raise ValueError("no receptive field: every unit sees the whole input")
        # Branches (the members of an ensemble) pool maps of their own: the largest, of equal ones
        # the last.
        largest = max(reversed(watcher.pooled), key=lambda one: one.time.size, default=None)
        found = largest or watcher.last_map or found
    if isinstance(found, _Unknown):
        raise ValueError(f"no receptive field: {found.reason}")
    if not isinstance(found, ReceptiveField):
        raise ValueError("no receptive field: the network pools its whole input at once")
    return found


def layer_receptive_fields(
    model: nn.Module, *, input_size: tuple[int, int] | None = None
) -> dict[str, ReceptiveField]:
    """Receptive field of the output of each module, by name, in the order of use.

    Modules whose output is no map any more (after global pooling) are left out, and so are those
    behind an operation that is not known.

    Args:
        model: as in :func:`receptive_field`.
        input_size: as in :func:`receptive_field`.
    """
    fields: dict[str, ReceptiveField] = {}
    _watch(model, input_size, "forward", fields)
    return fields


def published_receptive_field(rho: int, blocks: Sequence[int] = (4, 4, 4)) -> int:
    """Maximum receptive field of CP-ResNet in bins and frames, as the authors count it.

    The horizontal axis of the figures of Koutini et al. 2020. Their count starts at the 5 taps of
    the stem and adds ``2 * stride`` for each 3x3 convolution of the blocks. Two things in it are
    not what a unit sees (the support of its gradient, :func:`receptive_field`): the second tap of
    each pooling is left out (2, 4 and 8 positions), and a convolution in front of a pooling is
    counted at the stride behind the pooling (the second one of block 4 of stage 1 for 32 positions
    instead of 16, for instance). The stem's stride counts in both.

    >>> [published_receptive_field(rho) for rho in (0, 4, 7)]
    [9, 65, 145]

    Args:
        rho: as in ``cp_resnet``.
        blocks: as in ``cp_resnet``; the published values are those of all twelve blocks.

    Raises:
        ValueError: an argument out of range.
    """
    network = cp_resnet(n_classes=1, width=1, rho=rho, blocks=blocks, generator=torch.Generator())
    size, stride = 5, 2
    for stage in (network.stage1, network.stage2, network.stage3):
        parts = dict(stage.named_children())
        for name, part in parts.items():
            if not isinstance(part, BasicBlock):
                continue  # a pooling is counted with the block in front of it
            behind = stride * (2 if name.replace("block", "pool") in parts else 1)
            for conv, counted in ((part.conv1, stride), (part.conv2, behind)):
                assert isinstance(conv, nn.Conv2d)
                size += (conv.kernel_size[1] - 1) * counted
            stride = behind
    return size


@dataclass(frozen=True, slots=True)
class _Unknown:
    reason: str


class _Whole:
    """A value that depends on the whole input."""


_WHOLE = _Whole()
_Found = ReceptiveField | _Whole | _Unknown


def _watch(
    model: nn.Module,
    input_size: tuple[int, int] | None,
    method: str,
    fields: dict[str, ReceptiveField] | None = None,
) -> tuple[_Watcher, Any]:
    x = meta_input(model, (1, input_channels(model), *(input_size or _DEFAULT_SIZE)))
    watcher = _Watcher(x)

    def leave(name: str, output: Any) -> None:
        found = watcher.found(output)
        if fields is not None and name and isinstance(found, ReceptiveField):
            fields[name] = found

    return watcher, run_on_meta(model, x, watcher, method=method, leave=leave)


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the receptive field through every operation on a tensor that carries one."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By identity. The tensors are kept so that no identity is used twice: they have no storage.
        self._found: dict[int, tuple[Tensor, _Found]] = {}
        self._keep(x, ReceptiveField(AxisField(1, 1, 0), AxisField(1, 1, 0)))
        self.last_map: ReceptiveField | _Unknown | None = None
        self.pooled: list[ReceptiveField] = []

    def found(self, value: Any) -> _Found | None:
        """What a tensor carries, or the last tensor of a sequence."""
        if isinstance(value, tuple | list):
            return self.found(value[-1]) if value else None
        return self._found.get(id(value), (None, None))[1]

    def _keep(self, tensor: Tensor, found: _Found) -> None:
        self._found[id(tensor)] = (tensor, found)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        flat = [a for arg in args for a in (arg if isinstance(arg, tuple | list) else (arg,))]
        inputs = [(a, f) for a in flat if (f := self.found(a)) is not None]
        outputs = [
            t
            for t in (output if isinstance(output, tuple | list) else (output,))
            if isinstance(t, Tensor)
        ]
        if inputs and outputs:
            found = _follow(func, args, inputs, outputs[0])
            for tensor in outputs:
                self._keep(tensor, found)
            if not isinstance(found, _Whole):
                self.last_map = found
            else:
                self.pooled += [field for _, field in inputs if isinstance(field, ReceptiveField)]
        return output


def _follow(
    func: Any, args: Sequence[Any], inputs: list[tuple[Tensor, _Found]], output: Tensor
) -> _Found:
    """What the output of one operation carries."""
    # The same rule for relu and relu_.
    name = str(func.overloadpacket.__name__).rstrip("_")
    for _, found in inputs:
        if isinstance(found, _Unknown):
            return found
    if all(isinstance(found, _Whole) for _, found in inputs):
        return _WHOLE
    if torch.Tag.pointwise in func.tags or name in _POINTWISE:
        return _meet([found for _, found in inputs])
    if name == "cat" and (args[1] if len(args) > 1 else 0) % output.ndim < output.ndim - 2:
        return _meet([found for _, found in inputs])
    rule = _RULES.get(name)
    x, field = inputs[0]
    if rule is not None and isinstance(field, ReceptiveField):
        followed = rule(field, x, output, args)
        if followed is not None:
            return followed
    return _Unknown(f"it cannot be followed through the operation '{func}'")


def _meet(inputs: Sequence[_Found]) -> _Found:
    """Branches that come together, such as a sum or a concatenation."""
    maps = [found for found in inputs if isinstance(found, ReceptiveField)]
    frequency = _union([found.frequency for found in maps])
    time = _union([found.time for found in maps])
    if frequency is None or time is None:
        return _Unknown("branches of different strides meet")
    context = len(maps) < len(inputs) or any(found.global_context for found in maps)
    return ReceptiveField(frequency, time, context)


def _union(axes: Sequence[AxisField]) -> AxisField | None:
    if len({axis.stride for axis in axes}) > 1:
        return None
    first = min(axis.offset for axis in axes)
    end = max(axis.offset + axis.size for axis in axes)
    return AxisField(end - first, axes[0].stride, first)


def _slide(
    axis: AxisField, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> AxisField:
    """The recurrence of this file's header."""
    return AxisField(
        size=axis.size + dilation * (kernel - 1) * axis.stride,
        stride=axis.stride * stride,
        offset=axis.offset - padding * axis.stride,
    )


_Rule = Callable[[ReceptiveField, Tensor, Tensor, Sequence[Any]], "_Found | None"]


def _convolution(field: ReceptiveField, _x: Tensor, _y: Tensor, args: Sequence[Any]) -> _Found:
    # convolution(input, weight, bias, stride, padding, dilation, transposed, ...)
    _, weight, _, stride, padding, dilation, transposed = args[:7]
    if transposed or weight.ndim != 4:
        return _Unknown("it has a transposed convolution, or one that is not two-dimensional")
    steps = zip(weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation), strict=True)
    frequency, time = steps
    return replace(
        field,
        frequency=_slide(field.frequency, *frequency),
        time=_slide(field.time, *time),
    )


def _max_pool(field: ReceptiveField, _x: Tensor, _y: Tensor, args: Sequence[Any]) -> _Found:
    # max_pool2d(input, kernel, stride=kernel, padding=0, dilation=1, ceil_mode=False)
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _pair(args[3]) if len(args) > 3 else (0, 0)
    dilation = _pair(args[4]) if len(args) > 4 else (1, 1)
    frequency, time = zip(kernel, stride, padding, dilation, strict=True)
    return replace(
        field,
        frequency=_slide(field.frequency, *frequency),
        time=_slide(field.time, *time),
    )


def _average_pool(field: ReceptiveField, x: Tensor, y: Tensor, args: Sequence[Any]) -> _Found:
    # avg_pool2d(input, kernel, stride=kernel, padding=0, ceil_mode, ...): no dilation
    return _max_pool(field, x, y, args[:4])


def _adaptive_pool(
    field: ReceptiveField, x: Tensor, y: Tensor, args: Sequence[Any]
) -> _Found | None:
    if tuple(y.shape[-2:]) == (1, 1):
        return _WHOLE
    if any(n % m for n, m in zip(x.shape[-2:], y.shape[-2:], strict=True)):
        return None  # windows of unequal size
    frequency, time = (n // m for n, m in zip(x.shape[-2:], y.shape[-2:], strict=True))
    return replace(
        field,
        frequency=_slide(field.frequency, frequency, frequency),
        time=_slide(field.time, time, time),
    )


def _pad(field: ReceptiveField, _x: Tensor, _y: Tensor, args: Sequence[Any]) -> _Found | None:
    # constant_pad_nd(input, pad): two values for each axis, the last axis first
    pad = list(args[1])
    if len(pad) > 4:
        return None
    pad += [0] * (4 - len(pad))
    return replace(
        field,
        frequency=_slide(field.frequency, 1, padding=pad[2]),
        time=_slide(field.time, 1, padding=pad[0]),
    )


def _slice(field: ReceptiveField, x: Tensor, _y: Tensor, args: Sequence[Any]) -> _Found:
    # slice(input, dim=0, start=None, end=None, step=1)
    given = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
    dim, step = given[0], given[3]
    start = slice(given[1], None, step).indices(x.shape[dim])[0]
    axis = dim % x.ndim - x.ndim
    if axis == -1:
        return replace(field, time=_slide(field.time, 1, step, -start))
    if axis == -2:
        return replace(field, frequency=_slide(field.frequency, 1, step, -start))
    return field


def _mean(field: ReceptiveField, x: Tensor, y: Tensor, args: Sequence[Any]) -> _Found | None:
    axes = {axis % x.ndim for axis in (args[1] if len(args) > 1 and args[1] else range(x.ndim))}
    plane = {x.ndim - 2, x.ndim - 1}
    if plane <= axes:
        return _WHOLE
    return None if plane & axes or y.ndim < 4 else field


def _reshape(field: ReceptiveField, x: Tensor, y: Tensor, args: Sequence[Any]) -> _Found:
    # Channels may be regrouped; a map that is flattened is no map any more.
    return field if y.ndim >= 4 and x.shape[-2:] == y.shape[-2:] else _WHOLE


def _transpose(field: ReceptiveField, x: Tensor, _y: Tensor, args: Sequence[Any]) -> _Found | None:
    axes = {axis % x.ndim for axis in args[1:3]}
    return None if axes & {x.ndim - 2, x.ndim - 1} else field


def _along_channels(
    field: ReceptiveField, x: Tensor, _y: Tensor, args: Sequence[Any]
) -> _Found | None:
    axis = args[2] if len(args) > 2 else 0
    return field if axis % x.ndim < x.ndim - 2 else None


def _whole_statistics(field: ReceptiveField, _x: Tensor, _y: Tensor, _a: Sequence[Any]) -> _Found:
    # Group and instance norm divide by what they measure over the whole map.
    return replace(field, global_context=True)


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return (values[0], values[-1])


# What leaves positions alone, where the operation is not tagged as pointwise.
_POINTWISE = frozenset(
    {
        "_native_batch_norm_legit_no_training", "_prelu_kernel", "_to_copy", "alias", "batch_norm",
        "channel_shuffle", "clone", "contiguous", "copy", "cudnn_batch_norm", "detach",
        "hardswish", "native_batch_norm", "native_channel_shuffle", "native_dropout",
    }
)  # fmt: skip

_RULES: dict[str, _Rule] = {
    "_adaptive_avg_pool2d": _adaptive_pool,
    "_reshape_alias": _reshape,
    "_unsafe_view": _reshape,
    "adaptive_max_pool2d": _adaptive_pool,
    "amax": _mean,
    "avg_pool2d": _average_pool,
    "constant_pad_nd": _pad,
    "convolution": _convolution,
    "expand": _reshape,
    "max_pool2d_with_indices": _max_pool,
    "mean": _mean,
    "native_group_norm": _whole_statistics,
    "slice": _slice,
    "split": _along_channels,
    "split_with_sizes": _along_channels,
    "sum": _mean,
    "transpose": _transpose,
    "view": _reshape,
}
