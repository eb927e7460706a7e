"""``stapes serve``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stapes.cli.options import Threads

if TYPE_CHECKING:
    from stapes.server import Settings

__all__ = ["serve"]

_TOKEN_VARIABLE = "STAPES_TOKEN"
# What uvicorn says of every WebSocket that is refused with an answer.
_NO_ERROR = "ASGI callable returned without completing handshake"


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Shipped models, exported models (.onnx) or their folders; NAME=MODEL gives one "
            "another name. The first answers where a request names none."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65_535)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            help="Token that requests have to bear [the environment variable STAPES_TOKEN]."
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token.")] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of pages that may use the server from a browser; * for all; repeatable."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name by which the server may be addressed, as behind a proxy; repeatable."
        ),
    ] = None,
    max_upload: Annotated[float, typer.Option(help="Largest request, MiB.", min=0.001)] = 32.0,
    max_duration: Annotated[
        float, typer.Option(help="Longest recording, seconds.", min=0.1)
    ] = 600.0,
    max_requests: Annotated[
        int, typer.Option(help="Requests at the same time, those that wait included.", min=1)
    ] = 128,
    max_streams: Annotated[int, typer.Option(help="WebSockets at the same time.", min=1)] = 16,
    max_work: Annotated[
        float, typer.Option(help="Seconds that classifying a recording may take.", min=0.1)
    ] = 60.0,
    upload_time: Annotated[
        float, typer.Option(help="Seconds that an upload may take.", min=0.1)
    ] = 60.0,
    grace: Annotated[
        float,
        typer.Option(help="Seconds to go on for when told to stop, to answer.", min=0.1),
    ] = 30.0,
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Recordings decoded at the same time [threads + 1].", min=1),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The browser page at /.")] = True,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No line in the log for every request.")
    ] = False,
) -> None:
    """Answer over HTTP what recordings sound like.

    Listens on this machine only, unless told otherwise. SIGTERM or Ctrl-C ends it: what was
    accepted is answered first, and the exit status is 0.
    """
    from stapes.audio import quiet_decoders
    from stapes.cli.process import keep_freed_memory
    from stapes.server import MIB, Settings
    from stapes.server import serve as serve_models

    settings = Settings(
        threads=threads,
        workers=workers,
        upload_bytes=max(1, round(max_upload * MIB)),
        duration=max_duration,
        requests=max_requests,
        streams=max_streams,
        work_seconds=max_work,
        upload_seconds=upload_time,
        grace_seconds=grace,
        token=_token(token, token_file),
        allow_origins=tuple(allow_origin or ()),
        allow_hosts=tuple(allow_host) if allow_host else None,
        page=page,
    )
    keep_freed_memory()  # every recording asks for the same again: a twentieth of its time
    with quiet_decoders(), _log(quiet):  # silent about damaged uploads
        serve_models(
            models,
            settings,
            host=host,
            port=port,
            on_start=lambda url: _started(url, settings),
        )


def _token(token: str | None, file: Path | None) -> str | None:
    from stapes.errors import ConfigError

    if token is not None and file is not None:
        raise ConfigError("Give --token or --token-file, not both.")
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigError(f"--token-file {file}: cannot be read ({reason}).") from None
        if not token:
            raise ConfigError(f"--token-file {file}: is empty.")
    return token if token is not None else os.environ.get(_TOKEN_VARIABLE) or None


@contextlib.contextmanager
def _log(quiet: bool) -> Iterator[None]:
    """Plain lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.addFilter(lambda record: _NO_ERROR not in record.getMessage())
    level = logging.WARNING if quiet else logging.INFO
    # Of damaged forms python_multipart would tell everybody.
    loggers = {
        "stapes.server": level, "uvicorn": logging.ERROR, "python_multipart": logging.CRITICAL,
    }  # fmt: skip
    for name in loggers:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(loggers[name])
    try:
        yield
    finally:
        for name in loggers:
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(logging.NOTSET)


def _started(url: str, settings: Settings) -> None:
    """Say where it is: on standard output, for who started it with --port 0."""
    sys.stdout.write(f"Listening on {url}\n")
    sys.stdout.flush()
    host = url.removeprefix("http://").rpartition(":")[0]
    local = host in ("[::1]", "localhost") or host.startswith("127.")
    if settings.token is None and not local:
        sys.stderr.write(
            "Warning: everybody who reaches this address may use the server; set a token "
            "(--token-file), and put a proxy with TLS before it.\n"
        )
