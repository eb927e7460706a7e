from __future__ import annotations

import numpy as np
import pytest
import torch

from stapes.augment import (
    FreqMixStyle,
    Mixup,
    add_noise_floor,
    apply_freq_mixstyle,
    apply_mixup,
    draw_equalizers,
    draw_freq_mixstyle,
    draw_gains,
    draw_masks,
    draw_mixup,
    draw_shifts,
    draw_speeds,
    mask_axis,
    roll_time,
    shift_frequency,
    stretch_time,
)


def test_roll_agrees_with_torch_roll() -> None:
    x = torch.randn(4, 2, 3, 10)
    shifts = torch.tensor([0, 3, -4, 10])
    expected = torch.stack([torch.roll(e, int(s), -1) for e, s in zip(x, shifts, strict=True)])
    assert torch.equal(roll_time(x, shifts), expected)


def test_rolls_cover_their_range_and_nothing_else() -> None:
    shifts = draw_shifts(2000, 3, np.random.default_rng(0))
    assert sorted(set(shifts.tolist())) == [-3, -2, -1, 0, 1, 2, 3]


def test_stretching_moves_a_click_and_keeps_pitch() -> None:
    x = torch.zeros(3, 1, 2, 40)
    x[..., 1, 20:22] = 1  # two frames, so that no speed up to two can jump over it
    found = stretch_time(x, torch.tensor([1.0, 2.0, 0.5]))
    assert torch.equal(found[0], x[0])
    assert found[1, 0, 1].nonzero().flatten().tolist() == [10]
    assert found[2, 0, 1].nonzero().flatten().tolist() == []  # now at frame 40, outside
    assert float(found[:, :, 0].abs().sum()) == 0
    speeds = draw_speeds(2000, 1.5, np.random.default_rng(0))
    assert 1 / 1.5 <= float(speeds.min()) < 0.7
    assert 1.45 < float(speeds.max()) <= 1.5
    assert float(speeds.log().mean()) == pytest.approx(0, abs=0.02)


def test_frequency_shift_agrees_with_edge_padding() -> None:
    x = torch.randn(3, 2, 6, 4)
    padded = torch.nn.functional.pad(x, (0, 0, 2, 2), mode="replicate")
    expected = torch.stack([padded[0, :, 2:8], padded[1, :, 0:6], padded[2, :, 3:9]])
    assert torch.equal(shift_frequency(x, torch.tensor([0, 2, -1])), expected)


@pytest.mark.parametrize("axis", [-2, -1])
def test_masks_agree_with_slices(axis: int) -> None:
    x = torch.ones(5, 2, 8, 9)
    size = x.shape[axis]
    starts, widths = draw_masks(5, 2, size, 4, np.random.default_rng(1))
    expected = x.clone()
    for b in range(5):
        for start, width in zip(starts[b].tolist(), widths[b].tolist(), strict=True):
            expected[b].narrow(axis, start, width).zero_()
    assert torch.equal(mask_axis(x, starts, widths, axis), expected)
    assert int(expected.eq(0).sum()) > 0
    with pytest.raises(ValueError, match="axis"):
        mask_axis(x, starts, widths, 1)


def test_masks_fit_and_reach_both_ends() -> None:
    starts, widths = draw_masks(4000, 1, 10, 4, np.random.default_rng(2))
    ends = starts + widths
    assert int(starts.min()) == 0
    assert int(ends.max()) == 10
    assert sorted(set(widths.flatten().tolist())) == [0, 1, 2, 3, 4]


def test_mixup_keeps_each_example_the_larger_part() -> None:
    mixup = draw_mixup(1000, 0.3, np.random.default_rng(3))
    assert sorted(mixup.partner.tolist()) == list(range(1000))
    assert float(mixup.weight.min()) >= 0.5
    assert float(mixup.weight.max()) <= 1.0
    # E max(lam, 1 - lam) of Beta(0.3, 0.3), by SciPy's numerical integration: 0.8659
    assert float(mixup.weight.mean()) == pytest.approx(0.8659, abs=0.015)


def test_mixup_of_inputs_and_targets_is_the_weighted_sum() -> None:
    mixup = Mixup(torch.tensor([1, 0]), torch.tensor([0.75, 1.0]))
    x = torch.tensor([[4.0], [8.0]])
    assert apply_mixup(x, mixup).tolist() == [[5.0], [8.0]]
    assert apply_mixup(torch.eye(2), mixup).tolist() == [[0.75, 0.25], [0.0, 1.0]]


def _bands(*shape: int) -> torch.Tensor:
    """Bands of levels and spreads of their own."""
    rng = np.random.default_rng(8)
    level = rng.normal(0, 2, (shape[0], 1, shape[2], 1))
    spread = rng.uniform(0.3, 3, (shape[0], 1, shape[2], 1))
    return torch.from_numpy((level + spread * rng.standard_normal(shape)).astype(np.float32))


