"""Channel pruning of CP-ResNets: whole channels go, and the tensors shrink with them.

Channels come in groups that stand or fall together::

                     ┌──────────── shortcut ───────────┐
    stream c ────────┴─ conv1 ─ inner c ─ conv2 ───────+── stream c ── next block

- the *inner* channels of a block: rows of conv1 and norm1, columns of conv2;
- the *stream* channels of a stage, which its identity shortcuts tie together: rows of everything
  that adds to the stream (stem or shortcut convolution, every conv2) and their norms, columns of
  everything that reads it (every conv1, the next stage's shortcut, or the head).

A channel with all its rows at zero is not dead yet: its norm makes a constant of them. A channel
is dead when nobody reads it, that is when all its columns are zero, and taking it out is then
exact.

Importance of a channel: what it delivers to its readers, the variance that the norms of its
writers give it times the squared weights that read it::

    importance^2 = (sum over writers of gamma[c]^2) * (sum over readers of |W[:, c]|^2)

The rows do not enter: a norm follows and undoes their scale. Importances are divided by the mean
of their group and then compared over the network.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from stapes.compression.masks import WeightMask, add_masks, finish, unmasked_weight
from stapes.compression.targets import target_parameters
from stapes.errors import ConfigError
from stapes.models import create_model
from stapes.models.cp_resnet import BasicBlock, CpResNet
from stapes.models.decomposition import DecomposedConv2d

__all__ = ["ChannelGroup", "ChannelPlan", "channel_groups", "prune_channels", "remove_channels"]

_STAGES = ("stage1", "stage2", "stage3")


@dataclass
class ChannelGroup:
    """Channels that are written and read by the same layers.

    Attributes:
        name: of the stage, for its stream, or of the block, for its inner channels.
        writers: names of the convolutions whose rows they are.
        norms: names of the batch norms after these.
        readers: names of the convolutions whose columns they are.
    """

    name: str
    writers: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)


def channel_groups(network: nn.Module) -> list[ChannelGroup]:
    """The groups of a CP-ResNet, in the order of the network.

    Raises:
        ConfigError: another network, or a decomposed one.
    """
    if not isinstance(network, CpResNet):
        raise ConfigError(
            f"Channels can be pruned in cp_resnet only, not in {type(network).__name__}: use "
            'pruning.method = "magnitude".'
        )
    if any(isinstance(module, DecomposedConv2d) for module in network.modules()):
        raise ConfigError(
            "Channels of a decomposed network cannot be pruned: use pruning.method = "
            '"magnitude", or leave out model.decomposition and choose a smaller width.'
        )
    stream = ChannelGroup("stage1", ["stem.conv"], ["stem.norm"])
    groups = [stream]
    for stage in _STAGES:
        for name, block in network.get_submodule(stage).named_children():
            if not isinstance(block, BasicBlock):
                continue
            path = f"{stage}.{name}"
            stream.readers.append(f"{path}.conv1")
            if not isinstance(block.shortcut, nn.Identity):
                stream.readers.append(f"{path}.shortcut.conv")
                stream = ChannelGroup(stage, [f"{path}.shortcut.conv"], [f"{path}.shortcut.norm"])
                groups.append(stream)
            stream.writers.append(f"{path}.conv2")
            stream.norms.append(f"{path}.norm2")
            groups.append(
                ChannelGroup(path, [f"{path}.conv1"], [f"{path}.norm1"], [f"{path}.conv2"])
            )
    stream.readers.append("head.conv")
    if not all(isinstance(layer, nn.Conv2d) for layer in _convolutions(network, groups).values()):
        raise ConfigError("Channels can be pruned in float networks only, before quantisation.")
    return groups


def remove_channels(network: nn.Module) -> CpResNet:
    """Build the smaller network that is left when every channel that nobody reads is taken out.

    The outputs are the same, up to rounding. At least one channel is left in each group. Damping
    stays; masks (on a pruned network that is not finished) are written into the weights.

    Args:
        network: a CP-ResNet with zeros, such as a :class:`~stapes.compression.Pruner` with
            ``method = "channels"`` leaves. It is not changed.

    Returns:
        A network of the same settings with the option ``channels``, on the same device, in the
        same mode.

    Raises:
        ConfigError: another network, or a decomposed one.
    """
    groups = channel_groups(network)
    weights = {
        name: cast(Tensor, layer.weight).detach()
        for name, layer in _convolutions(network, groups).items()
    }
    alive = {g.name: torch.ones_like(_columns(weights, g)[0], dtype=torch.bool) for g in groups}
    changed = True
    while changed:  # a dead channel's own rows read nothing: that may make others dead
        changed = False
        for group in groups:
            read = _columns(weights, group).any(0)
            if not read.any():
                read[0] = True
            if not torch.equal(read, alive[group.name]):
                alive[group.name], changed = read, True
                for writer in group.writers:
                    weights[writer] = torch.where(read[:, None, None, None], weights[writer], 0.0)
    return _without(network, groups, alive)


def prune_channels(
    network: nn.Module,
    *,
    keep: float | None = None,
    keep_parameters: int | None = None,
    scope: Literal["global", "layer"] = "global",
) -> CpResNet:
    """Take out the least important channels in one shot.

    Args:
        network: a CP-ResNet, trained; it is not changed.
        keep: part of all parameters that is left, above 0, at most 1; or
        keep_parameters: their number. The smaller network has as many or, where no whole channel
            fits any more, fewer.
        scope: importances are compared over the whole network, or every group loses about the
            same part of its channels.

    Returns:
        The smaller network, on the same device, in the same mode; fine-tune it like any other.

    Raises:
        ConfigError: another network, a decomposed one, or a target below one channel in each group.
        ValueError: both targets or neither, or a part out of range.
    """
    network = finish(copy.deepcopy(network))
    plan = ChannelPlan(network, scope)
    plan.mask(target_parameters(plan, keep, keep_parameters), revive=True, frozen=True)
    return remove_channels(network)


class ChannelPlan:
    """Masks the least important channels so that what is left has a number of parameters.

    While masks may still change, only the columns that read a channel are masked: its rows go on
    computing, so that the gradient of the masked columns can tell what the channel would be good
    for. Once frozen, the rows are masked too.

    Args:
        network: a CP-ResNet; gets masks.
        scope: importances are compared over the whole network, or every group loses about the
            same part of its channels.

    Raises:
        ConfigError: another network, or a decomposed one.
    """

    needed_by = "one channel in each block and stage"

    def __init__(self, network: nn.Module, scope: Literal["global", "layer"]) -> None:
        self._network = network
        self._scope = scope
        self._groups = channel_groups(network)
        layers = _convolutions(network, self._groups)
        every = add_masks(network)
        self.masks: dict[str, WeightMask] = {name: every[name] for name in layers}
        self.total = sum(p.numel() for p in network.parameters())
        self._writer = {name: i for i, g in enumerate(self._groups) for name in g.writers}
        self._reader = {name: i for i, g in enumerate(self._groups) for name in g.readers}
        self._shapes = {name: tuple(mask.mask.shape) for name, mask in self.masks.items()}
        self._full = [self._shapes[g.writers[0]][0] for g in self._groups]
        one_each = [1] * len(self._groups)
        self.minimum = self.total - self._parameters(self._full) + self._parameters(one_each)

    @torch.no_grad()
    def mask(self, target: int, *, revive: bool, frozen: bool) -> None:
        """See :class:`~stapes.compression.pruning.Plan`."""
        present = {name: mask.mask for name, mask in self.masks.items()}
        if revive:
            alive = [torch.ones_like(_columns(present, g)[0]) for g in self._groups]
        else:
            alive = [_columns(present, g).any(0) for g in self._groups]
        alive = self._chosen(alive, target)
        for name, mask in self.masks.items():
            rows, columns = self._writer.get(name), self._reader.get(name)
            kept = torch.ones_like(mask.mask)
            if columns is not None:
                kept &= alive[columns][None, :, None, None]
            if rows is not None and (frozen or not revive):
                kept &= alive[rows][:, None, None, None]
            mask.mask.copy_(kept)
            mask.returning = revive and not frozen

    def _chosen(self, alive: list[Tensor], target: int) -> list[Tensor]:
        """Which of the channels that are alive stay."""
        order = []
        for i, (scores, living) in enumerate(zip(self._importances(), alive, strict=True)):
            channels = living.nonzero()[:, 0]
            ranked = channels[scores[channels].argsort(stable=True)].tolist()
            values = scores.tolist()
            for place, channel in enumerate(ranked):
                key = values[channel] if self._scope == "global" else place / len(ranked)
                order.append((key, i, channel))
        order.sort()
        counts = [int(living.sum()) for living in alive]
        left = self.total - self._parameters(self._full) + self._parameters(counts)
        removed = []
        for _, i, channel in order:
            if left <= target:
                break
            if counts[i] > 1:
                left -= self._cost(i, counts)
                counts[i] -= 1
                removed.append((i, channel))
        # The last one may have been a large one: what fits into the gap comes back.
        gone: set[tuple[int, int]] = set()
        for i, channel in reversed(removed):
            if left + self._cost(i, counts) <= target:
                left += self._cost(i, counts)
                counts[i] += 1
            else:
                gone.add((i, channel))
        kept = [living.clone() for living in alive]
        for i, channel in gone:
            kept[i][channel] = False
        return kept

    def _importances(self) -> list[Tensor]:
        """Of every channel of every group: mean 1 in each group."""
        found = []
        for group in self._groups:
            norms = [self._network.get_submodule(name) for name in group.norms]
            written = sum(cast(Tensor, norm.weight).detach().double() ** 2 for norm in norms)
            weights = {
                name: unmasked_weight(self._network.get_submodule(name)).double()
                for name in group.readers
            }
            power = written * (_columns(weights, group) ** 2).sum(0)
            importance = power.sqrt().cpu()
            found.append(importance / importance.mean().clamp(min=1e-30))
        return found

    def _cost(self, group: int, counts: list[int]) -> int:
        """Parameters of one channel of a group, beside so many of the others."""
        cost = 2 * len(self._groups[group].norms)
        for name in self._groups[group].writers:
            cost += self._taps(name) * self._columns_of(name, counts)
        for name in self._groups[group].readers:
            cost += self._taps(name) * self._rows_of(name, counts)
        return cost

    def _parameters(self, counts: list[int]) -> int:
        """Parameters of all convolutions and of the groups' norms with so many channels."""
        return sum(
            self._taps(name) * self._rows_of(name, counts) * self._columns_of(name, counts)
            for name in self._shapes
        ) + sum(2 * len(g.norms) * n for g, n in zip(self._groups, counts, strict=True))

    def _taps(self, name: str) -> int:
        return self._shapes[name][2] * self._shapes[name][3]

    def _rows_of(self, name: str, counts: list[int]) -> int:
        group = self._writer.get(name)
        return self._shapes[name][0] if group is None else counts[group]

    def _columns_of(self, name: str, counts: list[int]) -> int:
        group = self._reader.get(name)
        return self._shapes[name][1] if group is None else counts[group]


