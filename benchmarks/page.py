"""The page: how fast a browser without a window answers, against Python with the same model.

A minute of sound, from the bytes of its file to the scores of windows that do not overlap, in one
thread on both sides, in turns. The first answer is counted from the navigation, with nothing in the
browser's cache, to the probabilities of five seconds. Needs Chromium, or Google Chrome.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks._common import HITS, machine
from stapes.audio import find_audio, read
from stapes.runtime import OnnxClassifier, load
from stapes.web import write_page

MODELS = ("esc50-128kB", "esc10-32kB", "esc50-500kB", "drum-hits")
RATE, SECONDS, FIRST_SECONDS, REPEATS = 44_100, 60, 5, 7
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_BLANK = """<!doctype html><link rel="icon" href="data:,"><script type="module">
import * as engine from "./engine/engine.js";
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
window.start = async (content) => {
  window.model = await engine.loadModel();
  const loaded = performance.now();
  const recording = await engine.decode(new File([bytes(content)], "first.wav"));
  await model.classify(recording);
  return [loaded, performance.now()];
};
window.measure = async (content) => {
  const file = new File([bytes(content)], "sound");
  const began = performance.now();
  const recording = await engine.decode(file);
  const decoded = performance.now();
  await model.windows(recording, { hopSeconds: model.info.window_seconds });
  return [decoded - began, performance.now() - decoded];
};
window.raw = async () => {
  const { sample_rate: sampleRate, window_samples: window, channels } = model.info;
  const noise = () => Float32Array.from({ length: 8 * window }, () => Math.random() - 0.5);
  const recording = { sampleRate, channels: Array.from({ length: channels }, noise) };
  const began = performance.now();
  await model.windows(recording, { hopSeconds: model.info.window_seconds });
  return (performance.now() - began) / 8;
};
window.ready = true;
</script>
"""


def main(repeats: int = REPEATS) -> str:
    """Measure; gives the section as Markdown."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        return "## The page\n\nNot measured: there is no browser here.\n"
    rows, firsts = [], []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        place = Path(folder)
        minute, first = place / "minute.wav", place / "first.wav"
        sound = _sound()
        soundfile.write(minute, sound, RATE, subtype="PCM_16")
        with soundfile.SoundFile(
            place / "minute.ogg", "w", RATE, 1, format="OGG", subtype="VORBIS"
        ) as ogg:
            for begin in range(0, len(sound), RATE):  # libvorbis has no room for all at once
                ogg.write(sound[begin : begin + RATE])
        soundfile.write(first, sound[: FIRST_SECONDS * RATE], RATE, subtype="PCM_16")
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"]
        )
        version = browser.version
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(_Handler, directory=folder)
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            for name in MODELS:
                write_page(name, place / name)
                (place / name / "blank.html").write_text(_BLANK)
                address = f"http://127.0.0.1:{server.server_port}/{name}/blank.html"
                page, times = _first(browser, address, first)
                if name == MODELS[0]:
                    firsts.append(times)
                    for _ in range(repeats - 1):
                        again, times = _first(browser, address, first)
                        firsts.append(times)
                        again.context.close()
                classifier = load(name, threads=1)
                for path in (minute, place / "minute.ogg"):
                    rows.append(_row(page, classifier, name, path, repeats))
                page.context.close()
        finally:
            server.shutdown()
            server.server_close()
            browser.close()
    loaded, answered = (statistics.median(times[i] for times in firsts) / 1000 for i in (0, 1))
    table = "\n".join(rows)
    return (
        f"## The page\n\n{machine()}, Chromium {version} without a window, one thread. Medians of "
        f"{repeats} passes in turns over {SECONDS} s at {RATE} Hz, one window after the other; "
        "in parentheses the smallest and the largest ratio.\n\n"
        "| model | file | s of sound per s | decoding ms | resampling and model ms | model ms per "
        "window: browser, Python | time as of Python |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
        f"{table}\n\n"
        f"{MODELS[0]}, from the navigation with an empty cache: model loaded after {loaded:.2f} s, "
        f"first answer after {answered:.2f} s (slowest of {len(firsts)}: "
        f"{max(times[1] for times in firsts) / 1000:.2f} s).\n"
    )


def _first(browser: Any, address: str, first: Path) -> tuple[Any, list[float]]:
    """A page that has answered once, and when it had the model and the answer, ms."""
    page = browser.new_context().new_page()
    page.goto(address, wait_until="commit")
    page.wait_for_function("window.ready")
    return page, page.evaluate("(content) => start(content)", _text(first))


def _row(page: Any, classifier: OnnxClassifier, name: str, path: Path, repeats: int) -> str:
    here: list[list[float]] = []
    there, alone, alone_there = [], [], []
    content = _text(path)
    audio = classifier.audio
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, audio.channels, audio.window))
    for repeat in range(repeats + 1):  # the first round warms up
        times = page.evaluate("(content) => measure(content)", content)
        started = time.perf_counter()
        list(classifier.windows(path, hop_seconds=audio.window_seconds))
        python = 1000 * (time.perf_counter() - started)
        raw = page.evaluate("raw()")
        started = time.perf_counter()
        for _ in range(8):
            classifier.probabilities(noise.astype(np.float32))
        raw_python = 1000 * (time.perf_counter() - started) / 8
        if repeat:
            here.append(times)
            there.append(python)
            alone.append(raw)
            alone_there.append(raw_python)
    whole = [sum(times) for times in here]
    ratios = sorted(a / b for a, b in zip(whole, there, strict=True))
    return (
        f"| {name} ({classifier.precision}) | {path.suffix[1:]} "
        f"| {1000 * SECONDS / statistics.median(whole):.0f} "
        f"| {statistics.median(times[0] for times in here):.0f} "
        f"| {statistics.median(times[1] for times in here):.0f} "
        f"| {statistics.median(alone):.1f}, {statistics.median(alone_there):.1f} "
        f"| {statistics.median(ratios):.1f} x ({ratios[0]:.1f} to {ratios[-1]:.1f}) |"
    )


def _sound() -> np.ndarray[Any, np.dtype[np.float32]]:
    """A minute of drum hits, one after the other."""
    hits = np.concatenate([read(p, sample_rate=RATE, channels=1)[0] for p in find_audio(HITS)])
    return np.resize(hits, SECONDS * RATE)


def _text(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    print(main(parser.parse_args().repeats))
