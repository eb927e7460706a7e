"""One queue of windows for all requests of a model.

Who brings windows while a thread of the arithmetic is free computes them at once, without a hop
to another thread. Windows that come while all are busy queue up, and the next free thread takes
them together::

    request 1   |decode|=run=|                 leads: computes its own
    request 2     |decode|......|=run 2 + 3=|  queued, computed in one call
    request 3       |decode|....|

Rows of a batch do not touch each other in the graphs that stapes exports, so that a row's
probabilities are those of the window alone, up to the order in which ONNX Runtime's kernels add.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batcher", "Overdue"]

Samples = NDArray[np.float32]


class Overdue(Exception):
    """The deadline has passed."""


class _Ticket:
    """Windows that one request waits for; they may be computed in several batches."""

    __slots__ = ("error", "finished", "rows", "taken", "to_come", "windows")

    def __init__(self, windows: Samples) -> None:
        self.windows = windows
        self.rows: Samples | None = None
        self.taken = 0  # windows that a batch has
        self.to_come = len(windows)  # windows without a result
        self.error: BaseException | None = None
        self.finished = threading.Event()


class Batcher:
    """Computes windows in batches, in a bounded number of threads.

    Args:
        compute: (B, C, N) float32 to (B, K) float32; called in several threads at once.
        threads: most calls of it at once.
        batch: most windows of a call.
        wait: seconds that an incomplete batch waits for requests that are on their way.
        observe: told the windows of every call.
    """

    def __init__(
        self,
        compute: Callable[[Samples], Samples],
        *,
        threads: int,
        batch: int,
        wait: float = 0.0,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._compute, self._threads, self._batch = compute, threads, batch
        self._wait, self._observe = wait, observe
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # for helpers
        self._arrived = threading.Condition(self._lock)  # for a batch that waits
        self._queue: deque[_Ticket] = deque()
        self._pending = 0  # windows in the queue
        self._running = 0  # threads that compute
        self._on_their_way = 0  # requests that will bring windows
        self._closed = False
        self._helpers = [
            threading.Thread(target=self._help, name="stapes-batch", daemon=True)
            for _ in range(threads)
        ]
        for helper in self._helpers:
            helper.start()

    @property
    def pending(self) -> int:
        """Windows that wait."""
        return self._pending

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While a request is worked on: batches may wait a moment for its windows."""
        with self._lock:
            self._on_their_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._on_their_way -= 1

    def probabilities(self, windows: Samples, deadline: float | None = None) -> Samples:
        """Compute windows; blocks until they are done.

        Args:
            windows: (B, C, N), B >= 1.
            deadline: on the clock of ``time.monotonic``.

        Returns:
            (B, K).

        Raises:
            Overdue: the deadline passed; the windows not yet begun are dropped.
        """
        ticket = _Ticket(windows)
        with self._lock:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._queue.append(ticket)
            self._pending += len(windows)
            lead = self._running < self._threads
            if lead:
                self._running += 1
            if self._wait:
                self._arrived.notify_all()
        if lead:
            self._lead(ticket, deadline)
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not ticket.finished.wait(remaining):
            self._drop(ticket)
            raise Overdue
        if ticket.error is not None:
            raise ticket.error
        assert ticket.rows is not None
        return ticket.rows

    def close(self) -> None:
        """End the helping threads. What is queued is still computed."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
        for helper in self._helpers:
            helper.join()

    def _lead(self, own: _Ticket, deadline: float | None) -> None:
        """Compute until one's own windows are done, in other hands, or overdue."""
        try:
            while not own.finished.is_set() and self._compute_next():
                if deadline is not None and time.monotonic() > deadline:
                    return
        finally:
            self._release()

    def _help(self) -> None:
        """Compute what nobody leads."""
        while True:
            with self._lock:
                while not (self._pending and self._running < self._threads):
                    if self._closed and not self._pending:
                        return
                    self._work.wait()
                self._running += 1
            try:
                while self._compute_next():
                    pass
            finally:
                self._release()

    def _release(self) -> None:
        with self._lock:
            self._running -= 1
            if self._pending:
                self._work.notify()
            elif self._closed:
                self._work.notify_all()

    def _compute_next(self) -> bool:
        """Take a batch and compute it; False if nothing waits."""
        pieces = self._take()
        if not pieces:
            return False
        parts = [ticket.windows[first:stop] for ticket, first, stop in pieces]
        rows, failure = None, None
        try:
            rows = self._compute(parts[0] if len(parts) == 1 else np.concatenate(parts))
        except BaseException as error:  # whoever waits has to hear of it
            failure = error
        if self._observe is not None:
            self._observe(sum(len(part) for part in parts))
        at = 0
        with self._lock:
            for ticket, first, stop in pieces:
                if rows is None:
                    ticket.error = failure
                else:
                    if ticket.rows is None:
                        ticket.rows = np.empty((len(ticket.windows), rows.shape[1]), np.float32)
                    ticket.rows[first:stop] = rows[at : at + stop - first]
                at += stop - first
                ticket.to_come -= stop - first
                if ticket.to_come == 0:
                    ticket.finished.set()
        return True

    def _take(self) -> list[tuple[_Ticket, int, int]]:
        """The next batch: stretches of tickets, first come first served."""
        with self._lock:
            if self._wait and 0 < self._pending < self._batch:
                self._arrived.wait_for(self._complete, self._wait)
            # What waits is shared among the threads, so that a long recording uses all of them.
            room = min(self._batch, -(-self._pending // self._threads))
            pieces = []
            while room and self._queue:
                ticket = self._queue[0]
                first = ticket.taken
                stop = min(len(ticket.windows), first + room)
                ticket.taken = stop
                pieces.append((ticket, first, stop))
                room -= stop - first
                self._pending -= stop - first
                if stop == len(ticket.windows):
                    self._queue.popleft()
            if self._pending and self._running < self._threads:
                self._work.notify()
            return pieces

    def _complete(self) -> bool:
        """Whether waiting cannot make the batch larger."""
        return self._pending >= self._batch or len(self._queue) >= self._on_their_way

    def _drop(self, ticket: _Ticket) -> None:
        with self._lock:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._pending -= len(ticket.windows) - ticket.taken
