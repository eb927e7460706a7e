"""The page that the server gives, in a browser, beside the server's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import Faults
from served import served

pytestmark = pytest.mark.browser

_CLASSIFY = """async () => {
  const { loadModel, decode } = await import("./engine/engine.js");
  const blob = await (await fetch("blob-of-the-test")).blob();
  const model = await loadModel();
  return Array.from(await model.classify(await decode(new File([blob], "hit.ogg"))));
}"""


def test_page_and_server_give_one_answer(browser: Any, hits: list[Path]) -> None:
    with served(["drum-hits"], page=True) as client:
        address = f"{client.server.url}/"
        context = browser.new_context()
        page = context.new_page()
        faults = Faults(address)
        faults.watch(page)
        page.route("**/blob-of-the-test", lambda route: route.fulfill(path=hits[0]))
        page.goto(address)
        page.get_by_role("button", name="Choose files").wait_for()
        scores = page.evaluate(_CLASSIFY)
        context.close()
        answer = client.ask(
            "POST", "/classify?top=50", hits[0].read_bytes(), {"content-type": "audio/ogg"}
        )
        labels = client.get("/models").json["models"][0]["labels"]
    assert faults.found == []
    assert dict(zip(labels, scores, strict=True)) == pytest.approx(
        {entry["label"]: entry["score"] for entry in answer.json["labels"]}, abs=1e-3
    )
