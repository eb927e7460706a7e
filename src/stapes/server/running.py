"""The application in uvicorn, from binding to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import ipaddress
import json
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import uvicorn
import websockets  # noqa: F401  (uvicorn would go without, and refuse every stream)
from uvicorn.protocols.http.h11_impl import H11Protocol

from stapes.errors import ConfigError
from stapes.server.app import Serving, build_app
from stapes.server.guard import LOGGER
from stapes.server.problems import MEDIA_TYPE, Problem
from stapes.server.settings import Settings

__all__ = ["Server", "run"]

_HEAD_SECONDS = 10.0  # for the head of a request, and between a connection and its first
_IDLE_SECONDS = 20.0  # of a connection between requests
_UNREAD_SECONDS = 20.0  # without a byte of its answer that the client takes
_QUIET_SECONDS = 1.0  # an idle connection is left for, when the server stops
_TICK = 0.02
_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_HANDSHAKE_SECONDS = 0.1  # for connections that are being made


def run(
    models: Any,
    settings: Settings,
    host: str,
    port: int,
    on_start: Callable[[str], None] | None,
) -> None:
    """See :func:`stapes.server.serve`."""
    Server(models, settings, host, port).run_until_stopped(on_start)


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: it cannot.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port {port}: a port is 0 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: there is no such address; take 127.0.0.1.") from None
    # asyncio turns Nagle's algorithm off for sockets that say they are TCP; an answer that goes out
    # as head and body would wait 40 ms between the two.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: another program listens there; take another port, or 0 for a "
                "free one."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ConfigError(
                f"--port {port}: this user may not listen there; take one from 1024."
            ) from None
        raise ConfigError(f"--host {host}: cannot listen there ({error.strerror}).") from None
    return listener


def _refuse_new(listener: socket.socket) -> bool:
    """Let no new connection begin, while those that have begun go on; Linux can.

    What connects between the last accept and the close is reset, with its request: too late for
    the server to know, too early for the client. A filter that drops SYN packets (without ACK) ends
    that; who sent one sends it again a second later, and is refused then.
    """
    if sys.platform != "linux":
        return False
    # struct sock_filter {code, jt, jf, k}: the flags are byte 13 of the TCP header.
    program = [
        (0x30, 0, 0, 13),  # load it
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # pass
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    try:
        listener.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("HP", len(program), ctypes.addressof(code)),
        )
    except OSError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Protocol(H11Protocol):
    """One connection: bounded in number, and in the time that the head of a request may take."""

    settings: Settings  # of a subclass for each server

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._patience: asyncio.TimerHandle | None = None
        self._last = time.monotonic()
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections:
            self._end(Problem("busy", "The server has no room for another connection."))
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._last = time.monotonic()
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        self._last = time.monotonic()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: an idle connection is left a moment for what is on its way."""
        if self.transport.get_protocol() is not self:
            return
        if self._idle and time.monotonic() - self._last < _QUIET_SECONDS:
            self.loop.call_later(_TICK, self.shutdown)
        elif not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. Uvicorn would answer even in the midst of another answer."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self._end(Problem("bad-request", "This is no HTTP request that can be read."))
        else:
            self.transport.close()

    @property
    def _idle(self) -> bool:
        if self.transport.get_protocol() is not self:  # it has become a WebSocket
            return False
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        """Be patient with a head that is not there yet; a request's body has limits of its own."""
        if self._idle and self._patience is None and not self.transport.is_closing():
            self._patience = self.loop.call_later(_HEAD_SECONDS, self._lose_patience)
        elif not self._idle and self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        if self._idle and not self.transport.is_closing():
            self._end(Problem("too-slow", "The head of the request did not come in time."))

    def _end(self, problem: Problem) -> None:
        content = json.dumps(problem.document).encode()
        head = (
            f"HTTP/1.1 {problem.status} {problem.title}\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(content)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()


class Server(uvicorn.Server):
    """Listens once it is made, answers when it runs, and stops with everything accepted answered.

    Args:
        models, settings, host, port: see :func:`stapes.server.serve`.

    Attributes:
        url: where it is.

    Raises:
        ConfigError: it cannot listen there; and what :func:`stapes.server.create_app` raises.
    """

    def __init__(self, models: Any, settings: Settings, host: str, port: int) -> None:
        self._listener = listener = _bind(host, port)
        address, port = listener.getsockname()[:2]
        self.url = f"http://{_in_url(address)}:{port}"
        if settings.allow_hosts is not None or _is_loopback(address):
            own = {"localhost", "127.0.0.1", "[::1]", _in_url(address), _in_url(host)}
            settings = replace(settings, allow_hosts=(*(settings.allow_hosts or ()), *sorted(own)))
        try:
            app = build_app(models, settings)
        except BaseException:
            listener.close()
            raise
        self._serving: Serving = app.state.serving
        self._on_start: Callable[[str], None] | None = None
        self._unread: dict[Any, tuple[int, float]] = {}  # by connection: bytes, and since when
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Protocol", (_Protocol,), {"settings": settings}),
                ws="auto",
                ws_max_size=settings.message_bytes,
                # Silence has a limit of its own; while a message is worked on nothing is read, and
                # the answer to a ping stands behind all that the client has sent.
                ws_ping_timeout=settings.work_seconds + settings.stream_idle_seconds,
                ws_per_message_deflate=False,  # of sound it gains nothing
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,  # there is one of our own
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=round(_IDLE_SECONDS),
            )
        )

    def run_until_stopped(self, on_start: Callable[[str], None] | None = None) -> None:
        """Serve until a signal, or :attr:`should_exit`."""
        self._on_start = on_start
        try:
            self.run(sockets=[self._listener])
        finally:
            self._listener.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own raises the signal again at the end, which would be a death by it."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        try:
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        except ValueError:  # not the main thread: who started it tells it to stop
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks for a clean end, the second for one at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def main_loop(self) -> None:
        """Serve, and look for the signal more often than uvicorn does."""
        if self._on_start is not None:
            self._on_start(self.url)
        counter = 0
        while not await self.on_tick(counter % 5000):
            counter += 1
            self._drop_unread()
            await asyncio.sleep(_TICK)

    def _drop_unread(self) -> None:
        """Let go of clients that ask and do not read: an answer would wait for them for ever."""
        now, held = time.monotonic(), {}
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is None or not (left := transport.get_write_buffer_size()):
                continue
            before, since = self._unread.get(connection, (left, now))
            if left < before:
                since = now
            if now - since > _UNREAD_SECONDS:
                transport.abort()
            else:
                held[connection] = left, since
        self._unread = held

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what has connected, nothing more; answer it; end."""
        settings = self._serving.settings
        LOGGER.info("stopping: what was accepted is being answered")
        self._serving.stopping.set()
        if _refuse_new(self._listener):
            await asyncio.sleep(_HANDSHAKE_SECONDS)
        await self._accept_rest()
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, _Protocol):  # streams end by themselves
                connection.shutdown()
        end = time.monotonic() + settings.grace_seconds
        state = self.server_state
        while (state.connections or state.tasks) and not self.force_exit:
            if time.monotonic() > end:
                break
            await asyncio.sleep(_TICK)
        if state.tasks:
            LOGGER.warning(
                "%d requests were cut off, unanswered after %g s",
                len(state.tasks),
                settings.grace_seconds,
            )
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        for connection in list(state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        if tasks:
            await asyncio.sleep(_TICK)  # a task that is cancelled tells its worker a round later
        await self.lifespan.shutdown()
        LOGGER.info("stopped")

    async def _accept_rest(self) -> None:
        """Connections that the system has made and nobody has taken yet would be reset."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            accepted.setblocking(False)
            await loop.connect_accepted_socket(
                lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                    config=self.config,
                    server_state=self.server_state,
                    app_state=self.lifespan.state,
                ),
                accepted,
            )
