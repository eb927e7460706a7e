"""Networks as rows of blocks, for what is done "up to a block": transfer, freezing, decay, cutting.

A network names the modules at which its blocks end, in the order of the forward pass (its method
``blocks``). Block k is all that runs after the end of block k - 1 and no later than its own end;
what runs between the last end and the feature map belongs to the last block, and what is not part
of ``forward_features`` is the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stapes.errors import ConfigError
from stapes.models.tracing import input_channels, meta_input, run_on_meta

__all__ = ["BlockPlan", "block_plan", "check_blocks", "modules_behind"]

# Enough for the deepest pooling and the largest kernel of networks on images; nothing is computed.
_SIZE = (224, 352)


@dataclass(frozen=True)
class BlockPlan:
    """Which block every tensor of a network belongs to.

    Attributes:
        names: modules at which the blocks end, K of them.
        block_of: parameter or buffer, by its name in the state dict, to its block, 0 to K - 1; K is
            the head.
        modules: names of the modules that hold these tensors, by block, the head last. A module
            that has some of its own and others in its submodules may belong to an earlier block
            than those.
    """

    names: tuple[str, ...]
    block_of: dict[str, int]
    modules: tuple[tuple[str, ...], ...]

    @property
    def head(self) -> int:
        """Number of the head: as many blocks as there are."""
        return len(self.names)

    def modules_up_to(self, count: int) -> tuple[str, ...]:
        """Modules of the first so many blocks, without those that also hold tensors of later ones.

        To these a mode may be given: it reaches their submodules, too.
        """
        later = [name for name, block in self.block_of.items() if block >= count]
        return tuple(
            name
            for part in self.modules[:count]
            for name in part
            if not any(tensor.startswith(f"{name}." if name else "") for tensor in later)
        )


def block_plan(network: nn.Module) -> BlockPlan:
    """Sort the tensors of a network into its blocks, by running it once without arithmetic."""
    names: tuple[str, ...] = network.blocks()  # type: ignore[operator]
    order = _FirstUse(network, names)
    block_of = {}
    members: list[dict[str, None]] = [{} for _ in range(len(names) + 1)]
    for name in network.state_dict():
        # A parametrized weight lies deeper than the module that computes with it.
        inside, parametrized, _ = name.partition(".parametrizations.")
        owner = holder = inside if parametrized else name.rpartition(".")[0]
        while holder and holder not in order.of_modules:  # some modules only hold others
            holder = holder.rpartition(".")[0]
        # What nothing reads (a counter) goes with its module.
        block = order.of_tensors.get(name, order.of_modules.get(holder, len(names)))
        block_of[name] = block
        members[block][owner] = None
    return BlockPlan(names, block_of, tuple(tuple(part) for part in members))


class _FirstUse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Block in which each module first runs, and each tensor is first read, on the way to the
    feature map.

    Tensors by themselves, because a module that is not called may have some (the positions of a
    vision transformer).
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of_modules: dict[str, int] = {}
        self.of_tensors: dict[str, int] = {}
        self._network = network
        self._ends = names
        self._done = 0
        self._names: dict[int, str] = {}
        x = meta_input(network, (2, input_channels(network), *_SIZE))
        run_on_meta(
            network, x, self, method="forward_features", enter=self._enter, leave=self._leave
        )
        self.of_modules.pop("", None)

    @property
    def _block(self) -> int:
        return min(self._done, max(len(self._ends) - 1, 0))

    def _enter(self, name: str) -> None:
        self.of_modules.setdefault(name, self._block)

    def _leave(self, name: str, _output: object) -> None:
        if self._done < len(self._ends) and name == self._ends[self._done]:
            self._done += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if not self._names:  # only now the network holds the tensors of this run
            held = (self._network.named_parameters(), self._network.named_buffers())
            self._names = {id(tensor): name for some in held for name, tensor in some}
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self._names:
                self.of_tensors.setdefault(self._names[id(leaf)], self._block)
        return func(*args, **(kwargs or {}))


def modules_behind(network: nn.Module, end: str) -> list[str]:
    """Outermost modules that make the feature map and run only after the module ``end`` has."""
    ended = False
    behind: list[str] = []
    before: set[str] = set()

    def enter(name: str) -> None:
        if not ended:
            before.add(name)
        elif name not in before and not any(name.startswith(f"{outer}.") for outer in behind):
            behind.append(name)

    def leave(name: str, _output: object) -> None:
        nonlocal ended
        ended = ended or name == end

    x = meta_input(network, (2, input_channels(network), *_SIZE))
    run_on_meta(network, x, method="forward_features", enter=enter, leave=leave)
    return list(dict.fromkeys(behind))


def check_blocks(count: int, names: tuple[str, ...], field: str) -> None:
    """Refuse more blocks than there are.

    Raises:
        ConfigError: names the field and the blocks.
    """
    if count > len(names):
        raise ConfigError(
            f"{field} = {count}: this network has {len(names)} blocks ({', '.join(names)})."
        )
