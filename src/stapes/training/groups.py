"""Which parameters learn, how fast, and with how much decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from stapes.models.blocks import block_plan, check_blocks

__all__ = ["freeze_blocks", "parameter_groups"]


def freeze_blocks(network: nn.Module, count: int) -> list[nn.Module]:
    """Stop the first blocks of a network from learning, batch norm's statistics included.

    Args:
        network: changed in place.
        count: blocks from the input on.

    Returns:
        The modules that must be put into evaluation mode after every ``network.train()``.

    Raises:
        ConfigError: more blocks than there are.
    """
    if count == 0:
        return []
    plan = block_plan(network)
    check_blocks(count, plan.names, "initialization.frozen_blocks")
    frozen = [network.get_submodule(name) for name in plan.modules_up_to(count)]
    for name, parameter in network.named_parameters():
        if plan.block_of[name] < count:
            parameter.requires_grad_(False)
    return frozen


def parameter_groups(
    network: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    *,
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Groups for an optimiser, with the part of the rate that each gets under ``"rate_scale"``.

    Weight decay is for kernels and matrices only, unless a paper has it otherwise: a decayed
    batch-norm scale or bias regularises nothing (He et al. 2019, *Bag of Tricks*, section 3.1).
    With ``layer_decay`` d the head learns at the full rate, the last of K blocks at d times it, the
    first at d to the power of K (Howard and Ruder 2018, section 3.1): what lies near the input is
    the most general.

    Args:
        network: frozen parameters are left out.
        weight_decay: 0 or more.
        layer_decay: d, in (0, 1].
        decay_all: norms and biases decay like the rest.
    """
    if layer_decay == 1.0:
        parts = [(1.0, [p for p in network.parameters() if p.requires_grad])]
    else:
        plan = block_plan(network)
        by_block: list[list[nn.Parameter]] = [[] for _ in range(plan.head + 1)]
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                by_block[plan.block_of[name]].append(parameter)
        parts = [(layer_decay ** (plan.head - k), part) for k, part in enumerate(by_block)]
    groups = []
    for scale, part in parts:
        for decay, chosen in (
            (weight_decay, [p for p in part if p.ndim > 1]),
            (weight_decay if decay_all else 0.0, [p for p in part if p.ndim <= 1]),
        ):
            groups.append({"params": chosen, "weight_decay": decay, "rate_scale": scale})
    return [group for group in groups if group["params"]]
