"""The models of a server, and recordings classified by them within its limits.

A request is :class:`Work`: a classifier like any other (:class:`stapes.inference.BaseClassifier`),
whose windows go through the queue of its model and which watches length and time. What it gives is
therefore what :mod:`stapes.runtime` gives.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stapes.audio import in_batches, iter_windows
from stapes.audio.container import Recording
from stapes.catalogue import SHIPPED, shipped_model
from stapes.errors import AudioError, ConfigError, UnknownNameError
from stapes.inference import BaseClassifier, Prediction
from stapes.runtime import OnnxClassifier, load
from stapes.server.batching import Batcher, Overdue
from stapes.server.metrics import Metrics
from stapes.server.problems import Problem, Refusal, bad_value
from stapes.server.queries import ClassifyQuery
from stapes.server.settings import Settings

__all__ = ["Cancelled", "Hosted", "Hosts", "Work"]

_BATCH = 16  # windows that a request brings at once, as BaseClassifier does
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class Hosted:
    """A model that the server answers with.

    Attributes:
        name: by which requests name it.
        classifier: as loaded.
        batcher: the queue of its windows.
    """

    def __init__(
        self, name: str, classifier: OnnxClassifier, settings: Settings, metrics: Metrics
    ) -> None:
        self.name, self.classifier = name, classifier
        self.batcher = Batcher(
            classifier.probabilities,
            threads=settings.n_threads,
            batch=settings.batch,
            wait=settings.batch_wait,
            observe=metrics.batches(name),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What ``GET /models`` says about it."""
        audio = self.classifier.audio
        score, licence = _score_and_licence(self.classifier)
        return {
            "name": self.name,
            "labels": list(self.classifier.labels),
            "sample_rate": audio.sample_rate,
            "channels": audio.channels,
            "window_seconds": audio.window_seconds,
            "hop_seconds": audio.hop / audio.sample_rate,
            "precision": self.classifier.precision,
            "score": score,
            "licence": licence,
        }

    def check_hop(self, hop: float | None) -> None:
        """Refuse a hop that the windows cannot have.

        Raises:
            Problem: as :meth:`stapes.inference.AudioSettings.steps`.
        """
        try:
            self.classifier.audio.steps(hop)
        except ValueError:
            seconds = self.classifier.audio.window_seconds
            raise bad_value(
                "hop", f"must be above 0 and at most the model's window of {seconds:g} s"
            ) from None


class Hosts:
    """All of them, by name; the first is the one that is meant where none is named.

    Args:
        models: see :func:`stapes.server.create_app`.
        settings: threads and batches.
        metrics: told of batches.

    Raises:
        ConfigError: none, two of one name, or a name that cannot stand in an address.
        ModelFileError, UnknownNameError: as :func:`stapes.runtime.load`.
    """

    def __init__(self, models: Any, settings: Settings, metrics: Metrics) -> None:
        loaded: dict[str, OnnxClassifier] = {}
        for name, given in _named(models):
            # One thread in each call, several calls at once: twice as fast on two cores, where
            # two threads in one call gain a tenth to a third.
            classifier = given if isinstance(given, OnnxClassifier) else load(given, threads=1)
            name = _file_name(classifier) if name is None else name
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"A model cannot be called '{name}' by a server: letters, digits and . _ + - "
                    "only; give it another name with NAME=MODEL."
                )
            if name in loaded:
                raise ConfigError(
                    f"Two models are called '{name}': {loaded[name].path} and {classifier.path}; "
                    "give one of them another name with NAME=MODEL."
                )
            loaded[name] = classifier
        if not loaded:
            raise ConfigError("Name a model to serve.")
        self._hosted = {
            name: Hosted(name, classifier, settings, metrics) for name, classifier in loaded.items()
        }

    def __iter__(self) -> Iterator[Hosted]:
        return iter(self._hosted.values())

    def find(self, name: str | None) -> Hosted:
        """One of them.

        Raises:
            Problem: there is none of that name.
        """
        if name is None:
            return next(iter(self))
        try:
            return self._hosted[name]
        except KeyError:
            sentence = str(UnknownNameError("model", name[:100], self._hosted))
            raise Problem("unknown-model", sentence) from None

    def close(self) -> None:
        """Let go of the threads."""
        for hosted in self:
            hosted.batcher.close()


def _named(models: Any) -> Iterator[tuple[str | None, Any]]:
    """Models and the names they are given, if any."""
    if isinstance(models, Mapping):
        yield from models.items()
        return
    for model in [models] if isinstance(models, str | Path | OnnxClassifier) else models:
        if isinstance(model, str) and "=" in model and not Path(model).exists():
            name, _, path = model.partition("=")
            yield name, path
        else:
            yield None, model


def _file_name(classifier: OnnxClassifier) -> str:
    path = classifier.path
    return path.stem if path.stem != "model" else path.resolve().parent.name


