"""Around every request: access, counts, a line in the log, and a clean end of refused uploads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stapes.server.access import Access
from stapes.server.metrics import Metrics
from stapes.server.problems import Problem, Refusal

__all__ = ["LOGGER", "Guard"]

LOGGER = logging.getLogger("stapes.server")

_ROUTES = frozenset(
    {"/classify", "/classify/batch", "/models", "/health", "/metrics", "/openapi.json", "/listen"}
)
_OPEN_TO_ALL = "/health"
_PREFLIGHT = "access-control-request-method"
# What a refused client may still send, so that it reads the refusal instead of a reset connection.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 64 << 20

_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_BARE_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """ASGI middleware.

    Args:
        app: what it guards.
        access: who may ask.
        metrics: told of every answer.
        stopping: whether the server is about to stop; connections end with their answers then.
    """

    def __init__(
        self, app: ASGIApp, access: Access, metrics: Metrics, stopping: Callable[[], bool]
    ) -> None:
        self._app, self._access, self._metrics, self._stopping = app, access, metrics, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Deal with one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        socket = scope["type"] == "websocket"
        body = _Body(receive, headers, socket)
        answer = _Answer(send, body, self._stopping, scope)
        try:
            answer.origin = self._access.check_place(headers)
            if answer.origin is not None and _PREFLIGHT in headers:
                await _preflight()(scope, body.receive, answer.send)  # bears no token yet
                return
            if scope["path"] != _OPEN_TO_ALL:
                self._access.check_token(headers)
            await self._app(scope, body.receive, answer.send)
        except Refusal as refusal:
            self._metrics.refused(refusal.reason)
            await self._refuse(refusal, scope, body, answer)
        except Exception:
            answer.status = answer.status or 500  # said by who is around this
            raise
        finally:
            self._finish(scope, answer, time.perf_counter() - began)

    async def _refuse(self, problem: Problem, scope: Scope, body: _Body, answer: _Answer) -> None:
        if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            await problem.response()(scope, body.receive, answer.send)
        else:
            await answer.send({"type": "websocket.close", "code": 1008})

    def _finish(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        path = scope["path"]
        route = path if path in _ROUTES else "page" if answer.status in (200, 304) else "other"
        # 499 is what nginx calls a client that went away before its answer.
        status = answer.status or (101 if scope["type"] == "websocket" else 499)
        self._metrics.answered(route, status, seconds)
        if LOGGER.isEnabledFor(logging.INFO):
            client = (scope.get("client") or ("-",))[0]
            LOGGER.info(
                "%s %s %s %d %.0f ms",
                client,
                scope.get("method", "WEBSOCKET"),
                _printable(path),
                status,
                1000 * seconds,
            )


class _Body:
    """What comes, and whether all of it has."""

    def __init__(self, receive: Receive, headers: Headers, socket: bool) -> None:
        self._receive = receive
        self.complete = socket or (
            "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        )

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.complete = True
        return message

    async def discard(self) -> None:
        """Read what is still coming, for a while."""
        left = _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self.complete and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


class _Answer:
    """What goes: with the usual headers, and with an end to the connection where one is due."""

    def __init__(self, send: Send, body: _Body, stopping: Callable[[], bool], scope: Scope) -> None:
        self._send, self._body, self._stopping = send, body, stopping
        self._http = scope["type"] == "http"
        self.status = 0
        self.origin: str | None = None

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            self._complete_headers(message)
        elif kind == "websocket.accept":
            self.status = 101
        elif kind == "websocket.close" and not self.status:
            self.status = 403
        elif kind == "http.response.body" and not (
            self._body.complete or message.get("more_body", False)
        ):
            # All of the answer goes out at once, but the connection is closed only after what the
            # client is still sending: otherwise it might see a reset instead.
            await self._send({**message, "more_body": True})
            await self._body.discard()
            message = {"type": kind, "body": b"", "more_body": False}
        await self._send(message)

    def _complete_headers(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _SECURITY.items():
            headers.setdefault(name, value)
        headers.setdefault("content-security-policy", _BARE_POLICY)
        if self.origin is not None:
            headers["access-control-allow-origin"] = self.origin
            headers["access-control-expose-headers"] = "Retry-After"
            headers["cross-origin-resource-policy"] = "cross-origin"
            headers.add_vary_header("Origin")
        if self._http and (self._stopping() or not self._body.complete):
            headers["connection"] = "close"


def _preflight() -> Response:
    """What a browser asks before it lets a page of another origin send more than a form."""
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "Authorization, Content-Type",
            "access-control-max-age": "600",
        },
    )


def _printable(path: str) -> str:
    """A path as it can stand in a log, whatever it holds."""
    return ascii(path[:200])[1:-1]
