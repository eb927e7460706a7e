"""What a device allows: bytes of the model file, multiply-accumulates per second of audio."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from stapes.errors import StapesError

__all__ = ["Limits", "format_macs", "format_size", "parse_macs", "parse_size"]

_NUMBER = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d*)?|\.\d+)\s*([a-z/]*)\s*", re.IGNORECASE)
# As on a data sheet: k = 1000 and Ki = 1024, whether or not "B" follows.
_PREFIXES = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
}
_LARGEST = 10**15


def parse_size(text: str | int) -> int:
    """Bytes, from how people write them, in capital or small letters.

    >>> parse_size("32kB"), parse_size("32 KiB"), parse_size("0.5MB"), parse_size("128k")
    (32000, 32768, 500000, 128000)

    Args:
        text: a number with ``B``, ``kB``, ``MB``, ``GB`` (powers of 1000), ``KiB``, ``MiB``,
            ``GiB`` (powers of 1024), these without their ``B``, or without any: bytes. Parts of a
            byte are dropped.

    Raises:
        StapesError: something else, or less than one byte.
    """
    found = _NUMBER.fullmatch(str(text))
    if found is not None:
        unit = found[2].lower()
        prefix = "" if unit in ("byte", "bytes") else unit.removesuffix("b")
        if prefix in _PREFIXES:
            value = Decimal(found[1].replace("_", "")) * _PREFIXES[prefix]
            if 1 <= value < _LARGEST:
                return int(value)
    raise StapesError(
        f"--size {text}: write a number of bytes with a unit, such as 128kB (128,000 bytes), 32KiB "
        "(32,768 bytes) or 0.5MB."
    )


def parse_macs(text: str | int | float) -> int:
    """Multiply-accumulates per second of audio, from how people write them.

    >>> parse_macs("30M"), parse_macs("1.5 GMAC"), parse_macs(250_000)
    (30000000, 1500000000, 250000)

    Args:
        text: a number with ``k``, ``M`` (million) or ``G``, in capital or small letters, with or
            without ``MAC``, ``MACs`` or ``MACs/s``; or without any.

    Raises:
        StapesError: something else, or less than one.
    """
    found = _NUMBER.fullmatch(str(text))
    if found is not None:
        prefix = re.sub(r"macs?(/s)?$", "", found[2].lower())
        if prefix in ("", "k", "m", "g"):
            value = Decimal(found[1].replace("_", "")) * _PREFIXES[prefix]
            if 1 <= value < _LARGEST:
                return int(value)
    raise StapesError(
        f"--macs {text}: write the multiply-accumulates per second of audio, such as 30M (30 "
        "million) or 500k."
    )


def format_size(n_bytes: int) -> str:
    """Exact and short, readable by :func:`parse_size`.

    >>> format_size(128_000), format_size(32_768), format_size(500_000), format_size(1234)
    ('128kB', '32KiB', '500kB', '1234B')
    """
    for unit, factor in (("MB", 1000**2), ("MiB", 1024**2), ("kB", 1000), ("KiB", 1024)):
        if n_bytes % factor == 0:
            return f"{n_bytes // factor}{unit}"
    return f"{n_bytes}B"


def format_macs(macs: int) -> str:
    """Exact and short, readable by :func:`parse_macs`.

    >>> format_macs(30_000_000), format_macs(1_500_000), format_macs(1234)
    ('30M', '1500k', '1234')
    """
    for unit, factor in (("G", 1000**3), ("M", 1000**2), ("k", 1000)):
        if macs % factor == 0:
            return f"{macs // factor}{unit}"
    return str(macs)


@dataclass(frozen=True)
class Limits:
    """What the model may cost. At least one is given.

    Attributes:
        file_bytes: of the whole model file on disk, header included; none: any.
        macs_per_second: multiply-accumulates per second of audio, by the rule of the DCASE
            challenges since 2022: products with weights of zero count; none: any.
    """

    file_bytes: int | None = None
    macs_per_second: int | None = None

    def __post_init__(self) -> None:
        if self.file_bytes is None and self.macs_per_second is None:
            raise StapesError(
                "give --size (such as 128kB), --macs (such as 30M, per second of audio) or both."
            )

    def load(self, file_bytes: float, macs_per_second: float) -> float:
        """How full the tighter one is: at most 1 for a model inside both."""
        loads = []
        if self.file_bytes is not None:
            loads.append(file_bytes / self.file_bytes)
        if self.macs_per_second is not None:
            loads.append(macs_per_second / self.macs_per_second)
        return max(loads)

    def allow(self, file_bytes: float, macs_per_second: float) -> bool:
        """Whether a model of this cost is inside."""
        return self.load(file_bytes, macs_per_second) <= 1

    def __str__(self) -> str:
        parts = []
        if self.file_bytes is not None:
            parts.append(format_size(self.file_bytes))
        if self.macs_per_second is not None:
            parts.append(f"{format_macs(self.macs_per_second)} MACs/s")
        return " and ".join(parts)
