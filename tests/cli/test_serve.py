"""``stapes serve``: what can be wrong, and what it says when it starts. See tests/server."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from light_install import BLOCKED, COMMAND, without

Run = Callable[..., tuple[int, str, str]]


def start(*arguments: object, lacking: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
    """The command in a Python that has none of the training packages."""
    program = without({*BLOCKED, *lacking}) + COMMAND
    return subprocess.Popen(
        [sys.executable, "-c", program, "serve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env},
    )  # fmt: skip


def test_from_the_first_line_to_the_end(toy_onnx_file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("abc-123\n")
    options = ("--token-file", secret, "--no-page", "--port", 0)
    process = start(toy_onnx_file, f"signs={toy_onnx_file}", *options, STAPES_TOKEN="another")
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().removeprefix("Listening on http://127.0.0.1:"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/models")
        assert json.loads(connection.getresponse().read())["status"] == 401
        connection.request("GET", "/models", headers={"Authorization": "Bearer abc-123"})
        models = json.loads(connection.getresponse().read())["models"]
        connection.close()
        assert [model["name"] for model in models] == [toy_onnx_file.parent.name, "signs"]
        process.terminate()
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (0, "")
    lines = [line.split(" ", 2)[2] for line in err.splitlines()]  # after date and time
    assert [line.rpartition(" ")[0].rpartition(" ")[0] for line in lines[:2]] == [
        "127.0.0.1 GET /models 401", "127.0.0.1 GET /models 200",
    ]  # fmt: skip
    assert lines[2:] == ["stopping: what was accepted is being answered", "stopped"]
    assert "abc-123" not in err


def test_elsewhere_without_a_token_it_warns(toy_onnx_file: Path) -> None:
    processes = {
        warns: start(toy_onnx_file, "--no-page", "--port", 0, "--host", "0.0.0.0", "--quiet",
                     STAPES_TOKEN=token)
        for token, warns in (("", True), ("abc", False))
    }  # fmt: skip
    try:
        for warns, process in processes.items():
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Listening on http://0.0.0.0:")
            process.terminate()
            _, err = process.communicate(timeout=20)
            assert err.startswith("Warning: everybody") == warns
            assert process.returncode == 0
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def test_a_port_that_is_taken(stapes_command: Run, toy_onnx_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = stapes_command("serve", toy_onnx_file, "--port", port)
    assert code == 2
    assert err == (
        f"Error: --port {port}: another program listens there; take another port, or 0 for a free "
        "one.\n"
    )


def test_what_can_be_wrong(stapes_command: Run, toy_onnx_file: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        code, out, err = stapes_command("serve", *arguments, "--port", 0)
        assert (code, out) == (2, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        return err

    assert "Did you mean 'drum-hits'" in error("drum-hit")
    assert "Two models are called 'drum-hits'" in error("drum-hits", "drum-hits")
    assert "Two models are called 'a'" in error(f"a={toy_onnx_file}", "a=drum-hits")
    assert "cannot be called 'a/b'" in error(f"a/b={toy_onnx_file}")
    assert "not an ONNX file that stapes wrote" in error(Path(__file__))
    assert "none.onnx: cannot read" in error(tmp_path / "none.onnx")
    assert "--host nowhere.invalid: there is no such address" in error(
        toy_onnx_file, "--host", "nowhere.invalid"
    )
    assert "The token has letters" in error(toy_onnx_file, "--token", "a b")
    assert "The origin 'example.org' is none" in error(
        toy_onnx_file, "--allow-origin", "example.org"
    )
    assert "not both" in error(toy_onnx_file, "--token", "a", "--token-file", "b")
    assert "cannot be read (No such file" in error(toy_onnx_file, "--token-file", tmp_path / "none")
    (tmp_path / "empty").touch()
    assert "is empty" in error(toy_onnx_file, "--token-file", tmp_path / "empty")


@pytest.mark.parametrize("missing", ["fastapi", "websockets"])
def test_without_the_extra(toy_onnx_file: Path, missing: str) -> None:
    process = start(toy_onnx_file, lacking=(missing,))
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "")
    assert err == (
        'Error: Serving models needs the packages of an extra: pip install "stapes[serve]"\n'
    )
