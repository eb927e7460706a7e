"""Sound that comes in pieces: a window's result as soon as its last sample is there.

A recording and a stream give the same windows with the same probabilities. They differ in what
can be known of a window's stretch when it is given: the windows of a recording tile it to its end,
so the end of one is settled by the next; a live window speaks for the ``hop`` around its middle and
is not taken back::

    windows     |-------0-------|
                        |-------1-------|
                             ·  |-------2-------|
                             ·           |-------3-------|   ends with the stream
    recording   |-----0-----|---1---|-2-|--------3-------|
    live        |-----0-----|---1---|---2---|-----3------|
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stapes.audio import NotFiniteError, WindowCutter, in_batches
from stapes.audio.container import find_fault
from stapes.audio.resample import Converter
from stapes.errors import AudioError
from stapes.inference.arrays import as_waveform
from stapes.inference.predictions import WindowScores
from stapes.inference.settings import AudioSettings

__all__ = ["Gap", "Listener", "Scorer"]

_BATCH = 16  # windows at once, where one chunk completes many


class Scorer(Protocol):
    """What a :class:`Listener` needs of a classifier."""

    @property
    def audio(self) -> AudioSettings:
        """What it listens to."""

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, N) float32 to (B, K) float32."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Sound that was lost between two chunks of a stream.

    Attributes:
        seconds: how long, 0 where that is not known.
    """

    seconds: float = 0.0


