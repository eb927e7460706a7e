"""A stream over a WebSocket: samples come in, events go out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from stapes.errors import AudioError
from stapes.inference import Event, Listener, WindowScores
from stapes.inference.sources import ENCODINGS
from stapes.server.models import Cancelled, Hosted, Work
from stapes.server.problems import Problem, bad_value
from stapes.server.queries import ListenQuery
from stapes.server.settings import Settings

__all__ = ["Stream", "talk"]

_LOGGER = logging.getLogger("stapes.server")

_SUBPROTOCOL = "stapes"
_MOST_AT_ONCE = 1 << 20  # samples of a channel, at the model's rate
_UNSUPPORTED, _INVALID, _POLICY, _FAILED, _GOING = 1003, 1007, 1008, 1011, 1001


class Stream:
    """The sound of one client; for one thread at a time.

    The numbers are those of :meth:`stapes.inference.BaseClassifier.listen` and
    :class:`stapes.inference.EventDetector`, whatever the lengths of the messages: a frame may even
    be cut by their ends.

    Args:
        hosted: the model.
        query: how the samples come and what is asked.
        settings: limits.

    Raises:
        Problem: the samples cannot become those that the model listens to.
    """

    def __init__(self, hosted: Hosted, query: ListenQuery, settings: Settings) -> None:
        self.work = Work(hosted, settings)
        self._query = query
        self._width, self._decode = ENCODINGS[query.encoding]
        self._frame = self._width * query.channels
        self._held = b""
        rate = self.work.audio.sample_rate
        # Resampling may make thousands of samples of one: what it makes at once is bounded.
        self._piece = max(1, _MOST_AT_ONCE * (query.sample_rate or rate) // rate)
        try:
            self._listener = Listener(self.work, query.sample_rate, query.channels, query.hop)
        except AudioError as error:
            raise bad_value("channels", error.reason.rstrip(".")) from None
        except ValueError as error:
            raise bad_value("sample_rate", str(error)) from None
        self._detector = query.detector(self.work.labels)

    @property
    def seconds(self) -> float:
        """Heard so far."""
        return self._listener.seconds

    def push(self, content: bytes) -> list[dict[str, Any]]:
        """Take samples: what is to be sent.

        Raises:
            Problem: a sample that is not finite, or the time for the work is over.
            Cancelled: nobody listens any more.
        """
        self.work.begin()
        content = self._held + content
        whole = len(content) - len(content) % self._frame
        self._held = content[whole:]
        if not whole:
            return []
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # found out when it is looked at
                chunk = self._decode(content[:whole]).reshape(-1, self._query.channels).T
                sent = []
                for at in range(0, chunk.shape[1], self._piece):
                    self.work.check()
                    sent += self._told(self._listener.push(chunk[:, at : at + self._piece]))
        except AudioError as error:
            raise Problem("bad-recording", f"The stream: {error.reason}") from None
        return sent

    def finish(self) -> list[dict[str, Any]]:
        """The stream has ended: what remains to be sent. A frame that was cut is left out."""
        self.work.begin()
        sent = self._told(self._listener.finish())
        sent += [_event(event) for event in self._detector.finish(self.seconds)]
        return [*sent, {"type": "end", "seconds": self.seconds}]

    def _told(self, scores: list[WindowScores]) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        for window in scores:
            if self._query.windows:
                sent.append(
                    {
                        "type": "window",
                        "start": window.start,
                        "end": window.end,
                        "probabilities": window.probabilities.tolist(),
                    }
                )
            sent += [_event(event) for event in self._detector.push(window)]
        return sent


def _event(event: Event) -> dict[str, Any]:
    return {
        "type": "event",
        "start": event.start,
        "end": event.end,
        "label": event.label,
        "score": event.score,
    }


async def talk(
    websocket: WebSocket,
    stream: Stream,
    pool: Executor,
    settings: Settings,
    stopping: asyncio.Event,
) -> None:
    """Lead one conversation to its end.

    Args:
        websocket: not accepted yet.
        stream: what it says.
        pool: where windows are computed.
        settings: limits.
        stopping: set when the server stops; what was heard until then is answered.
    """
    chosen = _SUBPROTOCOL if _SUBPROTOCOL in websocket.scope.get("subprotocols", ()) else None
    await websocket.accept(subprotocol=chosen)
    loop = asyncio.get_running_loop()

    async def tell(found: Callable[..., list[dict[str, Any]]], *arguments: bytes) -> None:
        for message in await loop.run_in_executor(pool, found, *arguments):
            await websocket.send_text(json.dumps(message, ensure_ascii=False))

    stopped = loop.create_task(stopping.wait())
    code = 1000
    try:
        audio = stream.work.audio
        facts = {"type": "ready", "labels": stream.work.labels, "sample_rate": audio.sample_rate,
                 "window_seconds": audio.window_seconds}  # fmt: skip
        await websocket.send_text(json.dumps(facts, ensure_ascii=False))
        while True:
            message = await _next(websocket, stopped, settings.stream_idle_seconds)
            if message is None:
                code = _GOING
                break
            if message["type"] == "websocket.disconnect":
                return
            if (content := message.get("bytes")) is not None:
                await tell(stream.push, content)
            elif message.get("text") == "end":
                break
            else:
                raise Problem(
                    "invalid-value",
                    "Samples are sent in binary messages; the only text message is 'end'.",
                )
        await tell(stream.finish)
        await websocket.close(code)
    except Problem as problem:
        await _close(websocket, problem)
    except (WebSocketDisconnect, Cancelled):
        pass
    finally:
        stream.work.cancel()
        stopped.cancel()


async def _next(
    websocket: WebSocket, stopped: asyncio.Task[Any], patience: float
) -> dict[str, Any] | None:
    """The next message; none where the server stops or the client has fallen silent."""
    coming = asyncio.ensure_future(websocket.receive())
    try:
        await asyncio.wait({coming, stopped}, timeout=patience, return_when="FIRST_COMPLETED")
        return dict(coming.result()) if coming.done() else None
    finally:
        coming.cancel()


async def _close(websocket: WebSocket, problem: Problem) -> None:
    """Say what is wrong, and end."""
    codes = {"invalid-value": _UNSUPPORTED, "bad-recording": _INVALID, "too-much-work": _POLICY}
    try:
        document = {"type": "problem", "problem": problem.document}
        await websocket.send_text(json.dumps(document, ensure_ascii=False))
        await websocket.close(codes.get(problem.kind, _FAILED))
    except (WebSocketDisconnect, RuntimeError):  # gone meanwhile
        _LOGGER.debug("a stream ended before it could be told why")
