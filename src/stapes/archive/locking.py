"""One process at a time on a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from stapes.errors import StapesError
from stapes.files import cannot_write

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: Path, folder: Path) -> Iterator[None]:
    """Hold a lock file, which the system lets go when this process ends, however it ends.

    Args:
        path: of the lock file.
        folder: what it stands for, in messages.

    Raises:
        StapesError: another process holds it, or it cannot be made.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise StapesError(
                    f"{folder}: another process is writing into this folder; wait for it or "
                    "choose another --out."
                ) from None
            raise cannot_write(path, error) from error
        yield
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
