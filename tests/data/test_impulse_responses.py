"""Variants of another device: the responses, where they are kept, and what they do to windows."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from numpy.typing import NDArray

from stapes.audio import fit_length, read, split_windows
from stapes.augment import WaveformChange, change_waveform, convolve, impulse_response
from stapes.config import AudioConfig, AugmentConfig, Recipe, load_recipe, parse_recipe, to_toml
from stapes.data import Clip, Dataset, scan
from stapes.data.impulse_responses import pin_impulse_responses, read_impulse_responses
from stapes.data.loader import FeatureStore
from stapes.errors import ConfigError
from stapes.features import LogMel

RATE = 8000
WINDOW = AudioConfig(sample_rate=RATE, window_seconds=1.0)

Samples = NDArray[np.float32]


def _response(seed: int, n: int = 2000, peak: int = 300) -> Samples:
    """Random, dying away to both sides of its peak."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-np.abs(np.arange(n) - peak) / 200)
    taps = (0.05 * rng.standard_normal(n) * decay).astype(np.float32)
    taps[peak] = 0.5
    return taps


def _write(path: Path, samples: Samples, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, "FLOAT")
    return path


def _augment(place: Path, **fields: object) -> AugmentConfig:
    settings = {"impulse_responses": str(place), "waveform_variants": 1, **fields}
    return AugmentConfig.model_validate(settings)


def _store(tmp_path: Path, audio: AudioConfig, seconds: float = 3.3) -> FeatureStore:
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, (round(seconds * RATE), audio.channels))
    path = _write(tmp_path / "x.wav", samples.astype(np.float32))
    dataset = Dataset("x", tmp_path, (Clip(path, "a"),), ("a",))
    frontend = LogMel(sample_rate=RATE, n_fft=256, hop_length=200, n_mels=20)
    return FeatureStore(dataset.clips, scan(dataset), frontend, audio, tmp_path / "cache")


def _features(store: FeatureStore, windows: Samples) -> NDArray[np.float16]:
    found: NDArray[np.float32] = store.frontend(torch.from_numpy(windows)).numpy()
    return found.astype(np.float16)


@pytest.mark.parametrize(("seconds", "peak"), [(3.3, 0), (3.3, 1999), (1.0, 300), (0.4, 300)])
@pytest.mark.parametrize(
    "audio",
    [
        {},
        {"hop_seconds": 0.35, "channels": 2},
        {"longer": "crop"},
        {"shorter": "repeat"},
    ],
    ids=str,
)
def test_windows_are_those_of_the_recording_convolved_as_a_whole(
    tmp_path: Path, audio: dict[str, object], seconds: float, peak: int
) -> None:
    config = AudioConfig.model_validate({**WINDOW.model_dump(), **audio})
    store = _store(tmp_path, config, seconds)
    taps = _response(1, peak=peak)
    found = store.variant(0, 1, _augment(_write(tmp_path / "response.wav", taps)))
    whole = convolve(read(store.clips[0].path), impulse_response(taps))
    expected = split_windows(whole, RATE, store.hop, shorter=config.shorter, longer=config.longer)
    np.testing.assert_allclose(
        found.astype(float), _features(store, expected).astype(float), rtol=0, atol=0.07
    )  # two steps of half precision
    assert np.abs(found.astype(float) - store.windows(0).astype(float)).mean() > 0.5


def test_long_recordings_are_convolved_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _write(tmp_path / "response.wav", _response(1))
    longest = 0

    def watched(waveform: Samples, response: object) -> Samples:
        nonlocal longest
        longest = max(longest, waveform.shape[1])
        return convolve(waveform, response)  # type: ignore[arg-type]

    at_once = _store(tmp_path / "one", WINDOW, 20.0).variant(0, 1, _augment(place))
    monkeypatch.setattr("stapes.data.loader.convolve", watched)
    monkeypatch.setattr("stapes.data.loader._BLOCK_SECONDS", 0.3)
    found = _store(tmp_path / "two", WINDOW, 20.0).variant(0, 1, _augment(place))
    np.testing.assert_array_equal(found, at_once)
    assert longest == RATE + 1999


