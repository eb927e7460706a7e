"""Records that are appended to a file and survive the death of who appends them.

A line is a checksum and the record as JSON::

    5d41402a ["end",17,5.0,null]
    │        └─ payload, ASCII
    └─ CRC-32 of the payload, eight hexadecimal digits

Each is written by one call. A process killed in the middle of it, or a disk that lost its power,
leaves a last line that is cut short or does not fit its checksum: what follows the last good line
is dropped when the journal is opened again.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from stapes.files import cannot_write

__all__ = ["Journal", "to_line"]

_SYNC_SECONDS = 1.0
"""What is appended reaches the disk within this time: a flush for each record would cost more than
answering a short recording does."""


def to_line(record: Any) -> bytes:
    """A record as a line of a journal."""
    payload = json.dumps(record, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _from_line(line: bytes) -> Any:
    """The record of a line.

    Raises:
        ValueError: the line is not whole.
    """
    checksum, separator, payload = line[:8], line[8:9], line[9:-1]
    if line[-1:] != b"\n" or separator != b" " or int(checksum, 16) != zlib.crc32(payload):
        raise ValueError("not a whole line")
    return json.loads(payload)


class Journal:
    """A file of records. Use as a context manager, or :meth:`close` it.

    Args:
        path: made where missing; its folder exists.

    Raises:
        StapesError: the disk is full or the place cannot be written to; also of :meth:`append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def recover(self) -> Iterator[tuple[int, Any]]:
        """Where each good record begins, and it; what follows the last one is cut off."""
        good = 0
        with self._reading() as file:
            for line in file:
                try:
                    record = _from_line(line)
                except ValueError:
                    break
                yield good, record
                good += len(line)
        try:
            if good < os.fstat(self._file.fileno()).st_size:
                self._file.truncate(good)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def append(self, record: Any) -> int:
        """Write a record behind the others.

        Returns:
            Where it begins.
        """
        line = to_line(record)
        try:
            start = self._file.seek(0, os.SEEK_END)
            left = memoryview(line)
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return start

    def read(self, start: int) -> Any:
        """The record that begins there."""
        with self._reading() as file:
            file.seek(start)
            return _from_line(file.readline())

    def _reading(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def sync(self) -> None:
        """Have the disk hold what was appended."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Append no more."""
        self._file.close()