class Listener:
    """Classifies a stream window by window, in constant memory, for days.

    The windows are those of :meth:`BaseClassifier.windows
    <stapes.inference.BaseClassifier.windows>`, with the same probabilities, whatever the lengths
    of the chunks. The result of a window is given with the chunk that holds its last sample; where
    the stream has another rate than the model, the resampler holds back up to 0.16 s (48 kHz to
    8 kHz; 0.02 s from 48 kHz to 44.1 kHz). Times are counted in samples and do not drift.

    Args:
        classifier: a model.
        sample_rate: Hz of the chunks; none: the model's.
        channels: of the chunks; none: as the first one has.
        hop_seconds: step between windows, in (0, window]; none: half the window.
        source: what the stream is called in errors.

    Raises:
        AudioError: a number of channels that cannot become the model's.
        ValueError: a rate or hop out of range.
    """

    def __init__(
        self,
        classifier: Scorer,
        sample_rate: int | None = None,
        channels: int | None = None,
        hop_seconds: float | None = None,
        *,
        source: str = "stream",
    ) -> None:
        self._classifier, self._audio, self._source = classifier, classifier.audio, source
        self._hop = self._audio.steps(hop_seconds)
        self._margin = (self._audio.window - self._hop) / 2
        self._rate = self._audio.sample_rate if sample_rate is None else sample_rate
        if self._rate < 1:
            raise ValueError(f"the sample rate is 1 Hz or more, not {self._rate}")
        self._channels = channels
        self._before = 0  # samples before the present piece: earlier pieces and gaps
        self._ended = False
        self._begin()

    def _begin(self) -> None:
        """Begin a piece: a stretch of sound without a gap."""
        self._converter: Converter | None = None
        self._taken = 0  # samples of the piece, at its own rate
        self._told = 0.0  # samples of the piece that windows have spoken for
        audio = self._audio
        self._cutter = WindowCutter(audio.window, self._hop, shorter=audio.shorter)
        if self._channels is not None:
            self._converter = self._convert(self._channels)

    def _convert(self, channels: int) -> Converter:
        try:
            return Converter(self._rate, channels, self._audio.sample_rate, self._audio.channels)
        except ValueError as error:
            raise AudioError(self._source, f"{error}, which the model needs.") from None

    @property
    def seconds(self) -> float:
        """Length of the stream so far, gaps included, less what the resampler still holds."""
        return (self._before + self._cutter.total) / self._audio.sample_rate

    def push(self, chunk: Any) -> list[WindowScores]:
        """Take the next chunk.

        Args:
            chunk: (n,) or (C, n), any n, in [-1, 1] (integers are scaled by their type's range).

        Returns:
            The scores of the windows that it completes, in time order. Each speaks for the hop
            around its middle, the first also for what is before.

        Raises:
            NotFiniteError: a sample is not a finite number.
            AudioError: fewer channels than the model needs.
            ValueError: another shape, other channels than before, or the stream has ended.
        """
        if self._ended:
            raise ValueError("the stream has ended: listen to another with another Listener")
        waveform = as_waveform(chunk)
        if self._converter is None:
            self._converter = self._convert(waveform.shape[0])
            self._channels = waveform.shape[0]
        if waveform.shape[0] != self._channels:
            raise ValueError(
                f"a chunk has {waveform.shape[0]} channels, the stream {self._channels}"
            )
        frames = waveform.T
        fault = find_fault(frames)
        if fault is not None:
            at = self._before / self._audio.sample_rate + (self._taken + fault[0]) / self._rate
            raise NotFiniteError(
                self._source, f"the sample at {at:.3f} s is {fault[1]}; mend what sends it."
            )
        self._taken += len(frames)
        return self._classify(self._converter.push(frames))

    def gap(self, seconds: float = 0.0) -> list[WindowScores]:
        """Say that sound was lost here. No window reaches across; times go on after the gap.

        Args:
            seconds: how much, 0 or more; 0 where that is not known.

        Returns:
            The scores of the windows up to the gap. What follows the last gap and is shorter than
            a window stays without.

        Raises:
            ValueError: a negative length, or the stream has ended.
        """
        if not seconds >= 0:
            raise ValueError(f"a gap has 0 seconds or more, not {seconds}")
        if self._ended:
            raise ValueError("the stream has ended: listen to another with another Listener")
        scores = self._end_piece(short_too=False)
        self._before += self._cutter.total + round(seconds * self._audio.sample_rate)
        self._begin()
        return scores

    def finish(self) -> list[WindowScores]:
        """The stream ends.

        Returns:
            The scores of windows that the resampler held back, and of the one that ends with the
            last sample, unless one did. The last stretch ends with the stream in the second case;
            in the first it may end up to half a window before it, as :attr:`seconds` says.
            Nothing for a stream without sound.

        Raises:
            ValueError: the stream has ended before.
        """
        if self._ended:
            raise ValueError("the stream has ended: listen to another with another Listener")
        self._ended = True
        return self._end_piece(short_too=self._before == 0)

    def listen(self, chunks: Iterable[Any]) -> Iterator[WindowScores]:
        """Push chunks, or :class:`Gap` where sound was lost, one after the other, and finish."""
        for chunk in chunks:
            yield from self.gap(chunk.seconds) if isinstance(chunk, Gap) else self.push(chunk)
        yield from self.finish()

    def _end_piece(self, *, short_too: bool) -> list[WindowScores]:
        scores = [] if self._converter is None else self._classify([self._converter.finish()])
        total = self._cutter.total
        if total == 0 or (total < self._audio.window and not short_too):
            return scores
        for _, window in self._cutter.finish():
            row = self._classifier.probabilities(window[np.newaxis])[0]
            scores.append(self._scores(self._told, total, row))
        return scores

    def _classify(self, parts: Sequence[NDArray[np.float32]]) -> list[WindowScores]:
        windows = (found for part in parts for found in self._cutter.push(part))
        scores = []
        for starts, batch in in_batches(windows, _BATCH):
            for start, row in zip(starts, self._classifier.probabilities(batch), strict=True):
                end = start + self._margin + self._hop
                scores.append(self._scores(self._told, end, row))
                self._told = end
        return scores

    def _scores(self, start: float, end: float, row: NDArray[np.float32]) -> WindowScores:
        rate = self._audio.sample_rate
        return WindowScores((self._before + start) / rate, (self._before + end) / rate, row)
