"""Who may ask: by which name, from which page, with which token."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from stapes.server.problems import Refusal
from stapes.server.settings import Settings

__all__ = ["Access"]

_SUBPROTOCOL = "token."


class Access:
    """Checks the head of a request.

    Args:
        settings: token, origins and hosts.
    """

    def __init__(self, settings: Settings) -> None:
        self._token = None if settings.token is None else settings.token.encode()
        self._all_origins = "*" in settings.allow_origins
        self._origins = {origin.rstrip("/").lower() for origin in settings.allow_origins}
        self._hosts = None
        if settings.allow_hosts is not None:
            self._hosts = {host.lower() for host in settings.allow_hosts}

    def check_place(self, headers: Mapping[str, str]) -> str | None:
        """Refuse who asks under another name than the server's, or from a page elsewhere.

        Args:
            headers: of the request, names in lower case.

        Returns:
            The origin to allow in the answer's headers; none where there is none to name.

        Raises:
            Refusal: that is so.
        """
        host = headers.get("host", "")
        if self._hosts is not None and _host_name(host) not in self._hosts:
            raise Refusal(
                "host",
                "wrong-host",
                f"The server is not known as '{host[:100]}'; allow it with --allow-host.",
            )
        return self._check_origin(headers.get("origin"), host)

    def _check_origin(self, origin: str | None, host: str) -> str | None:
        if origin is None:
            return None
        if self._all_origins or origin.lower() in self._origins:
            return origin
        # The server's own page. Behind a proxy that speaks TLS the schemes differ, so that only
        # the names are compared.
        try:
            parts = urlsplit(origin)
            own = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
        except ValueError:
            own = False
        if not own:
            raise Refusal(
                "origin",
                "origin-refused",
                f"Pages of '{origin[:100]}' may not use this server; allow them with "
                "--allow-origin.",
            )
        return None

    def check_token(self, headers: Mapping[str, str]) -> None:
        """Refuse who does not bear the token.

        Raises:
            Refusal: that is so.
        """
        if self._token is None:
            return
        for given in _tokens(headers):
            if hmac.compare_digest(given, self._token):
                return
        raise Refusal(
            "token",
            "unauthorized",
            "Send the server's token: Authorization: Bearer TOKEN.",
        )


def _tokens(headers: Mapping[str, str]) -> list[bytes]:
    """The tokens that a request bears: bearer, password, or a WebSocket's subprotocol."""
    found = []
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(rest.strip().encode())
    elif scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            found.append(base64.b64decode(rest.strip(), validate=True).partition(b":")[2])
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(_SUBPROTOCOL):
            found.append(protocol.strip()[len(_SUBPROTOCOL) :].encode())
    return found


def _host_name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().rstrip(".")
