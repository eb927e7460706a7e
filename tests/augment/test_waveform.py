"""The vocoder against known answers: tones, clicks, noise, and silence."""

from __future__ import annotations

import tracemalloc

import librosa
import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from stapes.augment import WaveformChange, change_waveform, draw_waveform_changes

RATE = 22_050
CHANGES = [(2.0, 1.0), (-2.0, 0.9), (1.3, 1.2), (0.0, 1.2), (0.0, 0.9), (-5.0, 1.7), (12.0, 0.5)]

Samples = NDArray[np.float32]


def _tone(frequency: float, seconds: float = 3.0, rate: int = RATE) -> Samples:
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)[None]


def _noise(channels: int = 1, n: int = 3 * RATE, level: float = 0.1) -> Samples:
    rng = np.random.default_rng(0)
    return (level * rng.standard_normal((channels, n))).astype(np.float32)


def _frequency(waveform: Samples, rate: int = RATE) -> float:
    """Of the strongest partial, Hz, from a parabola through the logarithms of the peak."""
    spectrum = np.abs(np.fft.rfft(waveform * np.blackman(len(waveform)), 4 * len(waveform)))
    peak = int(spectrum.argmax())
    left, middle, right = np.log(spectrum[peak - 1 : peak + 2])
    offset = 0.5 * (left - right) / (left - 2 * middle + right)
    return float((peak + offset) * rate / (4 * len(waveform)))


