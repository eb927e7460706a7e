"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The counts of one application; nothing of it is global."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "stapes_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._latency = Histogram(
            "stapes_request_seconds",
            "From a request's head to the end of its answer; of a WebSocket, its whole life.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "stapes_refused", "Requests over a limit or without access.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self._audio = Counter(
            "stapes_audio_seconds", "Seconds of sound classified.", ["model"], registry=registry
        )
        self._batches = Histogram(
            "stapes_batch_windows", "Windows computed in one call.", ["model"], buckets=_SIZES,
            registry=registry,
        )  # fmt: skip
        self._pending = Gauge(
            "stapes_queue_windows", "Windows that wait to be computed.", ["model"],
            registry=registry,
        )  # fmt: skip
        self._active = Gauge(
            "stapes_active", "Requests and streams that are being dealt with.", ["kind"],
            registry=registry,
        )  # fmt: skip

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has its answer."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """A request was over a limit, or not allowed."""
        self._refused.labels(reason).inc()

    def heard(self, model: str, seconds: float) -> None:
        """Sound was classified."""
        self._audio.labels(model).inc(seconds)

    def batches(self, model: str) -> Callable[[int], None]:
        """What observes a model's batches."""
        return self._batches.labels(model).observe

    def watch(self, model: str, pending: Callable[[], int], active: Callable[[str], int]) -> None:
        """Read the queue of a model, and what is being dealt with, when they are asked for."""
        self._pending.labels(model).set_function(pending)
        for kind in ("request", "stream"):
            self._active.labels(kind).set_function(lambda kind=kind: active(kind))  # type: ignore[misc]

    def page(self) -> bytes:
        """All counts as text."""
        return generate_latest(self._registry)
