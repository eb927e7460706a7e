"""Exported models behind HTTP: files in, labels and events out. Needs no torch.

>>> from stapes.server import create_app, serve
>>> serve(["esc50-128kB"], port=8000)                   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stapes.errors import MissingPackageError
from stapes.server.settings import MIB, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stapes.runtime import OnnxClassifier

    Model = str | Path | OnnxClassifier
    Models = Model | Sequence[Model] | Mapping[str, Model]

__all__ = ["MIB", "Settings", "create_app", "serve"]

_PACKAGES = frozenset(
    {
        "fastapi", "h11", "prometheus_client", "pydantic", "python_multipart", "starlette",
        "uvicorn", "websockets",
    }
)  # fmt: skip


def create_app(models: Models, settings: Settings | None = None) -> FastAPI:
    """The application, for an ASGI server of your own; :func:`serve` runs it in uvicorn.

    Args:
        models: names of shipped models, ``.onnx`` files that ``stapes export`` wrote, folders that
            hold a ``model.onnx``, or loaded :class:`stapes.runtime.OnnxClassifier`, one or a list.
            Each is called by its file's name without the ending, or its folder's; "NAME=MODEL" or
            a mapping gives another name. The first answers where a request names none.
        settings: limits, access and threads.

    Raises:
        ModelFileError: a model that is missing, truncated, altered, foreign, or too new.
        UnknownNameError: neither a file nor a shipped model.
        ConfigError: no model, two of one name, or a name that cannot stand in an address.
        MissingPackageError: the packages of ``stapes[serve]`` are not installed.
    """
    with _serving_packages():
        from stapes.server.app import build_app
    return build_app(models, settings or Settings())


def serve(
    models: Models,
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serve models until the process is told to stop (SIGTERM or Ctrl-C).

    Then no new connection is taken, everything accepted is answered, for at most the settings'
    ``grace_seconds``, and the call returns. A second signal cuts the waiting short.

    Args:
        models, settings: see :func:`create_app`.
        host: address or name of this machine to listen at.
        port: 0 takes a free one.
        on_start: called with the server's address, such as ``http://127.0.0.1:8000``, once it
            takes connections.

    Raises:
        ConfigError: the port is taken or not allowed, or there is no such address here; and what
            :func:`create_app` raises.
    """
    with _serving_packages():
        from stapes.server.running import run
    run(models, settings or Settings(), host, port, on_start)


@contextmanager
def _serving_packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise MissingPackageError(
            'Serving models needs the packages of an extra: pip install "stapes[serve]"'
        ) from None
