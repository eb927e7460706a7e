"""What using a model gives: predictions, scores of windows, events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Event", "Prediction", "WindowScores"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Probabilities of the labels for one recording.

    Attributes:
        source: file name, or "array".
        labels: (K,).
        probabilities: (K,), sum to 1: the mean over the recording's windows.
    """

    source: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.top(1)[0][0]

    @property
    def score(self) -> float:
        """Probability of the most probable label."""
        return self.top(1)[0][1]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most probable labels with their probabilities, best first."""
        pairs = zip(self.labels, self.probabilities, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[:k]


@dataclass(frozen=True, slots=True)
class WindowScores:
    """One window's result and the stretch of the recording that it speaks for.

    The stretches of successive windows tile the recording: each window speaks for the ``hop``
    around its middle, the first from the beginning and the last to the end.

    Attributes:
        start, end: seconds.
        probabilities: (K,).
    """

    start: float
    end: float
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Event:
    """A stretch of a recording in which one label leads.

    Attributes:
        start, end: seconds.
        label: the leading label.
        score: mean probability of the label over the stretch.
    """

    start: float
    end: float
    label: str
    score: float
