"""A browser without a window, and a server of files for it; both on this computer only."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
)  # fmt: skip


def why_no_browser() -> str | None:
    """What is missing; none where all is there."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "needs the Python package playwright"
    return None if _executable() else f"needs one of {', '.join(_BROWSERS)} on the PATH"


@contextlib.contextmanager
def open_browser(microphone: Path) -> Iterator[Any]:
    """A browser of playwright, in which pages hear a WAV file where they ask for the microphone.

    Args:
        microphone: the file, read anew whenever a page begins to listen.
    """
    from playwright.sync_api import sync_playwright

    heard = f"--use-file-for-fake-audio-capture={microphone}%noloop"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_executable(), headless=True, args=[*_FLAGS, heard]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Gives the address of a server of the folder's files, with a slash at its end."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass


@dataclass
class Faults:
    """What a page must not do: complain on the console, or ask another host for anything."""

    address: str
    found: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        def console(message: Any) -> None:
            if message.type in ("error", "warning"):
                self.found.append(f"{message.type}: {message.text}")

        def request(asked: Any) -> None:
            if not asked.url.startswith((self.address, "blob:")):
                self.found.append(f"asked for {asked.url}")

        page.on("console", console)
        page.on("pageerror", lambda error: self.found.append(f"not caught: {error}"))
        page.on("request", request)


def packed(values: np.ndarray | bytes) -> str:
    """Floats, or the bytes of a file, for a page: as base64."""
    content = values if isinstance(values, bytes) else np.asarray(values, np.float32).tobytes()
    return base64.b64encode(content).decode()


def unpacked(text: str) -> np.ndarray:
    """Floats from a page."""
    return np.frombuffer(base64.b64decode(text), np.float32)


def _executable() -> str | None:
    return next(filter(None, map(shutil.which, _BROWSERS)), None)
