"""Windows of one length out of waveforms of any length, whole or streamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["WindowCutter", "fit_length", "iter_windows", "split_windows"]

Samples = npt.NDArray[np.float32]
Shorter = Literal["pad", "repeat"]
Longer = Literal["window", "crop"]


def fit_length(waveform: Samples, n_samples: int, *, shorter: Shorter = "pad") -> Samples:
    """Make a waveform exactly ``n_samples`` long.

    Args:
        waveform: (C, N).
        n_samples: 1 or more.
        shorter: a shorter one gets zeros after it (``"pad"``) or starts again from its beginning
            (``"repeat"``; one without samples is padded).

    Returns:
        (C, n_samples); of a longer one its middle, without a copy.

    Raises:
        ValueError: not (C, N), or an argument out of range.
    """
    _check(waveform, n_samples, 1, shorter)
    n = waveform.shape[1]
    if n >= n_samples:
        first = (n - n_samples) // 2
        return waveform[:, first : first + n_samples]
    if shorter == "repeat" and n:
        return np.tile(waveform, (1, -(-n_samples // n)))[:, :n_samples]
    return np.pad(waveform, ((0, 0), (0, n_samples - n)))


def split_windows(
    waveform: Samples,
    window: int,
    hop: int,
    *,
    shorter: Shorter = "pad",
    longer: Longer = "window",
) -> Samples:
    """Cut a waveform into windows.

    They start at 0, hop, 2 hop and so on. Where samples are left over behind the last whole one,
    one more window ends with the last sample::

        samples  |----------------------------|
        windows  |--------|                         0
                      |--------|                    hop
                           |--------|               2 hop
                                |--------|          3 hop
                                     |--------|     N - window

    With ``hop <= window`` every sample is in a window.

    Args:
        waveform: (C, N). Shorter than the window, it is fitted and gives one.
        window: samples.
        hop: samples between starts.
        shorter: see :func:`fit_length`.
        longer: ``"window"``: all windows; ``"crop"``: the middle one only.

    Returns:
        (W, C, window), W >= 1.

    Raises:
        ValueError: not (C, N), or an argument out of range.
    """
    _check(waveform, window, hop, shorter)
    if longer not in ("window", "crop"):
        raise ValueError(f"longer is 'window' or 'crop', not {longer!r}")
    n = waveform.shape[1]
    if longer == "crop" or n <= window:
        return fit_length(waveform, window, shorter=shorter)[np.newaxis]
    starts = list(range(0, n - window + 1, hop))
    if starts[-1] != n - window:
        starts.append(n - window)
    return np.stack([waveform[:, start : start + window] for start in starts])


def iter_windows(
    blocks: Iterable[Samples], window: int, hop: int, *, shorter: Shorter = "pad"
) -> Iterator[tuple[int, Samples]]:
    """Cut a streamed waveform into the windows of :func:`split_windows`, in constant memory.

    Args:
        blocks: (C, n) pieces that follow each other, of any lengths.
        window: samples.
        hop: samples between starts.
        shorter: see :func:`fit_length`.

    Yields:
        The window's first sample, and (C, window), which is the receiver's own. Without any block
        there is none.

    Raises:
        ValueError: a block that is not (C, n), or an argument out of range.
    """
    cutter = WindowCutter(window, hop, shorter=shorter)
    for block in blocks:
        yield from cutter.push(block)
    yield from cutter.finish()


class WindowCutter:
    """Cuts a waveform that comes piece by piece into the windows of :func:`split_windows`.

    A window is given with the piece that completes it, and twice the window's samples are held,
    however long or short the pieces are.

    Args:
        window: samples.
        hop: samples between starts.
        shorter: see :func:`fit_length`.

    Attributes:
        total: samples taken so far.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, window: int, hop: int, *, shorter: Shorter = "pad") -> None:
        _check_settings(window, hop, shorter)
        self.total = 0
        self._window, self._hop, self._shorter = window, hop, shorter
        self._start = 0  # of the next window
        # The last samples, of which the earliest still needed is either the next window's first
        # or the first of the last `window` samples, in case the waveform ends here.
        self._held: Samples | None = None
        self._held_from = 0  # sample at which `_held` begins

    def push(self, piece: Samples) -> Iterator[tuple[int, Samples]]:
        """Take the next piece, (C, n) with any n; the work is done as the result is iterated.

        Yields:
            As :func:`iter_windows`: each window that this piece completes.

        Raises:
            ValueError: not (C, n), or another number of channels than before.
        """
        _check_waveform(piece)
        window, channels = self._window, piece.shape[0]
        if self._held is None:
            self._held = np.empty((channels, 2 * window), piece.dtype)
        held = self._held
        if channels != held.shape[0]:
            raise ValueError(f"a piece has {channels} channels, those before {held.shape[0]}")
        taken = 0
        while taken < piece.shape[1]:
            filled = self.total - self._held_from
            if filled == 2 * window:
                held[:, :window] = held[:, window:]
                self._held_from += window
                filled = window
            count = min(piece.shape[1] - taken, 2 * window - filled)
            held[:, filled : filled + count] = piece[:, taken : taken + count]
            taken += count
            self.total += count
            while self._start + window <= self.total:
                first = self._start
                self._start += self._hop
                yield first, self._cut(first)

    def finish(self) -> Iterator[tuple[int, Samples]]:
        """The waveform ends: the window that ends with its last sample, if none has yet.

        Yields:
            At most one window; a waveform shorter than it is fitted. Without any piece there is
            none.
        """
        if self._held is None:
            return
        if self.total < self._window:
            whole = self._held[:, : self.total]
            yield 0, fit_length(whole, self._window, shorter=self._shorter)
        elif self._start - self._hop + self._window < self.total:
            first = self.total - self._window
            yield first, self._cut(first)

    def _cut(self, first: int) -> Samples:
        assert self._held is not None
        at = first - self._held_from
        return self._held[:, at : at + self._window].copy()


def _check(waveform: Samples, window: int, hop: int, shorter: str) -> None:
    _check_waveform(waveform)
    _check_settings(window, hop, shorter)


def _check_waveform(waveform: Samples) -> None:
    if waveform.ndim != 2:
        raise ValueError(f"a waveform is (channels, samples), not of shape {waveform.shape}")


def _check_settings(window: int, hop: int, shorter: str) -> None:
    if window < 1 or hop < 1:
        raise ValueError(f"window and hop are 1 sample or more, not {window} and {hop}")
    if shorter not in ("pad", "repeat"):
        raise ValueError(f"shorter is 'pad' or 'repeat', not {shorter!r}")
