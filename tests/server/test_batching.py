"""The queue of windows: every row is the row of its own window, whatever it was computed with."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stapes.server.batching import Batcher, Overdue


def double(windows: np.ndarray) -> np.ndarray:
    return np.concatenate([windows[:, 0, :2] * 2, windows[:, 0, :1]], axis=1)


def some_windows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 1, 3)).astype(np.float32)


@pytest.mark.parametrize("wait", [0.0, 0.005])
@pytest.mark.parametrize(("threads", "batch"), [(1, 1), (1, 4), (3, 5), (2, 100)])
def test_rows_come_back_to_their_windows(threads: int, batch: int, wait: float) -> None:
    sizes: list[int] = []
    at_once, most = [0], [0]
    lock = threading.Lock()

    def compute(windows: np.ndarray) -> np.ndarray:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            sizes.append(len(windows))
        time.sleep(0.0005)
        with lock:
            at_once[0] -= 1
        return double(windows)

    batcher = Batcher(compute, threads=threads, batch=batch, wait=wait)

    def ask(seed: int) -> None:
        with batcher.expecting():
            windows = some_windows(1 + seed % 20, seed)
            np.testing.assert_array_equal(batcher.probabilities(windows), double(windows))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(120)))
    batcher.close()
    assert batcher.pending == 0
    assert max(sizes) <= batch
    assert most[0] <= threads
    assert sum(sizes) == sum(1 + seed % 20 for seed in range(120))
    if batch > 1:
        assert len(sizes) < sum(sizes)


def test_a_long_recording_uses_all_threads() -> None:
    both = threading.Barrier(2, timeout=10)

    def compute(windows: np.ndarray) -> np.ndarray:
        both.wait()  # nobody passes alone
        return double(windows)

    batcher = Batcher(compute, threads=2, batch=8)
    windows = some_windows(8, 0)
    np.testing.assert_array_equal(batcher.probabilities(windows), double(windows))
    batcher.close()


def test_what_waits_together_is_computed_together() -> None:
    go, begun = threading.Event(), threading.Event()
    sizes = []

    def compute(windows: np.ndarray) -> np.ndarray:
        sizes.append(len(windows))
        begun.set()
        assert go.wait(10)
        return double(windows)

    batcher = Batcher(compute, threads=1, batch=6)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(batcher.probabilities, some_windows(1, 0))
        assert begun.wait(10)
        others = [pool.submit(batcher.probabilities, some_windows(2, i)) for i in range(4)]
        while batcher.pending < 8:
            time.sleep(0.001)
        go.set()
        for i, other in enumerate(others):
            np.testing.assert_array_equal(other.result(10), double(some_windows(2, i)))
        first.result(10)
    batcher.close()
    assert sizes == [1, 6, 2]


def test_a_failure_reaches_who_waits_and_nobody_else() -> None:
    def compute(windows: np.ndarray) -> np.ndarray:
        if np.isnan(windows).any():
            raise ValueError("not a number")
        return double(windows)

    batcher = Batcher(compute, threads=2, batch=4)
    with pytest.raises(ValueError, match="not a number"):
        batcher.probabilities(np.full((3, 1, 3), np.nan, np.float32))
    windows = some_windows(3, 1)
    np.testing.assert_array_equal(batcher.probabilities(windows), double(windows))
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.probabilities(windows)


def test_who_waits_too_long_is_dropped() -> None:
    go = threading.Event()
    sizes = []

    def compute(windows: np.ndarray) -> np.ndarray:
        sizes.append(len(windows))
        assert go.wait(10)
        return double(windows)

    batcher = Batcher(compute, threads=1, batch=4)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(batcher.probabilities, some_windows(1, 0))
        while not sizes:
            time.sleep(0.001)
        with pytest.raises(Overdue):
            batcher.probabilities(some_windows(3, 0), time.monotonic() + 0.02)
        assert batcher.pending == 0
        go.set()
        first.result(10)
    batcher.close()
    assert sizes == [1]