@pytest.mark.parametrize("speed", [0.8, 1.25])
@pytest.mark.parametrize("seconds", [3.3, 1.0])
def test_the_device_hears_the_changed_sound(tmp_path: Path, speed: float, seconds: float) -> None:
    store = _store(tmp_path, AudioConfig(sample_rate=RATE, window_seconds=1.0), seconds)
    taps = _response(1)
    augment = _augment(
        _write(tmp_path / "response.wav", taps), pitch_semitones=3.0, time_stretch=(speed, speed)
    )
    found = store.variant(0, 1, augment)
    assert found.shape == store.windows(0).shape
    _, change = store._drawn(0, 1, augment)
    assert change is not None
    whole = read(store.clips[0].path)
    moved = change_waveform(whole, RATE, semitones=change.semitones, speed=speed)
    device = convolve(moved, impulse_response(taps))
    if seconds == 1.0 and speed > 1:  # all of the recording becomes a part of the window
        expected = _features(store, fit_length(device, RATE)[None])
        np.testing.assert_array_equal(found, expected)
        return
    # The vocoder's frames lie elsewhere: of noise, the colour is the same.
    colour = _features(store, device[None]).astype(float).mean((0, 1, 3))
    difference = np.abs(found.astype(float).mean((0, 1, 3)) - colour)
    other = np.abs(_features(store, moved[None]).astype(float).mean((0, 1, 3)) - colour)
    assert difference[:-3].max() < 1.5 < other[:-3].max()


def test_a_late_impulse_with_another_pace_changes_nothing_more(tmp_path: Path) -> None:
    impulse = np.zeros(900, np.float32)
    impulse[700] = 0.3
    store = _store(tmp_path, WINDOW)
    augment = _augment(_write(tmp_path / "response.wav", impulse), time_stretch=(1.2, 1.2))
    plain = AugmentConfig(time_stretch=(1.2, 1.2), waveform_variants=1)
    found, expected = (store.variant(0, 1, one).astype(float) for one in (augment, plain))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.07)


def test_variants_without_a_response_are_the_recording_itself(tmp_path: Path) -> None:
    store = _store(tmp_path, WINDOW)
    augment = _augment(
        _write(tmp_path / "response.wav", _response(1)),
        waveform_variants=40,
        impulse_response_probability=0.5,
    )
    seen: list[tuple[int, int]] = []
    store.prepare([0], variants=augment, progress=lambda *done: seen.append(done))
    drawn = [store._drawn(0, number, augment) for number in range(1, 41)]
    plain = [number for number, (_, change) in enumerate(drawn, 1) if change is None]
    assert 8 < len(plain) < 32
    assert seen[-1] == (41 - len(plain), 41 - len(plain)), "and are computed once"
    np.testing.assert_array_equal(store.variant(0, plain[0], augment), store.windows(0))


def test_keys_follow_the_responses_content_and_are_the_old_ones_without(tmp_path: Path) -> None:
    store = _store(tmp_path, WINDOW)
    store._keys = ["5f" * 16]
    ranges = {"pitch_semitones": 2.0, "time_stretch": (0.8, 1.25)}
    old = AugmentConfig.model_validate({**ranges, "waveform_variants": 1})
    # As it was before there were impulse responses, so that nobody's cache is lost.
    key, change = store._drawn(0, 2, old)
    assert change == WaveformChange(0.12359472408390726, 0.9268886051221504)
    assert key == f"{'5f' * 16}-e9f2b9f8241620d0d9a73eeedd48b075"

    first, second = _response(1), _response(2)
    both = tmp_path / "both"
    _write(both / "a.wav", first)
    _write(both / "b" / "c.wav", second)
    renamed = tmp_path / "renamed"
    _write(renamed / "z.wav", first)
    _write(renamed / "y.wav", second)
    shutil.copy(renamed / "y.wav", renamed / "once more.wav")
    with soundfile.SoundFile(renamed / "tagged.wav", "w", RATE, 1, "FLOAT") as file:
        file.comment = "another file of the same sound"
        file.write(first)
    assert (renamed / "tagged.wav").read_bytes() != (both / "a.wav").read_bytes()
    (renamed / "notes.txt").write_text("no audio")

    def drawn(place: Path, **fields: object) -> list[tuple[str, object]]:
        augment = _augment(place, **ranges, **fields)
        found = [store._drawn(0, number, augment) for number in (1, 2, 3, 4)]
        return [(key, c and c.response and tuple(c.response.taps)) for key, c in found]

    assert drawn(both) == drawn(renamed)
    assert len({taps for _, taps in drawn(both)}) == 2, "either is drawn"
    others = [drawn(both / "a.wav"), drawn(both, impulse_response_probability=0.9)]
    keys = {key for one in (drawn(both), *others) for key, _ in one}
    assert len(keys) == 12


