"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

__all__ = ["MEDIA_TYPE", "Problem", "Refusal", "bad_value"]

MEDIA_TYPE = "application/problem+json"

_TYPES = {
    "bad-request": (400, "The request cannot be read"),
    "unauthorized": (401, "A token is needed"),
    "origin-refused": (403, "Pages of this origin may not use the server"),
    "not-found": (404, "There is nothing at this address"),
    "unknown-model": (404, "There is no such model"),
    "method-not-allowed": (405, "This address takes other methods"),
    "too-slow": (408, "The request came too slowly"),
    "too-large": (413, "The request is too large"),
    "unsupported-media": (415, "This is not a recording that can be read"),
    "wrong-host": (421, "The server is not known by this name"),
    "invalid-value": (422, "A parameter cannot be used"),
    "bad-recording": (422, "The recording is damaged or holds no sound"),
    "too-long": (422, "The recording is too long"),
    "too-much-work": (422, "The recording takes too long to classify"),
    "upgrade-required": (426, "This address speaks WebSocket"),
    "busy": (429, "The server is busy"),
    "internal": (500, "The server has failed"),
    "no-space": (507, "The server has no room for the upload"),
}


class Problem(Exception):
    """Something that a request is answered with instead of a result.

    Args:
        kind: one of the server's kinds of problems, which settles status and title.
        detail: a sentence about this case.
        headers: of the response, besides the usual.
        others: further members of the document.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.headers, self.others = kind, detail, headers, others
        self.status, self.title = _TYPES[kind]

    @property
    def document(self) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "type": f"urn:stapes:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.others,
        }

    def response(self) -> Response:
        """The document as a response."""
        response = Response(
            json.dumps(self.document, ensure_ascii=False).encode("utf-8", errors="replace"),
            self.status,
            self.headers,
            MEDIA_TYPE,
        )
        if self.status == HTTPStatus.UNAUTHORIZED:
            # Basic lets a browser ask its user for the token, as the password of any name.
            for scheme in ("Bearer", "Basic"):
                response.headers.append("www-authenticate", f'{scheme} realm="stapes"')
        return response


class Refusal(Problem):
    """A request over a limit of the server's.

    Args:
        reason: which, for the metrics.
        kind, detail, headers, others: as of a :class:`Problem`.
    """

    def __init__(
        self,
        reason: str,
        kind: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(kind, detail, headers, **others)
        self.reason = reason


def bad_value(parameter: str, message: str) -> Problem:
    """A parameter that cannot be used."""
    return Problem(
        "invalid-value",
        f"{parameter}: {message}.",
        errors=[{"parameter": parameter, "detail": message}],
    )