def _convolutions(network: nn.Module, groups: Iterable[ChannelGroup]) -> dict[str, nn.Module]:
    """Every convolution that writes or reads one of the groups, once."""
    names = dict.fromkeys(itertools.chain(*(g.writers + g.readers for g in groups)))
    return {name: network.get_submodule(name) for name in names}


def _columns(weights: dict[str, Tensor], group: ChannelGroup) -> Tensor:
    """(everything that a channel is multiplied by, channels), of all its readers."""
    columns = [weights[name].transpose(0, 1).flatten(1) for name in group.readers]
    return torch.cat(columns, dim=1).t()


@torch.no_grad()
def _without(network: nn.Module, groups: list[ChannelGroup], alive: dict[str, Tensor]) -> CpResNet:
    """The network with the channels that are alive only."""
    assert isinstance(network, CpResNet)
    kept = {name: living.nonzero()[:, 0] for name, living in alive.items()}
    rows = {name: kept[g.name] for g in groups for name in g.writers + g.norms}
    columns = {name: kept[g.name] for g in groups for name in g.readers}
    plain = finish(copy.deepcopy(network))
    settings = plain.settings()
    smaller = create_model(
        **(settings | {"channels": _sizes(plain, kept)}), generator=torch.Generator()
    )
    state: dict[str, Any] = {}
    for key, value in plain.state_dict().items():
        name = next((n for n in _parents(key) if n in rows or n in columns), None)
        if name is not None and value.ndim:
            if name in rows:
                value = value[rows[name]]
            if name in columns:
                value = value[:, columns[name]]
        state[key] = value
    like = next(plain.parameters())
    smaller.to(device=like.device, dtype=like.dtype)
    smaller.load_state_dict(state)
    smaller.train(network.training)
    return cast(CpResNet, smaller)


def _sizes(network: CpResNet, kept: dict[str, Tensor]) -> list[list[int]]:
    """The option ``channels``."""
    settings = network.settings()
    sizes = []
    for i, stage in enumerate(_STAGES):
        # A stage without blocks has no channels of its own; the number is not used.
        wide = len(kept[stage]) if stage in kept else settings["width"] * 2**i
        blocks = [name for name in kept if name.startswith(f"{stage}.")]
        sizes.append([wide, *(len(kept[name]) for name in blocks)])
    return sizes


def _parents(key: str) -> Iterable[str]:
    """``a.b.c``: ``a.b``, then ``a``."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key
