"""What one half of the C sources, front end or network, brings to ``model.h`` and ``model.c``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One half of a generated model.

    ``header`` is text for ``model.h`` (sizes as macros, declarations of tables), ``source`` text
    for ``model.c`` (the tables themselves, const); both end with a newline. ``flash`` is the size
    of the constants in bytes; ``ram`` is ``sizeof`` the half's state struct in bytes, the same
    with 4-byte and 8-byte pointers (a state holds no pointers and no ``size_t``).
    """

    header: str
    source: str
    flash: int
    ram: int
