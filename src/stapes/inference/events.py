"""Stretches of a recording in which one label leads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from stapes.inference.predictions import Event, WindowScores

__all__ = ["merge_events"]


def merge_events(
    windows: Iterable[WindowScores], labels: Sequence[str], threshold: float = 0.0
) -> Iterator[Event]:
    """Join neighbouring stretches with the same leading label into events.

    Args:
        windows: in time order, tiling the recording.
        labels: (K,).
        threshold: least probability of the leading label.

    Yields:
        Events in time order that do not overlap; neighbours that touch have different labels.
    """
    label, start, end, weighted = -1, 0.0, 0.0, 0.0
    for window in windows:
        leader = int(window.probabilities.argmax())
        score = float(window.probabilities[leader])
        if score < threshold:
            leader = -1
        if leader != label:
            if label >= 0 and end > start:
                yield Event(start, end, labels[label], weighted / (end - start))
            label, start, weighted = leader, window.start, 0.0
        end = window.end
        weighted += score * (window.end - window.start)
    if label >= 0 and end > start:
        yield Event(start, end, labels[label], weighted / (end - start))
