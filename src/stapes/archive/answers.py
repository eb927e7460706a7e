"""What is done with one recording of an archive, wherever it is done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stapes.audio import probe
from stapes.errors import AudioError, ModelFileError, StapesError
from stapes.inference import BaseClassifier
from stapes.runtime import load

__all__ = ["Answer", "End", "Job", "Rows", "Settings", "Task", "answers", "open_model"]

_CHUNK = 4096  # rows that are held at a time, however many events a recording has


@dataclass(frozen=True)
class Settings:
    """What is asked of each recording.

    Attributes:
        top: labels of each recording, best first, 1 or more.
        timeline: events with start and end instead.
        hop_seconds, threshold, release, smoothing: of a timeline, see
            :meth:`stapes.inference.BaseClassifier.timeline`.

    Raises:
        ValueError: an argument out of range, or one that goes with the other kind of answer.
    """

    top: int = 1
    timeline: bool = False
    hop_seconds: float | None = None
    threshold: float = 0.0
    release: float | None = None
    smoothing: int = 1

    def __post_init__(self) -> None:
        if self.top < 1 or self.smoothing < 1:
            raise ValueError(f"top and smoothing are 1 or more, not {self.top}, {self.smoothing}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is between 0 and 1, not {self.threshold}")
        if self.release is not None and not 0 <= self.release <= self.threshold:
            raise ValueError(f"release is between 0 and the threshold, not {self.release}")
        if self.timeline and self.top != 1:
            raise ValueError("top does not go with a timeline: an event has one label")

    @property
    def columns(self) -> dict[str, type]:
        """The columns of the answer and the types of their values."""
        if self.timeline:
            return {"path": str, "start": float, "end": float, "label": str, "score": float}
        if self.top > 1:
            return {"path": str, "rank": int, "label": str, "score": float}
        return {"path": str, "label": str, "score": float}


@dataclass(frozen=True)
class Job:
    """What a worker has to know.

    Attributes:
        model: an exported model.
        sha256: of its file.
        archive: the folder that paths are relative to.
        settings: what is asked.
    """

    model: str
    sha256: str
    archive: str
    settings: Settings


class Task(NamedTuple):
    """A recording to answer: its part, its place in it, and its path in the archive."""

    part: int
    place: int
    path: str


class Rows(NamedTuple):
    """The next rows of a recording, without its path, which is the first column."""

    part: int
    place: int
    chunk: int
    rows: list[list[Any]]


class End(NamedTuple):
    """A recording is done: its seconds of audio, or what is wrong with it."""

    part: int
    place: int
    seconds: float
    error: str | None


Answer = Rows | End


def open_model(job: Job) -> BaseClassifier:
    """The job's model, computing with one thread, so that its answers never differ.

    Raises:
        ModelFileError: missing, damaged, or no longer the one that the job began with.
    """
    classifier = load(job.model, threads=1)
    if hashlib.sha256(classifier.path.read_bytes()).hexdigest() != job.sha256:
        raise ModelFileError(f"{job.model}: the model has changed while the archive was swept.")
    return classifier


def answers(classifier: BaseClassifier, job: Job, task: Task) -> Iterator[Answer]:
    """Answer a recording: its rows, in pieces, then its end. Nothing that is wrong with it raises.

    A recording that breaks off in the middle of a timeline has its events up to there and an
    error.
    """
    path = Path(job.archive, task.path)
    chunk = 0
    rows: list[list[Any]] = []
    seconds, problem = 0.0, None
    try:
        for row in _rows(classifier, path, job.settings):
            rows.append(row)
            if len(rows) == _CHUNK:
                yield Rows(task.part, task.place, chunk, rows)
                chunk, rows = chunk + 1, []
        with suppress(AudioError):
            seconds = round(probe(path).duration, 3)
    except AudioError as error:
        problem = error.reason
    except StapesError as error:
        problem = str(error)
    except Exception as error:
        # Whatever a file brings about, it is that file's misfortune, not the archive's.
        problem = f"could not be answered ({type(error).__name__}: {error})."
    if rows:
        yield Rows(task.part, task.place, chunk, rows)
    yield End(task.part, task.place, seconds, problem)


def _rows(classifier: BaseClassifier, path: Path, settings: Settings) -> Iterator[list[Any]]:
    if settings.timeline:
        events = classifier.timeline(
            path,
            hop_seconds=settings.hop_seconds,
            threshold=settings.threshold,
            release=settings.release,
            smoothing=settings.smoothing,
        )
        for event in events:
            yield [round(event.start, 3), round(event.end, 3), event.label, round(event.score, 4)]
        return
    best = classifier.classify(path).top(settings.top)
    for rank, (label, score) in enumerate(best, 1):
        yield [*([rank] if settings.top > 1 else []), label, round(score, 4)]
