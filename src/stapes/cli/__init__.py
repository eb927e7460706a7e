"""The command line: one file per verb, imported only when that verb is used."""

from __future__ import annotations

import errno
import io
import os
import sys

__all__ = ["main"]

_MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
}  # fmt: skip


def main() -> None:
    """Entry point of the ``stapes`` command.

    Exit status: 0 all done, 1 done but some recordings could not be answered or checked (training
    leaves them out, says so and ends with 0), 2 a mistake that the user can mend, 130 stopped from
    the keyboard.
    """
    from stapes.cli.app import app
    from stapes.errors import StapesError, training_packages

    # File names are bytes: those that are not UTF-8 come and go unchanged. Where text goes out in
    # another encoding, what it lacks is spelled out.
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    try:
        try:
            with training_packages(" ".join(["stapes", *sys.argv[1:2]])):
                app()
        finally:
            sys.stdout.flush()  # here, where a full disk or a closed pipe still has an answer
    except SystemExit as stop:
        if stop.code == 130:
            _say(
                "Stopped. Training, downloads and sweeps of archives go on where they were with "
                "the same command."
            )
        raise
    except StapesError as error:
        _say(f"Error: {error}")
        raise SystemExit(2) from None
    except BrokenPipeError:
        # The reader of our output went away (``| head``): nothing to tell anyone.
        _drop_output()
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        _say(f"Error: {where}{error.strerror}; free some space or choose another place.")
        raise SystemExit(2) from None


def _drop_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not fail on it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
