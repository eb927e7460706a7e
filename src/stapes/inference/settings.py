"""What a model listens to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from stapes.audio import cut_recording
from stapes.audio.windows import Longer, Samples, Shorter

__all__ = ["AudioSettings"]


@dataclass(frozen=True, slots=True)
class AudioSettings:
    """How a recording becomes the windows that a model classifies.

    Attributes:
        sample_rate: Hz.
        channels: of the windows; a recording with others is converted.
        window_seconds: length of a window.
        hop_seconds: step between the windows of a longer recording; none: the window itself.
        shorter: what happens to a recording shorter than the window, see
            :func:`stapes.audio.fit_length`.
        longer: to a longer one, see :func:`stapes.audio.split_windows`.

    Raises:
        ValueError: a value out of range.
    """

    sample_rate: int
    channels: int
    window_seconds: float
    hop_seconds: float | None = None
    shorter: Shorter = "pad"
    longer: Longer = "window"

    def __post_init__(self) -> None:
        for name in ("sample_rate", "channels"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is a whole number from 1, not {value!r}")
        for name in ("window_seconds", "hop_seconds"):
            value = getattr(self, name)
            if value is None and name == "hop_seconds":
                continue
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{name} is a number, not {value!r}")
            if round(value * self.sample_rate) < 1:
                raise ValueError(f"{name} is at least one sample, not {value!r}")
        for name, known in (("shorter", Shorter), ("longer", Longer)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} is one of {get_args(known)}, not {getattr(self, name)!r}")

    @property
    def window(self) -> int:
        """Samples of a window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def hop(self) -> int:
        """Samples between the windows of a longer recording."""
        return round((self.hop_seconds or self.window_seconds) * self.sample_rate)

    def cut(
        self, path: str | Path, *, start: float = 0.0, end: float | None = None
    ) -> Iterator[tuple[int, Samples]]:
        """The windows that a classification of a recording is made of.

        Args:
            path: the recording.
            start: seconds; with ``end``, the segment to cut.
            end: seconds; none: the recording's end.

        Yields:
            The window's first sample, and (channels, window).

        Raises:
            AudioError: the recording cannot be read; when the iteration comes to it.
        """
        return cut_recording(
            path,
            self.window,
            self.hop,
            sample_rate=self.sample_rate,
            channels=self.channels,
            start=start,
            end=end,
            shorter=self.shorter,
            longer=self.longer,
        )

    def steps(self, hop_seconds: float | None = None) -> int:
        """Samples between the windows of a timeline or a stream.

        Args:
            hop_seconds: in (0, window]; none: half the window.

        Raises:
            ValueError: a hop out of range.
        """
        hop = self.window // 2 if hop_seconds is None else round(hop_seconds * self.sample_rate)
        if not 0 < hop <= self.window:
            raise ValueError(
                f"the hop must be above 0 and at most the window of {self.window_seconds} s"
            )
        return hop
