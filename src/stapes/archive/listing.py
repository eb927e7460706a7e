"""The recordings of an archive as they were first seen, cut into parts.

What is found at the beginning is the first batch; what was added when the sweep is started again
is a further one. A batch is sorted, never changes, and is a file of one JSON line a recording, so
that ten million of them need no memory::

    ["2023/05/night 1.flac", 91827364, 1684800000000000000]      path, bytes, modified (ns)
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from stapes.audio import walk_audio
from stapes.errors import AudioError, StapesError
from stapes.files import atomic_path

__all__ = ["Changes", "Entry", "Listing"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A recording as it was listed.

    Attributes:
        path: relative to the archive, with ``/``.
        size: bytes.
        modified: nanoseconds since 1970; with the size it tells whether the file has changed.
    """

    path: str
    size: int
    modified: int

    @property
    def key(self) -> list[str]:
        """By which listings are sorted: as :func:`stapes.audio.find_audio` does."""
        return self.path.split("/")


@dataclass
class Changes:
    """What differs between an archive and its listing.

    Attributes:
        recordings: in the listing, with those added.
        bytes: of them.
        added: number of recordings that were not listed before, and now are.
        changed: number of listed ones with another size or time.
        vanished: number of listed ones that are no longer there.
        unreadable: folders that may not be read.
        examples: the first few, by kind.
    """

    recordings: int = 0
    bytes: int = 0
    added: int = 0
    changed: int = 0
    vanished: int = 0
    unreadable: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def _example(self, kind: str, name: str) -> None:
        found = self.examples.setdefault(kind, [])
        if len(found) < 3:
            found.append(name)


class Listing:
    """The batches in a folder.

    Args:
        folder: where the files ``files-*.jsonl`` are.
        part_files: most recordings of a part.
        part_bytes: a part ends with the recording that reaches this size.
    """

    def __init__(self, folder: Path, part_files: int, part_bytes: int) -> None:
        self._folder, self._part_files, self._part_bytes = folder, part_files, part_bytes

    def update(self, archive: Path, told: Callable[[int], None] | None = None) -> Changes:
        """Compare the archive with what is listed, and list what was added as a further batch.

        Args:
            archive: a folder.
            told: is called with the number of recordings seen so far, now and then.

        Raises:
            AudioError: the archive is no folder.
            StapesError: a listing is damaged, or cannot be written.
        """
        changes = Changes()

        def refused(error: AudioError) -> None:
            changes.unreadable += 1
            changes._example("unreadable", error.path.relative_to(archive).as_posix())

        batches = self._batches()
        known = heapq.merge(*map(_read, batches), key=lambda entry: entry.key)
        listed = next(known, None)
        with ExitStack() as stack:
            batch: BinaryIO | None = None
            for number, path in enumerate(walk_audio(archive, refused)):
                if told is not None and number % 10_000 == 0:
                    told(number)
                found = _entry(path, archive)
                while listed is not None and listed.key < found.key:
                    _vanished(changes, listed)
                    listed = next(known, None)
                if listed is not None and listed.path == found.path:
                    _count(changes, listed)
                    if listed != found:
                        changes.changed += 1
                        changes._example("changed", found.path)
                    listed = next(known, None)
                    continue
                if batch is None:
                    name = f"files-{len(batches):05d}.jsonl"
                    aside = stack.enter_context(atomic_path(self._folder / name))
                    batch = stack.enter_context(aside.open("wb"))
                batch.write(json.dumps([found.path, found.size, found.modified]).encode() + b"\n")
                changes.added += 1
                _count(changes, found)
            while listed is not None:
                _vanished(changes, listed)
                listed = next(known, None)
        return changes

    def parts(self) -> Iterator[list[Entry]]:
        """The parts in order; a batch begins with a part of its own.

        Raises:
            StapesError: a listing is damaged.
        """
        for batch in self._batches():
            part: list[Entry] = []
            size = 0
            for entry in _read(batch):
                part.append(entry)
                size += entry.size
                if len(part) == self._part_files or size >= self._part_bytes:
                    yield part
                    part, size = [], 0
            if part:
                yield part

    def _batches(self) -> list[Path]:
        return sorted(self._folder.glob("files-*.jsonl"))


def _count(changes: Changes, entry: Entry) -> None:
    changes.recordings += 1
    changes.bytes += entry.size


def _vanished(changes: Changes, entry: Entry) -> None:
    _count(changes, entry)
    changes.vanished += 1
    changes._example("vanished", entry.path)


def _entry(path: Path, archive: Path) -> Entry:
    name = path.relative_to(archive).as_posix()
    try:
        status = path.stat()
    except OSError:  # a link that leads nowhere: reading it will say so
        return Entry(name, 0, 0)
    return Entry(name, status.st_size, status.st_mtime_ns)


def _read(batch: Path) -> Iterator[Entry]:
    try:
        with batch.open("rb") as file:
            for line in file:
                path, size, modified = json.loads(line)
                yield Entry(path, size, modified)
    except (OSError, ValueError) as error:
        raise StapesError(
            f"{batch}: this list of recordings is damaged ({error}); choose another --out."
        ) from None
