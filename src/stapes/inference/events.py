"""Stretches of sound in which one label leads: smoothing, two thresholds, no event twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stapes.inference.predictions import Event, WindowScores

__all__ = ["EventDetector", "Smoother", "merge_events"]

# A stretch of 0.3 s ends at a start plus 0.3, which in floating point may be a little less.
_ROUNDING = 1e-6


class Smoother:
    """The mean of each window's probabilities and its neighbours'.

    Posterior smoothing (Chen, Parada, Heigold: Small-footprint keyword spotting using deep neural
    networks, ICASSP 2014, section 2.4) with the window in the middle of the mean, so that times
    stay where they are; the scores of a window are therefore known ``(count - 1) // 2`` windows
    later. At both ends of the stream the mean is over the windows that there are.

    Args:
        count: windows of a mean; of an even number one more is before than after. 1: no smoothing.

    Raises:
        ValueError: ``count`` is not a whole number from 1.
    """

    def __init__(self, count: int = 1) -> None:
        if count != int(count) or count < 1:
            raise ValueError(f"smoothing is a whole number of windows from 1, not {count}")
        self._before, self._after = count // 2, (count - 1) // 2
        self._held: deque[WindowScores] = deque(maxlen=int(count))
        self._taken = self._given = 0

    def push(self, scores: WindowScores) -> list[WindowScores]:
        """Take the next window: the smoothed scores that it completes, at most one."""
        self._held.append(scores)
        self._taken += 1
        return [self._next()] if self._taken - self._given > self._after else []

    def finish(self) -> list[WindowScores]:
        """The stream ends: the smoothed scores of the last windows. A new stream may begin then."""
        rest = [self._next() for _ in range(self._taken - self._given)]
        self._held.clear()
        self._taken = self._given = 0
        return rest

    def _next(self) -> WindowScores:
        first_held = self._taken - len(self._held)
        at = self._given - first_held
        self._given += 1
        middle = self._held[at]
        rows = [
            self._held[i].probabilities
            for i in range(max(0, at - self._before), min(len(self._held), at + self._after + 1))
        ]
        if len(rows) == 1:
            return middle
        mean = np.stack(rows).mean(0, dtype=np.float64).astype(np.float32)
        return WindowScores(middle.start, middle.end, mean)


@dataclass(slots=True)
class _Run:
    """Neighbouring stretches with the same active label; -1 stands for none."""

    label: int
    start: float
    end: float
    weighted: float = 0.0  # sum of probability times seconds
    seconds: float = 0.0

    def extend(self, end: float, probability: float, seconds: float) -> None:
        self.end = end
        self.weighted += probability * seconds
        self.seconds += seconds

    def event(self, labels: Sequence[str]) -> Event:
        return Event(self.start, self.end, labels[self.label], self.weighted / self.seconds)


class EventDetector:
    """Finds events in scores as they come, each of them once, in constant memory.

    A label becomes active when its smoothed probability leads and reaches ``threshold``. It stays
    active until its probability falls under ``release``, or until another label leads and reaches
    the threshold::

        probability
        threshold ─ ─ ─ ─ ╭──╮─ ─ ─ ─ ─ ─ ─ ─ ─
                         ╱    ╲  ╭─╮
        release ─ ─ ─ ─ ╱─ ─ ─ ╲╱─ ─╲─ ─ ─ ─ ─ ─
                    ───╯             ╲─────────
        event             ├──────────┤

    Two thresholds follow Dinkel, Wu, Yu: Towards duration robust weakly supervised sound event
    detection, IEEE/ACM TASLP 29 (2021), forward in time only: there an event also begins at the
    lower one, which is known too late for a stream. What was active is then cleaned in the order of
    dcase_util (``process_events``): first stretches shorter than ``min_seconds`` are left out; then
    two of the same label at most ``gap_seconds`` apart become one, if no other event is between
    them.

    An event is given when it has ended: as soon as the scores after its end are known, or after
    ``gap_seconds`` more where gaps are closed. Smoothing adds its own delay (see
    :class:`Smoother`).

    Args:
        labels: (K,).
        threshold: in [0, 1].
        release: in [0, threshold]; none: the threshold.
        smoothing: windows of the mean, see :class:`Smoother`.
        min_seconds: of an event, 0 or more.
        gap_seconds: that are closed, 0 or more.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        labels: Sequence[str],
        threshold: float = 0.0,
        *,
        release: float | None = None,
        smoothing: int = 1,
        min_seconds: float = 0.0,
        gap_seconds: float = 0.0,
    ) -> None:
        release = threshold if release is None else release
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, not {threshold}")
        if not 0 <= release <= threshold:
            raise ValueError(f"release must be between 0 and the threshold, not {release}")
        if not min_seconds >= 0 or not gap_seconds >= 0:
            raise ValueError(f"seconds are 0 or more, not {min_seconds} and {gap_seconds}")
        self.labels = tuple(labels)
        self._threshold, self._release = threshold, release
        self._min_seconds, self._gap_seconds = min_seconds, gap_seconds
        self._smoother = Smoother(smoothing)
        self._begin()

    def _begin(self) -> None:
        self._run = _Run(-1, 0.0, 0.0)
        self._waiting: _Run | None = None  # ended, but a gap after it may still be closed
        self._last: WindowScores | None = None

    @property
    def open(self) -> Event | None:
        """The event that goes on, as far as it is known; none while no label is active."""
        run = self._run
        if run.label < 0 or not run.seconds > 0:
            return None
        if self._continues(self._waiting, run):
            assert self._waiting is not None
            run = _joined(self._waiting, run)
        return run.event(self.labels)

    def push(self, scores: WindowScores) -> list[Event]:
        """Take the next stretch's scores.

        Args:
            scores: beginning where the last ended, or later where sound was lost.

        Returns:
            The events that are complete now, in time order. Events never overlap, and neighbours
            that touch have different labels.
        """
        return [event for smooth in self._smoother.push(scores) for event in self._take(smooth)]

    def finish(self, end: float | None = None) -> list[Event]:
        """The stream ends: the remaining events. A new stream may begin then.

        Args:
            end: seconds, up to which the last stretch's scores count, where that is later than
                its own end (see :class:`stapes.inference.Listener`).
        """
        events = [event for smooth in self._smoother.finish() for event in self._take(smooth)]
        last = self._last
        if end is not None and last is not None and end > last.end:
            events += self._take(WindowScores(last.end, end, last.probabilities))
        events += self._close(self._run)
        if self._waiting is not None:
            events.append(self._waiting.event(self.labels))
        self._begin()
        return events

    def _take(self, scores: WindowScores) -> list[Event]:
        self._last = scores
        events: list[Event] = []
        label = self._active(scores)
        if label != self._run.label:
            events += self._close(self._run)
            self._run = _Run(label, scores.start, scores.start)
        probability = float(scores.probabilities[label]) if label >= 0 else 0.0
        self._run.extend(scores.end, probability, scores.end - scores.start)
        waiting = self._waiting
        if (
            waiting is not None
            and not self._continues(waiting, self._run)
            and scores.end - waiting.end > self._gap_seconds
        ):
            events.append(waiting.event(self.labels))
            self._waiting = None
        return events

    def _active(self, scores: WindowScores) -> int:
        row = scores.probabilities
        leader = int(row.argmax())
        if float(row[leader]) >= self._threshold:  # NumPy would round the threshold to float32
            return leader
        active = self._run.label
        return active if active >= 0 and float(row[active]) >= self._release else -1

    def _continues(self, waiting: _Run | None, run: _Run) -> bool:
        return (
            waiting is not None
            and waiting.label == run.label
            and run.start - waiting.end <= self._gap_seconds + _ROUNDING
        )

    def _close(self, run: _Run) -> list[Event]:
        """What is known when a run has ended: the one that waited, if this one is another."""
        if run.label < 0 or not run.seconds > 0:
            return []
        if run.end - run.start < self._min_seconds - _ROUNDING:
            return []
        before, self._waiting = self._waiting, run
        if before is None:
            return []
        if self._continues(before, run):
            self._waiting = _joined(before, run)
            return []
        return [before.event(self.labels)]


def _joined(first: _Run, second: _Run) -> _Run:
    return _Run(
        first.label,
        first.start,
        second.end,
        first.weighted + second.weighted,
        first.seconds + second.seconds,
    )


def merge_events(
    windows: Iterable[WindowScores],
    labels: Sequence[str],
    threshold: float = 0.0,
    *,
    release: float | None = None,
    smoothing: int = 1,
    min_seconds: float = 0.0,
    gap_seconds: float = 0.0,
) -> Iterator[Event]:
    """Join neighbouring stretches with the same leading label into events.

    Args:
        windows: in time order, tiling the recording.
        labels: (K,).
        threshold: least probability of the leading label.
        release, smoothing, min_seconds, gap_seconds: see :class:`EventDetector`.

    Yields:
        Events in time order that do not overlap; neighbours that touch have different labels.

    Raises:
        ValueError: an argument out of range.
    """
    detector = EventDetector(
        labels,
        threshold,
        release=release,
        smoothing=smoothing,
        min_seconds=min_seconds,
        gap_seconds=gap_seconds,
    )
    return _events(windows, detector)


def _events(windows: Iterable[WindowScores], detector: EventDetector) -> Iterator[Event]:
    for window in windows:
        yield from detector.push(window)
    yield from detector.finish()
