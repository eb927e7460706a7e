"""What can be asked, and what is answered, as types: they check queries and make the description.

A query holds nothing that is not named here, and nothing that would have no effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stapes.inference import EventDetector
from stapes.inference.sources import ENCODINGS
from stapes.server.problems import Problem

__all__ = [
    "BatchAnswer",
    "BatchEntry",
    "Classification",
    "ClassifyQuery",
    "Health",
    "ListenQuery",
    "ModelFacts",
    "Models",
    "NoQuery",
    "ProblemDocument",
    "Timeline",
    "parse_query",
]

Q = TypeVar("Q", bound=BaseModel)

_MOST = 1_000_000  # of whole numbers that only have to be bounded


class NoQuery(BaseModel):
    """No parameters."""

    model_config = ConfigDict(extra="forbid")


class _Events(BaseModel):
    """What settles windows and events."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    # Numbers without a default of their own have none in the description: None cannot be sent.
    model: str = Field(None, description="Name of the model; none: the first.")  # type: ignore[assignment]
    hop: float = Field(  # type: ignore[assignment]
        None, gt=0, description="Seconds between windows, at most a window; none: half a window."
    )
    threshold: float = Field(
        0.0, ge=0, le=1, description="Least probability with which an event begins."
    )
    release: float = Field(  # type: ignore[assignment]
        None,
        ge=0,
        le=1,
        description="An event goes on down to this probability, at most the threshold; none: the "
        "threshold.",
    )
    smoothing: int = Field(
        1, ge=1, le=_MOST, description="Windows whose probabilities are averaged."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.release is not None and self.release > self.threshold:
            raise ValueError(f"release: must be at most the threshold, which is {self.threshold:g}")
        return self

    def detector(self, labels: Iterable[str]) -> EventDetector:
        """What finds the events that are asked for."""
        return EventDetector(
            tuple(labels), self.threshold, release=self.release, smoothing=self.smoothing
        )


class ClassifyQuery(_Events):
    """Of ``POST /classify``, for each of the files of ``POST /classify/batch``."""

    top: int = Field(5, ge=1, le=_MOST, description="Labels of the answer, best first.")
    timeline: bool = Field(
        False, description="Events with start and end instead of one answer for the recording."
    )

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.timeline:
            if "top" in self.model_fields_set:
                raise ValueError("top: does not go with timeline=true, an event has one label")
            return self
        for name in ("hop", "threshold", "release", "smoothing"):
            if name in self.model_fields_set:
                raise ValueError(f"{name}: goes with timeline=true")
        return self


class ListenQuery(_Events):
    """Of the WebSocket ``/listen``."""

    sample_rate: int = Field(  # type: ignore[assignment]
        None, ge=1, le=_MOST, description="Hz of the samples that are sent; none: the model's."
    )
    channels: int = Field(1, ge=1, le=256, description="Of the samples, which are interleaved.")
    encoding: Literal["u8", "s16le", "s24le", "s32le", "f32le", "f64le"] = Field(
        "s16le", description="Of the samples, as ffmpeg names it."
    )
    windows: bool = Field(
        False, description="Send the probabilities of every window, besides the events."
    )


assert set(ENCODINGS) == {"u8", "s16le", "s24le", "s32le", "f32le", "f64le"}


class _Closed(BaseModel):
    """An object with the members named here only."""

    model_config = ConfigDict(extra="forbid")


class LabelScore(_Closed):
    """A label and its probability."""

    label: str
    score: float = Field(ge=0, le=1.0001)


class EventAnswer(LabelScore):
    """A stretch in which one label leads: seconds, and the label's mean probability."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)


class _Answer(_Closed):
    model: str = Field(description="That has answered.")
    name: str | None = Field(description="Of the file, as it was sent.")
    seconds: float = Field(ge=0, description="Length of the recording.")


class Classification(_Answer):
    """The most probable labels of a recording, best first; the mean over its windows."""

    labels: list[LabelScore]


class Timeline(_Answer):
    """The events of a recording, in time order. They do not overlap."""

    events: list[EventAnswer]


class ProblemDocument(BaseModel):
    """A problem document, RFC 9457."""

    type: str = Field(description="urn:stapes:problem: and the kind of problem.")
    title: str = Field(description="Of all problems of this kind.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What is wrong in this case.")


class BatchEntry(_Closed):
    """What became of one file: a result or a problem."""

    name: str | None
    result: Classification | Timeline | None
    problem: ProblemDocument | None


class BatchAnswer(_Closed):
    """In the order of the files."""

    results: list[BatchEntry]


class ModelFacts(_Closed):
    """A model."""

    name: str
    labels: list[str]
    sample_rate: int = Field(description="Hz.")
    channels: int
    window_seconds: float
    hop_seconds: float = Field(description="Between the windows that a classification averages.")
    precision: str
    score: dict[str, Any] | None = Field(description="How often it was right, as far as known.")
    licence: str | None


class Models(_Closed):
    """The first answers where a request names none."""

    models: list[ModelFacts]


class Health(_Closed):
    """Whether requests are taken."""

    status: Literal["ok", "stopping"]
    version: str


def parse_query(kind: type[Q], pairs: Iterable[tuple[str, str]]) -> Q:
    """The parameters of a request, checked.

    Raises:
        Problem: one is unknown, given twice, or not as it has to be.
    """
    given: dict[str, str] = {}
    errors = []
    for name, value in pairs:
        if name in given:
            errors.append({"parameter": name, "detail": "is given twice"})
        given[name] = value
    if not errors:
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            known = ", ".join(kind.model_fields) or "none"
            for entry in error.errors(include_url=False, include_input=False):
                parameter = ".".join(str(part) for part in entry["loc"])
                message = entry["msg"].removeprefix("Value error, ").rstrip(".")
                if entry["type"] == "extra_forbidden":
                    message = f"there is no such parameter; known: {known}"
                if not parameter:  # found by a validator of ours, which begins with the name
                    parameter, _, message = message.partition(": ")
                errors.append({"parameter": parameter, "detail": message})
    detail = "; ".join(f"{entry['parameter']}: {entry['detail']}" for entry in errors)
    raise Problem("invalid-value", f"{detail}.", errors=errors)