def test_freq_mixstyle_agrees_with_a_loop_over_examples_and_bands() -> None:
    x = _bands(5, 2, 4, 30)
    mixstyle = FreqMixStyle(torch.tensor([3, 0, 2, 4, 1]), torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0]))
    values, expected = x.numpy().astype(np.float64), np.empty(x.shape)
    for b, (other, own) in enumerate(
        zip(mixstyle.partner.tolist(), mixstyle.weight.tolist(), strict=True)
    ):
        for band in range(4):
            a, c = values[b, :, band], values[other, :, band]
            mean = own * np.mean(a) + (1 - own) * np.mean(c)
            deviation = own * np.std(a) + (1 - own) * np.std(c)
            expected[b, :, band] = (a - np.mean(a)) / np.std(a) * deviation + mean
    np.testing.assert_allclose(apply_freq_mixstyle(x, mixstyle).numpy(), expected, atol=1e-4)


def test_freq_mixstyle_keeps_all_or_nothing_of_an_examples_own_style() -> None:
    x = _bands(4, 1, 6, 50)
    partner = torch.tensor([1, 2, 3, 0])
    same = apply_freq_mixstyle(x, FreqMixStyle(partner, torch.ones(4)))
    torch.testing.assert_close(same, x)
    other = apply_freq_mixstyle(x, FreqMixStyle(partner, torch.zeros(4)))
    torch.testing.assert_close(other.mean((1, 3)), x[partner].mean((1, 3)))
    torch.testing.assert_close(other.std((1, 3)), x[partner].std((1, 3)), rtol=1e-4, atol=0)
    # What happens in a band stays: only its level and its spread are another's.
    rows = zip(other.view(-1, 50).numpy(), x.view(-1, 50).numpy(), strict=True)
    assert min(np.corrcoef(a, b)[0, 1] for a, b in rows) > 1 - 1e-6


@pytest.mark.parametrize("shape", [(2, 1, 3, 1), (2, 2, 3, 20)])
def test_a_flat_band_takes_the_mean_and_no_noise(shape: tuple[int, ...]) -> None:
    """Silence has no deviation to divide by; nor has a single frame."""
    x = torch.full(shape, -5.0)
    x[1] = _bands(*shape)[1]
    found = apply_freq_mixstyle(x, FreqMixStyle(torch.tensor([1, 0]), torch.tensor([0.25, 1.0])))
    mean = 0.25 * -5.0 + 0.75 * x[1].mean((0, 2), keepdim=True)
    torch.testing.assert_close(found[0], mean.expand(shape[1:]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1], x[1])


def test_draws_of_freq_mixstyle_are_permutations_and_beta_weights() -> None:
    mixstyle = draw_freq_mixstyle(4000, 1.0, 0.3, np.random.default_rng(3))
    assert mixstyle is not None
    assert sorted(mixstyle.partner.tolist()) == list(range(4000))
    weight = mixstyle.weight
    assert weight.dtype == torch.float32
    assert 0 <= float(weight.min()) < 0.01
    assert 0.99 < float(weight.max()) <= 1
    # Mean and variance of Beta(a, a): 1/2 and 1 / (4 (2a + 1)).
    assert float(weight.mean()) == pytest.approx(0.5, abs=0.025)
    assert float(weight.var()) == pytest.approx(1 / (4 * 1.6), abs=0.01)
    drawn = [draw_freq_mixstyle(2, 0.4, 0.3, np.random.default_rng(s)) for s in range(1000)]
    assert sum(d is not None for d in drawn) / 1000 == pytest.approx(0.4, abs=0.05)
    assert draw_freq_mixstyle(2, 0.0, 0.3, np.random.default_rng(0)) is None


def test_the_same_generator_state_gives_the_same_draw() -> None:
    a, b = (draw_gains(7, 6.0, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert float(a.abs().max()) <= 6.0


def test_equalizers_are_straight_between_five_knots_and_bounded() -> None:
    gains = draw_equalizers(50, 9, 8.0, np.random.default_rng(6))
    assert gains.shape == (50, 9)
    assert float(gains.abs().max()) <= 8.0
    assert float(gains.std()) > 2
    # Nine bands over five knots: every odd band lies halfway between its neighbours.
    torch.testing.assert_close(gains[:, 1::2], (gains[:, 0:-1:2] + gains[:, 2::2]) / 2)


def test_noise_adds_its_power() -> None:
    x = torch.tensor([[[[-10.0, -40.0]]]])
    noisy = add_noise_floor(x, torch.tensor([[-20.0]]))
    expected = 10 * torch.log10(10 ** (x / 10) + 10 ** (-2.0))
    torch.testing.assert_close(noisy, expected)
    assert torch.equal(add_noise_floor(x, torch.tensor([[-torch.inf]])), x)
