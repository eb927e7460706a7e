"""What a server allows, and how much of the machine it takes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from stapes.errors import ConfigError
from stapes.machine import usable_cores

__all__ = ["MIB", "Settings"]

MIB = 1 << 20

# What RFC 6750 allows in a bearer token.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits, access and threads of a server.

    Attributes:
        threads: windows or batches that are computed at the same time; none: one for each core.
        workers: recordings that are decoded or wait for their windows at the same time; none:
            one more than the threads. More cost a tenth of the throughput on two cores.
        batch: most windows that one call of ONNX Runtime computes.
        batch_wait: seconds that an incomplete batch waits for windows of other requests which are
            being decoded, at most 0.02. On a processor batches gain nothing, so by default
            they form only where windows queue up anyway.
        upload_bytes: of the body of a request.
        files: in one batch request.
        duration: seconds of sound in a recording.
        requests: recordings' requests that are received, waiting or worked on at the same time;
            one more is refused.
        queue_seconds: that a received request waits for a worker.
        upload_seconds: that receiving a request's body may take.
        stall_seconds: that may pass without a byte of it.
        work_seconds: that classifying a recording may take; of a stream, each of its messages.
        streams: WebSockets at the same time.
        stream_idle_seconds: without a message, after which a stream is ended.
        message_bytes: of a WebSocket's message.
        connections: at the same time, idle ones included.
        grace_seconds: that the server works on after it was told to stop.
        token: that requests have to bear; none: everybody may ask.
        allow_origins: of pages elsewhere which may use the server from a browser, such as
            ``https://example.org``; ``*``: all.
        allow_hosts: names by which the server may be addressed, without ports; none: any name.
            :func:`stapes.server.serve` adds the loopback names where it listens at one of them,
            and then takes no others: a page elsewhere could make its own name lead here.
        page: whether the browser page is served at ``/``.

    Raises:
        ConfigError: a value out of range.
    """

    threads: int | None = None
    workers: int | None = None
    batch: int = 8
    batch_wait: float = 0.0
    upload_bytes: int = 32 * MIB
    files: int = 64
    duration: float = 600.0
    requests: int = 128
    queue_seconds: float = 30.0
    upload_seconds: float = 60.0
    stall_seconds: float = 10.0
    work_seconds: float = 60.0
    streams: int = 16
    stream_idle_seconds: float = 60.0
    message_bytes: int = MIB
    connections: int = 1024
    grace_seconds: float = 30.0
    token: str | None = None
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] | None = None
    page: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", "int | None") and value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ConfigError(f"{field.name} is a whole number from 1, not {value!r}.")
            elif (
                field.type == "float"
                and field.name != "batch_wait"
                and not (math.isfinite(value) and value > 0)
            ):
                raise ConfigError(f"{field.name} is a number of seconds above 0, not {value}.")
        if not 0 <= self.batch_wait <= 0.02:
            raise ConfigError(f"batch_wait is 0 to 0.02 s, not {self.batch_wait}.")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ConfigError(
                "The token has letters, digits and . _ ~ + / - only, with = at its end; make one "
                'with: python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        for origin in self.allow_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ConfigError(
                    f"The origin '{origin}' is none: a scheme and a host, such as "
                    "https://example.org, without a path."
                )

    @property
    def n_threads(self) -> int:
        """Threads of the arithmetic."""
        return self.threads or usable_cores()

    @property
    def n_workers(self) -> int:
        """Recordings at the same time."""
        return self.workers or self.n_threads + 1
