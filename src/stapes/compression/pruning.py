"""Pruning: weights, or whole channels, set to zero while a network trains.

The number of parameters that are left falls along a ramp from all, N, to the target, K. With p
from 0 to 1 along the ramp it is

    exponential:  N * (K / N)^p          linear:  N + (K - N) * p

and the weights that are least important at that moment are masked (see
:mod:`stapes.compression.masks`). Norms and biases count among N and K but are never masked.

Reference:
    Koutini, Henkel, Eghbal-zadeh, Widmer, "Low-Complexity Models for Acoustic Scene
    Classification Based on Receptive Field Regularization and Frequency Damping", DCASE 2020,
    section 2.4: global magnitude, exponential ramp, masked weights may come back until its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stapes.compression.channels import ChannelPlan
from stapes.compression.masks import WeightMask, add_masks, unmasked_weight
from stapes.compression.targets import target_parameters
from stapes.config import PruningConfig

__all__ = ["Pruner", "prune", "ramp"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Masks are chosen anew this often on the way down. Between, training goes on with the old ones,
# so that choosing (a selection among all weights) costs next to nothing beside the steps.
_UPDATES_PER_EPOCH = 16


def ramp(progress: float, total: int, target: int, kind: Literal["exponential", "linear"]) -> int:
    """Parameters left at a point of the ramp, rounded down.

    >>> [ramp(p, 10_000, 2_500, "exponential") for p in (0, 0.5, 1)]
    [10000, 5000, 2500]

    Args:
        progress: 0 to 1.
        total: parameters before pruning.
        target: parameters at the end, 1 or more.
        kind: of the ramp.
    """
    if target >= total or progress <= 0:
        return total
    if progress >= 1:
        return target
    left = (
        total * (target / total) ** progress
        if kind == "exponential"
        else total + (target - total) * progress
    )
    return max(target, math.floor(left))


class Plan(Protocol):
    """A way to choose what is masked."""

    total: int
    """Parameters of the network, nothing masked."""
    minimum: int
    """Fewest parameters that it can be brought to."""
    needed_by: str
    """What these are, for an error message."""
    masks: dict[str, WeightMask]

    def mask(self, target: int, *, revive: bool, frozen: bool) -> None:
        """Set the masks so that ``target`` parameters are left, or as close below as can be.

        Args:
            target: ``minimum`` or more.
            revive: masked weights may come back.
            frozen: these masks stay as they are while training goes on.
        """


class Pruner:
    """Prunes a network in the course of its training.

    The masks are a function of the network's state and of the step alone, so that a run which
    continues from a checkpoint (masks included) prunes the same weights, bit for bit.

    Args:
        network: any network; for ``method = "channels"`` a CP-ResNet. Gets its masks here, with
            nothing masked, so build the pruner before the optimiser, before wrapping the network
            for several processes and before loading a state dict with masks.
        config: with a method and a resolved ramp.
        epochs: length of the training.

    Attributes:
        total: parameters before pruning.
        target: parameters that are left at the end: never more, and fewer only where weights are
            zero by themselves or, for channels, where no whole channel fits.

    Raises:
        ConfigError: a target below the network's minimum, or a network whose channels cannot be
            pruned.
        ValueError: no method, or an unresolved ramp.
    """

    def __init__(self, network: nn.Module, config: PruningConfig, epochs: int) -> None:
        if config.method == "none" or config.ramp_epochs == "auto":
            raise ValueError("the recipe must be resolved and have a pruning method")
        self._plan = _plan(network, config.method, config.scope)
        self.total = self._plan.total
        self.target = target_parameters(
            self._plan, config.keep, config.keep_parameters, option="pruning."
        )
        self._kind = config.ramp
        self._returning = config.returning
        self._start = config.start_epoch
        self._end = config.start_epoch + config.ramp_epochs
        self._epochs = epochs

    def update(self, epoch: int, step: int, n_steps: int) -> None:
        """Choose the masks of a training step. Call it before each one.

        Args:
            epoch: epochs done.
            step: steps done in the present epoch.
            n_steps: steps of every epoch.
        """
        now = epoch * n_steps + step
        start, end = self._steps(n_steps)
        frozen = now >= end or not self._returning
        for mask in self._plan.masks.values():
            mask.returning = not frozen
        every = max(1, n_steps // _UPDATES_PER_EPOCH)
        if now == end:
            self._plan.mask(self.target, revive=self._returning, frozen=True)
        elif start < now < end and (now - start) % every == 0:
            left = ramp((now - start) / (end - start), self.total, self.target, self._kind)
            self._plan.mask(left, revive=self._returning, frozen=frozen)

    def settled(self, epochs_done: int, n_steps: int) -> bool:
        """Whether a network that has trained for so many epochs is as small as it will be."""
        return epochs_done * n_steps > self._steps(n_steps)[1]

    def _steps(self, n_steps: int) -> tuple[int, int]:
        """First step of the ramp, and the step from which on nothing changes any more."""
        last = self._epochs * n_steps - 1  # a ramp to the very end is over for the last step
        end = min(math.ceil(self._end * n_steps), last)
        return min(math.ceil(self._start * n_steps), end), end


def prune(
    network: ModuleT,
    *,
    keep: float | None = None,
    keep_parameters: int | None = None,
    scope: Literal["global", "layer"] = "global",
) -> ModuleT:
    """Mask the smallest weights in one shot, in place.

    Train on to fine-tune what is left (masked weights stay masked), then call
    :func:`stapes.compression.finish`.

    >>> layer = nn.Linear(4, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.1, -3.0, 2.0, -0.2]])
    >>> prune(layer, keep=0.5).weight.tolist()
    [[0.0, -3.0, 2.0, 0.0]]

    Args:
        network: any network. Masks that it has already are chosen anew.
        keep: part of all parameters that is left, above 0, at most 1; or
        keep_parameters: their number.
        scope: magnitudes are compared over the whole network, or within each layer; then every
            layer loses the same part.

    Returns:
        The same network.

    Raises:
        ConfigError: a target below what norms, biases and one weight a layer need.
        ValueError: both targets or neither, or a part out of range.
    """
    plan = MagnitudePlan(network, scope)
    plan.mask(target_parameters(plan, keep, keep_parameters), revive=True, frozen=True)
    return network


class MagnitudePlan:
    """Masks the weights of smallest magnitude, damping included.

    Args:
        network: any network; gets masks.
        scope: compared over the whole network, or within each layer.
    """

    needed_by = "its norms, its biases and one weight in each layer"

    def __init__(self, network: nn.Module, scope: Literal["global", "layer"]) -> None:
        self._network = network
        self._scope = scope
        self.masks = add_masks(network)
        self._sizes = [mask.mask.numel() for mask in self.masks.values()]
        self.total = sum(p.numel() for p in network.parameters())
        self._fixed = self.total - sum(self._sizes)
        self.minimum = self._fixed + len(self._sizes)

    @torch.no_grad()
    def mask(self, target: int, *, revive: bool, frozen: bool) -> None:
        """See :class:`Plan`."""
        count = min(target - self._fixed, sum(self._sizes))
        scores = []
        for name, mask in self.masks.items():
            score = unmasked_weight(self._network.get_submodule(name)).abs().flatten()
            if not revive:
                score = torch.where(mask.mask.flatten(), score, -1.0)
            scores.append(score)
            mask.returning = revive and not frozen
        if self._scope == "layer":
            kept = [
                largest(score, n)
                for score, n in zip(scores, shares(self._sizes, count), strict=True)
            ]
        else:
            kept = list(torch.split(largest(torch.cat(scores), count), self._sizes))
        for mask, chosen in zip(self.masks.values(), kept, strict=True):
            mask.mask.copy_(chosen.view(mask.mask.shape))


def largest(scores: Tensor, count: int) -> Tensor:
    """Mark exactly ``count`` of the largest scores; of equal ones the first.

    >>> largest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3).tolist()
    [True, True, False, True]

    Args:
        scores: (N,) finite.
        count: 0 to N.

    Shape:
        - output: (N,), bool
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # kthvalue counts from the smallest: this is the smallest score that is still kept.
    limit = scores.kthvalue(len(scores) - count + 1).values
    kept = scores > limit
    tied = (scores == limit).nonzero()[:, 0]
    kept[tied[: count - int(kept.sum())]] = True
    return kept


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """Distribute a number in proportion to sizes: sums exactly to it, at least one each.

    The first goes to everyone, the others by largest remainder.

    >>> shares([1, 10, 100], 30)
    [1, 3, 26]

    Args:
        sizes: 1 or more each.
        count: from ``len(sizes)`` to their sum.
    """
    rest, room = count - len(sizes), sum(sizes) - len(sizes)
    if room == 0:
        return [1] * len(sizes)
    whole = [rest * (size - 1) // room for size in sizes]
    remainders = [rest * (size - 1) % room for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: -remainders[i])
    for i in order[: rest - sum(whole)]:
        whole[i] += 1
    return [1 + n for n in whole]


def _plan(
    network: nn.Module,
    method: Literal["magnitude", "channels"],
    scope: Literal["global", "layer"],
) -> Plan:
    if method == "channels":
        return ChannelPlan(network, scope)
    return MagnitudePlan(network, scope)