def _score_and_licence(classifier: OnnxClassifier) -> tuple[Any, str | None]:
    """As far as they are known: of a shipped model from its model card."""
    path = classifier.path
    if path.parent == SHIPPED:
        facts = shipped_model(path.stem).facts
        return facts["score"], str(facts["licence"])
    card = classifier.card
    licence = card.get("licence") or (card.get("data") or {}).get("licence")
    return card.get("cross_validated_score") or card.get("score"), licence or None


class Work(BaseClassifier):
    """One request's use of a model; for one thread at a time.

    Args:
        hosted: the model.
        settings: its limits.

    Attributes:
        samples: of the recording, at the model's rate, as far as it was decoded.
    """

    def __init__(self, hosted: Hosted, settings: Settings) -> None:
        super().__init__(hosted.classifier.labels, hosted.classifier.audio)
        self._hosted, self._settings = hosted, settings
        self._most = round(settings.duration * self.audio.sample_rate)
        self._cancelled = False
        self.samples = 0
        self.begin()

    def begin(self) -> None:
        """The time for the work begins to run."""
        self._deadline = time.monotonic() + self._settings.work_seconds

    def cancel(self) -> None:
        """Nobody waits any more: stop at the next occasion. From any thread."""
        self._cancelled = True

    @property
    def seconds(self) -> float:
        """Of the recording, as far as it was decoded."""
        return self.samples / self.audio.sample_rate

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`stapes.inference.BaseClassifier.probabilities`.

        Raises:
            Refusal: the time for the work is over.
            Cancelled: see :meth:`cancel`.
        """
        self.check()
        try:
            return self._hosted.batcher.probabilities(windows, self._deadline)
        except Overdue:
            raise self._overdue() from None

    def answer(self, path: Path, name: str | None, query: ClassifyQuery) -> dict[str, Any]:
        """Classify a recording.

        Args:
            path: where it is.
            name: what the client calls it.
            query: what is asked.

        Returns:
            The members of a :class:`~stapes.server.queries.Classification` or a
            :class:`~stapes.server.queries.Timeline`.

        Raises:
            Problem: the recording cannot be used, or is over a limit.
            Cancelled: see :meth:`cancel`.
        """
        with self._hosted.batcher.expecting():
            try:
                self._check_header(path)
                found = self._found(path, query)
            except AudioError as error:
                raise _unusable(path, name, error) from None
        return {"model": self._hosted.name, "name": name, "seconds": self.seconds, **found}

    def _found(self, path: Path, query: ClassifyQuery) -> dict[str, Any]:
        if not query.timeline:
            top = self.classify(path).top(query.top)
            return {"labels": [{"label": label, "score": score} for label, score in top]}
        events = self.timeline(
            path,
            hop_seconds=query.hop,
            threshold=query.threshold,
            release=query.release,
            smoothing=query.smoothing,
        )
        return {
            "events": [
                {"start": e.start, "end": e.end, "label": e.label, "score": e.score} for e in events
            ]
        }

    def _classify_file(self, path: Path) -> Prediction:
        if self.audio.longer == "crop":
            # The middle is known at the end only; the first pass is what finds it too long.
            for _ in self._stream(path):
                pass
            windows = self.audio.cut(path)
        else:
            audio = self.audio
            windows = iter_windows(
                self._stream(path), audio.window, audio.hop, shorter=audio.shorter
            )
        return self._prediction(
            str(path), self._mean(batch for _, batch in in_batches(windows, _BATCH))
        )

    def _stream(self, path: Path) -> Iterator[NDArray[np.float32]]:
        for block in super()._stream(path):
            self.check()
            self.samples += block.shape[1]
            if self.samples > self._most:
                raise self._too_long()
            yield block

    def check(self) -> None:
        if self._cancelled:
            raise Cancelled
        if time.monotonic() > self._deadline:
            raise self._overdue()

    def _check_header(self, path: Path) -> None:
        """Refuse at once what says itself that it is too long; others are found out on the way."""
        if path.stat().st_size < 1 << 20:
            return
        with Recording(path) as recording:
            claimed = recording.frames / recording.sample_rate
            if claimed > self._settings.duration + 1 and not recording.implausible:
                raise self._too_long()

    def _too_long(self) -> Refusal:
        return Refusal(
            "duration",
            "too-long",
            f"The recording has more than {self._settings.duration:g} s, the most that this server "
            "takes; send it in parts.",
        )

    def _overdue(self) -> Refusal:
        return Refusal(
            "work",
            "too-much-work",
            f"Classifying this took more than {self._settings.work_seconds:g} s; send less at "
            "once, or ask for a larger hop.",
        )


def _unusable(path: Path, name: str | None, error: AudioError) -> Problem:
    """What a client is told of a recording; never where it lay here."""
    what = f"{name or 'The recording'}: {error.reason}"
    try:
        with Recording(path):
            pass
    except AudioError:
        if path.stat().st_size:  # nothing at all is not of another format
            return Problem("unsupported-media", what)
    return Problem("bad-recording", what)
