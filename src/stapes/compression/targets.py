"""How many parameters pruning leaves: a part or a number, checked against what a network needs."""

from __future__ import annotations

import math
from typing import Protocol

from stapes.errors import ConfigError

__all__ = ["target_parameters"]


class _Bounds(Protocol):
    total: int
    minimum: int
    needed_by: str


def target_parameters(
    bounds: _Bounds, keep: float | None, keep_parameters: int | None, *, option: str = ""
) -> int:
    """Number of parameters to leave, at most all.

    Args:
        bounds: parameters of the network and the fewest it can be brought to.
        keep: part of them, above 0, at most 1 (rounded down); or
        keep_parameters: their number.
        option: what stands before the two names in an error message.

    Raises:
        ConfigError: below the minimum.
        ValueError: both or neither, or ``keep`` out of range.
    """
    if (keep is None) == (keep_parameters is None):
        raise ValueError("give either keep or keep_parameters")
    if keep is not None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep = {keep!r}: must be above 0, at most 1")
        # 0.29 * 100 is 28.999...: that is 29.
        target = math.floor(keep * bounds.total * (1 + 1e-12))
        asked = f"{option}keep = {keep:g} leaves {target} of {bounds.total} parameters"
    else:
        assert keep_parameters is not None
        target = keep_parameters
        asked = f"{option}keep_parameters = {target}"
    if target < bounds.minimum:
        raise ConfigError(
            f"{asked}: the network needs {bounds.minimum} at least, for {bounds.needed_by}; leave "
            "more, or start from a smaller network."
        )
    return min(target, bounds.total)
