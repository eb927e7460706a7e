"""``stapes listen``."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Self

import typer

from stapes.cli.options import Release, Smoothing, check_hop, check_release
from stapes.cli.rows import Format, row_writer
from stapes.cli.terminal import Terminal

if TYPE_CHECKING:
    from stapes.inference import Event, EventDetector, Gap, Listener, WindowScores
    from stapes.inference.sources import Source

__all__ = ["listen"]

_MICROPHONE = "microphone"


def listen(
    model: Annotated[
        Path,
        typer.Argument(help="Shipped model, model file, exported model (.onnx) or run folder."),
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="microphone; microphone:NAME, with a part of its name or its number; - for a WAV "
            "stream or raw samples on standard input; or a recording."
        ),
    ] = _MICROPHONE,
    hop: Annotated[
        float | None, typer.Option(help="Seconds between windows [half a window].")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Least probability with which an event begins.", min=0, max=1)
    ] = 0.0,
    release: Release = None,
    smoothing: Smoothing = 1,
    every_hop: Annotated[
        bool, typer.Option("--every-hop", help="A row for every window instead of events.")
    ] = False,
    clock: Annotated[
        bool, typer.Option("--clock", help="Date and time instead of seconds since the start.")
    ] = False,
    rate: Annotated[
        int | None, typer.Option(help="Sample rate of raw samples on standard input, Hz.", min=1)
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="Channels of raw samples, interleaved [1].", min=1)
    ] = None,
    encoding: Annotated[
        Literal["u8", "s16le", "s24le", "s32le", "f32le", "f64le"] | None,
        typer.Option(help="Of raw samples [s16le]."),
    ] = None,
    format: Annotated[Format, typer.Option(help="Of the result.")] = "table",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Add to this file instead of standard output."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute: cpu, cuda or mps; of .onnx, cpu.")
    ] = "cpu",
) -> None:
    """Tell what a microphone, a pipe or a recording sounds like, as it is heard.

    An event is told when it is over. Ctrl-C ends listening: what goes on at that moment is told as
    well, and the exit status is 0.
    """
    from stapes.errors import StapesError

    raw = {"rate": rate, "channels": channels, "encoding": encoding}
    for name, value in raw.items():
        if value is not None and source != "-":
            raise StapesError(f"--{name} goes with -: sound on standard input.")
        if value is not None and rate is None:
            raise StapesError(f"--{name} goes with --rate: a WAV stream says it in its header.")
    if every_hop and (threshold > 0 or release is not None):
        raise StapesError("--threshold and --release do not go with --every-hop.")
    check_release(release, threshold)

    from stapes import load
    from stapes.audio import quiet_decoders
    from stapes.inference import EventDetector, Listener

    with quiet_decoders():
        classifier = load(model, device)
    check_hop(hop, classifier)
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(Terminal())  # before the microphone's drivers speak
        interrupt = stack.enter_context(_Interrupt())
        try:
            with interrupt.waiting():
                heard = _open(source, raw, classifier.audio.channels)
        except KeyboardInterrupt:  # nothing has come yet, and nothing is to be told
            return
        stack.enter_context(contextlib.closing(heard.chunks))  # type: ignore[type-var]
        listener = Listener(classifier, heard.sample_rate, heard.channels, hop, source=heard.name)
        finder: EventDetector | _EveryHop
        if every_hop:
            finder = _EveryHop(classifier.labels, smoothing)
        else:
            finder = EventDetector(
                classifier.labels, threshold, release=release, smoothing=smoothing
            )
        times = _Times(clock)
        file, header = stack.enter_context(_appended(out)) if out else (sys.stdout, True)
        width = 29 if clock else 9
        write = row_writer(
            file, format, ["start", "end", "label", "score"], header=header, start=width, end=width
        )
        file.flush()
        line = stack.enter_context(_Line(terminal))
        session = _Session(listener, finder, times, write, file, line)
        session.run(heard, interrupt)


def _open(source: str, raw: dict[str, Any], channels: int) -> Source:
    from stapes.errors import StapesError
    from stapes.inference.sources import from_file, from_microphone, from_pipe

    if source == "-":
        if sys.stdin.isatty():
            raise StapesError("Standard input is the keyboard: pipe sound into it.")
        return from_pipe(
            sys.stdin.buffer,
            sample_rate=raw["rate"],
            channels=raw["channels"] or 1,
            encoding=raw["encoding"] or "s16le",
        )
    kind, _, name = source.partition(":")
    if kind == _MICROPHONE:
        named = int(name) if name.isdecimal() else name
        return from_microphone(None if name == "" else named, channels=channels)
    return from_file(source)


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[tuple[IO[str], bool]]:
    """A file to add rows to, and whether it is new: hours of listening outlive a power cut."""
    from stapes.files import appending

    with appending(path) as binary:
        file = io.TextIOWrapper(
            binary, encoding="utf-8", errors="surrogateescape", newline="", write_through=True
        )
        try:
            yield file, binary.tell() == 0
        finally:
            file.detach()


class _EveryHop:
    """A row for every window, where an :class:`EventDetector` gives one for every event."""

    def __init__(self, labels: tuple[str, ...], smoothing: int) -> None:
        from stapes.inference import Smoother

        self.labels = labels
        self._smoother = Smoother(smoothing)

    def push(self, scores: WindowScores) -> list[Event]:
        return [self._row(smooth) for smooth in self._smoother.push(scores)]

    def finish(self, end: float) -> list[Event]:
        return [self._row(smooth) for smooth in self._smoother.finish()]

    def _row(self, scores: WindowScores) -> Event:
        from stapes.inference import Event

        leader = int(scores.probabilities.argmax())
        score = float(scores.probabilities[leader])
        return Event(scores.start, scores.end, self.labels[leader], score)


class _Session:
    """One listening, from the first chunk to the last row."""

    def __init__(
        self,
        listener: Listener,
        finder: EventDetector | _EveryHop,
        times: _Times,
        write: Callable[[list[Any]], object],
        file: IO[str],
        line: _Line,
    ) -> None:
        self._listener, self._finder, self._times = listener, finder, times
        self._write, self._file, self._line = write, file, line

    def run(self, heard: Source, interrupt: _Interrupt) -> None:
        """Listen until the stream ends or somebody ends it.

        Raises:
            AudioError: the stream breaks off, or held nothing. What was heard has been told.
        """
        from stapes.errors import AudioError

        failure: AudioError | None = None
        try:
            for chunk in interrupt.each(heard.chunks):
                self._take(chunk, heard)
        except AudioError as error:
            failure = error
        self._tell(self._listener.finish())
        self._rows(self._finder.finish(self._listener.seconds))
        if failure is None and self._listener.seconds == 0 and not interrupt.asked:
            failure = AudioError(heard.name, "holds no audio.")
        if failure is not None:
            raise failure

    def _take(self, chunk: Any, heard: Source) -> None:
        from stapes.inference import Gap

        if isinstance(chunk, Gap):
            at = self._times.words(self._listener.seconds)
            self._tell(self._listener.gap(chunk.seconds))
            self._line.note(_lost(chunk, at))
            return
        self._times.start(chunk.shape[1] / heard.sample_rate)
        self._tell(self._listener.push(chunk))

    def _tell(self, scores: list[WindowScores]) -> None:
        for window in scores:
            self._rows(self._finder.push(window))
        if scores:
            row = scores[-1].probabilities
            now = self._times.words(self._listener.seconds)
            self._line.show(f"{now}  {self._finder.labels[int(row.argmax())]} {row.max():.2f}")

    def _rows(self, found: list[Event]) -> None:
        for event in found:
            self._line.clear()
            times = [self._times.told(event.start), self._times.told(event.end)]
            self._write([*times, event.label, round(event.score, 4)])
            self._file.flush()


def _lost(gap: Gap, at: str) -> str:
    if gap.seconds:
        return (
            f"At {at}: {gap.seconds:.1f} s of sound were lost, because the model takes longer than "
            "the sound; choose a larger --hop."
        )
    return f"At {at}: the microphone's driver lost sound."


class _Times:
    """Seconds since the start, or date and time of day."""

    def __init__(self, clock: bool) -> None:
        self._clock = clock
        self._began: float | None = None

    def start(self, seconds: float) -> None:
        """The first sound, of this length, is here."""
        if self._began is None:
            self._began = time.time() - seconds

    def told(self, seconds: float) -> float | str:
        """As it stands in a row."""
        if not self._clock or self._began is None:
            return round(seconds, 3)
        moment = datetime.fromtimestamp(self._began + seconds).astimezone()
        return moment.isoformat(timespec="milliseconds")

    def words(self, seconds: float) -> str:
        """As it stands in a sentence."""
        told = self.told(seconds)
        return told if isinstance(told, str) else f"{told:.1f} s"


class _Line:
    """The line at the bottom of a terminal that says what is heard just now."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._watched = sys.stderr.isatty()
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Put this in the line."""
        if self._watched:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r{text[:width]}\x1b[K")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        """Make place for a row."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False

    def note(self, text: str) -> None:
        """Say something that stays."""
        self.clear()
        self._terminal.note(text)


class _Interrupt:
    """Ctrl-C, or a service's end, takes effect between chunks; a second Ctrl-C at once.

    A window that is being computed is finished, so that nothing is told twice or forgotten.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._ask) for number in self._SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if self._waiting or again:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While this waits for sound, the end is at once: a KeyboardInterrupt."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def each(self, chunks: Iterator[Any]) -> Iterator[Any]:
        """The chunks, until somebody asks for the end."""
        while not self.asked:
            try:
                with self.waiting():
                    chunk = next(chunks)
            except (StopIteration, KeyboardInterrupt):
                return
            yield chunk