def _inner(waveform: Samples) -> Samples:
    """Without the ends, which a frame reaches over."""
    return waveform[:, RATE // 10 : -RATE // 10]


def _level(waveform: Samples) -> float:
    """Root mean square, dB."""
    return float(10 * np.log10((waveform.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize(("semitones", "speed"), CHANGES)
@pytest.mark.parametrize("frequency", [110.0, 440.0, 3000.0])
def test_a_tone_has_its_new_pitch_and_length_and_its_old_level(
    semitones: float, speed: float, frequency: float
) -> None:
    tone = _tone(frequency)
    changed = change_waveform(tone, RATE, semitones=semitones, speed=speed)
    assert changed.shape == (1, round(tone.shape[1] / speed))
    assert changed.dtype == np.float32
    wanted = frequency * 2 ** (semitones / 12)
    cents = 1200 * np.log2(_frequency(_inner(changed)[0]) / wanted)
    assert abs(cents) < 1
    assert _level(_inner(changed)) == pytest.approx(_level(tone), abs=0.05)
    # Frames that met in the wrong phase would be heard as a beat.
    envelope = librosa.feature.rms(y=_inner(changed), frame_length=2048, center=False)
    assert envelope.std() / envelope.mean() < 0.02


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_frames_are_as_long_at_every_rate(rate: int) -> None:
    changed = change_waveform(_tone(440.0, rate=rate), rate, semitones=-3.0, speed=1.1)
    assert abs(1200 * np.log2(_frequency(changed[0], rate) / (440 * 2**-0.25))) < 1


@pytest.mark.parametrize(("semitones", "speed"), CHANGES[:6])
def test_clicks_stay_in_place_and_short(semitones: float, speed: float) -> None:
    places = np.array([11_025, 33_075, 55_175])
    clicks = _noise(level=1e-4)
    clicks[0, places] = 1.0
    energy = change_waveform(clicks, RATE, semitones=semitones, speed=speed)[0].astype(float) ** 2
    for place in np.rint(places / speed).astype(int):
        around = energy[place - 2000 : place + 2000]
        time = (np.arange(-2000, 2000) / RATE) * 1000
        centre = (time * around).sum() / around.sum()
        width = np.sqrt(((time - centre) ** 2 * around).sum() / around.sum())
        # A frame is off by at most its own stretch; librosa's clicks are 8 to 15 ms wide.
        assert abs(centre) < (4 if 0.8 < speed < 1.3 else 12)
        assert width < 2


@pytest.mark.parametrize(("semitones", "speed"), CHANGES[:5])
def test_noise_keeps_its_level_and_its_colour(semitones: float, speed: float) -> None:
    noise = _noise()
    changed = change_waveform(noise, RATE, semitones=semitones, speed=speed)
    bands = {"sr": RATE, "n_fft": 2048, "n_mels": 20, "fmax": 8000.0}
    before = librosa.feature.melspectrogram(y=noise[0], **bands).mean(1)
    after = librosa.feature.melspectrogram(y=_inner(changed)[0], **bands).mean(1)
    # White noise played at another rate is white, and as strong per hertz by that rate.
    wanted = before * 2 ** (-semitones / 12)
    assert np.abs(10 * np.log10(after / wanted)).max() < 2.5
    assert abs(10 * np.log10(after.sum() / wanted.sum())) < 1.5


def test_partials_of_a_chord_are_all_there_and_no_others() -> None:
    chord = _tone(330.0) / 3 + _tone(440.0) / 3 + _tone(1234.0) / 3
    changed = change_waveform(chord, RATE, semitones=2.0, speed=0.9)
    spectrum = np.abs(np.fft.rfft(_inner(changed)[0] * np.hanning(_inner(changed).shape[1])))
    frequencies = np.fft.rfftfreq(_inner(changed).shape[1], 1 / RATE)
    near = np.zeros(len(spectrum), bool)
    for partial in (330.0, 440.0, 1234.0):
        near |= np.abs(frequencies - partial * 2 ** (2 / 12)) < 8
    assert (spectrum[near] ** 2).sum() > 0.999 * (spectrum**2).sum()


def test_nothing_to_change_changes_nothing() -> None:
    noise = _noise(2, 5000)
    same = change_waveform(noise, RATE)
    np.testing.assert_array_equal(same, noise)
    assert not np.shares_memory(same, noise)
    # An octave up in half the time: the resampler has done it all, the vocoder has to leave it.
    octave = change_waveform(noise, RATE, semitones=12.0, speed=2.0)
    np.testing.assert_allclose(octave, soxr.resample(noise.T, 2.0, 1.0).T, atol=1e-5)


@pytest.mark.parametrize("semitones", [0.0, 3.0])
def test_channels_keep_what_is_between_them(semitones: float) -> None:
    one = _noise(1)
    pan = np.concatenate([one, -0.3 * one])
    changed = change_waveform(pan, RATE, semitones=semitones, speed=1.15)
    np.testing.assert_allclose(changed[1], -0.3 * changed[0], atol=1e-6)
    # What one channel holds is followed there, also where another is silent.
    alone = change_waveform(np.concatenate([np.zeros_like(one), one]), RATE, speed=1.15)
    assert not alone[0].any()
    np.testing.assert_allclose(alone[1], change_waveform(one, RATE, speed=1.15)[0], atol=1e-5)
    # One after the other they would each find phases of their own.
    wide = _noise(2)
    wide[1] = 0.5 * wide[0] + 0.5 * wide[1]
    before = np.corrcoef(wide)[0, 1]
    after = np.corrcoef(change_waveform(wide, RATE, semitones=semitones, speed=1.15))[0, 1]
    assert after == pytest.approx(before, abs=0.02)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 500])
@pytest.mark.parametrize(("semitones", "speed"), [*CHANGES, (24.0, 4.0), (-24.0, 0.25)])
def test_what_is_shorter_than_a_frame_has_its_length(
    n: int, semitones: float, speed: float
) -> None:
    changed = change_waveform(_noise(2, n), RATE, semitones=semitones, speed=speed)
    assert changed.shape == (2, round(n / speed))
    assert np.isfinite(changed).all()
    assert np.abs(changed).max(initial=0) < 1


def test_silence_stays_silent_also_beside_sound() -> None:
    assert not change_waveform(np.zeros((1, 9000), np.float32), RATE, semitones=1, speed=1.1).any()
    half = _tone(440.0)
    half[:, RATE : 2 * RATE] = 0
    changed = change_waveform(half, RATE, semitones=2.0, speed=1.2)
    # The frames at the edges smear less than their length.
    silent = changed[0, round((RATE + 1300) / 1.2) : round((2 * RATE - 1300) / 1.2)]
    assert _level(silent[None]) < -60
    back = changed[0, round((2 * RATE + 1300) / 1.2) :]
    assert _level(back[None]) == pytest.approx(_level(_tone(440.0)), abs=0.5)


def test_memory_beyond_input_and_output_does_not_grow() -> None:
    def peak(seconds: int) -> int:
        noise = _noise(1, seconds * RATE)
        tracemalloc.start()
        try:
            change_waveform(noise, RATE, speed=0.9)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    samples = 4 * RATE * (1 + 1 / 0.9)  # bytes per second of input and output
    assert peak(40) - peak(10) < 30 * 2.5 * samples


def test_draws_are_uniform_in_their_ranges_and_repeat() -> None:
    drawn = draw_waveform_changes(2000, 2.0, (0.9, 1.2), np.random.default_rng(3))
    assert drawn == draw_waveform_changes(2000, 2.0, (0.9, 1.2), np.random.default_rng(3))
    semitones = np.array([change.semitones for change in drawn])
    speeds = np.array([change.speed for change in drawn])
    for values, low, high in ((semitones, -2.0, 2.0), (speeds, 0.9, 1.2)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert abs(np.corrcoef(semitones, speeds)[0, 1]) < 0.1
    still = draw_waveform_changes(3, 0.0, (1.0, 1.0), np.random.default_rng(0))
    assert still == [WaveformChange(0.0, 1.0)] * 3


@pytest.mark.parametrize(
    ("waveform", "arguments"),
    [
        (np.zeros(5, np.float32), {}),
        (np.zeros((1, 5)), {}),
        (np.zeros((1, 5), np.float32), {"speed": 0.1}),
        (np.zeros((1, 5), np.float32), {"semitones": 25.0}),
        (np.zeros((1, 5), np.float32), {"semitones": float("nan")}),
    ],
)
def test_what_cannot_be_is_refused(waveform: Samples, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"float32, not|speed 0\.25 to 4, not"):
        change_waveform(waveform, RATE, **arguments)
