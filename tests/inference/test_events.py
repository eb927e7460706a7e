from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapes.inference import Event, EventDetector, Smoother, WindowScores, merge_events

LABELS = ("a", "b", "c")


def scores(probabilities: list[list[float]] | np.ndarray, step: float = 1.0) -> list[WindowScores]:
    return [
        WindowScores(i * step, (i + 1) * step, np.array(row, np.float32))
        for i, row in enumerate(probabilities)
    ]


def of_a(*values: float) -> list[WindowScores]:
    """Windows of a second in which ``a`` has these probabilities and ``b`` and ``c`` the rest."""
    return scores([[p, (1 - p) / 2, (1 - p) / 2] for p in values])


def spans(events: list[Event]) -> list[tuple[str, float, float]]:
    return [(e.label, e.start, e.end) for e in events]


def leading(windows: list[WindowScores], threshold: float) -> list[tuple[str, float, float, float]]:
    """Events by one threshold without memory, written the obvious way."""
    found = []
    names = [
        LABELS[w.probabilities.argmax()] if float(w.probabilities.max()) >= threshold else None
        for w in windows
    ]
    for name, group in itertools.groupby(
        zip(names, windows, strict=True), key=lambda pair: pair[0]
    ):
        stretch = [w for _, w in group]
        seconds = [w.end - w.start for w in stretch]
        tops = [float(w.probabilities.max()) for w in stretch]
        if name is not None and sum(seconds) > 0:
            mean = np.average(tops, weights=seconds)
            found.append((name, stretch[0].start, stretch[-1].end, mean))
    return found


tables = st.lists(st.tuples(*[st.sampled_from([0, 1, 2, 3, 5])] * 3), min_size=1, max_size=30)


def normalised(table: list[tuple[int, ...]]) -> np.ndarray:
    array = np.array(table, float) + 0.01
    return array / array.sum(1, keepdims=True)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(table=tables, threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.7, 1.0]))
def test_one_threshold_without_smoothing_joins_equal_leaders(
    table: list[tuple[int, ...]], threshold: float
) -> None:
    windows = scores(normalised(table), 0.25)
    events = list(merge_events(windows, LABELS, threshold))
    expected = leading(windows, threshold)
    assert spans(events) == [row[:3] for row in expected]
    assert [e.score for e in events] == pytest.approx([row[3] for row in expected])


def test_an_event_lasts_until_release() -> None:
    windows = of_a(0.1, 0.45, 0.6, 0.35, 0.45, 0.2, 0.45, 0.1)
    assert spans(merge_events(windows, LABELS, 0.5)) == [("a", 2, 3)]
    (event,) = merge_events(windows, LABELS, 0.5, release=0.3)
    assert (event.label, event.start, event.end) == ("a", 2, 5)
    assert event.score == pytest.approx((0.6 + 0.35 + 0.45) / 3)
    # Reaching is enough for either threshold, and 0.25 is 0.25 in any precision.
    assert spans(merge_events(of_a(0.5, 0.25, 0.2), LABELS, 0.5, release=0.25)) == [("a", 0, 2)]
    # 0.45 leads at the sixth second as well, but below the threshold it begins nothing.


def test_a_label_that_leads_above_the_threshold_takes_over() -> None:
    windows = scores([[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.35, 0.45, 0.2], [0.6, 0.35, 0.05]])
    found = merge_events(windows, LABELS, 0.5, release=0.3)
    assert spans(found) == [("a", 0, 1), ("b", 1, 3), ("a", 3, 4)]
    # Leading is not enough while the active label holds.
    found = merge_events(windows, LABELS, 0.55, release=0.3)
    assert spans(found) == [("a", 0, 4)]


def test_thresholds_are_not_rounded_to_the_scores_precision() -> None:
    below = float(np.float32(0.7))  # 0.69999999
    windows = [WindowScores(0.0, 1.0, np.array([below, 0.2, 0.1], np.float32))]
    assert list(merge_events(windows, LABELS, 0.7)) == []
    assert len(list(merge_events(windows, LABELS, below))) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("length", [1, 2, 3, 11])
