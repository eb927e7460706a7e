"""A server on a free port in a thread of this process, and a client without comfort."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stapes.server import Settings
from stapes.server.running import Server

__all__ = ["Answer", "Client", "form", "served"]


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        """Of a problem document, which this has to be."""
        assert self.headers["content-type"] == "application/problem+json"
        document = self.json
        assert document["status"] == self.status
        assert document["detail"]
        assert document["title"]
        return document["type"].removeprefix("urn:stapes:problem:")


class Client:
    """Asks one server; a connection for each request."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = int(server.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            found = connection.getresponse()
            return Answer(found.status, found.headers, found.read())

    def get(self, path: str, **headers: str) -> Answer:
        """A GET."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("GET", path, headers=names)

    def send(self, path: str, content: bytes, kind: str = "audio/wav") -> Answer:
        """A POST of a body that is a recording."""
        return self.ask("POST", path, content, {"Content-Type": kind})

    def upload(self, path: str, *files: Path, field: str = "file") -> Answer:
        """A POST of a form."""
        body, kind = form([(field, file.name, file.read_bytes()) for file in files])
        return self.send(path, body, kind)

    def socket(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def metric(self, name: str, **labels: str) -> float:
        """A count; 0 where there is none yet."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.get("/metrics").body.decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0


def form(fields: list[tuple[str, str | None, bytes]]) -> tuple[bytes, str]:
    """Fields with file names and contents as a body, and its content type."""
    parts = []
    for field, name, content in fields:
        file = "" if name is None else f'; filename="{name}"'
        head = f'--x1y2\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + b"--x1y2--\r\n", "multipart/form-data; boundary=x1y2"


@contextlib.contextmanager
def served(models: Any, host: str = "127.0.0.1", **settings: Any) -> Iterator[Client]:
    """A server for as long as the context; it has to stop by itself then."""
    server = Server(models, Settings(**{"page": False, "threads": 2, **settings}), host, 0)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        yield Client(server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
