from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_classifier import ToyClassifier

from stapes.audio import NotFiniteError, split_windows
from stapes.errors import AudioError
from stapes.inference import Gap, Listener, WindowScores

RATE = 1000


def noise(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.2, 0.2, (channels, n)).astype(np.float32)


def rows(scores: list[WindowScores]) -> np.ndarray:
    return np.array([s.probabilities for s in scores])


def chunked(waveform: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Cut into chunks of these sizes, over and over; 0 is a chunk without samples."""
    chunks, at = [], 0
    for size in itertools.cycle([*sizes, 1]):
        chunks.append(waveform[:, at : at + size])
        at += size
        if at >= waveform.shape[1]:
            return chunks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 3000),
    sizes=st.lists(st.sampled_from([0, 1, 1, 2, 7, 160, 399, 400, 401, 2500]), max_size=4),
    rate=st.sampled_from([1000, 1000, 441, 2205, 16000]),
    hop=st.sampled_from([0.4, 0.2, 0.1, 0.333, 0.007, None]),
    channels=st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 2)]),
    shorter=st.sampled_from(["pad", "repeat"]),
)
def test_a_stream_gives_what_the_file_gives(
    folder: Path,
    length: int,
    sizes: list[int],
    rate: int,
    hop: float | None,
    channels: tuple[int, int],
    shorter: str,
) -> None:
    classifier = ToyClassifier(channels=channels[1], shorter=shorter)
    waveform = noise(max(length, rate // RATE + 1), channels[0], seed=length)
    path = folder / "stream.wav"
    soundfile.write(path, waveform.T, rate, subtype="FLOAT")
    whole = list(classifier.windows(path, hop_seconds=hop))
    live = list(classifier.listen(chunked(waveform, sizes), sample_rate=rate, hop_seconds=hop))

    assert len(live) == len(whole)
    np.testing.assert_allclose(rows(live), rows(whole), atol=1e-5)
    assert live[0].start == 0
    for before, after in itertools.pairwise(live):
        assert before.end == after.start
        assert after.end > after.start
    # All stretches are equal but for the border before the last and the end of the last.
    for ours, theirs in list(zip(live, whole, strict=True))[:-2]:
        assert (ours.start, ours.end) == (theirs.start, theirs.end)
    window, step = 0.4, 0.2 if hop is None else hop
    if len(live) > 1:
        assert live[-2].start == whole[-2].start
        assert abs(live[-2].end - whole[-2].end) < step
    assert 0 <= whole[-1].end - live[-1].end <= (window - step) / 2 + 1e-9
    if whole[-1].end < window:
        assert live[0].end == whole[0].end


def test_a_result_comes_with_the_last_sample_of_its_window() -> None:
    listener = Listener(ToyClassifier(), hop_seconds=0.15)
    came = {}
    for at, sample in enumerate(noise(1000)[0]):
        for scores in listener.push([sample]):
            came[at + 1] = (scores.start, scores.end)
    # 400 samples, then every 150; the margin is (400 - 150) / 2 = 125.
    assert came == {
        400: (0.0, 0.275),
        550: (0.275, 0.425),
        700: (0.425, 0.575),
        850: (0.575, 0.725),
        1000: (0.725, 0.875),
    }
    assert listener.finish() == []  # the last window ended with the last sample
    assert listener.seconds == 1.0


def test_what_is_behind_the_last_window_gets_one_more() -> None:
    classifier, waveform = ToyClassifier(), noise(490)
    listener = Listener(classifier, hop_seconds=0.1)
    first = listener.push(waveform)
    (last,) = listener.finish()
    assert [(s.start, s.end) for s in [*first, last]] == [(0.0, 0.25), (0.25, 0.49)]
    np.testing.assert_array_equal(
        rows([*first, last]), classifier.probabilities(split_windows(waveform, 400, 100))
    )


@pytest.mark.parametrize(("rate", "to", "bound"), [(48000, 8000, 0.16), (48000, 44100, 0.02)])
def test_the_resampler_holds_back_no_more_than_stated(rate: int, to: int, bound: float) -> None:
    listener = Listener(ToyClassifier(to, 0.1), rate, hop_seconds=0.01)
    waveform, step = noise(rate), rate // 1000
    complete = 0
    for at in range(0, rate, step):
        complete += len(listener.push(waveform[:, at : at + step]))
        heard = (at + step) / rate - bound
        assert complete >= np.floor((heard - 0.1) / 0.01 + 1e-6) + 1
    assert complete > 70


def test_one_chunk_may_complete_many_windows() -> None:
    classifier = ToyClassifier()
    listener = Listener(classifier, hop_seconds=0.01)
    assert len(listener.push(noise(2000))) == 161
    assert max(classifier.calls) == 16  # memory does not grow with the chunk's windows


def test_nothing_heard_gives_nothing() -> None:
    assert list(ToyClassifier().listen([])) == []
    assert list(ToyClassifier().listen([np.zeros((1, 0), np.float32)])) == []


def test_memory_does_not_grow() -> None:
    class Quiet(ToyClassifier):
        def probabilities(self, windows: np.ndarray) -> np.ndarray:
            return np.full((len(windows), 3), 1 / 3, np.float32)

    listener = Listener(Quiet(), sample_rate=1100)
    chunk = noise(37)

    def hear(chunks: int) -> int:
        for _ in range(chunks):
            listener.push(chunk)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert hear(4000) - hear(2000) <= 10_000  # 700 KB have passed
        assert abs(hear(4000) - hear(2000)) <= 10_000
    finally:
        tracemalloc.stop()


def test_times_are_exact_after_a_month() -> None:
    month = 30 * 86400
    listener = Listener(ToyClassifier(44100, 0.1), hop_seconds=0.05)
    listener.push(noise(44100))
    listener.gap(month)
    scores = listener.push(noise(44100, seed=1))
    assert [s.start - month for s in scores[:3]] == pytest.approx([1, 1.075, 1.125], abs=1e-6)
    assert listener.seconds == month + 2


def test_no_window_reaches_across_a_gap() -> None:
    classifier = ToyClassifier()
    one, two, three = noise(450, seed=1), noise(90, seed=2), noise(500, seed=3)
    chunks = [one, Gap(0.5), two, Gap(), three[:, :100], three[:, 100:]]
    scores = list(classifier.listen(chunks, hop_seconds=0.1))
    # The second piece is shorter than a window and gets none; it ends at 0.45 + 0.5 + 0.09 s.
    assert [s.start for s in scores] == pytest.approx([0, 0.25, 1.04, 1.29])
    assert [s.end for s in scores] == pytest.approx([0.25, 0.45, 1.29, 1.39])
    expected = [classifier.probabilities(split_windows(piece, 400, 100)) for piece in (one, three)]
    np.testing.assert_allclose(rows(scores), np.concatenate(expected), atol=1e-6)


def test_a_gap_in_a_resampled_stream_ends_the_piece_before() -> None:
    classifier = ToyClassifier()
    waveform = noise(3000, seed=4)
    listener = Listener(classifier, 2000, hop_seconds=0.2)
    before = [*listener.push(waveform), *listener.gap(1.0)]
    alone = list(classifier.listen([waveform], sample_rate=2000, hop_seconds=0.2))
    np.testing.assert_array_equal(rows(before), rows(alone))
    assert listener.seconds == 2.5
    after = [*listener.push(waveform), *listener.finish()]
    np.testing.assert_array_equal(rows(after), rows(alone))
    assert [s.start for s in after] == pytest.approx([s.start + 2.5 for s in alone])


def test_integers_are_scaled_by_their_type() -> None:
    classifier = ToyClassifier()
    integers = (noise(400)[0] * 32767).astype(np.int16)
    (a,) = classifier.listen([integers])
    (b,) = classifier.listen([integers.astype(np.float32) / 32768])
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "not a number"), (np.inf, "infinite"), (1e20, r"1e\+20")]
)
def test_what_is_no_sound_is_refused_with_its_time(value: float, words: str) -> None:
    listener = Listener(ToyClassifier(), source="microphone")
    listener.push(noise(500))
    listener.gap(1.0)
    chunk = noise(10)
    chunk[0, 3] = value
    with pytest.raises(NotFiniteError, match=rf"^microphone: the sample at 1\.503 s is {words}"):
        listener.push(chunk)


def test_wrong_chunks_and_settings_are_refused() -> None:
    classifier = ToyClassifier(channels=3)
    with pytest.raises(AudioError, match=r"^stream: 2 channels cannot become 3"):
        Listener(classifier, channels=2)
    with pytest.raises(AudioError, match="2 channels cannot become 3"):
        Listener(classifier).push(noise(10, 2))
    with pytest.raises(ValueError, match="hop must be"):
        Listener(classifier, hop_seconds=0.5)
    with pytest.raises(ValueError, match="sample rate"):
        Listener(classifier, sample_rate=0)
    listener = Listener(classifier, channels=1)
    with pytest.raises(ValueError, match="a chunk has 3 channels, the stream 1"):
        listener.push(noise(10, 3))
    with pytest.raises(ValueError, match="a waveform is"):
        listener.push(np.zeros((1, 1, 5), np.float32))
    with pytest.raises(ValueError, match="a gap has 0 seconds"):
        listener.gap(-1)
    listener.finish()
    for call in (lambda: listener.push(noise(1)), listener.finish, listener.gap):
        with pytest.raises(ValueError, match="the stream has ended"):
            call()
