"""Which layer reads what which other layer wrote: a network's layers as a graph.

A network is run once without arithmetic. Layers (convolutions, linear layers, batch norms, ReLUs)
are watched as wholes, everything else operation by operation, so that functional calls and
branches are seen. Every result gets a number; what is changed in place gets a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stapes.models.timm_layers import computes_plainly
from stapes.models.tracing import input_channels, meta_input, run_on_meta

__all__ = ["Dataflow", "Step", "norm_after", "trace_dataflow"]

# Watched as wholes. Subclasses such as parametrized convolutions are among them.
_WATCHED = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.ReLU6)


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a layer, or one operation outside of layers.

    Attributes:
        module: name of the layer; none for an operation.
        operation: name of the operation, without a trailing underscore; empty for a layer.
        reads: numbers of what it reads (of a layer: its input).
        writes: numbers of what it makes.
        arguments: of an operation, those that are no tensors.
        shape: of the layer's output, or of the operation's first one.
    """

    module: str | None
    operation: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Dataflow:
    """The steps of a network in the order in which they run."""

    steps: tuple[Step, ...]

    def calls(self, module: str) -> list[Step]:
        """The calls of a layer."""
        return [step for step in self.steps if step.module == module]

    def readers(self, value: int) -> list[Step]:
        """Steps that read a value."""
        return [step for step in self.steps if value in step.reads]

    def writer(self, value: int) -> Step | None:
        """The step that made a value; none for the network's input."""
        return next((step for step in self.steps if value in step.writes), None)

    def leads_to(self, values: Sequence[int], modules: frozenset[str]) -> bool:
        """Whether any of some layers has one of the values among its ancestors."""
        reached = set(values)
        for step in self.steps:
            if reached.intersection(step.reads):
                if step.module in modules:
                    return True
                reached.update(step.writes)
        return False


def trace_dataflow(network: nn.Module) -> Dataflow:
    """Run a network without arithmetic and note which step reads what.

    Args:
        network: on spectrograms (B, C, F, T); it is not changed.
    """
    size = getattr(network, "min_input_size", 64)
    x = meta_input(network, (1, input_channels(network), size, size))
    recorder = _Recorder()
    recorder.number(x)
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, _WATCHED):
                before = module.register_forward_pre_hook(_before(recorder))
                stack.callback(before.remove)
                after = module.register_forward_hook(_after(recorder, name))
                stack.callback(after.remove)
        run_on_meta(network, x, recorder)
    return Dataflow(tuple(recorder.steps))


def norm_after(
    network: nn.Module, flow: Dataflow, layer: str
) -> tuple[str, nn.modules.batchnorm._BatchNorm] | None:
    """The batch norm that reads what a layer wrote, where the two can be made one.

    Each is called once, nothing else reads what is between them, the norm has running statistics
    and nothing but the norm inside, and its channels are the layer's.

    Returns:
        Its name and itself; none if there is none.
    """
    calls = flow.calls(layer)
    readers = flow.readers(calls[0].writes[0]) if len(calls) == 1 else []
    if len(readers) != 1 or readers[0].module is None:
        return None
    name = readers[0].module
    norm = network.get_submodule(name)
    if (
        not isinstance(norm, nn.modules.batchnorm._BatchNorm)
        or len(flow.calls(name)) != 1
        or norm.running_mean is None
        or not computes_plainly(norm)
    ):
        return None
    # Batch norm treats axis 1; a linear layer writes its features along the last.
    last = isinstance(network.get_submodule(layer), nn.Linear)
    return None if last and len(calls[0].shape) != 2 else (name, norm)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes the steps down."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.depth = 0  # layers that are running
        self.entered: list[int] = []  # numbers of their inputs
        # By identity. The tensors are kept so that no identity is used twice: they have no storage.
        self._numbers: dict[int, tuple[Tensor, int]] = {}
        self._count = 0

    def number(self, tensor: Tensor, *, new: bool = False) -> int:
        """The number of a tensor as it is now."""
        if new or id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = (tensor, self._count)
            self._count += 1
        return self._numbers[id(tensor)][1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        reads = tuple(self.number(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        output = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        writes = tuple(self.number(tensor, new=True) for tensor in made)
        if self.depth == 0 and made:
            rest = tuple(arg for arg in args if not isinstance(arg, Tensor))
            name = str(func.overloadpacket.__name__).rstrip("_")
            self.steps.append(Step(None, name, reads, writes, rest, tuple(made[0].shape)))
        return output


def _before(recorder: _Recorder) -> Any:
    def enter(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        recorder.entered.append(recorder.number(inputs[0]))
        recorder.depth += 1

    return enter


def _after(recorder: _Recorder, name: str) -> Any:
    def leave(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        recorder.depth -= 1
        read = recorder.entered.pop()
        if recorder.depth == 0:
            # A new number also where a layer hands on what it got (an Identity in disguise).
            written = recorder.number(output, new=True)
            step = Step(name, "", (read,), (written,), (), tuple(output.shape))
            recorder.steps.append(step)

    return leave
