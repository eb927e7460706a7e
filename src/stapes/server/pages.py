"""The browser page of :mod:`stapes.web` at the server's root."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["StaticFile", "page_of", "respond"]

# A browser holds to this and to what the page says itself, which may be stricter.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class StaticFile(Protocol):
    """A file as :func:`stapes.web.page_files` gives it."""

    @property
    def content(self) -> bytes:
        """Its bytes."""

    @property
    def media_type(self) -> str:
        """For the header ``Content-Type``."""

    @property
    def gzip(self) -> bytes | None:
        """The content gzipped, where that is worth it."""


class _Kept:
    """A file as it is sent: of one that has a gzipped form only that is held in memory."""

    def __init__(self, file: StaticFile) -> None:
        self.media_type, self.packed = file.media_type, file.gzip
        self.plain = file.content if file.gzip is None else None
        self.digest = hashlib.sha256(file.content).hexdigest()[:32]


def page_of(model: Path, name: str) -> dict[str, _Kept]:
    """The page of a model, by addresses.

    Raises:
        ModelFileError: as :func:`stapes.web.page_files`.
    """
    from stapes.web import page_files

    files: Mapping[str, StaticFile] = page_files(model, name=name)
    kept = {f"/{inside}": _Kept(file) for inside, file in files.items()}
    return {"/": kept["/index.html"], **kept}


def respond(file: _Kept, request: Request) -> Response:
    """One of its files, gzipped for who takes that, or nothing for who has it."""
    packed = file.packed is not None and _takes_gzip(request.headers.get("accept-encoding", ""))
    tag = f'"{file.digest}{"-gzip" if packed else ""}"'
    headers = {
        "etag": tag,
        "cache-control": "no-cache",  # asked for again each time, sent again if changed
        "content-security-policy": _POLICY,
        "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    }
    if file.packed is not None:
        headers["vary"] = "Accept-Encoding"
    known = [part.strip() for part in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    if packed:
        headers["content-encoding"] = "gzip"
        content = file.packed
    elif file.plain is None:
        assert file.packed is not None
        content = gzip.decompress(file.packed)
    else:
        content = file.plain
    return Response(content, headers=headers, media_type=file.media_type)


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "*"):
            try:
                return float(weight.partition("=")[2] or 1) > 0
            except ValueError:
                return False
    return False
