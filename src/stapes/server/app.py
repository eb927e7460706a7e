"""The application: routes, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from stapes.server.access import Access
from stapes.server.description import describe
from stapes.server.guard import Guard
from stapes.server.listening import Stream, talk
from stapes.server.metrics import Metrics
from stapes.server.models import Cancelled, Hosted, Hosts, Work
from stapes.server.pages import page_of, respond
from stapes.server.problems import Problem, Refusal
from stapes.server.queries import ClassifyQuery, ListenQuery, NoQuery, parse_query
from stapes.server.settings import Settings
from stapes.server.uploads import Upload, Uploads

__all__ = ["Serving", "build_app"]

_VERSION = version("stapes")
_WATCH_SECONDS = 1.0  # of work, after which it is worth seeing whether anybody still waits
_AT_ONCE = 4  # files of one batch request, so that others get their turn
_RETRY_SECONDS = "1"


class Serving:
    """What the routes of one application share.

    Attributes:
        settings: as given.
        hosts: the models.
        metrics: counts.
        uploads: the folder of what is being received.
        stopping: set when no more requests are to come.
    """

    def __init__(self, models: Any, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.hosts = Hosts(models, settings, self.metrics)
        self.uploads = Uploads(settings)
        self.stopping = asyncio.Event()
        self._active = {"request": 0, "stream": 0}
        self._pool = ThreadPoolExecutor(settings.n_workers, "stapes-work")
        self.streams_pool = ThreadPoolExecutor(settings.n_workers, "stapes-stream")
        for hosted in self.hosts:
            batcher = hosted.batcher
            self.metrics.watch(
                hosted.name,
                lambda batcher=batcher: batcher.pending,  # type: ignore[misc]
                lambda kind: self._active[kind],
            )

    def close(self) -> None:
        """Let go of threads and files. All requests have ended."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.streams_pool.shutdown(wait=True, cancel_futures=True)
        self.hosts.close()
        self.uploads.close()

    @contextlib.contextmanager
    def admitted(self, kind: str, most: int) -> Iterator[None]:
        """Take a place among those that are dealt with.

        Raises:
            Refusal: there is none.
        """
        if self._active[kind] >= most:
            raise Refusal(
                "requests" if kind == "request" else "streams",
                "busy",
                f"The server is dealing with {most} {kind}s, the most it takes at once; try again "
                "in a moment.",
                {"Retry-After": _RETRY_SECONDS},
            )
        self._active[kind] += 1
        try:
            yield
        finally:
            self._active[kind] -= 1

    async def classify(self, hosted: Hosted, upload: Upload, query: ClassifyQuery) -> Any:
        """Have a recording classified in a worker.

        Raises:
            Problem: see :meth:`stapes.server.models.Work.answer`; or no worker was free in time.
        """
        work = Work(hosted, self.settings)
        task = functools.partial(self._answer, work, upload, query, time.monotonic())
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, task)
        except asyncio.CancelledError:
            work.cancel()
            raise
        finally:
            self.metrics.heard(hosted.name, work.seconds)
        return answer

    def _answer(
        self, work: Work, upload: Upload, query: ClassifyQuery, queued: float
    ) -> dict[str, Any]:
        waited = time.monotonic() - queued
        if waited > self.settings.queue_seconds:
            raise Refusal(
                "queue",
                "busy",
                f"The recording waited for {waited:.0f} s and was given up; try again later.",
                {"Retry-After": str(round(self.settings.queue_seconds))},
            )
        work.begin()
        return work.answer(upload.path, upload.name, query)

    def refused(self, problem: Problem) -> None:
        """Count a problem that is told within an answer."""
        if isinstance(problem, Refusal):
            self.metrics.refused(problem.reason)


