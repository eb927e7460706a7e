"""The answers of an archive in files of a fixed stretch of its list each.

A part's answers are collected in its journal, in the order in which they come. When all its
recordings are done its rows are written in the order of the list, its name is put into the ledger
of sealed parts, and the journal goes::

    _sweep/journal-00007.jsonl ──▶ rows/part-00007.parquet
                               ──▶ errors/part-00007.csv      where there are any
                               ──▶ a line in _sweep/sealed.jsonl

Each step is complete or did not happen, and each is the same when it is repeated.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from stapes.archive.answers import Answer, Rows
from stapes.archive.journal import Journal, to_line
from stapes.archive.listing import Entry
from stapes.errors import MissingPackageError, StapesError
from stapes.files import atomic_path, cannot_write, write_bytes

__all__ = ["FORMATS", "Folder", "Format", "Part", "Sealed", "is_foreign", "need_packages"]

Format = Literal["parquet", "csv"]

FORMATS: tuple[str, ...] = get_args(Format)

_ROW_GROUP = 1 << 17  # rows; a reader skips groups by their statistics


class Sealed(NamedTuple):
    """A part that is done: numbers of its recordings, of those with an error, and of its rows;
    and its seconds of audio."""

    part: int
    recordings: int
    failed: int
    rows: int
    seconds: float


class Folder:
    """Where the answers of an archive go.

    Args:
        root: of the folder; made where missing.
        format: of the rows.
        columns: of the rows, with the types of their values; the first is the path.

    Raises:
        StapesError: it cannot be written to.
    """

    def __init__(self, root: Path, format: Format, columns: Mapping[str, type]) -> None:
        self.root, self.format, self.columns = root, format, dict(columns)
        self.state, self.rows, self.errors = root / "_sweep", root / "rows", root / "errors"
        for folder in (self.state, self.rows):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error) from error

    @property
    def _ledger(self) -> Path:
        return self.state / "sealed.jsonl"

    def sealed(self) -> dict[int, Sealed]:
        """The parts that are done. One whose file was deleted is not."""
        with Journal(self._ledger) as ledger:
            found = (Sealed(*record) for _, record in ledger.recover())
            return {s.part: s for s in found if self.part_file(s.part).is_file()}

    def tidy(self, sealed: Iterable[int]) -> None:
        """Remove what a process left that was killed while it wrote."""
        leftovers = [self.journal(part) for part in sealed]
        for folder in (self.root, self.state, self.rows, self.errors):
            leftovers += folder.glob(".*.partial")
        for path in leftovers:
            path.unlink(missing_ok=True)

    def seal(self, record: Sealed) -> None:
        """Put a part into the ledger."""
        with Journal(self._ledger) as ledger:
            ledger.append(record)
            ledger.sync()

    def settle(self, sealed: Mapping[int, Sealed]) -> None:
        """All parts are done: put the ledger in order, whatever order they were done in."""
        with contextlib.suppress(OSError):  # no folder of errors where there are none
            self.errors.rmdir()
        content = b"".join(to_line(sealed[part]) for part in sorted(sealed))
        if content != self._ledger.read_bytes():
            write_bytes(self._ledger, content)

    def part_file(self, part: int) -> Path:
        """Where a part's rows are, once it is sealed."""
        return self.rows / f"part-{part:05d}.{self.format}"

    def error_file(self, part: int) -> Path:
        """Where a part's errors are, if it has any."""
        return self.errors / f"part-{part:05d}.csv"

    def journal(self, part: int) -> Path:
        """Where a part's answers are until it is sealed."""
        return self.state / f"journal-{part:05d}.jsonl"


