"""Convolution with impulse responses against NumPy's, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stapes.augment import ImpulseResponse, convolve, draw_waveform_changes, impulse_response

Samples = NDArray[np.float32]


def _noise(*shape: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 3, 40, 1000, 4097])
@pytest.mark.parametrize(("n_taps", "peak"), [(1, 0), (2, 1), (60, 0), (60, 17), (2000, 1999)])
def test_convolution_agrees_with_the_sum_written_out(n: int, n_taps: int, peak: int) -> None:
    taps = _noise(n_taps, seed=1)
    taps[peak] = -9.0 if peak else 9.0  # the largest size, either way up
    wave = _noise(2, n)
    found = convolve(wave, impulse_response(taps))
    scaled = taps.astype(np.float64) / np.linalg.norm(taps.astype(np.float64))
    full = [np.convolve(channel.astype(np.float64), scaled) for channel in wave]
    expected = np.stack(full)[:, peak : peak + n]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("level", [1.0, -0.5, 1e-3])
@pytest.mark.parametrize("delay", [0, 1, 500])
def test_an_impulse_changes_nothing_however_late_or_loud(level: float, delay: int) -> None:
    impulse = np.zeros(800, np.float32)
    impulse[delay] = level
    response = impulse_response(impulse)
    assert (response.before, response.after) == (0, 0)
    wave = _noise(1, 3000)
    np.testing.assert_allclose(convolve(wave, response), np.sign(level) * wave, atol=1e-6)


def test_a_filter_of_linear_phase_moves_nothing_in_time() -> None:
    """A low-pass keeps a tone below its edge where it is, and takes one above away."""
    rate = 8000
    time = np.arange(rate) / rate
    low, high = (np.sin(2 * np.pi * f * time).astype(np.float32) for f in (300, 3500))
    taps = np.sinc(np.arange(-63, 64) / 4).astype(np.float32)  # 1000 Hz
    taps *= np.hanning(129)[1:-1].astype(np.float32)
    response = impulse_response(np.concatenate([np.zeros(200, np.float32), taps]))
    assert (response.before, response.after) == (63, 63)
    found = convolve((low + high)[None], response)[0, 200:-200]
    gain = float(found @ low[200:-200] / (low[200:-200] @ low[200:-200]))
    assert gain == pytest.approx(taps.sum() / np.linalg.norm(taps), rel=1e-3)
    assert np.abs(found - gain * low[200:-200]).max() < 1e-3 * gain


def test_the_level_of_noise_is_kept() -> None:
    decay = _noise(400, seed=2) * np.exp(-np.arange(400) / 50).astype(np.float32)
    for gain in (1e-3, 1.0, 20.0):
        response = impulse_response(gain * decay)
        assert np.square(response.taps).sum() == pytest.approx(1)
        change = np.square(convolve(_noise(1, 100_000), response)).mean()
        assert 10 * np.log10(change) == pytest.approx(0, abs=0.1)


def test_silence_is_no_response() -> None:
    for silent in (np.zeros(9, np.float32), np.full(9, 1e-7, np.float32), np.zeros(0, np.float32)):
        with pytest.raises(ValueError, match="silent"):
            impulse_response(silent)


def test_responses_are_drawn_alike_beside_the_same_pitch_and_speed() -> None:
    responses = [impulse_response(_noise(5, seed=seed)) for seed in range(3)]
    ranges = (2.0, (0.9, 1.2))
    plain = draw_waveform_changes(3000, *ranges, np.random.default_rng(4))
    drawn = draw_waveform_changes(3000, *ranges, np.random.default_rng(4), responses, 0.6)
    assert drawn == draw_waveform_changes(3000, *ranges, np.random.default_rng(4), responses, 0.6)
    assert [(c.semitones, c.speed) for c in drawn] == [(c.semitones, c.speed) for c in plain]
    assert {c.response for c in plain} == {None}
    counts = {r: sum(c.response is r for c in drawn) for r in [*responses, None]}
    assert sum(counts.values()) == 3000
    for response in responses:
        assert counts[response] / 3000 == pytest.approx(0.2, abs=0.025)
    always = draw_waveform_changes(99, *ranges, np.random.default_rng(4), responses)
    assert {type(c.response) for c in always} == {ImpulseResponse}


def test_without_responses_nothing_more_is_drawn() -> None:
    ours, theirs = np.random.default_rng(5), np.random.default_rng(5)
    draw_waveform_changes(7, 2.0, (0.9, 1.2), ours)
    theirs.random(14)
    assert ours.bit_generator.state == theirs.bit_generator.state
