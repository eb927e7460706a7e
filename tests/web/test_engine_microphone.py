"""The browser's microphone: what it heard has Python's answers, and nothing is lost unsaid."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browsing import unpacked

from stapes.inference import EventDetector
from stapes.inference.streaming import Gap
from stapes.runtime import load

pytestmark = pytest.mark.browser

_RATE, _SECONDS, _HOP = 44100, 2.6, 0.2
_PIECE = 4410

_LISTEN = """async ([seconds, hopSeconds]) => {
  const found = await model("network");
  const told = [];
  const gaps = [];
  let samples = 0;
  const listening = await found.microphone({
    hopSeconds,
    onScores: (scores) => told.push(...scores),
    onSamples: (channels) => (samples += channels[0].length),
    onGap: (gap) => gaps.push(gap),
  });
  const { sampleRate, keptMinutes } = listening;
  const enough = () => samples >= seconds * sampleRate;
  while (!enough()) await new Promise((resolve) => setTimeout(resolve, 20));
  const recording = await listening.stop();
  const wav = new Uint8Array(await engine.toWav(recording).arrayBuffer());
  const row = ({ start, end, probabilities }) => [start, end, packed(probabilities)];
  const scores = await found.windows(recording, { hopSeconds });
  return {
    wav: packed(wav), told: told.map(row), scores: scores.map(row), gaps, samples, sampleRate,
    keptMinutes, duration: recording.duration, offset: recording.offset,
    events: engine.findEvents(scores, found.info.labels, { threshold: 0.4, release: 0.2 }),
  };
}"""


def _with_gaps(samples: np.ndarray, gaps: list[dict[str, float]], rate: int) -> Iterator[Any]:
    """What the model heard: a busy computer may lose sound, which is silence in what is saved."""
    at = 0
    for gap in gaps:
        begin, length = round(gap["at"] * rate), round(gap["seconds"] * rate)
        yield samples[:, at:begin]
        yield Gap(gap["seconds"])
        at = begin + length
    yield samples[:, at:]


def _rows(found: list[list[Any]]) -> tuple[list[list[float]], np.ndarray]:
    return [row[:2] for row in found], np.stack([unpacked(row[2]) for row in found])


@pytest.fixture(scope="module")
def heard(microphone: Path, blank: Any, drum_hits: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What the page gives after listening, and what was played to it."""
    from stapes.audio import find_audio, read

    hits = [read(path, sample_rate=_RATE, channels=1)[0] for path in find_audio(drum_hits)[::40]]
    played = np.concatenate([np.pad(hit, (0, _RATE // 5)) for hit in hits])
    played = np.resize(played, 5 * _RATE) * 0.9
    soundfile.write(microphone, played, _RATE, subtype="PCM_16")
    return blank.evaluate(_LISTEN, [_SECONDS, _HOP]), played


def test_what_was_heard_is_what_was_played(heard: Any, tmp_path: Path) -> None:
    found, played = heard
    (tmp_path / "heard.wav").write_bytes(base64.b64decode(found["wav"]))
    samples, rate = soundfile.read(tmp_path / "heard.wav", dtype="float32", always_2d=True)
    assert rate == found["sampleRate"] == _RATE
    assert len(samples) >= _SECONDS * _RATE
    assert len(samples) == found["samples"] == round(found["duration"] * rate)
    assert found["offset"] == 0
    # The device begins somewhere in the file: no gain, no filter, no sample left out from there on.
    # On a busy machine it may itself stumble, so that most pieces have to be what was played.
    transform = np.fft.rfft(played, 2 * len(played))
    energy = np.convolve(played.astype(np.float64) ** 2, np.ones(_PIECE), "valid")
    equal = []
    for first in range(rate // 2, len(samples) - _PIECE, _PIECE):
        piece = samples[first : first + _PIECE, 0]
        if not piece.any():
            continue  # between two hits, or lost
        matched = np.fft.irfft(transform * np.fft.rfft(piece, 2 * len(played)).conj())
        at = int((matched[: len(energy)] / np.sqrt(energy + 1e-3)).argmax())
        equal.append(np.allclose(piece, played[at : at + _PIECE], atol=2e-4))
    assert len(equal) > 5
    assert np.mean(equal) > 0.5, equal


def test_its_scores_are_those_of_python(heard: Any, exported: Path, tmp_path: Path) -> None:
    found, _ = heard
    path = tmp_path / "heard.wav"
    path.write_bytes(base64.b64decode(found["wav"]))
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    classifier = load(exported / "network.onnx", threads=1)
    chunks = _with_gaps(samples.T, found["gaps"], rate)
    live = list(classifier.listen(chunks, sample_rate=rate, hop_seconds=_HOP))
    whole = list(classifier.windows(path, hop_seconds=_HOP))
    for told, expected in ((found["told"], live), (found["scores"], whole)):
        times, rows = _rows(told)
        assert times == [[one.start, one.end] for one in expected]
        wanted = np.stack([one.probabilities for one in expected])
        np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-3)
    detector = EventDetector(classifier.labels, 0.4, release=0.2)
    events = [event for one in whole for event in detector.push(one)] + detector.finish()
    assert [(e["start"], e["end"], e["label"]) for e in found["events"]] == [
        (event.start, event.end, event.label) for event in events
    ]
    assert events
