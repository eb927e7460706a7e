"""Recordings out of request bodies, into private files that are gone when the request is.

A body is written while it comes, and counted: what it claims to be is not believed. Decoders go by
content; of a name only an ending of MPEG audio is kept, which :mod:`stapes.audio` looks for where
junk precedes the first frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from stapes.server.problems import Problem, Refusal
from stapes.server.settings import MIB, Settings

__all__ = ["Upload", "Uploads"]

_MPEG = {".mp3", ".mp2", ".mp1", ".mpga"}
_MPEG_TYPES = {"audio/mpeg", "audio/mp3", "audio/mpga"}
_RAW_TYPES = {"application/ogg", "application/octet-stream", "video/ogg", ""}
_HEADER_BYTES = 8192  # of the head of a part
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Upload:
    """A file that was sent.

    Attributes:
        path: where it lies until the request ends.
        name: as it was sent, without folders; none for a body that is the recording.
    """

    path: Path
    name: str | None


class Uploads:
    """The private folder of all uploads.

    Args:
        settings: sizes and times.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._numbers = itertools.count()

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @contextlib.asynccontextmanager
    async def receive(self, request: Request, files: int) -> AsyncIterator[list[Upload]]:
        """The recordings of a request.

        Args:
            request: with a multipart body, or one that is a recording itself.
            files: most of them.

        Yields:
            One or more; their files are removed at the end.

        Raises:
            Problem: too large, too slow, too many, of another kind, or not well formed.
            ClientDisconnect: the client went away.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._settings.upload_bytes:
            raise self._too_large()
        kind, options = parse_options_header(request.headers.get("content-type"))
        media = kind.decode("latin-1").lower()
        writer: _Raw | _Multipart
        if media == "multipart/form-data":
            boundary = options.get(b"boundary", b"")
            if not boundary:
                raise Problem("bad-request", "The multipart body names no boundary.")
            writer = _Multipart(self._new, boundary, files)
        elif media.startswith("audio/") or media in _RAW_TYPES:
            writer = _Raw(self._new(".mp3" if media in _MPEG_TYPES else ""))
        else:
            raise Problem(
                "unsupported-media",
                f"A body of type '{media[:100]}' is no recording; send audio/* or "
                "multipart/form-data.",
            )
        try:
            await self._write(request, writer)
            yield writer.finish()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Problem("no-space", "There is no room for the upload just now.") from error
            raise
        finally:
            writer.remove()

    async def _write(self, request: Request, writer: _Raw | _Multipart) -> None:
        settings, loop = self._settings, asyncio.get_running_loop()
        total, end = 0, loop.time() + settings.upload_seconds
        try:
            async with asyncio.timeout_at(end) as limit:
                more = True
                while more:
                    limit.reschedule(min(end, loop.time() + settings.stall_seconds))
                    message = await request.receive()
                    if message["type"] != "http.request":
                        raise ClientDisconnect
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    total += len(chunk)
                    if total > settings.upload_bytes:
                        raise self._too_large()
                    if chunk:
                        writer.write(chunk)
        except TimeoutError:
            raise Refusal(
                "slow",
                "too-slow",
                f"The upload stopped for {settings.stall_seconds:g} s or took more than "
                f"{settings.upload_seconds:g} s.",
            ) from None

    def _too_large(self) -> Refusal:
        most = self._settings.upload_bytes
        size = f"{most / MIB:g} MiB" if most >= MIB else f"{most} bytes"
        return Refusal(
            "size", "too-large", f"The request has more than {size}, the most that is taken here."
        )

    def _new(self, suffix: str) -> _File:
        # Who tidies temporary folders up may have taken it.
        if self._folder is None or not Path(self._folder.name).is_dir():
            self._folder = tempfile.TemporaryDirectory(
                prefix="stapes-serve-", ignore_cleanup_errors=True
            )
        return _File(Path(self._folder.name, f"{next(self._numbers)}{suffix}"))


class _File:
    """An upload that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: BinaryIO = path.open("xb", buffering=0)

    def write(self, content: bytes | memoryview) -> None:
        """Add to it; the disk may take less at once than it is given."""
        rest = memoryview(content)
        while rest:
            rest = rest[self._handle.write(rest) :]

    def close(self) -> None:
        """All is there."""
        self._handle.close()

    def remove(self) -> None:
        """Leave nothing."""
        self._handle.close()
        with contextlib.suppress(PermissionError):  # Windows, while a worker reads: close() does it
            self.path.unlink(missing_ok=True)


class _Raw:
    """A body that is the recording."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self.write, self.remove = file.write, file.remove

    def finish(self) -> list[Upload]:
        """The recording."""
        self._file.close()
        return [Upload(self._file.path, None)]


class _Multipart:
    """A form whose fields ``file`` or ``files`` are recordings."""

    def __init__(self, new: Callable[[str], _File], boundary: bytes, files: int) -> None:
        self._new, self._most = new, files
        self._files: list[_File] = []
        self._uploads: list[Upload] = []
        self._field = self._value = b""
        self._head: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._ended = False
        callbacks: Any = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._head_ends,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._all_ends,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _malformed(error) from None

    def write(self, content: bytes) -> None:
        """Take the next part of the body."""
        try:
            self._parser.write(content)
        except FormParserError as error:
            raise _malformed(error) from None

    def finish(self) -> list[Upload]:
        """The files."""
        if not self._ended:
            raise Problem("bad-request", "The multipart body ends before its last boundary.")
        if not self._uploads:
            raise Problem("bad-request", "The form has no field 'file' with a recording.")
        return self._uploads

    def remove(self) -> None:
        """Leave nothing."""
        for file in self._files:
            file.remove()

    def _part_begins(self) -> None:
        self._head, self._head_bytes = {}, 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._count(end - start)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count(end - start)

    def _count(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > _HEADER_BYTES:
            raise Problem("bad-request", "The head of a part of the form is too long.")

    def _header_ends(self) -> None:
        self._head[self._field.lower()] = self._value
        self._field = self._value = b""

    def _head_ends(self) -> None:
        disposition = self._head.get(b"content-disposition", b"").decode("latin-1")
        _, options = parse_options_header(disposition)
        field = options.get(b"name", b"").decode("utf-8", errors="replace")
        if field not in ("file", "files"):
            raise Problem(
                "invalid-value",
                f"The form has a field '{field[:100]}'; recordings are sent as 'file', everything "
                "else in the query.",
            )
        if len(self._uploads) == self._most:
            detail = "One request has one file here; send several to /classify/batch."
            if self._most > 1:
                detail = f"A request has at most {self._most} files; send several requests."
            raise Refusal("files", "too-large", detail)
        name = _plain(options.get(b"filename", b""))
        suffix = Path(name or "").suffix.lower()
        media = self._head.get(b"content-type", b"").decode("latin-1").lower()
        if media.partition(";")[0].strip() in _MPEG_TYPES:
            suffix = ".mp3"
        file = self._new(suffix if suffix in _MPEG else "")
        self._files.append(file)
        self._uploads.append(Upload(file.path, name))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._files[-1].write(memoryview(data)[start:end])

    def _part_ends(self) -> None:
        self._files[-1].close()

    def _all_ends(self) -> None:
        self._ended = True


def _plain(name: bytes) -> str | None:
    """A file's name without folders and control characters."""
    text = _CONTROLS.sub("", name.decode("utf-8", errors="replace"))
    return text.replace("\\", "/").rpartition("/")[2][:255] or None


def _malformed(error: Exception) -> Problem:
    return Problem("bad-request", f"The multipart body is not well formed ({error}).")
