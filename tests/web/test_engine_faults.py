"""What the browser's engine says of files, models and devices that it cannot use."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browsing import packed

pytestmark = pytest.mark.browser

_DECODE = """async ([content, name]) => {
  try {
    const found = await engine.decode(new File([bytes(content)], name));
    return `${found.channels.length} x ${found.channels[0].length}`;
  } catch (error) { return error.message; }
}"""


def _wav(samples: bytes, *, tag: int = 1, bits: int = 16, channels: int = 1, rate: int = 8000,
         claimed: int | None = None, before: bytes = b"") -> bytes:  # fmt: skip
    frame = channels * bits // 8
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * frame, frame, bits)
    size = len(samples) if claimed is None else claimed
    body = b"WAVE" + before + head + struct.pack("<4sI", b"data", size) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


_SAMPLES = np.arange(-50, 50, dtype="<i2").tobytes()


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (_wav(_SAMPLES), "1 x 100"),
        # Written before the length was known, cut short, with a half frame, with other chunks.
        (_wav(_SAMPLES, claimed=0xFFFFFFFF), "1 x 100"),
        (_wav(_SAMPLES, claimed=0), "x.wav holds no samples."),
        (b"RIFF\x08\0\0\0" + _wav(_SAMPLES, claimed=0)[8:], "1 x 100"),
        (_wav(_SAMPLES, claimed=150), "1 x 75"),
        (_wav(_SAMPLES + b"\x01"), "1 x 100"),
        (_wav(_SAMPLES, before=b"LIST\x03\x00\x00\x00abc\x00"), "1 x 100"),
        (b"", "x.wav is empty (0 bytes)."),
        (_wav(b""), "x.wav holds no samples."),
        (_wav(_SAMPLES)[:30], "x.wav is damaged: its WAV header is incomplete."),
        (_wav(_SAMPLES, tag=2, bits=4), "x.wav has a WAV coding that is not read here"),
        (_wav(_SAMPLES, rate=1), "x.wav is damaged: its header claims a sample rate of 1 Hz."),
        (_wav(_SAMPLES, channels=0), "x.wav is damaged: its header claims no channels."),
        (_wav(np.array([0, np.nan], "<f4").tobytes(), tag=3, bits=32),
         "x.wav is damaged: its sample at 0.000 s is no finite number."),
        (b"My thesis, chapter one. " * 99, "x.wav is not audio of a known format; convert it to"),
        (b"fLaC" + bytes(4000), "x.wav "),
        (b"OggS" + bytes(4000), "x.wav cannot be decoded (Ogg)"),
    ],
)  # fmt: skip
def test_files_of_all_kinds_get_one_sentence(content: bytes, answer: str, blank: Any) -> None:
    found = blank.evaluate(_DECODE, [packed(content), "x.wav"])
    assert found.startswith(answer)
    assert "\n" not in found


def test_other_refusals_are_one_sentence(blank: Any) -> None:
    sentences = blank.evaluate("""async () => {
      const said = (work) => work().then(() => "none", (error) => error.message);
      const silence = (channels, length = 8000) => ({
        name: "silence", sampleRate: 8000, duration: length / 8000,
        channels: Array.from({ length: channels }, () => new Float32Array(length)),
      });
      const stereo = await model("repeat");
      const mono = await model("network");
      return {
        channels: await said(() => stereo.classify(silence(3))),
        hop: await said(() => mono.windows(silence(1), { hopSeconds: 0.6 })),
        none: await said(() => mono.windows(silence(1), { hopSeconds: 0 })),
        short: await said(() => mono.classify({ ...silence(1, 1), sampleRate: 96000 })),
        closed: await (async () => {
          const own = await engine.loadModel("network");
          own.close();
          return said(() => own.classify(silence(1)));
        })(),
      };
    }""")
    assert sentences.pop("channels") == "none"  # the first two are taken
    assert sentences == {
        "hop": "The hop must be above 0 and at most the window of 0.5 s.",
        "none": "The hop must be above 0 and at most the window of 0.5 s.",
        "short": "The recording is shorter than one sample of the model.",
        "closed": "The model was closed.",
    }


def test_a_model_that_is_not_there_is_named(browser: Any, site: str) -> None:
    page = browser.new_page()  # the browser itself complains on the console
    page.goto(f"{site}blank.html")
    page.wait_for_function("window.ready")
    found = page.evaluate("engine.loadModel('nowhere').catch((error) => error.message)")
    page.close()
    assert found == f"{site}nowhere/model.json cannot be loaded (404)."


def test_work_can_be_stopped_and_the_model_goes_on(blank: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 8000 * 60), 8000)
    found = blank.evaluate(
        """async (content) => {
          const found = await model("network");
          const recording = await engine.decode(new File([bytes(content)], "long.wav"));
          const control = new AbortController();
          let told = 0;
          const onScores = (scores) => {
            told += scores.length;
            if (told > 5) control.abort();
          };
          const { signal } = control;
          const name = await found.windows(recording, { signal, onScores }).then(
            () => "none", (error) => error.name);
          const before = told;
          const again = await found.classify(recording);
          const refused = await found.classify(recording, { signal }).then(
            () => "none", (error) => error.name);
          return { name, before, told, sum: again.reduce((a, b) => a + b), refused };
        }""",
        packed(path.read_bytes()),
    )
    assert (found["name"], found["refused"]) == ("AbortError", "AbortError")
    assert 5 < found["before"] == found["told"] < 20
    assert abs(found["sum"] - 1) < 1e-5


def test_several_recordings_at_once_do_not_mix(blank: Any) -> None:
    found = blank.evaluate("""async () => {
      const found = await model("crop");
      const constant = (level) => ({
        name: "level", sampleRate: 8000, duration: 3,
        channels: [new Float32Array(24000).fill(level)],
      });
      const levels = [-0.5, -0.1, 0.2, 0.6];
      const rows = await Promise.all(levels.map((level) => found.windows(constant(level))));
      return rows.map((scores) => scores.map(({ probabilities }) => probabilities[1]));
    }""")
    for level, row in zip([-0.5, -0.1, 0.2, 0.6], found, strict=True):
        assert len(row) == 11
        np.testing.assert_allclose(row, 1 / (1 + np.exp(-8 * level)), atol=1e-5)


def test_what_a_slow_model_leaves_out_is_told(blank: Any) -> None:
    """The microphone and the model are made up: 60 s in bursts of 1 s, and a model that waits."""
    found = blank.evaluate("""async () => {
      const { Listening } = await import(`${location.origin}/drum-hits/engine/listening.js`);
      const gaps = [];
      let heard;
      let free;
      const asked = [];
      const backend = { open: async () => ({
        push: async (block) => {
          asked.push(["push", block[0].length]);
          if (asked.length === 1) await new Promise((resolve) => (free = resolve));
          return [];
        },
        gap: async (seconds) => (asked.push(["gap", seconds]), []),
        finish: async () => (asked.push(["finish"]), []),
      }) };
      const open = async (channels, hearer) => {
        heard = hearer;
        return { sampleRate: 100, channels: 1, stop: async () => {} };
      };
      const hearer = { onGap: (gap) => gaps.push(gap) };
      const listening = await Listening.begin({ channels: 1 }, backend, 1, hearer, open);
      const pause = () => new Promise((resolve) => setTimeout(resolve));
      await pause();
      const second = (value) => [new Float32Array(100).fill(value)];
      for (let i = 0; i < 15; i++) heard.onBlock(second(i));
      await pause();
      for (let i = 15; i < 40; i++) heard.onBlock(second(i));
      free();
      await pause();
      for (let i = 40; i < 60; i++) heard.onBlock(second(i));
      const recording = await listening.stop();
      const kept = Array.from({ length: 60 }, (_, i) => recording.channels[0][100 * i]);
      return { gaps, asked, kept, samples: recording.channels[0].length };
    }""")
    assert found["kept"] == list(range(60))  # what is saved lacks nothing
    assert found["samples"] == 6000
    assert found["asked"][0] == ["push", 100]
    ((at, seconds),) = [(gap["at"], gap["seconds"]) for gap in found["gaps"]]
    assert (at, seconds) == (1, 39)
    assert found["asked"][1] == ["gap", 39]
    assert found["asked"][-1] == ["finish"]
    assert sum(asked[1] for asked in found["asked"] if asked[0] == "push") == 6000 - 3900