def test_smoothing_is_a_centred_mean(count: int, length: int) -> None:
    rows = np.random.default_rng(count).dirichlet(np.ones(3), length).astype(np.float32)
    smoother, found, delays = Smoother(count), [], []
    for at, window in enumerate(scores(rows)):
        for smooth in smoother.push(window):
            delays.append(at - int(smooth.start))
            found.append(smooth)
    found += smoother.finish()
    assert set(delays) <= {(count - 1) // 2}
    assert [(s.start, s.end) for s in found] == [(i, i + 1) for i in range(length)]
    kernel = np.ones(count)
    # The full convolution from (count - 1) // 2 on: an even mean has one more before.
    first = (count - 1) // 2
    sums = [np.convolve(column, kernel)[first : first + length] for column in rows.T]
    counts = np.convolve(np.ones(length), kernel)[first : first + length]
    expected = (np.array(sums) / counts).T
    np.testing.assert_allclose([s.probabilities for s in found], expected, atol=1e-6)
    assert smoother.finish() == []  # ready for the next stream


def test_smoothing_keeps_an_events_place_and_drops_a_flicker() -> None:
    windows = of_a(0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0)
    found = merge_events(windows, LABELS, 0.5, smoothing=3)
    assert [e for e in spans(found) if e[0] == "a"] == [("a", 3, 8)]


def cleaned(
    events: list[Event], min_seconds: float, gap_seconds: float
) -> list[tuple[str, float, float]]:
    """First short ones out, then gaps closed: on a whole list."""
    kept = [e for e in events if e.end - e.start >= min_seconds - 1e-9]
    joined: list[list[object]] = []
    for e in kept:
        if joined and joined[-1][0] == e.label and e.start - joined[-1][2] <= gap_seconds + 1e-9:
            joined[-1][2] = e.end
        else:
            joined.append([e.label, e.start, e.end])
    return [tuple(row) for row in joined]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    table=tables,
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
    release=st.sampled_from([0.0, 0.2, 0.3]),
    smoothing=st.integers(1, 4),
    min_seconds=st.sampled_from([0.0, 0.2, 0.3, 0.5]),
    gap_seconds=st.sampled_from([0.0, 0.1, 0.3, 5.0]),
)
def test_cleaning_is_what_it_is_on_the_whole_list(
    table: list[tuple[int, ...]],
    threshold: float,
    release: float,
    smoothing: int,
    min_seconds: float,
    gap_seconds: float,
) -> None:
    windows = scores(normalised(table), 0.1)
    options = {"release": release, "smoothing": smoothing}
    raw = list(merge_events(windows, LABELS, threshold, **options))
    found = list(
        merge_events(
            windows, LABELS, threshold, min_seconds=min_seconds, gap_seconds=gap_seconds, **options
        )
    )
    assert spans(found) == cleaned(raw, min_seconds, gap_seconds)
    for event in found:  # the mean over the parts that were joined
        parts = [
            e for e in raw
            if e.label == event.label and event.start <= e.start and e.end <= event.end
            and e.end - e.start >= min_seconds - 1e-9
        ]  # fmt: skip
        weights = [e.end - e.start for e in parts]
        assert event.score == pytest.approx(np.average([e.score for e in parts], weights=weights))
    for before, after in itertools.pairwise(found):
        assert before.end <= after.start


def test_an_event_is_told_once_and_as_soon_as_it_is_over() -> None:
    windows = of_a(0.9, 0.9, 0, 0, 0.9, 0, 0, 0)
    detector = EventDetector(("a", "b", "c"), 0.8)
    told = [spans(detector.push(w)) for w in windows]
    assert told == [[], [], [("a", 0, 2)], [], [], [("a", 4, 5)], [], []]
    assert detector.finish() == []
    # A gap of up to a second might still be closed for as long: not by a second of nothing more.
    detector = EventDetector(("a", "b", "c"), 0.8, gap_seconds=1)
    told = [spans(detector.push(w)) for w in windows]
    assert told == [[], [], [], [("a", 0, 2)], [], [], [("a", 4, 5)], []]


def test_the_open_event_is_known() -> None:
    detector = EventDetector(LABELS, 0.8, gap_seconds=1)
    seen = []
    for window in of_a(0.1, 0.9, 0.1, 0.8, 0.1):
        assert detector.push(window) == []
        seen.append(None if detector.open is None else spans([detector.open]))
    assert seen == [None, [("a", 1, 2)], None, [("a", 1, 4)], None]
    (event,) = detector.finish()
    assert event.score == pytest.approx(0.85)


def test_the_end_of_a_stream_ends_its_last_event() -> None:
    for smoothing in (1, 3):
        detector = EventDetector(LABELS, 0.5, smoothing=smoothing)
        assert [e for w in of_a(0.9, 0.9, 0.9) for e in detector.push(w)] == []
        (event,) = detector.finish(3.4)
        assert (event.start, event.end, event.score) == (0, 3.4, pytest.approx(0.9))
        assert detector.finish() == []
        # Ready for the next stream, of which it knows nothing yet.
        assert detector.open is None
        (event,) = [e for w in of_a(0.9, 0.2, 0.1) for e in detector.push(w)]
        assert (event.start, event.end) == (0, 1)
        detector.finish()


def test_lost_sound_counts_for_nothing() -> None:
    row = np.array([0.9, 0.05, 0.05], np.float32)
    windows = [WindowScores(0, 1, row), WindowScores(5, 6, row)]
    (event,) = merge_events(windows, LABELS, 0.5)
    assert (event.start, event.end, event.score) == (0, 6, pytest.approx(0.9))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.1}, "threshold must be between"),
        ({"threshold": float("nan")}, "threshold must be between"),
        ({"threshold": 0.5, "release": 0.6}, "release must be between 0 and the threshold"),
        ({"release": -0.1}, "release must be"),
        ({"smoothing": 0}, "smoothing is a whole number"),
        ({"smoothing": 2.5}, "smoothing is a whole number"),
        ({"min_seconds": -1}, "0 or more"),
        ({"gap_seconds": float("nan")}, "0 or more"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        merge_events([], LABELS, **options)