class Part:
    """A part that is being answered.

    Args:
        folder: where.
        number: of the part.
        entries: its recordings.

    Attributes:
        ends: by place, seconds and error of each recording that is done.
    """

    def __init__(self, folder: Folder, number: int, entries: Sequence[Entry]) -> None:
        self.number, self.entries = number, entries
        self.ends: dict[int, tuple[float, str | None]] = {}
        self._folder = folder
        self._chunks: dict[int, list[int]] = {}  # by place, where each piece of its rows begins
        self._journal = Journal(folder.journal(number))
        for start, record in self._journal.recover():
            self._take(start, record)

    def _take(self, start: int, record: list[Any]) -> None:
        kind, place, *rest = record
        if kind == "rows":
            # Whoever answers a recording again begins at its first piece.
            if rest[0] == 0:
                self._chunks[place] = []
            self._chunks[place].append(start)
        else:
            self.ends[place] = (rest[0], rest[1])

    @property
    def complete(self) -> bool:
        """Whether all its recordings are done."""
        return len(self.ends) == len(self.entries)

    def pending(self) -> list[int]:
        """The places of the recordings that are to be done."""
        places = [place for place in range(len(self.entries)) if place not in self.ends]
        for place in places:  # pieces of a recording that was in flight
            if self._chunks.pop(place, None):
                # On disk, too: the next attempt may end without any.
                self._journal.append(["rows", place, 0, []])
        return places

    def take(self, answer: Answer) -> bool:
        """Keep an answer; gives False for one to a recording that is done already."""
        if answer.place in self.ends:
            return False
        kind = "rows" if isinstance(answer, Rows) else "end"
        record = [kind, answer.place, *answer[2:]]
        self._take(self._journal.append(record), record)
        return True

    def close(self) -> None:
        """Leave the journal as it is."""
        self._journal.close()

    def seal(self) -> Sealed:
        """Write the part's files, and note that they are there.

        Raises:
            StapesError: the disk is full, or the place cannot be written to; what was answered
                is kept.
        """
        folder, number = self._folder, self.number
        path = folder.part_file(number)
        writer = _write_parquet if folder.format == "parquet" else _write_csv
        rows = writer(path, folder.columns, self._rows())
        failed = [(self.entries[p].path, e) for p, (_, e) in sorted(self.ends.items()) if e]
        if failed:
            _write_csv(folder.error_file(number), {"path": str, "error": str}, iter([failed]))
            _sync_folder(folder.errors)
        else:  # of a part that was done before, and deleted to be done again
            folder.error_file(number).unlink(missing_ok=True)
        _sync_folder(folder.rows)
        seconds = round(sum(self.ends[place][0] for place in range(len(self.entries))), 3)
        record = Sealed(number, len(self.entries), len(failed), rows, seconds)
        folder.seal(record)
        self._journal.close()
        self._journal.path.unlink()
        return record

    def _rows(self) -> Iterator[list[tuple[Any, ...]]]:
        """The rows in the order of the list, some at a time."""
        for place, entry in enumerate(self.entries):
            for start in self._chunks.get(place, ()):
                yield [(entry.path, *row) for row in self._journal.read(start)[3]]


def need_packages(format: Format) -> None:
    """Refuse a format that needs packages which are not there.

    Raises:
        MissingPackageError: Parquet without polars.
    """
    if format == "parquet":
        try:
            import polars  # noqa: F401
        except ModuleNotFoundError:
            raise MissingPackageError(
                'Parquet needs polars: pip install "stapes[archive]", or write --format csv.'
            ) from None


def _write_csv(
    path: Path, columns: Mapping[str, type], chunks: Iterator[list[tuple[Any, ...]]]
) -> int:
    count = 0
    with (
        atomic_path(path) as aside,
        # File names are bytes: those that are not UTF-8 stay as they are.
        aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for rows in chunks:
            writer.writerows(rows)
            count += len(rows)
    return count


def _write_parquet(
    path: Path, columns: Mapping[str, type], chunks: Iterator[list[tuple[Any, ...]]]
) -> int:
    import polars

    kinds: dict[type, Any] = {str: polars.String, float: polars.Float64, int: polars.Int64}
    schema = {name: kinds[kind] for name, kind in columns.items()}

    def spelled(row: tuple[Any, ...]) -> tuple[Any, ...]:
        # Parquet's text is UTF-8: a file name that is not has its odd bytes spelled out.
        return (row[0].encode("utf-8", "backslashreplace").decode("utf-8"), *row[1:])

    frames = [
        polars.DataFrame([spelled(row) for row in rows], schema=schema, orient="row")
        for rows in chunks
    ]
    table = polars.concat([polars.DataFrame(schema=schema), *frames], rechunk=True)
    with atomic_path(path) as aside:
        # Into memory first: polars does not say which of its errors is a full disk.
        content = io.BytesIO()
        table.write_parquet(content, compression="zstd", row_group_size=_ROW_GROUP)
        aside.write_bytes(content.getbuffer())
    return table.height


def _sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder, where systems can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_foreign(root: Path) -> bool:
    """Whether a folder holds things of others: hidden files and what is ours do not count."""
    try:
        return any(
            path.name[0] != "." and path.name not in ("_sweep", "rows", "errors")
            for path in root.iterdir()
        )
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise StapesError(f"{root}: this folder cannot be read ({error.strerror}).") from None
