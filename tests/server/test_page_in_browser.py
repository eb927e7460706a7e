"""The page that the server gives, in a browser, beside the server's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import Faults
from served import served

pytestmark = pytest.mark.browser

_CLASSIFY = """async (address) => {
  const { loadModel, decode } = await import("./engine/engine.js");
  const blob = await (await fetch(address)).blob();
  window.model ??= await loadModel();
  return Array.from(await model.classify(await decode(new File([blob], "hit.ogg"))));
}"""


def test_page_and_server_give_one_answer(browser: Any, hits: list[Path]) -> None:
    with served(["drum-hits"], page=True) as client:
        address = f"{client.server.url}/"
        context = browser.new_context()
        page = context.new_page()
        faults = Faults(address)
        faults.watch(page)
        files = {f"{address}{hit.name}": hit for hit in hits}
        page.route("**/*.ogg", lambda route: route.fulfill(path=files[route.request.url]))
        page.goto(address)
        page.get_by_role("button", name="Choose files").wait_for()
        labels = client.get("/models").json["models"][0]["labels"]
        for url, hit in files.items():
            scores = page.evaluate(_CLASSIFY, url)
            answer = client.send("/classify?top=50", hit.read_bytes(), "audio/ogg").json
            # A feature on the edge between two levels of int8 may fall to either side.
            assert dict(zip(labels, scores, strict=True)) == pytest.approx(
                {entry["label"]: entry["score"] for entry in answer["labels"]}, abs=5e-3
            ), hit.name
        context.close()
    assert faults.found == []
