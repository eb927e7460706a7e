"""Who may ask: tokens, origins of pages, names of the server."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Answer, Client, served
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from stapes.errors import ConfigError
from stapes.server import Settings

TOKEN = "secret-token.~+1"


@pytest.fixture(scope="module")
def locked(toy: Path) -> Iterator[Client]:
    settings = {"token": TOKEN, "allow_origins": ("https://good.example", "http://two:81")}
    with served(toy, **settings) as client:
        yield client


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "given",
    ["", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", "Bearer é", basic(TOKEN),
     basic(f"{TOKEN}:"), basic(f":{TOKEN} "), "Basic %%%", f"Digest {TOKEN}"],
)  # fmt: skip
def test_without_the_token_nothing_is_told(locked: Client, given: str) -> None:
    for method, path in (
        ("GET", "/models"), ("GET", "/metrics"), ("POST", "/classify"), ("GET", "/nothing"),
        ("GET", "/openapi.json"), ("GET", "/listen"),
    ):  # fmt: skip
        headers = {"Authorization": given.encode("latin-1")} if given else {}
        answer = locked.ask(method, path, headers=headers)
        assert (answer.status, answer.kind) == (401, "unauthorized")
        assert answer.headers.get_all("www-authenticate") == [
            'Bearer realm="stapes"', 'Basic realm="stapes"',
        ]  # fmt: skip
    assert locked.get("/health").status == 200


@pytest.mark.parametrize(
    "given", [f"Bearer {TOKEN}", f"bearer   {TOKEN} ", basic(f":{TOKEN}"), basic(f"me:{TOKEN}")]
)
def test_with_it_everything_is(locked: Client, given: str) -> None:
    assert locked.get("/models", authorization=given).status == 200


def test_a_token_is_one() -> None:
    for token in ("", "a b", "a\n", "ü"):
        with pytest.raises(ConfigError, match="The token has letters"):
            Settings(token=token)


def test_streams_need_the_token_too(locked: Client) -> None:
    url = f"ws://127.0.0.1:{locked.port}/listen"
    for attempt in ({}, {"subprotocols": ["stapes", "token.wrong"]}):
        with pytest.raises(InvalidStatus) as refused, connect(url, **attempt):
            pass
        response = refused.value.response
        assert response.status_code == 401
        assert response.headers["content-type"] == "application/problem+json"
    with connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as socket:
        assert '"ready"' in socket.recv()
    # A page cannot set headers of a WebSocket.
    with connect(url, subprotocols=["stapes", f"token.{TOKEN}"]) as socket:
        assert socket.subprotocol == "stapes"
        assert '"ready"' in socket.recv()


def test_pages_elsewhere_may_not_ask(client: Client) -> None:
    own = f"http://127.0.0.1:{client.port}"
    assert client.get("/models", origin=own).status == 200
    for origin in ("https://evil.example", "null", f"{own}0", "http://127.0.0.1", "file://", "["):
        for method in ("GET", "POST", "OPTIONS"):
            answer = client.ask(method, "/models", headers={"Origin": origin})
            assert (answer.status, answer.kind) == (403, "origin-refused")
            assert "access-control-allow-origin" not in answer.headers
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(f"ws://127.0.0.1:{client.port}/listen", origin=origin),
        ):
            pass
        assert refused.value.response.status_code == 403
    with connect(f"ws://127.0.0.1:{client.port}/listen", origin=own) as socket:
        assert '"ready"' in socket.recv()


def test_pages_that_are_allowed_may(locked: Client) -> None:
    origin = "https://good.example"
    wanted = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asked: Answer = locked.ask("OPTIONS", "/classify", headers=wanted)
    assert (asked.status, asked.body) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == origin
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "Authorization" in asked.headers["access-control-allow-headers"]
    headers = {"Origin": origin, "Authorization": f"Bearer {TOKEN}"}
    answer = locked.ask("GET", "/models", headers=headers)
    assert answer.headers["access-control-allow-origin"] == origin
    assert "Origin" in answer.headers["vary"]
    assert locked.ask("GET", "/models", headers={"Origin": origin}).headers[
        "access-control-allow-origin"
    ]  # so that the page can read why
    assert locked.get("/health", origin="http://two:81").status == 200
    assert locked.get("/health", origin="http://two:82").status == 403


def test_other_names_lead_nowhere(client: Client, toy: Path) -> None:
    port = client.port
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"LOCALHOST.:{port}"):
        assert client.get("/health", host=host).status == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::2]"):
        assert client.get("/health", host=host).kind == "wrong-host"
    with served(toy, allow_hosts=("sounds.example",)) as other:
        assert other.get("/health", host="sounds.example:443").status == 200
        assert other.get("/health", host="sounds.example.evil").status == 421
        assert other.get("/health").status == 200
    with served(toy, host="0.0.0.0") as other:  # any name may lead to another address
        assert other.get("/health", host="whatever.example").status == 200


def test_answers_carry_the_usual_headers(client: Client) -> None:
    headers = client.get("/health").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "server" not in headers
