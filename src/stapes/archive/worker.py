"""A process that answers recordings: tasks come on standard input, answers go to standard output.

Every message is a line of JSON. It is a process of its own, not a thread, because a decoder that
crashes on a damaged file then takes one recording with it and not the sweep. It ends when its input
does, at once and whatever it is doing, so that none outlives the one who asks.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, BinaryIO

from stapes.archive.answers import Job, Settings, Task, answers, open_model
from stapes.errors import StapesError

__all__ = ["main"]


def main() -> None:
    """Read a job, then answer tasks until standard input ends."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries that print do not speak in between
    source = sys.stdin.buffer
    first = json.loads(source.readline())
    job = Job(**{**first, "settings": Settings(**first["settings"])})
    try:
        classifier = open_model(job)
    except StapesError as error:
        _send(output, ["refused", str(error)])
        return
    _send(output, ["ready"])
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(source, tasks), daemon=True).start()
    while True:
        for answer in answers(classifier, job, tasks.get()):
            _send(output, [type(answer).__name__, *answer])


def _read(source: BinaryIO, tasks: queue.SimpleQueue[Task]) -> None:
    for line in source:
        tasks.put(Task(*json.loads(line)))
    os._exit(0)


def _send(output: BinaryIO, message: list[Any]) -> None:
    try:
        output.write(json.dumps(message).encode("ascii") + b"\n")
        output.flush()
    except OSError:  # nobody listens any more
        os._exit(0)
