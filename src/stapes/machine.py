"""What this process may use of its machine."""

from __future__ import annotations

import contextlib
import os

__all__ = ["usable_cores"]


def usable_cores() -> int:
    """Cores this process may run on."""
    with contextlib.suppress(AttributeError):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
