"""Networks as rows of blocks, for what is done "up to a block": transfer, freezing, decay, cutting.

A network names the modules at which its blocks end, in the order of the forward pass (its method
``blocks``). Block k is all that runs after the end of block k - 1 and no later than its own end;
what runs between the last end and the feature map belongs to the last block, and what is not part
of ``forward_features`` is the head.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

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
        modules: names of the modules that hold these tensors, by block, the head last.
    """

    names: tuple[str, ...]
    block_of: dict[str, int]
    modules: tuple[tuple[str, ...], ...]

    @property
    def head(self) -> int:
        """Number of the head: as many blocks as there are."""
        return len(self.names)


def block_plan(network: nn.Module) -> BlockPlan:
    """Sort the tensors of a network into its blocks, by running it once without arithmetic."""
    names: tuple[str, ...] = network.blocks()  # type: ignore[operator]
    order = _order_of_use(network, names)
    block_of = {}
    members: list[dict[str, None]] = [{} for _ in range(len(names) + 1)]
    for name in network.state_dict():
        # A parametrized weight lies deeper than the module that computes with it.
        inside, parametrized, _ = name.partition(".parametrizations.")
        owner = holder = inside if parametrized else name.rpartition(".")[0]
        while holder and holder not in order:  # modules that only hold others are never called
            holder = holder.rpartition(".")[0]
        block = order.get(holder, len(names))
        block_of[name] = block
        members[block][owner] = None
    return BlockPlan(names, block_of, tuple(tuple(part) for part in members))


def _order_of_use(network: nn.Module, names: tuple[str, ...]) -> dict[str, int]:
    """Block in which each module first runs, of those that make the feature map."""
    order: dict[str, int] = {}
    done: list[str] = []

    def enter(name: str) -> None:
        order.setdefault(name, min(len(done), max(len(names) - 1, 0)))

    def leave(name: str, _output: object) -> None:
        if len(done) < len(names) and name == names[len(done)]:
            done.append(name)

    with_features = meta_input(network, (2, input_channels(network), *_SIZE))
    run_on_meta(
        network, with_features, method="forward_features", enter=enter,
        leave=leave,
    )  # fmt: skip
    order.pop("", None)
    return order


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
