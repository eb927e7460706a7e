from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapes.audio import WindowCutter, fit_length, iter_windows, split_windows


def ramp(n: int, channels: int = 1) -> np.ndarray:
    return np.stack([np.arange(1, n + 1) + 1000 * c for c in range(channels)]).astype(np.float32)


def test_fit_length_known_answers() -> None:
    three = ramp(3)
    np.testing.assert_array_equal(fit_length(three, 5), [[1, 2, 3, 0, 0]])
    np.testing.assert_array_equal(fit_length(three, 8, shorter="repeat"), [[1, 2, 3] * 2 + [1, 2]])
    np.testing.assert_array_equal(fit_length(three, 3), three)
    np.testing.assert_array_equal(fit_length(ramp(7), 3), [[3, 4, 5]])
    np.testing.assert_array_equal(fit_length(ramp(6, 2), 3), [[2, 3, 4], [1002, 1003, 1004]])
    for shorter in ("pad", "repeat"):
        np.testing.assert_array_equal(fit_length(ramp(0, 2), 2, shorter=shorter), np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("n", "window", "hop", "firsts"),
    [
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (10, 4, 4, [0, 4, 6]),
        (4, 4, 1, [0]),
        (5, 4, 9, [0, 1]),
        (20, 2, 5, [0, 5, 10, 15, 18]),
        (3, 4, 2, [0]),
        (0, 4, 2, [0]),
    ],
)
def test_windows_start_where_they_should(n: int, window: int, hop: int, firsts: list[int]) -> None:
    waveform = ramp(n, 2)
    windows = split_windows(waveform, window, hop)
    expected = np.stack([fit_length(waveform[:, f : f + window], window) for f in firsts])
    np.testing.assert_array_equal(windows, expected)
    np.testing.assert_array_equal(
        split_windows(waveform, window, hop, longer="crop"), [fit_length(waveform, window)]
    )


lengths = st.integers(1, 12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    blocks=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    window=lengths,
    hop=lengths,
    shorter=st.sampled_from(["pad", "repeat"]),
)
def test_streamed_windows_are_those_of_the_whole(
    blocks: list[int], window: int, hop: int, shorter: str
) -> None:
    waveform = ramp(sum(blocks), 2)
    pieces = np.split(waveform, np.cumsum(blocks)[:-1], axis=1)
    streamed = list(iter_windows(iter(pieces), window, hop, shorter=shorter))
    whole = split_windows(waveform, window, hop, shorter=shorter)
    np.testing.assert_array_equal([piece for _, piece in streamed], whole)
    firsts = [first for first, _ in streamed]
    assert firsts == sorted(set(firsts))
    if waveform.shape[1] >= window:
        for first, piece in streamed:
            assert piece[0, 0] == first + 1
        if hop <= window:  # every sample is in a window
            assert set(whole[:, 0].ravel()) == set(waveform[0])


def test_streamed_windows_belong_to_the_receiver() -> None:
    blocks = [ramp(8), ramp(8)]
    for _, window in iter_windows(blocks, 4, 2):
        window += 100
    np.testing.assert_array_equal(blocks[1], ramp(8))
    untouched = [w.copy() for _, w in iter_windows([np.concatenate(blocks, axis=1)], 4, 2)]
    seen = []
    for _, window in iter_windows(blocks, 4, 2):
        seen.append(window.copy())
        window[:] = -1
    np.testing.assert_array_equal(seen, untouched)


def test_streaming_holds_no_more_than_it_needs() -> None:
    alive = 0
    largest = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= self.size

    def blocks(n: int):
        nonlocal alive, largest
        for _ in range(n):
            block = np.zeros((1, 10), np.float32).view(Counted)
            alive += block.size
            largest = max(largest, alive)
            yield block

    assert sum(1 for _ in iter_windows(blocks(500), 50, 25)) == 199
    assert largest <= 150


def test_a_window_comes_with_the_piece_that_completes_it() -> None:
    cutter, waveform = WindowCutter(4, 3), ramp(11)
    given = [[first for first, _ in cutter.push(waveform[:, i : i + 1])] for i in range(11)]
    assert given == [[], [], [], [0], [], [], [3], [], [], [6], []]
    assert cutter.total == 11
    assert [first for first, _ in cutter.finish()] == [7]


def test_pieces_keep_their_channels() -> None:
    cutter = WindowCutter(4, 3)
    assert list(cutter.push(ramp(2, 2))) == []
    with pytest.raises(ValueError, match="1 channels, those before 2"):
        list(cutter.push(ramp(2)))


def test_no_block_gives_no_window() -> None:
    assert list(iter_windows([], 4, 2)) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: fit_length(np.zeros(3, np.float32), 2),
        lambda: fit_length(ramp(3), 0),
        lambda: fit_length(ramp(3), 2, shorter="mirror"),
        lambda: split_windows(ramp(3), 2, 0),
        lambda: split_windows(ramp(3), 2, 1, longer="half"),
        lambda: list(iter_windows([ramp(3)], 0, 1)),
        lambda: list(iter_windows([np.zeros(3, np.float32)], 2, 1)),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:
    with pytest.raises(ValueError, match="not"):
        call()
