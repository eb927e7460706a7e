"""The digest inside an exported ONNX file: written once, checked without the onnx package.

An ONNX file is a protocol-buffers message; its metadata are pairs of texts, of which one is named
``stapes_digest`` and holds the SHA-256 of the whole file, as 64 hexadecimal digits, computed with
zeros ("0") in their place. In the file such a pair reads, whatever wrote it::

    0a 0d "stapes_digest" 12 40 "0123...cdef"
    │  │                  │  └─ 64 bytes
    │  └─ 13 bytes        └─ field 2, the value
    └─ field 1, the key

It tells damage, not intent: whoever alters a file can seal it again.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["DIGEST_KEY", "UNSEALED", "is_intact", "is_sealed", "seal"]

DIGEST_KEY = "stapes_digest"
UNSEALED = "0" * 64
"""What stands in the place of the digest before a file is sealed."""

_PAIR = re.compile(
    rb"\x0a" + bytes([len(DIGEST_KEY)]) + DIGEST_KEY.encode() + rb"\x12\x40([0-9a-f]{64})"
)


def seal(content: bytes) -> bytes:
    """Write the digest into a file whose metadata hold :data:`UNSEALED` under :data:`DIGEST_KEY`.

    A file that is sealed already is sealed anew.

    Args:
        content: of the whole file.

    Returns:
        As many bytes, for which :func:`is_intact` holds.

    Raises:
        ValueError: there is no such pair in the metadata, or more than one.
    """
    places = _places(content)
    if len(places) != 1:
        raise ValueError(f"the content has {len(places)} places for a digest, not 1")
    start, end = places[0]
    return content[:start] + _digest(content, start, end) + content[end:]


def is_sealed(content: bytes) -> bool:
    """Whether a file has a place for a digest, so that :func:`is_intact` says something of it."""
    return bool(_places(content))


def is_intact(content: bytes) -> bool:
    """Whether a file has the digest that it states: every byte is as it was sealed.

    ``False`` also where it states none, or several.
    """
    places = _places(content)
    if len(places) != 1:
        return False
    start, end = places[0]
    return content[start:end] == _digest(content, start, end)


def _places(content: bytes) -> list[tuple[int, int]]:
    return [found.span(1) for found in _PAIR.finditer(content)]


def _digest(content: bytes, start: int, end: int) -> bytes:
    digest = hashlib.sha256(content[:start])
    digest.update(UNSEALED.encode())
    digest.update(content[end:])
    return digest.hexdigest().encode()
