from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from stapes.audio import fit_length, read, split_windows
from stapes.augment import change_waveform
from stapes.config import AudioConfig, AugmentConfig
from stapes.data import Clip, Dataset, scan
from stapes.data.loader import FeatureStore, WithVariants
from stapes.errors import AudioError
from stapes.features import LogMel, clear_cache

RATE = 8000


def _store(tmp_path: Path, audio: AudioConfig) -> tuple[FeatureStore, Path]:
    path = tmp_path / "x.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, 37 * RATE), RATE, subtype="FLOAT")
    clips = (Clip(path, "a"), Clip(path, "b", 1.0, 2.5))
    dataset = Dataset("x", tmp_path, clips, ("a", "b"))
    frontend = LogMel(sample_rate=RATE, n_fft=256, hop_length=200, n_mels=20)
    return FeatureStore(clips, scan(dataset), frontend, audio, tmp_path / "cache"), path


def test_features_are_those_of_the_whole_clip_cut_into_windows(tmp_path: Path) -> None:
    audio = AudioConfig(sample_rate=RATE, window_seconds=1.0)
    store, path = _store(tmp_path, audio)
    store.prepare([0, 1])
    for index, segment in enumerate([{}, {"start": 1.0, "end": 2.5}]):
        windows = split_windows(read(path, **segment), RATE, RATE)
        expected = store.frontend(torch.from_numpy(windows)).numpy().astype(np.float16)
        np.testing.assert_array_equal(store.windows(index), expected)
    assert (store.n_windows(0), store.n_windows(1)) == (37, 2)


def test_a_cache_that_is_cleared_meanwhile_is_filled_again(tmp_path: Path) -> None:
    store, _ = _store(tmp_path, AudioConfig(sample_rate=RATE, window_seconds=1.0))
    store.prepare([0, 1])
    before = np.array(store.windows(0))
    assert clear_cache(tmp_path / "cache") > 0
    assert store.n_windows(1) == 2  # not looked at before
    np.testing.assert_array_equal(store.windows(0), before)


def _varied(*ranges: float, variants: int = 2, taken: str = "one") -> AugmentConfig:
    pitch, slowest, fastest = ranges or (2.0, 0.8, 1.25)
    return AugmentConfig(
        pitch_semitones=pitch,
        time_stretch=(slowest, fastest),
        waveform_variants=variants,
        variants_per_epoch=taken,
    )


def _sweep(tmp_path: Path, seconds: float, audio: AudioConfig, name: str = "s") -> FeatureStore:
    """A store of one recording whose pitch tells the moment: 500 Hz, and 100 Hz more a second."""
    time = np.arange(round(seconds * RATE)) / RATE
    path = tmp_path / f"{name}.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * (500 + 50 * time) * time), RATE, "FLOAT")
    dataset = Dataset("x", tmp_path, (Clip(path, "a"),), ("a",))
    frontend = LogMel(sample_rate=RATE, n_fft=1024, hop_length=100, n_mels=257, f_max=3000.0)
    return FeatureStore(dataset.clips, scan(dataset), frontend, audio, tmp_path / "cache")


