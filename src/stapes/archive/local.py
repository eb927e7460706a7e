"""Recordings answered by processes of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import queue
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from stapes.archive.answers import Answer, End, Job, Rows, Task
from stapes.errors import StapesError

__all__ = ["Workers", "answer_here"]

_AHEAD = 2  # recordings that a worker is given at a time, so that it never waits for the next
_ATTEMPTS = 2  # of a recording whose worker dies

# The worker finds the packages where this process found them.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from stapes.archive.worker import main; main()"
)


def answer_here(job: Job, tasks: Iterator[Task], workers: int) -> Generator[Answer]:
    """Answers of worker processes, as they come; see :class:`Workers`.

    Args:
        job: what is asked.
        tasks: recordings, taken as workers get free.
        workers: number of processes; none is started where there are no tasks.
    """
    first = next(tasks, None)
    if first is None:
        return
    with closing(Workers(job, workers)) as pool:
        yield from pool.answer(itertools.chain([first], tasks))


class Workers:
    """Processes that answer recordings. :meth:`close` them.

    A recording whose worker dies is tried once more by another one, and then has an error.

    Args:
        job: what is asked.
        count: number of processes.
    """

    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._messages: queue.Queue[tuple[_Worker, list[Any] | None]] = queue.Queue(16 * count)
        self._pool = {_Worker(job, self._messages) for _ in range(count)}

    def answer(self, tasks: Iterator[Task]) -> Iterator[Answer]:
        """Answer recordings, which are taken as workers get free.

        Yields:
            Rows and ends; those of one recording in order, those of several mixed.

        Raises:
            StapesError: a worker cannot begin.
        """
        again: deque[Task] = deque()  # of workers that died
        deaths: Counter[Task] = Counter()
        while True:
            for worker in self._pool:
                while worker.ready and len(worker.tasks) < _AHEAD:
                    task = again.popleft() if again else next(tasks, None)
                    if task is None:
                        break
                    worker.give(task)
            if all(worker.ready and not worker.tasks for worker in self._pool):
                return
            worker, message = self._messages.get()
            if message is None:
                self._replace(worker)
                if worker.tasks:
                    deaths[worker.tasks[0]] += 1
                    if deaths[worker.tasks[0]] == _ATTEMPTS:
                        task = worker.tasks.popleft()
                        yield Rows(task.part, task.place, 0, [])  # in the place of what it said
                        yield End(task.part, task.place, 0.0, _DEADLY)
                again.extendleft(reversed(worker.tasks))
            elif message[0] == "ready":
                worker.ready = True
            elif message[0] == "refused":
                raise StapesError(message[1])
            elif message[0] == "Rows":
                yield Rows(*message[1:])
            else:
                worker.tasks.popleft()
                yield End(*message[1:])

    def _replace(self, worker: _Worker) -> None:
        code = worker.end()
        self._pool.discard(worker)
        if not worker.ready:
            raise StapesError(
                f"A worker process ended before it could begin (status {code}); memory may be "
                "short: try fewer --workers."
            )
        self._pool.add(_Worker(self._job, self._messages))

    def close(self) -> None:
        """Stop them, whatever they do."""
        for worker in self._pool:
            worker.end()


_DEADLY = (
    "ended the process that read it, twice; the file is damaged in a way that crashes the decoder, "
    "or memory is short."
)


class _Worker:
    """A process, and a thread that waits for what it says."""

    def __init__(self, job: Job, messages: queue.Queue[tuple[_Worker, list[Any] | None]]) -> None:
        self.tasks: deque[Task] = deque()  # what it was given and has not ended, in order
        self.ready = False
        self._over = False
        # A session of its own: an interrupt from the keyboard is for the one who asks.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._send(dataclasses.asdict(job))
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()

    def give(self, task: Task) -> None:
        """Have it answer a recording after those that it has."""
        self.tasks.append(task)
        self._send(task)

    def end(self) -> int:
        """Stop it, whatever it does; gives its exit status."""
        self._over = True
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it did not read
                    pipe.close()
        return code

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:  # it died: the other thread says so
            pass

    def _listen(self, messages: queue.Queue[tuple[_Worker, list[Any] | None]]) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._put(messages, json.loads(line))
        except ValueError:  # closed, or a line that a death cut short
            pass
        self._put(messages, None)

    def _put(
        self, messages: queue.Queue[tuple[_Worker, list[Any] | None]], message: list[Any] | None
    ) -> None:
        while not self._over:
            try:
                messages.put((self, message), timeout=1.0)
                return
            except queue.Full:
                continue
