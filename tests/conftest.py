"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import open_browser, why_no_browser

# The suite runs in two processes: more threads in each would only get in their way. Set before
# torch is imported; commands that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the checkout (golden values, corpora); skips where absent."""
    folder = Path(os.environ.get("STAPES_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs the development data in {folder} (set STAPES_SHARED)")
    return folder


@pytest.fixture(scope="session")
def drum_hits() -> Path:
    """The example recordings that ship with the repository."""
    return ROOT / "examples" / "drum-hits"


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The WAV file that pages in :func:`browser` hear as their microphone; to be written."""
    return tmp_path_factory.mktemp("microphone") / "heard.wav"


@pytest.fixture(scope="module")
def browser(microphone: Path) -> Iterator[Any]:
    """A browser without a window; skips where there is none. One for each file of tests: the event
    loop that drives it is nobody else's.
    """
    missing = why_no_browser()
    if missing:
        pytest.skip(missing)
    with open_browser(microphone) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache."""
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path_factory.getbasetemp() / "stapes-cache"))
