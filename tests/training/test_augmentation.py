"""What a batch goes through before the network: its order, and its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stapes.augment import (
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
from stapes.config import AugmentConfig
from stapes.features import BandNormalizer
from stapes.training.augmentation import augment_batch

BATCH, CHANNELS, BANDS, FRAMES = 6, 2, 12, 40
EVERYTHING = AugmentConfig(
    mixup_alpha=0.3,
    time_roll_seconds=1.0,
    largest_speed=1.3,
    frequency_shift_fraction=0.2,
    time_masks=2,
    frequency_masks=1,
    frequency_mask_fraction=0.3,
    gain_db=6.0,
    equalizer_db=4.0,
    noise_probability=0.5,
)


def _batch() -> tuple[Tensor, Tensor, BandNormalizer]:
    rng = np.random.default_rng(0)
    shape = (BATCH, CHANNELS, BANDS, FRAMES)
    x = torch.from_numpy(rng.normal(-40, 10, shape).astype(np.float32))
    normalizer = BandNormalizer(CHANNELS, BANDS)
    normalizer.fit(x.numpy())
    return x, torch.from_numpy(rng.integers(0, 3, BATCH)), normalizer


def _augmented(augment: AugmentConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Inputs, and labels mixed as they were."""
    x, hard, normalizer = _batch()
    x, mixup = augment_batch(
        x, augment, normalizer, rng, frame_rate=10.0, decibel=torch.ones(BANDS)
    )
    targets = F.one_hot(hard, 3).float()
    return x, targets if mixup is None else apply_mixup(targets, mixup)


def _one_after_the_other(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """EVERYTHING, written out."""
    x, hard, normalizer = _batch()
    x = x + draw_gains(BATCH, 6.0, rng).view(-1, 1, 1, 1)
    x = x + draw_equalizers(BATCH, BANDS, 4.0, rng)[:, None, :, None]
    below = rng.uniform(-70.0, -20.0, BATCH)
    below[rng.random(BATCH) >= 0.5] = -np.inf
    level = x.amax((1, 2, 3)) + torch.from_numpy(below.astype(np.float32))
    x = add_noise_floor(x, level[:, None] + draw_equalizers(BATCH, BANDS, 10.0, rng))
    x = normalizer(x)
    x = stretch_time(x, draw_speeds(BATCH, 1.3, rng))
    x = roll_time(x, draw_shifts(BATCH, 10, rng))
    x = shift_frequency(x, draw_shifts(BATCH, 2, rng))
    x = mask_axis(x, *draw_masks(BATCH, 1, BANDS, 4, rng), -2)
    x = mask_axis(x, *draw_masks(BATCH, 2, FRAMES, 4, rng), -1)
    mixup = draw_mixup(BATCH, 0.3, rng)
    return apply_mixup(x, mixup), apply_mixup(F.one_hot(hard, 3).float(), mixup)


def test_the_order_of_everything_and_no_other_draw() -> None:
    """A run of before Freq-MixStyle gives the same batches: switched off, it draws nothing."""
    ours, theirs = np.random.default_rng(7), np.random.default_rng(7)
    found, expected = _augmented(EVERYTHING, ours), _one_after_the_other(theirs)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert ours.bit_generator.state == theirs.bit_generator.state


def test_without_augmentation_a_batch_is_only_normalised() -> None:
    x, hard, normalizer = _batch()
    rng = np.random.default_rng(1)
    before = rng.bit_generator.state
    found, targets = _augmented(AugmentConfig(mixup_alpha=0.0), rng)
    assert torch.equal(found, normalizer(x))
    assert torch.equal(targets, F.one_hot(hard, 3).float())
    assert rng.bit_generator.state == before


def test_freq_mixstyle_is_between_normalisation_and_all_that_moves_or_masks() -> None:
    augment = EVERYTHING.model_copy(
        update={
            "gain_db": 0.0,
            "equalizer_db": 0.0,
            "noise_probability": 0.0,
            "freq_mixstyle_probability": 1.0,
            "freq_mixstyle_alpha": 0.7,
        }
    )
    x, hard, normalizer = _batch()
    found, targets = _augmented(augment, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    mixstyle = draw_freq_mixstyle(BATCH, 1.0, 0.7, rng)
    assert mixstyle is not None
    x = apply_freq_mixstyle(normalizer(x), mixstyle)
    x = stretch_time(x, draw_speeds(BATCH, 1.3, rng))
    x = roll_time(x, draw_shifts(BATCH, 10, rng))
    x = shift_frequency(x, draw_shifts(BATCH, 2, rng))
    x = mask_axis(x, *draw_masks(BATCH, 1, BANDS, 4, rng), -2)
    x = mask_axis(x, *draw_masks(BATCH, 2, FRAMES, 4, rng), -1)
    mixup = draw_mixup(BATCH, 0.3, rng)
    assert torch.equal(found, apply_mixup(x, mixup))
    assert torch.equal(targets, apply_mixup(F.one_hot(hard, 3).float(), mixup))


def test_freq_mixstyle_leaves_targets_and_as_many_batches_as_it_says() -> None:
    x, hard, normalizer = _batch()
    augment = AugmentConfig(mixup_alpha=0.0, freq_mixstyle_probability=0.25)
    left = 0
    for seed in range(200):
        found, targets = _augmented(augment, np.random.default_rng(seed))
        assert torch.equal(targets, F.one_hot(hard, 3).float())
        left += torch.equal(found, normalizer(x))
    assert left / 200 == pytest.approx(0.75, abs=0.1)  # three deviations of the binomial