def _spectrogram(store: FeatureStore, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    return store.frontend(torch.from_numpy(waveform)).numpy()


def _alike(store: FeatureStore, a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Mean distance of their strongest bands, frame by frame."""
    return float(np.abs(a[0].argmax(0).astype(int) - b[0].argmax(0).astype(int)).mean())


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("seconds", [5.3, 2.0, 1.9, 1.0, 0.6])
@pytest.mark.parametrize("hop_seconds", [2.0, 0.7])
def test_windows_of_a_variant_are_those_of_the_changed_recording(
    tmp_path: Path, speed: float, seconds: float, hop_seconds: float
) -> None:
    audio = AudioConfig(sample_rate=RATE, window_seconds=2.0, hop_seconds=hop_seconds)
    store = _sweep(tmp_path, seconds, audio)
    found = store.variant(0, 1, _varied(2.0 if speed == 1 else 0.0, speed, speed))
    assert found.shape == store.windows(0).shape
    _, change = store._drawn(0, 1, _varied(2.0 if speed == 1 else 0.0, speed, speed))
    assert change.speed == speed
    whole = read(store.clips[0].path)
    changed = change_waveform(whole, RATE, semitones=change.semitones, speed=speed)
    starts = list(range(0, max(1, whole.shape[1] - 2 * RATE + 1), store.hop))
    if whole.shape[1] > 2 * RATE and starts[-1] != whole.shape[1] - 2 * RATE:
        starts.append(whole.shape[1] - 2 * RATE)
    assert len(starts) == len(found)
    for start, window in zip(starts, found, strict=True):
        middle = (start + min(2 * RATE, whole.shape[1]) / 2) / speed
        first = round(min(max(0, middle - RATE), max(0, changed.shape[1] - 2 * RATE)))
        expected = fit_length(changed[:, first : first + 2 * RATE], 2 * RATE)
        # The vocoder's frames lie elsewhere, so phases differ, and what is heard does not.
        inner = slice(8, min(152, expected.shape[1] // 100, changed.shape[1] // 100 - 8))
        sound = _spectrogram(store, expected[None])[0]
        assert _alike(store, sound[..., inner], window[..., inner].astype(np.float32)) < 1.5


def test_a_variant_too_short_is_padded_or_repeated_as_recordings_are(tmp_path: Path) -> None:
    for shorter in ("pad", "repeat"):
        audio = AudioConfig(sample_rate=RATE, window_seconds=2.0, shorter=shorter)
        store = _sweep(tmp_path, 1.5, audio)
        (window,) = store.variant(0, 1, _varied(0.0, 1.25, 1.25))
        end = window[0, :, 130:155].astype(np.float32).max()  # behind 1.2 s
        loudest = window.astype(np.float32).max()
        assert (end < loudest - 40) == (shorter == "pad")
        expected = fit_length(
            change_waveform(read(store.clips[0].path), RATE, speed=1.25),
            2 * RATE,
            shorter="pad" if shorter == "pad" else "repeat",
        )
        np.testing.assert_array_equal(
            window, _spectrogram(store, expected[None])[0].astype(np.float16)
        )


@pytest.mark.parametrize("speed", [0.8, 1.25])
@pytest.mark.parametrize("seconds", [9.0, 2.2, 1.0])
def test_a_cropped_recording_has_the_middle_of_its_variant(
    tmp_path: Path, speed: float, seconds: float
) -> None:
    audio = AudioConfig(sample_rate=RATE, window_seconds=2.0, longer="crop")
    store = _sweep(tmp_path, seconds, audio)
    (window,) = store.variant(0, 1, _varied(0.0, speed, speed))
    whole = change_waveform(read(store.clips[0].path), RATE, speed=speed)
    sound = _spectrogram(store, fit_length(whole, 2 * RATE)[None])[0]
    inner = slice(8, min(152, whole.shape[1] // 100 - 8))
    assert _alike(store, sound[..., inner], window[..., inner].astype(np.float32)) < 1.5


def test_long_recordings_are_changed_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = AudioConfig(sample_rate=RATE, window_seconds=1.0, hop_seconds=0.5)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (store, _), (other, _) = _store(tmp_path / "one", audio), _store(tmp_path / "two", audio)
    augment = _varied(0.0, 1.2, 1.2, variants=1)
    at_once = store.variant(0, 1, augment)
    longest = 0

    def watched(waveform: NDArray[np.float32], rate: int, **change: float) -> NDArray[np.float32]:
        nonlocal longest
        longest = max(longest, waveform.shape[1])
        return change_waveform(waveform, rate, **change)

    monkeypatch.setattr("stapes.data.loader.change_waveform", watched)
    monkeypatch.setattr("stapes.data.loader._BLOCK_SECONDS", 0.3)
    np.testing.assert_array_equal(other.variant(0, 1, augment), at_once)
    assert longest == 1.2 * RATE


def test_variants_are_a_function_of_the_sound_and_the_ranges(tmp_path: Path) -> None:
    audio = AudioConfig(sample_rate=RATE, window_seconds=2.0)
    (tmp_path / "there").mkdir()
    store, again = _sweep(tmp_path, 2.0, audio), _sweep(tmp_path / "there", 2.0, audio, "renamed")
    other = _sweep(tmp_path, 2.5, audio, "other")
    augment = _varied(variants=2)
    assert store._drawn(0, 1, augment) == again._drawn(0, 1, augment)
    # How many variants there are, and how they are taken, does not change any of them.
    assert store._drawn(0, 1, _varied(variants=7, taken="all")) == store._drawn(0, 1, augment)
    drawn = [
        store._drawn(0, 1, augment),
        store._drawn(0, 2, augment),
        store._drawn(0, 1, _varied(2.5, 0.8, 1.25)),
        store._drawn(0, 1, _varied(2.0, 0.8, 1.3)),
        other._drawn(0, 1, augment),
    ]
    assert len({key for key, _ in drawn}) == len({change for _, change in drawn}) == 5
    np.testing.assert_array_equal(store.variant(0, 1, augment), again.variant(0, 1, augment))
    assert not np.array_equal(store.variant(0, 1, augment), store.variant(0, 2, augment))
    assert not np.array_equal(store.variant(0, 1, augment), store.windows(0))


def test_variants_are_computed_once_and_after_the_originals_only_what_is_missing(
    tmp_path: Path,
) -> None:
    audio = AudioConfig(sample_rate=RATE, window_seconds=1.0)
    store, path = _store(tmp_path, audio)
    store.prepare([0, 1])
    before = sorted(store._cache._index)
    seen: list[tuple[int, int]] = []
    store.prepare([1], variants=_varied(), progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert set(before) < set(store._cache._index), "the originals keep their keys"
    path.unlink()
    seen.clear()
    fresh = FeatureStore(store.clips, [], store.frontend, audio, tmp_path / "cache")
    fresh._keys = store._keys
    fresh.prepare([1], variants=_varied(), progress=lambda *done: seen.append(done))
    assert seen == []
    np.testing.assert_array_equal(fresh.variant(1, 2, _varied()), store.variant(1, 2, _varied()))
    with pytest.raises(AudioError):
        fresh.prepare([0], variants=_varied())


def test_one_at_a_time_variants_are_further_windows_of_their_clip(tmp_path: Path) -> None:
    store, _ = _store(tmp_path, AudioConfig(sample_rate=RATE, window_seconds=1.0))
    augment = _varied(variants=2)
    source = WithVariants(store, augment)
    clips, targets = np.array([0, 1]), np.array([0, 1])
    np.testing.assert_array_equal(source.clips(clips), clips)
    np.testing.assert_array_equal(source.targets(targets), targets)
    assert [source.n_windows(i) for i in (0, 1)] == [3 * 37, 3 * 2]
    found = source.take(np.array([1, 1, 1, 1, 0]), np.array([1, 2, 3, 5, 37 + 8])).numpy()
    expected = [
        store.windows(1)[1],
        store.variant(1, 1, augment)[0],
        store.variant(1, 1, augment)[1],
        store.variant(1, 2, augment)[1],
        store.variant(0, 1, augment)[8],
    ]
    np.testing.assert_array_equal(found, np.stack(expected).astype(np.float32))
    first = source.take(clips, np.zeros(2, np.int64))
    assert torch.equal(first, store.take(clips, np.zeros(2, np.int64))), "validation takes these"


def test_all_at_once_variants_are_clips_of_their_own(tmp_path: Path) -> None:
    store, _ = _store(tmp_path, AudioConfig(sample_rate=RATE, window_seconds=1.0))
    augment = _varied(variants=2, taken="all")
    source = WithVariants(store, augment)
    assert source.clips(np.array([1])).tolist() == [1, 3, 5]
    assert source.targets(np.array([7, 8])).tolist() == [7, 8, 7, 8, 7, 8]
    assert [source.n_windows(i) for i in range(6)] == [37, 2] * 3
    found = source.take(np.array([1, 3, 5, 2]), np.array([1, 1, 0, 30])).numpy()
    expected = [
        store.windows(1)[1],
        store.variant(1, 1, augment)[1],
        store.variant(1, 2, augment)[0],
        store.variant(0, 1, augment)[30],
    ]
    np.testing.assert_array_equal(found, np.stack(expected).astype(np.float32))
