"""Events, tables and files of the browser's engine, judged by Python."""

from __future__ import annotations

import base64
import csv
import io
from typing import Any

import numpy as np
import pytest
import soundfile
from browsing import packed

from stapes.cli.rows import row_writer
from stapes.inference import Event, WindowScores, merge_events

pytestmark = pytest.mark.browser

_LABELS = ("a", "b", "c")
_EVENTS = """(cases) => cases.map(([scores, options]) => engine.findEvents(
  scores.map(([start, end, row]) => ({ start, end, probabilities: floats(row) })),
  ["a", "b", "c"], options))"""
_CSV = "([events, name]) => engine.eventsToCsv(events, name)"
_WAV = """async ([sampleRate, channels]) => {
  const blob = engine.toWav({ sampleRate, channels: channels.map(floats) });
  return packed(new Uint8Array(await blob.arrayBuffer()));
}"""


def _random_case(random: np.random.Generator) -> tuple[list[WindowScores], dict[str, Any]]:
    n = int(random.integers(0, 30))
    # Scores that stay for some windows, few levels so that some meet the thresholds exactly.
    rows = random.dirichlet([0.4, 0.4, 0.4], size=max(n, 1))[random.integers(0, 6, n).cumsum() // 6]
    levels = random.choice([8, 20])  # of which eighths are exact in either precision
    rows = np.round(rows * levels) / levels
    ends = np.cumsum(random.choice([0.25, 0.3, 1 / 3, 0.0], size=n, p=[0.4, 0.3, 0.2, 0.1]))
    starts = np.concatenate([[0.0], ends])[:n]
    scores = [
        WindowScores(float(start), float(end), row.astype(np.float32))
        for start, end, row in zip(starts, ends, rows, strict=True)
    ]
    threshold = float(random.choice([0.0, 0.3, 0.5, 0.55, 0.8]))
    options = {
        "threshold": threshold,
        "release": random.choice([None, threshold, 0.5 * threshold, 0.7 * threshold]),
        "smoothing": int(random.choice([1, 1, 2, 3, 5])),
        "min_seconds": float(random.choice([0, 0, 0.3, 0.6])),
        "gap_seconds": float(random.choice([0, 0, 0.25, 0.6])),
    }  # fmt: skip
    return scores, options


def test_events_are_pythons(blank: Any) -> None:
    random = np.random.default_rng(7)
    cases = [_random_case(random) for _ in range(400)]
    # At the release itself an event goes on, under it not; at the threshold itself one begins.
    rows = [[0.5, 0.25, 0.25], [0.25, 0.375, 0.375], [0.25, 0.5, 0.25], [0.4, 0.2, 0.4]]
    levels = [
        WindowScores(float(i), i + 1.0, np.array(row, np.float32)) for i, row in enumerate(rows)
    ]
    cases.append((levels, {"threshold": 0.5, "release": 0.25}))
    names = {"min_seconds": "minSeconds", "gap_seconds": "gapSeconds"}
    asked = [
        [
            [[one.start, one.end, packed(one.probabilities)] for one in scores],
            {names.get(name, name): value for name, value in options.items()},
        ]
        for scores, options in cases
    ]
    total = 0
    for found, (scores, options) in zip(blank.evaluate(_EVENTS, asked), cases, strict=True):
        expected = list(merge_events(scores, _LABELS, **options))
        assert [Event(**event) for event in found] == expected
        total += len(expected)
    assert total > 1000


@pytest.mark.parametrize(
    "options", [{"threshold": 1.1}, {"threshold": 0.5, "release": 0.6}, {"smoothing": 1.5},
                {"smoothing": 0}, {"minSeconds": -1}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, float], blank: Any) -> None:
    found = blank.evaluate(
        """(options) => {
          try { return engine.findEvents([], ["a"], options); }
          catch (error) { return error.name; }
        }""",
        options,
    )
    assert found == "RangeError"


def test_the_table_is_that_of_predict(blank: Any) -> None:
    random = np.random.default_rng(3)
    # Halves of the last digit go to the even one; 1/32 and its like are halves exactly.
    exact = [0.0625, 0.1875, 1.0625, 0.03125, 0.09375, 2.5, 3.0, 0.0, 0.00005, 1e-9, 0.9999999]
    values = [*exact, *random.uniform(0, 4000, 300), *(random.integers(0, 2**16, 300) / 2**10)]
    events = [
        Event(float(start), float(start + score), label, float(score))
        for start, label, score in zip(
            values,
            np.resize(["dog", "with, comma", 'a "quote"', "two\nlines", "ü"], len(values)),
            [*exact, *random.uniform(0, 1, len(values) - len(exact))],
            strict=True,
        )
    ]
    name = "sound, of 'rain'.wav"
    expected = io.StringIO()
    write = row_writer(expected, "csv", ["path", "start", "end", "label", "score"])
    for e in events:
        write([name, round(e.start, 3), round(e.end, 3), str(e.label), round(e.score, 4)])
    asked = [
        {"start": e.start, "end": e.end, "label": str(e.label), "score": e.score} for e in events
    ]
    found = blank.evaluate(_CSV, [asked, name])
    assert found == expected.getvalue()
    assert len(list(csv.reader(io.StringIO(found)))) == len(events) + 1


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_saved_is_read_as_it_was(channels: int, blank: Any) -> None:
    waveform = np.random.default_rng(0).standard_normal((channels, 70001)).astype(np.float32)
    found = blank.evaluate(_WAV, [44100, [packed(channel) for channel in waveform]])
    content = base64.b64decode(found)
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    assert rate == 44100
    assert soundfile.info(io.BytesIO(content)).subtype == "FLOAT"
    np.testing.assert_array_equal(samples.T, waveform)
