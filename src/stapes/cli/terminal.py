"""What the commands share: progress on standard error, results on standard output."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

__all__ = [
    "Terminal",
    "interval_text",
    "millions_text",
    "print_table",
    "receptive_field_text",
]

_LOG_SECONDS = 5.0


class Terminal:
    """A progress bar where a person watches, plain lines where a log is kept.

    Everything goes to standard error, so that results can be piped. Use as a context manager;
    inside it, native decoders do not print their own complaints about damaged files.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._last = 0.0
        self._ended = False
        self._interactive = sys.stderr.isatty()
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        from stapes.audio import quiet_decoders

        self._exit.enter_context(quiet_decoders())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._exit.close()

    @property
    def watched(self) -> bool:
        """Whether a person watches, so that things are drawn instead of told line by line."""
        return self._interactive

    def progress(self, stage: str, done: float, total: float) -> None:
        """See :class:`stapes.training.reporter.Reporter`."""
        if self._interactive and self._draw(stage, done, total):
            return
        # A log gets a line when a stage ends and every few seconds of a long one, unless the stage
        # has more to say itself.
        if stage != self._stage:
            self._stage, self._last, self._ended = stage, time.monotonic(), False
        if done >= total and not self._ended:
            self._ended = True
        elif done >= total or time.monotonic() - self._last < _LOG_SECONDS:
            return
        self._last = time.monotonic()
        self._line(f"{stage}: {done:.0f} of {total:.0f}")

    def status(self, text: str) -> None:
        """See :class:`stapes.training.reporter.Reporter`."""
        if self._interactive:
            if self._bar is not None:
                self._bar.update(self._task, state=text.partition(": ")[2])
        else:
            self._last, self._ended = time.monotonic(), True
            self._line(text)

    def note(self, text: str) -> None:
        """See :class:`stapes.training.reporter.Reporter`."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._line(text)

    def _draw(self, stage: str, done: float, total: float) -> bool:
        """Move the bar; False where there is none, for lack of what draws it."""
        if self._bar is None:
            try:
                from rich.console import Console
                from rich.progress import (
                    BarColumn,
                    Progress,
                    TaskProgressColumn,
                    TextColumn,
                    TimeRemainingColumn,
                )
            except ModuleNotFoundError:  # no part of the light install
                self._interactive = False
                return False

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[state]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
        if stage != self._stage:
            self._stage = stage
            self._task = self._bar.add_task(stage, total=total, state="")
        self._bar.update(self._task, completed=done, total=total)
        return True

    @staticmethod
    def _line(text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def print_table(header: list[str], rows: list[list[str]], *, right: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """Columns of plain text on standard output.

    Args:
        header: names of the columns.
        rows: cells.
        right: columns that are aligned to the right.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def interval_text(interval: Any, *, percent: bool = True) -> str:
    """A value with its 95 % interval, such as ``87.5 % (84.1 to 90.3)``."""
    if percent:
        return str(interval.percent())
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def millions_text(count: float) -> str:
    """A count in millions, such as ``12.3`` or ``0.0456``."""
    return f"{count / 1e6:,.1f}" if count >= 1e6 else f"{count / 1e6:.3g}"


def receptive_field_text(summary: Any) -> str:
    """The receptive field of a :class:`stapes.evaluation.report.ModelSummary` in words."""
    if summary.receptive_field_bins is None:
        return "unknown: not that of convolutions and pooling alone"
    low, high = summary.receptive_field_hz or (0.0, 0.0)
    gates = ", and the whole window by its gates" if summary.global_context else ""
    return (
        f"{summary.receptive_field_bins} bins ({low:.0f} to {high:.0f} Hz in the middle) x "
        f"{summary.receptive_field_frames} frames ({summary.receptive_field_seconds:.2f} s){gates}"
    )
