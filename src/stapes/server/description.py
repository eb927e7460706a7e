"""The OpenAPI description: what is sent, and everything that may come back."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stapes.server.models import Hosted
from stapes.server.problems import MEDIA_TYPE
from stapes.server.queries import (
    BatchAnswer,
    Classification,
    ClassifyQuery,
    Health,
    ListenQuery,
    Models,
    ProblemDocument,
    Timeline,
)
from stapes.server.settings import MIB, Settings

__all__ = ["describe"]

_PROBLEMS = {
    400: "The request cannot be read.",
    401: "No token, or a wrong one.",
    403: "The page that asks is of an origin that is not allowed.",
    404: "There is no such model.",
    408: "The upload came too slowly.",
    413: "The request, or its number of files, is over the limit.",
    415: "The file is not a recording that can be read.",
    421: "The server is not known by the name in the header Host.",
    422: "A parameter cannot be used; or the recording is damaged, silent in the sense of having "
    "no samples, too long, or too much work.",
    426: "The address speaks WebSocket.",
    429: "The server is busy; Retry-After says for how many seconds to wait.",
    507: "There is no room for uploads.",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ALWAYS = (403, 421)

_LISTEN = """A WebSocket. Send samples as binary messages of any length, at most {message} each, and
the text message `end` when there are no more. The server sends JSON text messages: `ready` (labels,
sample_rate, window_seconds), then `event` (start, end, label, score) as each event ends, with
`windows=true` also `window` (start, end, probabilities in the order of the labels), at the end
`end` (seconds), or `problem` (problem). A browser names the token as a subprotocol:
`new WebSocket(url, ["stapes", "token." + token])`."""


def describe(hosts: Iterable[Hosted], settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of a server.

    Args:
        hosts: its models.
        settings: its limits.
    """
    hosts = list(hosts)
    schemas, definitions = _schemas()
    always = (*_ALWAYS, 401) if settings.token is not None else _ALWAYS
    asking = _parameters(ClassifyQuery, hosts)
    uploads = (400, 404, 408, 413, 415, 422, 429, 507, *always)

    def get(summary: str, found: dict[str, Any], *problems: int) -> dict[str, Any]:
        return {"get": {"summary": summary, "responses": {**found, **_failures(problems)}}}

    def post(
        summary: str, found: dict[str, Any], many: bool, raw: bool, text: str
    ) -> dict[str, Any]:
        return {
            "post": {
                "summary": summary,
                "description": text,
                "parameters": asking,
                "requestBody": {"required": True, "content": _bodies(many, raw)},
                "responses": {**found, **_failures(uploads)},
            }
        }

    limits = (
        f"At most {settings.upload_bytes / MIB:g} MiB and {settings.duration:g} s of sound in a "
        "recording. `top` goes without `timeline`; `hop`, `threshold`, `release` and `smoothing` "
        "go with it."
    )
    either = {"oneOf": [schemas["Classification"], schemas["Timeline"]]}
    paths: dict[str, Any] = {
        "/classify": post(
            "Classify a recording",
            _success("The most probable labels, or the events.", either),
            False,
            True,
            limits,
        ),
        "/classify/batch": post(
            "Classify several recordings",
            _success("A result or a problem for each.", schemas["BatchAnswer"]),
            True,
            False,
            f"{limits} At most {settings.files} files. A bad one does not stop the others.",
        ),
        "/models": get("The models", _success("All of them.", schemas["Models"]), 422, *always),
        "/health": {
            "get": {
                "summary": "Whether requests are taken",
                "security": [],
                "responses": {
                    **_success("They are.", schemas["Health"]),
                    "503": _success("The server stops.", schemas["Health"])["200"],
                    **_failures((422, *_ALWAYS)),
                },
            }
        },
        "/metrics": get(
            "Counts for Prometheus",
            {"200": {"description": "As text.", "content": {"text/plain": {}}}},
            422,
            *always,
        ),
        "/listen": {
            "get": {
                "summary": "Events of a stream, over a WebSocket",
                "description": _LISTEN.format(message=f"{settings.message_bytes / MIB:g} MiB"),
                "parameters": _parameters(ListenQuery, hosts),
                "responses": {
                    "101": {"description": "The connection is a WebSocket now."},
                    **_failures((404, 422, 426, 429, *always)),
                },
            }
        },
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "stapes",
            "version": version("stapes"),
            "description": "Sound classifiers behind HTTP. Problems are documents of RFC 9457.",
        },
        "paths": paths,
        "components": {"schemas": definitions},
    }
    if settings.token is not None:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "basic": {
                "type": "http",
                "scheme": "basic",
                "description": "The token as the password of any name.",
            },
        }
        document["security"] = [{"bearer": []}, {"basic": []}]
    return document


def _schemas() -> tuple[dict[str, Any], dict[str, Any]]:
    """References to the schemas of answers by name, and the schemas."""
    kinds = (Classification, Timeline, BatchAnswer, Models, Health, ProblemDocument)
    found, whole = models_json_schema(
        [(kind, "serialization") for kind in kinds],
        ref_template="#/components/schemas/{model}",
    )
    return {kind.__name__: found[kind, "serialization"] for kind in kinds}, whole["$defs"]


def _parameters(kind: type[BaseModel], hosts: list[Hosted]) -> list[dict[str, Any]]:
    parameters = []
    for name, schema in kind.model_json_schema()["properties"].items():
        schema = {key: value for key, value in schema.items() if key != "title"}
        description = schema.pop("description")
        if schema.get("default", 0) is None:
            del schema["default"]
        if name == "model":
            schema["enum"] = [hosted.name for hosted in hosts]
        if name == "hop":
            schema["maximum"] = max(hosted.classifier.audio.window_seconds for hosted in hosts)
        parameters.append(
            {"name": name, "in": "query", "description": description, "schema": schema}
        )
    return parameters


def _bodies(many: bool, raw: bool) -> dict[str, Any]:
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    field = {"files": {"type": "array", "items": file, "minItems": 1}} if many else {"file": file}
    form = {
        "schema": {
            "type": "object",
            "properties": field,
            "required": list(field),
            "additionalProperties": False,
        }
    }
    bodies = {"multipart/form-data": form}
    return {"audio/*": _BINARY, **bodies} if raw else bodies


def _success(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "200": {"description": description, "content": {"application/json": {"schema": schema}}}
    }


def _failures(statuses: Iterable[int]) -> dict[str, Any]:
    document = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    failures: dict[str, Any] = {}
    for status in sorted(statuses):
        failure: dict[str, Any] = {"description": _PROBLEMS[status], "content": document}
        if status == 429:
            failure["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "required": True}}
        if status == 401:
            failure["headers"] = {
                "WWW-Authenticate": {"schema": {"type": "string"}, "required": True}
            }
        failures[str(status)] = failure
    return failures
