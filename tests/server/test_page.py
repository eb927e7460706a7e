"""The page at the root: types, compression, validators. What is on it is tested with it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from served import Client, served

SCRIPT = b"export const answer = 42;\n" * 99


@dataclass(frozen=True)
class File:
    content: bytes
    media_type: str
    gzip: bytes | None


def files(model: Path, *, name: str) -> dict[str, File]:
    return {
        "index.html": File(f"<title>{name}</title>".encode(), "text/html; charset=utf-8", None),
        "engine/engine.js": File(SCRIPT, "text/javascript; charset=utf-8", gzip.compress(SCRIPT)),
        "model.onnx": File(model.read_bytes(), "application/octet-stream", None),
    }


@pytest.fixture(scope="module")
def paged(toy: Path) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stapes.web.page_files", files)
        with served([toy, "drum-hits"], page=True) as client:
            yield client


def test_files_are_sent_as_what_they_are(paged: Client, toy: Path) -> None:
    page = paged.get("/")
    assert page.body == b"<title>signs</title>"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self' 'wasm-unsafe-eval'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert paged.get("/index.html").body == page.body
    model = paged.get("/model.onnx", accept_encoding="gzip")
    assert model.body == toy.read_bytes()
    assert "content-encoding" not in model.headers
    assert paged.get("/engine/engine.js").headers["content-type"].startswith("text/javascript")
    assert paged.get("/engine/other.js").kind == "not-found"
    assert paged.get("/engine/../../secret").status == 404
    assert paged.ask("POST", "/").kind == "method-not-allowed"
    head = paged.ask("HEAD", "/")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(page.body))


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("*", True), ("", False), ("br", False),
     ("gzip;q=0", False), ("gzip;q=x", False), ("identity", False)],
)  # fmt: skip
def test_compression_is_agreed_on(paged: Client, accepted: str, packed: bool) -> None:
    answer = paged.get("/engine/engine.js", accept_encoding=accepted)
    assert answer.headers["vary"] == "Accept-Encoding"
    if packed:
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(answer.body) == SCRIPT
    else:
        assert "content-encoding" not in answer.headers
        assert answer.body == SCRIPT


def test_what_a_browser_has_is_not_sent_again(paged: Client) -> None:
    plain = paged.get("/engine/engine.js").headers["etag"]
    packed = paged.get("/engine/engine.js", accept_encoding="gzip").headers["etag"]
    assert plain != packed  # other bytes
    again = paged.get("/engine/engine.js", if_none_match=f'"x", {plain}')
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", plain)
    assert paged.get("/engine/engine.js", if_none_match=packed).status == 200
    assert paged.get("/").headers["etag"] != plain


def test_no_page(client: Client) -> None:
    assert client.get("/").kind == "not-found"