async def _while_connected(request: Request, answer: Awaitable[Any]) -> Any:
    """An answer, unless the client goes away before it is there.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.ensure_future(answer)
    try:
        await asyncio.wait({task}, timeout=_WATCH_SECONDS)
        if not task.done():
            gone = asyncio.ensure_future(request.receive())  # the body is there: all that can come
            await asyncio.wait({task, gone}, return_when="FIRST_COMPLETED")
            gone.cancel()
            if not task.done():
                raise ClientDisconnect
        return task.result()
    except Cancelled:
        raise ClientDisconnect from None
    finally:
        task.cancel()


def build_app(models: Any, settings: Settings) -> FastAPI:
    """See :func:`stapes.server.create_app`."""
    serving = Serving(models, settings)
    app = FastAPI(
        title="stapes",
        version=_VERSION,
        docs_url=None,  # their pages load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        lifespan=functools.partial(_lifespan, serving),
    )
    app.state.serving = serving
    app.add_middleware(
        Guard,
        access=Access(settings),
        metrics=serving.metrics,
        stopping=serving.stopping.is_set,
    )
    _add_problems(app, serving)
    _add_routes(app, serving)
    if settings.page:
        first = next(iter(serving.hosts))
        for address, file in page_of(first.classifier.path, first.name).items():
            app.add_route(address, _page_route(file), ["GET"], include_in_schema=False)
    document = describe(serving.hosts, settings)
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app


@contextlib.asynccontextmanager
async def _lifespan(serving: Serving, _: FastAPI) -> AsyncIterator[None]:
    try:
        yield
    finally:
        serving.stopping.set()
        serving.close()


def _page_route(file: Any) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return respond(file, request)

    return page


def _add_routes(app: FastAPI, serving: Serving) -> None:
    settings, hosts = serving.settings, serving.hosts

    def asked(request: Request) -> tuple[ClassifyQuery, Hosted]:
        query = parse_query(ClassifyQuery, request.query_params.multi_items())
        hosted = hosts.find(query.model)
        hosted.check_hop(query.hop)
        return query, hosted

    @app.post("/classify")
    async def classify(request: Request) -> Response:
        query, hosted = asked(request)
        with serving.admitted("request", settings.requests):
            async with serving.uploads.receive(request, 1) as uploads:
                answer = serving.classify(hosted, uploads[0], query)
                return _json(await _while_connected(request, answer))

    @app.post("/classify/batch")
    async def classify_batch(request: Request) -> Response:
        query, hosted = asked(request)
        with serving.admitted("request", settings.requests):
            async with serving.uploads.receive(request, settings.files) as uploads:
                turn = asyncio.Semaphore(_AT_ONCE)

                async def entry(upload: Upload) -> dict[str, Any]:
                    result, problem = None, None
                    async with turn:
                        try:
                            result = await serving.classify(hosted, upload, query)
                        except Problem as found:
                            serving.refused(found)
                            problem = found.document
                    return {"name": upload.name, "result": result, "problem": problem}

                answers = asyncio.gather(*(entry(upload) for upload in uploads))
                return _json({"results": await _while_connected(request, answers)})

    @app.get("/models")
    async def models(request: Request) -> Response:
        parse_query(NoQuery, request.query_params.multi_items())
        return _json({"models": [hosted.facts for hosted in hosts]})

    @app.get("/health")
    async def health(request: Request) -> Response:
        parse_query(NoQuery, request.query_params.multi_items())
        stopping = serving.stopping.is_set()
        facts = {"status": "stopping" if stopping else "ok", "version": _VERSION}
        return _json(facts, 503 if stopping else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        parse_query(NoQuery, request.query_params.multi_items())
        return Response(
            serving.metrics.page(), headers={"content-type": serving.metrics.media_type}
        )

    @app.get("/listen")
    async def listen_over_http() -> Response:
        raise Problem(
            "upgrade-required",
            "This address speaks WebSocket; send recordings to /classify.",
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    @app.websocket("/listen")
    async def listen(websocket: WebSocket) -> None:
        try:
            query = parse_query(ListenQuery, websocket.query_params.multi_items())
            hosted = hosts.find(query.model)
            hosted.check_hop(query.hop)
            stream = Stream(hosted, query, settings)
            with serving.admitted("stream", settings.streams):
                try:
                    await talk(websocket, stream, serving.streams_pool, settings, serving.stopping)
                finally:
                    serving.metrics.heard(hosted.name, stream.seconds)
        except Problem as problem:
            serving.refused(problem)
            if "websocket.http.response" in websocket.scope.get("extensions", {}):
                await websocket.send_denial_response(problem.response())
            else:
                await websocket.close(1008)


def _add_problems(app: FastAPI, serving: Serving) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        serving.refused(error)
        return error.response()

    @app.exception_handler(HTTPException)
    async def by_status(_: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            detail = "This address takes other methods; the header Allow names them."
            return Problem("method-not-allowed", detail, error.headers).response()
        if error.status_code == 404:
            return Problem("not-found", "There is nothing at this address.").response()
        return Problem("bad-request", str(error.detail)).response()

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody is there to read it; the log does

    @app.exception_handler(Exception)
    async def internal(_: Request, __: Exception) -> Response:
        # It is raised again after this, and logged by what runs the application.
        return Problem("internal", "The server has failed; its log says more.").response()


def _json(content: Any, status: int = 200) -> Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode("utf-8", errors="replace"), status, media_type="application/json")
