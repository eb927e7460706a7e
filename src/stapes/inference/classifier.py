"""What every classifier does: whole recordings, arrays, batches, timelines of long recordings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from stapes.audio import (
    convert,
    in_batches,
    iter_windows,
    split_windows,
    stream,
)
from stapes.errors import AudioError
from stapes.inference.arrays import as_waveform
from stapes.inference.events import merge_events
from stapes.inference.predictions import Event, Prediction, WindowScores
from stapes.inference.settings import AudioSettings
from stapes.inference.streaming import Listener

__all__ = ["BaseClassifier", "TensorLike"]

_BATCH = 16  # windows at once: enough to fill two cores, little enough to bound memory


class TensorLike(Protocol):
    """A torch tensor, said without torch."""

    @property
    def ndim(self) -> int:
        """Number of axes."""

    def detach(self) -> Any:
        """The same numbers, outside the graph of derivatives."""


class BaseClassifier(ABC):
    """A model, ready to use, whatever computes its probabilities.

    Args:
        labels: (K,) in the order of all probabilities.
        audio: what the model listens to.
    """

    def __init__(self, labels: Sequence[str], audio: AudioSettings) -> None:
        self.labels = tuple(labels)
        self.audio = audio

    @abstractmethod
    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of windows that already have the model's rate, channels and length.

        Args:
            windows: (B, C, N) float32 in [-1, 1].

        Returns:
            (B, K) float32, rows sum to 1.
        """

    @overload
    def classify(self, x: str | Path, sample_rate: None = None) -> Prediction: ...
    @overload
    def classify(self, x: NDArray[Any] | TensorLike, sample_rate: int) -> Prediction: ...
    @overload
    def classify(self, x: Sequence[Any], sample_rate: int | None = None) -> list[Prediction]: ...
    def classify(self, x: Any, sample_rate: int | None = None) -> Prediction | list[Prediction]:
        """Classify a recording, an array, or a batch of either.

        Recordings longer than the model's window are cut as its settings say and the windows'
        probabilities averaged; a long file is read in pieces.

        Args:
            x: a path; a waveform (N,) or (C, N) in [-1, 1] (integers are scaled by their type's
                range); or a list of these, or an array (B, C, N), for a batch.
            sample_rate: of arrays, Hz.

        Returns:
            A prediction, or a list of them for a batch.

        Raises:
            AudioError: a file that cannot be read, or an array that is empty or not finite.
            ValueError: an array without a rate, or of a shape other than the above.
        """
        if isinstance(x, list | tuple):
            return [self._classify_one(item, sample_rate) for item in x]
        if not isinstance(x, str | Path) and x.ndim == 3:
            return [self._classify_one(item, sample_rate) for item in x]
        return self._classify_one(x, sample_rate)

    def _classify_one(self, x: Any, sample_rate: int | None) -> Prediction:
        if isinstance(x, str | Path):
            return self._classify_file(Path(x))
        array = _checked(x)
        if sample_rate is None:
            raise ValueError("an array needs its sample_rate: classify(waveform, 44100)")
        waveform = convert(array, sample_rate, self.audio.sample_rate, self.audio.channels)
        windows = split_windows(
            waveform,
            self.audio.window,
            self.audio.hop,
            shorter=self.audio.shorter,
            longer=self.audio.longer,
        )
        return self._prediction("array", self._mean(_chunks(windows)))

    def timeline(
        self,
        path: str | Path,
        *,
        hop_seconds: float | None = None,
        threshold: float = 0.0,
        release: float | None = None,
        smoothing: int = 1,
        min_seconds: float = 0.0,
        gap_seconds: float = 0.0,
    ) -> Iterator[Event]:
        """Events of a recording of any length, in constant memory, as they are found.

        Args:
            path: the recording.
            hop_seconds: step between windows, in (0, window]; none: half the window.
            threshold: a stretch whose leading label is less probable than this, in [0, 1],
                begins no event.
            release, smoothing, min_seconds, gap_seconds: see
                :class:`stapes.inference.EventDetector`.

        Raises:
            AudioError: the file cannot be read, or breaks off (events before that were given).
            ValueError: an argument out of range.
        """
        return merge_events(
            self.windows(path, hop_seconds=hop_seconds),
            self.labels,
            threshold,
            release=release,
            smoothing=smoothing,
            min_seconds=min_seconds,
            gap_seconds=gap_seconds,
        )

    def windows(
        self, path: str | Path, *, hop_seconds: float | None = None
    ) -> Iterator[WindowScores]:
        """Scores of the successive windows of a recording, in constant memory.

        Args:
            path: the recording.
            hop_seconds: as in :meth:`timeline`.

        Raises:
            AudioError: the file cannot be read.
            ValueError: a hop out of range.
        """
        return self._windows(Path(path), self.audio.steps(hop_seconds))

    def listen(
        self,
        chunks: Iterable[Any],
        *,
        sample_rate: int | None = None,
        channels: int | None = None,
        hop_seconds: float | None = None,
    ) -> Iterator[WindowScores]:
        """Scores of the windows of a stream, each as soon as its last sample has come.

        The same windows and probabilities as :meth:`windows` has for a recording, in constant
        memory. :class:`stapes.inference.Listener` is the same for who pushes chunks, and says how
        the stretches of the last windows differ.

        Args:
            chunks: (n,) or (C, n), any n, one after the other; or
                :class:`stapes.inference.Gap` where sound was lost.
            sample_rate: Hz of the chunks; none: the model's.
            channels: of the chunks; none: as the first one has.
            hop_seconds: as in :meth:`timeline`.

        Raises:
            AudioError: a chunk that is not sound, or channels that cannot become the model's.
            ValueError: a rate or hop out of range, or a chunk of another shape.
        """
        return Listener(self, sample_rate, channels, hop_seconds).listen(chunks)

    def _windows(self, path: Path, hop: int) -> Iterator[WindowScores]:
        counted = _Counted(self._stream(path))
        margin = (self.audio.window - hop) / 2
        held: WindowScores | None = None
        windows = iter_windows(counted, self.audio.window, hop, shorter=self.audio.shorter)
        for starts, batch in in_batches(windows, _BATCH):
            for start, row in zip(starts, self.probabilities(batch), strict=True):
                begin = 0.0 if held is None else (start + margin) / self.audio.sample_rate
                if held is not None:
                    # The last window starts wherever it must to reach the end: the stretch before
                    # it ends where its own begins, so that no moment counts twice.
                    begin = min(max(begin, held.start), held.end)
                    yield WindowScores(held.start, begin, held.probabilities)
                held = WindowScores(begin, (start + margin + hop) / self.audio.sample_rate, row)
        if held is None:
            raise AudioError(path, "holds no audio.")
        yield WindowScores(held.start, counted.samples / self.audio.sample_rate, held.probabilities)

    def _stream(self, path: Path) -> Iterator[NDArray[np.float32]]:
        # Blocks of some windows: the memory in use does not depend on the recording's length.
        seconds = min(30.0, max(5.0, 4 * self.audio.window_seconds))
        return stream(
            path,
            sample_rate=self.audio.sample_rate,
            channels=self.audio.channels,
            block_seconds=seconds,
        )

    def _classify_file(self, path: Path) -> Prediction:
        mean = self._mean(batch for _, batch in in_batches(self.audio.cut(path), _BATCH))
        return self._prediction(str(path), mean)

    def _mean(self, batches: Iterable[NDArray[np.float32]]) -> NDArray[np.float64] | None:
        total, count = np.zeros(len(self.labels)), 0
        for batch in batches:
            total += self.probabilities(batch).sum(0, dtype=np.float64)
            count += len(batch)
        return total / count if count else None

    def _prediction(self, source: str, mean: NDArray[np.float64] | None) -> Prediction:
        if mean is None:
            raise AudioError(source, "holds no audio.")
        return Prediction(source, self.labels, tuple(float(p) for p in mean))


class _Counted:
    """An iterable of blocks that counts the samples passed on."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]]) -> None:
        self._blocks = blocks
        self.samples = 0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for block in self._blocks:
            self.samples += block.shape[-1]
            yield block


def _chunks(windows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(windows), _BATCH):
        yield windows[first : first + _BATCH]


def _checked(x: Any) -> NDArray[np.float32]:
    array = as_waveform(x)
    if array.size == 0:
        raise AudioError("array", "holds no audio.")
    if not np.isfinite(array).all():
        raise AudioError("array", "holds values that are not finite (NaN or infinity).")
    return array
