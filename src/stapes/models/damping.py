"""Frequency damping: convolutions that attend less to the edges of their kernel in frequency.

Reference:
    Koutini, Henkel, Eghbal-zadeh, Widmer, "Low-Complexity Models for Acoustic Scene
    Classification Based on Receptive Field Regularization and Frequency Damping", DCASE 2020,
    section 2.2.

Spectrograms are (B, C, F, T), so a kernel is (C_out, C_in, K_F, K_T) and frequency is its second
to last axis. Each kernel is multiplied by a constant window along that axis, the same for every
pair of channels and every tap in time:

    floor = 0.1        3 taps           5 taps                    4 taps
                    0.1  1  0.1    0.1 0.55 1 0.55 0.1         0.1  1  1  0.1

The window is a parametrization (``torch.nn.utils.parametrize``): the optimiser sees the raw
weight, the convolution the damped one. A state dict of a damped module holds the raw weight as
``<name>.parametrizations.weight.original``; the window follows from the floor and is not stored.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stapes.models.parametrized import unparametrize

__all__ = ["FrequencyDamping", "damp", "damping_of", "damping_window", "fold_damping"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def damping_window(taps: int, floor: float) -> Tensor:
    """Factors along frequency: 1 at the centre, falling linearly to ``floor`` at both edges.

    An even kernel has two centre taps. One or two taps have no edge: their factors are 1.

    >>> damping_window(5, 0.2).tolist()
    [0.20000000298023224, 0.6000000238418579, 1.0, 0.6000000238418579, 0.20000000298023224]

    Args:
        taps: kernel size along frequency, 1 or more.
        floor: factor at the edges, 0 to 1.

    Shape:
        - output: (taps,), float32
    """
    steps = (taps - 1) // 2  # from a centre tap to its edge
    if steps == 0:
        return torch.ones(taps)
    position = torch.arange(taps)
    from_edge = torch.minimum(position, taps - 1 - position)
    # float64 first: floor itself comes out at the edge and exactly 1 in the centre.
    return (floor + (1 - floor) * from_edge.double() / steps).float()


class FrequencyDamping(nn.Module):
    """Parametrization of a convolution's weight: ``weight * damping``.

    Args:
        taps: kernel size along frequency.
        floor: factor at the kernel's edges, 0 to 1.

    Shape:
        - input, output: (C_out, C_in, taps, K_T)

    Raises:
        ValueError: ``floor`` outside 0 to 1.
    """

    damping: Tensor

    def __init__(self, taps: int, floor: float) -> None:
        super().__init__()
        _check_floor(floor)
        self.floor = float(floor)
        # (taps, 1): the same for all taps in time. Not part of the state: the floor decides it.
        self.register_buffer("damping", damping_window(taps, floor)[:, None], persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.damping

    def extra_repr(self) -> str:
        return f"taps={len(self.damping)}, floor={self.floor}"


def damp(module: ModuleT, floor: float) -> ModuleT:
    """Give frequency damping to every ``Conv2d`` of any network, in place.

    The raw weights stay as they are, so the network computes something else from now on (unless
    ``floor`` is 1). Kernels of one or two taps along frequency have no edge and are untouched.

    Args:
        module: a network or a single convolution.
        floor: factor at the kernels' edges, 0 to 1.

    Returns:
        The same module.

    Raises:
        ValueError: ``floor`` outside 0 to 1, or the module is damped already.
    """
    _check_floor(floor)
    if damping_of(module) is not None:
        raise ValueError("this network is damped already; fold_damping it first")
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size[0] > 2:
            damping = FrequencyDamping(part.kernel_size[0], floor)
            damping.to(device=part.weight.device, dtype=part.weight.dtype)
            parametrize.register_parametrization(part, "weight", damping)
    return module


def damping_of(module: nn.Module) -> float | None:
    """Floor of a damped network; none if it is not damped."""
    for part in module.modules():
        if isinstance(part, FrequencyDamping):
            return part.floor
    return None


def fold_damping(module: ModuleT) -> ModuleT:
    """Make the damped weights plain weights, in place: same function, no cost at run time.

    Whatever else is stacked on a damped weight (a pruning mask) is folded with it.

    Returns:
        The same module, without any :class:`FrequencyDamping`.
    """
    for part in list(module.modules()):
        if not isinstance(part, nn.Conv2d) or not parametrize.is_parametrized(part, "weight"):
            continue
        stacked = cast(nn.ModuleDict, part.parametrizations)["weight"]
        if any(isinstance(one, FrequencyDamping) for one in cast(nn.ModuleList, stacked)):
            unparametrize(part, fold=True)
    return module


def _check_floor(floor: float) -> None:
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1:
        raise ValueError(f"damping = {floor!r}: must be a number from 0 to 1, or none")
