"""The page as people use it: with the mouse, the keyboard, a screen reader, a phone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browsing import Faults, packed, serve_folder, unpacked
from typer.testing import CliRunner

from stapes.audio import convert, read
from stapes.cli.app import app
from stapes.runtime import OnnxClassifier, load
from stapes.web import write_page

pytestmark = pytest.mark.browser

RATE = 44100
KIT = "six, hits.wav"
HITS = (
    "colombo/bassdrum-4mics-br-stereo-normal3.ogg",
    "colombo/snare-opaque-2mics-normal-shot1.ogg",
    "colombo/hihat-closed-1.ogg",
    "colombo/crash16i-crash1.ogg",
    "colombo/tom-low-1.ogg",
    "colombo/hihat-open-1.ogg",
)

_DROP = """([files, over]) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  const target = document.getElementById("controls"); // anywhere
  const tell = (type) => target.dispatchEvent(
    new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  tell("dragenter");
  const seen = document.getElementById("zone").classList.contains("over");
  tell("drop");
  return seen;
}"""
# What is handed over to be heard, as the browser gets it.
_LISTEN_IN = """
window.heard = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...when) {
  window.heard.push({ rate: this.buffer.sampleRate, first: this.buffer.getChannelData(0).slice() });
  return start.apply(this, when);
};
window.moved = 0;
const animate = Element.prototype.animate;
Element.prototype.animate = function (...how) {
  window.moved++;
  return animate.apply(this, how);
};
"""
_PACKED = """(floats) => {
  const all = new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
  let text = "";
  for (let i = 0; i < all.length; i += 32768) {
    text += String.fromCharCode(...all.subarray(i, i + 32768));
  }
  return btoa(text);
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page of drum-hits."""
    folder = tmp_path_factory.mktemp("site")
    write_page("drum-hits", folder / "page")
    with serve_folder(folder / "page") as address:
        yield address


@pytest.fixture(scope="module")
def model() -> OnnxClassifier:
    return load("drum-hits", threads=1)


@pytest.fixture(scope="module")
def kit(drum_hits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hits in a row, 1.4 s each."""
    hits = []
    for name in HITS:
        path = drum_hits / "audio" / name
        hit = convert(read(path), soundfile.info(path).samplerate, RATE, 1)[0, : round(1.4 * RATE)]
        hits.append(np.pad(hit, (0, round(1.4 * RATE) - len(hit))))
    path = tmp_path_factory.mktemp("kit") / KIT
    soundfile.write(path, np.concatenate(hits), RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def visit(browser: Any, site: str) -> Iterator[Callable[..., Any]]:
    """Opens the page of drum-hits; at the end no page may have complained or asked elsewhere."""
    opened = []

    def open_page(**context: Any) -> Any:
        made = browser.new_context(permissions=["microphone"], **context)
        page = made.new_page()
        page.set_default_timeout(20_000)
        faults = Faults(site)
        faults.watch(page)
        opened.append((made, faults))
        page.add_init_script(_LISTEN_IN)
        page.goto(site)
        _finished(page)
        return page

    yield open_page
    for made, _ in opened:
        made.close()
    assert [fault for _, faults in opened for fault in faults.found] == []


@pytest.fixture(scope="module")
def page(visit: Callable[..., Any], kit: Path) -> Any:
    """A page on which the kit has been dropped."""
    page = visit()
    _drop(page, kit)
    return page


@pytest.fixture
def settled(page: Any) -> Any:
    """The page with the kit, and all settings as they are at first."""
    if page.text_content("#sound-name") != KIT:
        page.locator("#shelf button", has_text=KIT).first.click()
    for name, value in (("hop", "0.5"), ("smoothing", "1"), ("threshold", "55"), ("release", "55")):
        _set(page, name, value)
    _finished(page)
    return page


def _finished(page: Any) -> None:
    page.wait_for_selector("html[data-state=ready]")


def _drop(page: Any, *paths: Path) -> bool:
    files = [[path.name, packed(path.read_bytes())] for path in paths]
    seen = bool(page.evaluate(_DROP, [files, None]))
    page.wait_for_function(
        "(name) => document.getElementById('sound-name').textContent === name", arg=paths[0].name
    )
    _finished(page)
    page.evaluate(_NEXT_FRAMES)
    return seen


_NEXT_FRAMES = "() => new Promise((ok) => requestAnimationFrame(() => requestAnimationFrame(ok)))"


def _set(page: Any, name: str, value: str) -> None:
    page.locator(f"#{name}").fill(value)


def _rows(page: Any) -> list[tuple[str, ...]]:
    """Start, end, label and score of the table, as they are read."""
    page.evaluate(_NEXT_FRAMES)
    cells = page.evaluate(
        "[...document.querySelectorAll('#rows tr')].map((row) =>"
        " [...row.cells].slice(1).map((cell) => cell.textContent))"
    )
    return [tuple(cell.replace("\u00a0", " ") for cell in row) for row in cells]


def _near(found: list[tuple[str, ...]], model: OnnxClassifier, path: Path, **settings: Any) -> None:
    """Equal to Python's events, in the digits that are shown."""
    expected = list(model.timeline(path, **settings))
    assert [row[2] for row in found] == [event.label for event in expected]
    for (start, end, _, score), event in zip(found, expected, strict=True):
        assert float(start.removesuffix(" s")) == pytest.approx(event.start, abs=0.006)
        assert float(end.removesuffix(" s")) == pytest.approx(event.end, abs=0.006)
        # The model computes in eight bits, whose levels differ where a last bit decides.
        assert float(score.removesuffix(" %")) == pytest.approx(100 * event.score, abs=1)


def _save(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


# --- answers -----------------------------------------------------------------------------------


def test_a_dropped_file_is_answered_as_in_python(
    settled: Any, model: OnnxClassifier, kit: Path
) -> None:
    expected = model.classify(kit)
    found = settled.locator("#bars li").all()
    assert len(found) == 5
    for row, (label, score) in zip(found, expected.top(5), strict=True):
        assert row.locator(".label").text_content() == label
        share = row.locator(".share").text_content().replace("\u00a0", " ")
        assert float(share[:-2]) == pytest.approx(100 * score, abs=1)
    assert settled.text_content("#answer") == expected.label
    assert settled.text_content("#answer-title") == "Whole recording"
    _near(_rows(settled), model, kit, threshold=0.55)
    said = settled.text_content("#announcer")
    assert said.startswith(f"{kit.name}: {expected.label}, ")
    assert said.endswith(f" {len(_rows(settled))} events.")


# No probability lies within 0.012 of what decides on it, here and with the settings at first.
@pytest.mark.parametrize(
    ("threshold", "release", "smoothing", "hop"),
    [(80, 80, 1, 0.5), (34, 10, 1, 0.5), (0, 0, 1, 0.5), (60, 20, 3, 0.5), (66, 66, 1, 0.12)],
)
def test_settings_change_events_as_in_python(
    threshold: int, release: int, smoothing: int, hop: float,
    settled: Any, model: OnnxClassifier, kit: Path,
) -> None:  # fmt: skip
    _set(settled, "hop", str(hop))
    _finished(settled)
    _set(settled, "threshold", str(threshold))
    _set(settled, "release", str(release))
    _set(settled, "smoothing", str(smoothing))
    rows = _rows(settled)
    _near(
        rows, model, kit, hop_seconds=hop, threshold=threshold / 100, release=release / 100,
        smoothing=smoothing,
    )  # fmt: skip
    buttons = settled.locator("#lane button").all()
    assert [b.text_content() for b in buttons] == [row[2] for row in rows]


def test_the_release_stays_at_or_under_the_threshold(settled: Any) -> None:
    page = settled
    _set(page, "threshold", "70")
    assert page.input_value("#release") == "70"  # goes along until it is moved itself
    _set(page, "release", "90")
    assert page.input_value("#release") == "70"
    _set(page, "release", "40")
    _set(page, "threshold", "80")
    assert page.input_value("#release") == "40"
    _set(page, "threshold", "20")
    assert page.input_value("#release") == "20"


def test_events_are_saved_as_the_command_writes_them(
    settled: Any, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(settled, "#csv", tmp_path)
    assert path.name == f"{kit.name}.csv"
    monkeypatch.chdir(kit.parent)
    arguments = (
        f"predict drum-hits --timeline --threshold 0.55 --format csv -o {tmp_path / 'c.csv'}"
    )
    assert CliRunner().invoke(app, [*arguments.split(), kit.name]).exit_code == 0
    found, expected = path.read_bytes(), (tmp_path / "c.csv").read_bytes()
    assert re.sub(rb"[\d.]+\n", b"\n", found) == re.sub(rb"[\d.]+\n", b"\n", expected)
    scores = [
        [float(row["score"]) for row in csv.DictReader(io.StringIO(content.decode()))]
        for content in (found, expected)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=0.01)
    assert len(scores[0]) > 3


# --- picture -----------------------------------------------------------------------------------

_DARKEST = """() => {
  const canvas = document.getElementById("spectrogram");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const rows = new Array(canvas.height).fill(0);
  const columns = new Array(canvas.width).fill(0);
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const at = 4 * (y * canvas.width + x);
      const dark = 765 - data[at] - data[at + 1] - data[at + 2];
      rows[y] += dark;
      columns[x] += dark;
    }
  }
  return [rows, columns];
}"""


def test_a_tone_is_seen_where_the_axes_say(settled: Any, tmp_path: Path) -> None:
    page = settled
    t = np.arange(3 * 16000) / 16000
    tone = 0.5 * np.sin(2 * np.pi * 2000 * t) * ((t > 1) & (t < 1.5))
    soundfile.write(tmp_path / "tone.wav", tone, 16000)
    _drop(page, tmp_path / "tone.wav")
    page.wait_for_timeout(300)  # drawing goes on for some frames
    rows, columns = map(np.asarray, page.evaluate(_DARKEST))
    tick = page.locator("#frequencies span", has_text="2 kHz").evaluate("(e) => e.style.top")
    height = page.locator("#spectrogram").evaluate("(e) => e.clientHeight")
    assert rows.argmax() * height / len(rows) == pytest.approx(float(tick[:-2]), abs=2)
    loud = np.flatnonzero(columns > columns.max() / 2) * 3 / len(columns)
    assert loud[0] == pytest.approx(1, abs=0.03)
    assert loud[-1] == pytest.approx(1.5, abs=0.03)


def test_the_transform_is_numpys(page: Any, site: str) -> None:
    samples = np.random.default_rng(3).standard_normal(512).astype(np.float32)
    found = page.evaluate(
        """async ([samples]) => {
          const { RealFft } = await import("./fft.js");
          const bytes = Uint8Array.from(atob(samples), (c) => c.charCodeAt(0));
          const out = new Float64Array(257);
          new RealFft(512).power(new Float32Array(bytes.buffer), out);
          return [...out];
        }""",
        [packed(samples)],
    )
    np.testing.assert_allclose(found, np.abs(np.fft.rfft(samples.astype(float))) ** 2, rtol=1e-9)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_colours_go_in_even_steps_of_lightness(scheme: str, page: Any) -> None:
    words = page.evaluate(
        "async (scheme) => [...(await import('./colours.js')).colourMap(scheme)]", scheme
    )
    rgb = np.array([[w & 255, w >> 8 & 255, w >> 16 & 255] for w in words]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    # CIE 1976, which is not the space that the colours were made in.
    lightness = np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness[::15]) * (1 if scheme == "dark" else -1)
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()
    assert abs(lightness[-1] - lightness[0]) > 70


# --- sound -------------------------------------------------------------------------------------


def test_an_event_is_heard_when_it_is_clicked(
    settled: Any, kit: Path, model: OnnxClassifier
) -> None:
    page = settled
    events = page.locator("#lane button")
    page.evaluate("window.heard.length = 0")
    event = list(model.timeline(kit, threshold=0.55))[1]
    start, end = event.start, event.end
    events.nth(1).click()
    page.wait_for_selector("#lane button[aria-pressed=true]")
    assert page.get_attribute("#play", "aria-label") == "Stop"
    assert page.locator("#rows tr").nth(1).locator("button[aria-pressed=true]").count() == 1
    page.wait_for_function(
        "(start) => Number(document.getElementById('playhead').dataset.seconds) > start + 0.1",
        arg=start,
    )
    place = float(page.get_attribute("#playhead", "data-seconds"))
    assert start < place < end
    assert page.text_content("#answer-title").startswith("At ")
    page.wait_for_selector("#lane button[aria-pressed=true]", state="detached")  # it ends
    assert page.get_attribute("#play", "aria-label") == "Play"
    assert page.text_content("#answer-title") == "Whole recording"
    heard = unpacked(page.evaluate(f"({_PACKED})(heard[0].first)"))
    sound = read(kit)[0, round(event.start * RATE) : round(event.end * RATE)]
    assert page.evaluate("heard.map(({ rate }) => rate)") == [RATE]
    np.testing.assert_allclose(heard, sound, rtol=0, atol=1e-6)


def test_a_second_click_stops(settled: Any) -> None:
    settled.locator("#lane button").nth(2).click()
    settled.locator("#lane button[aria-pressed=true]").click()
    settled.wait_for_selector("#lane button[aria-pressed=true]", state="detached")
    assert settled.get_attribute("#play", "aria-label") == "Play"


def test_what_the_microphone_heard_can_be_saved(
    visit: Callable[..., Any], microphone: Path, kit: Path, model: OnnxClassifier, tmp_path: Path
) -> None:
    soundfile.write(microphone, read(kit)[0], RATE, subtype="PCM_16")
    page = visit()
    page.click("#microphone")
    page.wait_for_selector("html[data-state=listening]")
    page.wait_for_selector("#bars li")
    assert page.text_content("#answer-title") == "Now"
    assert page.is_disabled("#hop")
    assert page.input_value("#hop") == "0.1"  # a tenth of the window, until somebody chooses
    page.wait_for_timeout(1500)
    page.click("#microphone")
    _finished(page)
    assert page.text_content("#microphone-label") == "Microphone"
    path = _save(page, "#wav", tmp_path)
    assert soundfile.info(path).subtype == "FLOAT"
    assert path.name.startswith("microphone 20")
    expected = model.classify(path)
    assert page.text_content("#answer") == expected.label
    share = page.text_content("#bars .share")
    assert float(share[:-2]) == pytest.approx(100 * expected.score, abs=1)
    assert soundfile.info(path).duration > 2


def test_stopping_while_the_browser_asks(
    visit: Callable[..., Any], microphone: Path, kit: Path
) -> None:
    soundfile.write(microphone, read(kit)[0], RATE, subtype="PCM_16")
    page = visit()
    page.evaluate("""() => {
      const devices = navigator.mediaDevices;
      const ask = devices.getUserMedia.bind(devices);
      window.granted = new Promise((ok) => { window.grant = ok; });
      devices.getUserMedia = async (wish) => {
        await window.granted;
        window.stream = await ask(wish);
        return window.stream;
      };
    }""")
    page.click("#microphone")
    page.click("#microphone")  # not wanted after all
    page.evaluate("window.grant()")
    page.evaluate("""async () => {
      const off = () => window.stream?.getTracks().every((track) => track.readyState === "ended");
      for (let i = 0; i < 500 && !off(); i++) await new Promise((ok) => setTimeout(ok, 20));
      if (!off()) throw new Error("the microphone is on");
    }""")
    page.wait_for_selector("html:not([data-state=listening])")
    assert page.text_content("#microphone-label") == "Microphone"


# --- several, long, broken ---------------------------------------------------------------------


def test_several_files_stay_at_hand(settled: Any, kit: Path, tmp_path: Path) -> None:
    page = settled
    waveform = read(kit)[0]
    paths = [tmp_path / name for name in ("a.wav", "b.flac", "c.ogg")]
    for i, path in enumerate(paths):
        first = round((0, 4.2, 5.6)[i] * RATE)
        soundfile.write(path, waveform[first : first + 2 * RATE], RATE)
    assert _drop(page, *paths[:2])  # and the page shows that they may be dropped
    _drop(page, paths[2])
    shelf = page.locator("#shelf button .name").all_text_contents()
    assert shelf[-3:] == [path.name for path in paths]
    assert page.text_content("#shelf [aria-current=true] .name") == "c.ogg"
    page.locator("#shelf button", has_text="b.flac").click()
    assert page.text_content("#sound-name") == "b.flac"
    _finished(page)
    _set(page, "threshold", "20")
    found = _save(page, "#csv-all", tmp_path).read_text().splitlines()
    assert found[0] == "path,start,end,label,score"
    names = list(dict.fromkeys(row[0] for row in csv.reader(found[1:])))
    assert names[0] == KIT
    assert "path" not in names  # the names of the columns come once
    assert names[-3:] == [path.name for path in paths]


def test_a_long_file_can_be_cancelled(visit: Callable[..., Any], kit: Path, tmp_path: Path) -> None:
    page = visit()
    soundfile.write(tmp_path / "long.wav", np.tile(read(kit)[0], 20), RATE)
    _set(page, "hop", "0.02")
    page.set_input_files("#picker", [tmp_path / "long.wav"])
    page.wait_for_selector("#rows tr")  # events come while it is computed
    assert "left" in page.text_content("#status-text") or page.is_visible("#progress")
    page.focus("#cancel")
    page.keyboard.press("Enter")
    _finished(page)
    assert "Stopped" in page.text_content("#status-text")
    assert page.evaluate("document.activeElement.id") == "choose"  # not lost with the button
    assert len(_rows(page)) > 0
    _set(page, "hop", "0.5")  # which begins anew
    page.click("#cancel")
    _drop(page, kit)
    assert page.text_content("#answer")


def test_what_cannot_be_used_is_said_and_the_page_goes_on(
    settled: Any, kit: Path, tmp_path: Path
) -> None:
    page = settled
    alert = page.get_by_role("alert")
    (tmp_path / "notes.txt").write_text("not sound")
    (tmp_path / "nothing.wav").write_bytes(b"")
    (tmp_path / "cut.wav").write_bytes(kit.read_bytes()[:30])
    for name in ("notes.txt", "nothing.wav", "cut.wav"):
        _drop(page, tmp_path / name)
        sentence = page.text_content("#problem-text")
        assert name in sentence
        assert sentence.endswith(".")
        assert alert.is_visible()
        assert not page.is_visible("#events")
    page.get_by_role("button", name="Dismiss this message").click()
    assert not alert.is_visible()
    page.evaluate(
        """() => {
          const refuse = () => Promise.reject(new DOMException("no", "NotAllowedError"));
          navigator.mediaDevices.getUserMedia = refuse;
        }"""
    )
    page.click("#microphone")
    alert.wait_for()
    assert "microphone" in page.text_content("#problem-text")
    _finished(page)
    _drop(page, kit)
    assert not alert.is_visible()
    assert len(_rows(page)) > 3


def test_a_page_without_its_model_says_so(browser: Any, site: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/model.onnx", lambda route: route.fulfill(status=404))
    page.goto(site)
    page.wait_for_selector("html[data-state=broken]")
    assert "model.onnx cannot be loaded (404)." in page.text_content("#problem-text")
    assert page.is_disabled("#choose")
    context.close()


def test_nothing_is_stored(settled: Any) -> None:
    found = settled.evaluate(
        """async () => [
          localStorage.length, sessionStorage.length, document.cookie,
          (await indexedDB.databases()).length, (await caches.keys()).length,
          (await navigator.serviceWorker.getRegistrations()).length,
        ]"""
    )
    assert found == [0, 0, "", 0, 0, 0]


# --- for everybody -----------------------------------------------------------------------------


def test_the_whole_way_with_the_keyboard(
    visit: Callable[..., Any], model: OnnxClassifier, kit: Path
) -> None:
    page = visit()
    page.on("filechooser", lambda chooser: None)  # from now on, no dialogue of the system's
    keys = page.keyboard

    def tab_to(id: str) -> None:
        for _ in range(30):
            keys.press("Tab")
            if page.evaluate("document.activeElement.id") == id:
                style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert style == "solid", f"{id} does not show its focus"
                return
        raise AssertionError(f"the tab key does not come to {id}")

    tab_to("choose")
    with page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files(kit)
    page.wait_for_selector("#rows tr")
    _finished(page)
    tab_to("play")
    keys.press("Space")
    page.wait_for_selector("#play[aria-label=Stop]")
    keys.press("Space")
    page.wait_for_selector("#play[aria-label=Play]")
    tab_to("scroller")
    width = page.locator("#strip").evaluate("(e) => e.clientWidth")
    keys.press("+")
    assert page.locator("#strip").evaluate("(e) => e.clientWidth") > width
    keys.press("0")
    assert page.locator("#strip").evaluate("(e) => e.clientWidth") == width
    keys.press("Tab")  # to the events: one stop, and arrows between them
    for key, at in (
        ("ArrowRight", 1),
        ("End", len(_rows(page)) - 1),
        ("ArrowLeft", -2),
        ("Home", 0),
    ):
        keys.press(key)
        page.evaluate(_NEXT_FRAMES)
        here = page.evaluate("document.activeElement.dataset.index")
        assert int(here) == at % len(_rows(page))
    keys.press("ArrowRight")
    page.evaluate(_NEXT_FRAMES)
    keys.press("Enter")
    page.wait_for_selector("#lane button[aria-pressed=true][data-index='1']")
    keys.press("Enter")
    tab_to("threshold")
    for _ in range(5):
        keys.press("ArrowRight")
    assert page.get_attribute("#threshold", "aria-valuetext") == "55\u00a0%"
    _near(_rows(page), model, kit, threshold=0.55)
    tab_to("csv")
    with page.expect_download():
        keys.press("Enter")


def test_what_a_screen_reader_hears(settled: Any) -> None:
    page = settled
    for role, name in (
        ("region", "Sound"), ("region", "Spectrogram and events"), ("toolbar", "Events in time"),
        ("region", "Settings of events"), ("table", "Events in time order"),
        ("slider", "Threshold"), ("slider", "Release"), ("slider", "Hop"), ("slider", "Smoothing"),
        ("button", "Choose files"), ("button", "Microphone"), ("button", "Zoom in"),
        ("button", "Save events (CSV)"), ("heading", "drum-hits"), ("list", "Whole recording"),
    ):  # fmt: skip
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    for landmark in ("banner", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input:not([hidden]), canvas, summary, a")]
          .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.ariaHidden))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.get_attribute("#announcer", "role") == "status"
    first = page.locator("#lane button").first.get_attribute("aria-label").replace("\u00a0", " ")
    *_, label, score = _rows(page)[0]
    assert re.fullmatch(rf"{label}, 0\.0 s to \d\.\d s, {score}", first)


_CONTRAST = """() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const box = e.getBoundingClientRect();
    if (!text || box.width < 2 || e.disabled || !e.checkVisibility({ visibilityProperty: true })) {
      continue;
    }
    const { color } = getComputedStyle(e);
    found.push([e.id || e.className || e.tagName, ratio(rgba(color), behind(e))]);
  }
  const event = document.querySelector("#lane button");
  const hue = event.style.getPropertyValue("--hue");
  for (const pressed of ["false", "true"]) {
    event.setAttribute("aria-pressed", pressed);
    for (let h = 0; h < 360; h += 10) {
      event.style.setProperty("--hue", h);
      const { color, backgroundColor } = getComputedStyle(event);
      found.push([`event of hue ${h}`, ratio(rgba(color), rgba(backgroundColor))]);
    }
  }
  event.style.setProperty("--hue", hue);
  event.setAttribute("aria-pressed", "false");
  const edge = getComputedStyle(document.getElementById("fit"));
  return [found, ratio(rgba(edge.borderColor), rgba(edge.backgroundColor))];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str, settled: Any) -> None:
    settled.emulate_media(color_scheme=scheme)
    settled.locator("summary").evaluate("(e) => (e.parentElement.open = true)")
    found, edge = settled.evaluate(_CONTRAST)
    settled.locator("summary").evaluate("(e) => (e.parentElement.open = false)")
    settled.emulate_media(color_scheme="light")
    assert len(found) > 100
    assert [(name, round(ratio, 2)) for name, ratio in found if ratio < 4.5] == []
    assert edge >= 3


def test_a_phone_is_wide_enough(visit: Callable[..., Any], kit: Path) -> None:
    page = visit(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True,
        reduced_motion="reduce",
    )  # fmt: skip
    for state in ("ready", "file"):
        if state == "file":
            _drop(page, kit)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        small = page.evaluate(
            """[...document.querySelectorAll("button, input[type=range], summary")]
              .filter((e) => e.checkVisibility())
              .map((e) => [e.id || e.className, e.offsetWidth, e.offsetHeight])
              .filter(([name, width, height]) =>
                height < 44 || (width < 44 && !name.startsWith("event")))"""
        )
        assert small == []
    assert page.evaluate("moved") == 0  # people who want no motion get none


def test_bars_of_a_stream_do_not_change_places_for_little(page: Any) -> None:
    orders = page.evaluate(
        """async () => {
          const { Bars } = await import("./bars.js");
          const rows = [[0.5, 0.2, 0.02, 0.013], [0.5, 0.2, 0.013, 0.02], [0.2, 0.205, 0.1, 0.4]];
          return [true, false].map((steady) => {
            const list = document.createElement("ol");
            const bars = new Bars(list, 4);
            return rows.map((row) => {
              bars.show(row, ["a", "b", "c", "d"], steady);
              return [...list.children].map((e) => e.querySelector(".label").textContent).join("");
            });
          });
        }"""
    )
    assert orders == [["abcd", "abcd", "dabc"], ["abcd", "abdc", "dbac"]]


def test_bars_move(settled: Any) -> None:
    settled.evaluate("moved = 0")
    settled.locator("#lane button").nth(3).click()
    settled.wait_for_function("() => window.moved > 0")
    settled.click("#play")
