"""A page on which the tests use the engine by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Faults, serve_folder
from toy_onnx import toy_model
from toy_run import toy_bundle

from stapes.deploy.onnx import onnx_model
from stapes.web import page_files, write_page

MODELS = ("drum-hits", "esc10-32kB", "esc50-128kB", "esc50-500kB")

_BLANK = """<!doctype html>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="drum-hits/icon.svg">
<script type="module" src="helpers.js"></script>
"""

_HELPERS = """
import * as engine from "./drum-hits/engine/engine.js";

const models = new Map();

window.engine = engine;
window.bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
window.floats = (text) => new Float32Array(bytes(text).buffer);
window.packed = (floats) => {
  const all = new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
  let text = "";
  for (let i = 0; i < all.length; i += 32768) {
    text += String.fromCharCode(...all.subarray(i, i + 32768));
  }
  return btoa(text);
};
window.model = (name) => {
  if (!models.has(name)) models.set(name, engine.loadModel(name));
  return models.get(name);
};
window.ready = true;
"""


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models in floating point: networks, and one for each way with windows."""
    folder = tmp_path_factory.mktemp("exported")
    models = {
        "network": onnx_model(toy_bundle()),
        "repeat": toy_model(channels=2, shorter="repeat", hop_seconds=0.2),
        "crop": toy_model(longer="crop"),
    }
    for name, content in models.items():
        (folder / f"{name}.onnx").write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def site(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the page of drum-hits, and what the pages of the other shipped
    models and of :func:`exported` have of their own, each in a folder of its name.
    """
    folder = tmp_path_factory.mktemp("site")
    write_page(MODELS[0], folder / MODELS[0])
    for model in (*MODELS[1:], *exported.glob("*.onnx")):
        files = page_files(model)
        place = folder / Path(model).stem
        place.mkdir()
        for name in ("model.json", "model.onnx"):
            (place / name).write_bytes(files[name].content)
    policy = _policy((folder / "drum-hits" / "index.html").read_text())
    (folder / "blank.html").write_text(_BLANK.format(policy=policy))
    (folder / "helpers.js").write_text(_HELPERS)
    with serve_folder(folder) as address:
        yield address


@pytest.fixture(scope="module")
def blank(browser: Any, site: str) -> Iterator[Any]:
    """A page with the policy of the real one, the engine and some helpers."""
    context = browser.new_context(permissions=["microphone"])
    page = context.new_page()
    faults = Faults(site)
    faults.watch(page)
    page.goto(f"{site}blank.html")
    page.wait_for_function("window.ready")
    yield page
    context.close()
    assert faults.found == []


def _policy(html: str) -> str:
    _, _, rest = html.partition('http-equiv="Content-Security-Policy"')
    _, _, rest = rest.partition('content="')
    policy, _, _ = rest.partition('"')
    assert "default-src" in policy
    return policy
