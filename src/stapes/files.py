"""Writing files so that a reader sees the old content or the new, never a half."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from stapes.errors import StapesError

__all__ = ["appending", "atomic_path", "write_bytes", "write_folder", "write_text"]


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; on success flush it to disk and rename it.

    On any failure the aside file is removed and ``path`` is left as it was. Parent folders are
    made. A process killed in between leaves only a hidden ``.*.partial`` file.

    Raises:
        StapesError: the disk is full or the place cannot be written to.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("r+b") as handle:  # Windows flushes only what may be written
            os.fsync(handle.fileno())
        aside.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def appending(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file at its end for more bytes. Parent folders are made.

    Raises:
        StapesError: as :func:`atomic_path`; what was written before stays.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error) from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file atomically.

    Raises:
        StapesError: as :func:`atomic_path`.
    """
    with atomic_path(path) as aside:
        aside.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a whole UTF-8 file atomically; file names that are not UTF-8 keep their bytes.

    Raises:
        StapesError: as :func:`atomic_path`.
    """
    write_bytes(path, content.encode("utf-8", errors="surrogateescape"))


def write_folder(
    folder: str | Path,
    files: Mapping[str, bytes],
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a folder aside and rename it, so that there is the old one, the new one or none.

    What the old folder held is gone then: see before that it may go. A process killed in between
    leaves hidden folders ``.*.partial`` or ``.*.old``.

    Args:
        folder: to be made, or replaced; parent folders are made.
        files: content by name, which may have folders before it (``"engine/windows.js"``).
        check: called with the folder aside when all is written; an error that it raises is passed
            on, and nothing is left of what was written.

    Raises:
        StapesError: as :func:`atomic_path`.
    """
    named, folder = Path(folder), Path(folder).resolve()
    mark = uuid.uuid4().hex[:8]
    aside = folder.with_name(f".{folder.name}.{mark}.partial")
    old = folder.with_name(f".{folder.name}.{mark}.old")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        for name, content in files.items():
            write_bytes(aside / name, content)
        if check is not None:
            check(aside)
        try:
            if folder.exists():
                folder.rename(old)
            try:
                aside.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        except OSError as error:
            raise cannot_write(named, error) from error
    except StapesError as error:
        if str(aside) not in str(error):
            raise
        raise StapesError(str(error).replace(str(aside), str(named))) from error
    else:
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: all is well, or somebody else's
            for parent in new_parents:
                parent.rmdir()


def cannot_write(path: Path, error: OSError) -> StapesError:
    """One clear sentence for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StapesError(f"{path}: the disk is full; free some space and run the command again.")
    reason = error.strerror or str(error)
    return StapesError(f"{path}: cannot write here ({reason}); choose another place.")
