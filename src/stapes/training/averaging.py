"""Averages of the weights over the course of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage", "estimate_batch_norm"]


class WeightAverage:
    """A running mean of a network's floating-point state.

    ``decay`` given: exponential mean, ``mean += (1 - d) * (now - mean)`` with
    ``d = min(decay, (1 + n) / (10 + n))`` after n updates, so that the first steps do not weigh
    forever. ``decay`` none: equal mean of all snapshots (stochastic weight averaging, Izmailov
    et al. 2018); batch-norm statistics should then be estimated again, see
    :func:`estimate_batch_norm`.

    Args:
        network: its present state is the first snapshot of an exponential mean.
        decay: in [0, 1), or none for the equal mean.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.updates = 0
        self.mean: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in network.state_dict().items()
        }

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the present weights in."""
        n = self.updates
        rate = 1.0 / (n + 1) if self.decay is None else 1 - min(self.decay, (1 + n) / (10 + n))
        floats, news = [], []
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                floats.append(self.mean[name])
                news.append(value.detach())
            else:
                self.mean[name].copy_(value)
        # One fused call instead of a Python loop over tensors: this runs after every step.
        torch._foreach_lerp_(floats, news, rate)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """Tensors to store in a checkpoint (the count of updates is stored beside them)."""
        return self.mean

    def load(self, mean: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a checkpoint."""
        for name, value in mean.items():
            self.mean[name].copy_(value)
        self.updates = updates


@torch.no_grad()
def estimate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every batch norm's running statistics to the mean over the given inputs.

    Averaged weights have never seen an activation, so statistics gathered on the way do not fit
    them (Izmailov et al. 2018, section 3.2). Modes and momenta are restored. Norms that did not
    learn keep their statistics.
    """
    norms = [
        m
        for m in network.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        and (not m.affine or m.weight.requires_grad)
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    training = network.training
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
        network.eval()
        for norm in norms:
            norm.train()
        for batch in batches:
            network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(training)