def test_responses_are_mixed_and_resampled_to_the_audios_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    stereo = 0.3 * rng.standard_normal((4410, 2)) * np.exp(-np.arange(4410) / 300)[:, None]
    place = tmp_path / "response.flac"
    soundfile.write(place, stereo, 44_100, "PCM_24")
    (found,) = read_impulse_responses(_augment(place), RATE).responses
    mono = soundfile.read(place, dtype="float32")[0].mean(1)
    taps = np.trim_zeros(soxr.resample(mono, 44_100, RATE, quality="HQ"))
    np.testing.assert_allclose(found.taps, taps / np.linalg.norm(taps), atol=1e-5)
    (as_it_is,) = read_impulse_responses(_augment(place)).responses
    assert len(as_it_is.taps) > 5 * len(found.taps)


def _empty(folder: Path) -> str:
    folder.mkdir()
    return "holds no audio file"


def _no_audio(folder: Path) -> str:
    _write(folder / "a.wav", _response(1))
    (folder / "b.wav").write_text("this is no sound")
    return r"b\.wav: "


def _silent(folder: Path) -> str:
    _write(folder / "b.wav", np.zeros(500, np.float32))
    return r"b\.wav: is silent at 8000 Hz; replace it"


def _opposed(folder: Path) -> str:
    taps = _response(1)
    _write(folder / "b.wav", np.stack([taps, -taps], 1))
    return r"b\.wav: is silent"


def _a_recording(folder: Path) -> str:
    _write(folder / "b.wav", _response(1, n=6 * RATE))
    return r"b\.wav: is longer than 5 seconds; cut"


def _not_finite(folder: Path) -> str:
    _write(folder / "b.wav", np.full(50, np.nan, np.float32))
    return r"b\.wav: .*not a number"


@pytest.mark.parametrize(
    "make", [_empty, _no_audio, _silent, _opposed, _a_recording, _not_finite, lambda _: "no such"]
)
@pytest.mark.parametrize("rate", [None, RATE])
def test_what_cannot_be_a_response_is_one_sentence(
    tmp_path: Path, make: object, rate: int | None
) -> None:
    message = make(tmp_path / "responses")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=rf"^augment\.impulse_responses: .*{message}") as caught:
        read_impulse_responses(_augment(tmp_path / "responses"), rate)
    assert "\n" not in str(caught.value)


def test_a_response_of_five_seconds_is_one(tmp_path: Path) -> None:
    place = _write(tmp_path / "hall.wav", _response(1, n=5 * RATE))
    assert len(read_impulse_responses(_augment(place), 16_000).responses) == 1


def _recipe(place: Path, *more: str) -> Recipe:
    return load_recipe(
        "small",
        [f"augment.impulse_responses={place}", "augment.waveform_variants=2", *more],
    )


def test_responses_are_pinned_by_their_digest(tmp_path: Path) -> None:
    place = _write(tmp_path / "responses" / "a.wav", _response(1)).parent
    plain = load_recipe("small")
    assert pin_impulse_responses(plain) is plain
    pinned = pin_impulse_responses(_recipe(place))
    digest = pinned.augment.impulse_responses_sha256
    assert digest == read_impulse_responses(pinned.augment, RATE).sha256
    assert pin_impulse_responses(pinned) == pinned
    _write(place / "b.wav", _response(2))
    sentence = r"^augment\.impulse_responses: .*: not the impulse responses that .*sha256 names"
    with pytest.raises(ConfigError, match=sentence):
        pin_impulse_responses(pinned)
    with pytest.raises(ConfigError, match=sentence):  # changed while a run is on its way
        _store(tmp_path, WINDOW).prepare([0], variants=pinned.augment)
    assert pin_impulse_responses(_recipe(place)).augment.impulse_responses_sha256 != digest


def test_recipes_with_responses_survive_toml(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "a folder", "augment.impulse_response_probability=0.6")
    assert recipe.augment.impulse_responses == str(tmp_path / "a folder")
    assert recipe.augment.impulse_response_probability == 0.6
    assert parse_recipe(tomllib.loads(to_toml(recipe))) == recipe
    off = ["augment.impulse_responses=none", "augment.waveform_variants=0"]
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(path, off).augment.impulse_responses is None
    with pytest.raises(ConfigError, match=r"goes with pitch_semitones, .* or impulse_responses"):
        load_recipe(path, off[:1])
    with pytest.raises(ConfigError, match=r"goes with pitch_semitones, .* or impulse_responses"):
        load_recipe(path, off[1:])
    with pytest.raises(ConfigError, match="impulse_response_probability"):
        _recipe(tmp_path, "augment.impulse_response_probability=0")
