"""What happens to a batch between the feature cache and the network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stapes.augment import (
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
from stapes.config import AugmentConfig

__all__ = ["augment_batch"]


def augment_batch(
    x: Tensor,
    augment: AugmentConfig,
    normalizer: nn.Module,
    rng: np.random.Generator,
    *,
    frame_rate: float,
    decibel: Tensor,
) -> tuple[Tensor, Mixup | None]:
    """Change a batch at random.

    In this order: level, colour, noise, normalisation, Freq-MixStyle, pace, roll, shift, masks,
    mixup.

    Args:
        x: (B, C, F, T) features before normalisation.
        augment: the recipe's section.
        normalizer: (B, C, F, T) to the same, per band.
        rng: of all draws.
        frame_rate: frames per second of ``x``.
        decibel: (F,) what a band changes by when the sound gets one decibel louder.

    Returns:
        Inputs (B, C, F, T), and how they were mixed, for whatever goes with them.
    """
    batch, _, bands, frames = x.shape
    if augment.gain_db or augment.equalizer_db or augment.noise_probability:
        # In decibels, whatever scale the front end has; a band without any filter has no decibel.
        unit = decibel.to(x.device)[:, None]
        unit = unit.where(unit > 0, 1.0)
        x = unit * _other_recording(x / unit, augment, rng)
    x = normalizer(x)
    if augment.freq_mixstyle_probability:
        # After normalisation, so that all channels count the same; for one channel it would not
        # matter, because that shifts and scales a band of all examples alike. Before the sound is
        # moved over the bands, which would move its device's mark along. And before masks: the
        # authors mask first, but a masked band is flat, so it would give its partner a wrong mean
        # and get that one's in place of 0.
        probability, alpha = augment.freq_mixstyle_probability, augment.freq_mixstyle_alpha
        mixstyle = draw_freq_mixstyle(batch, probability, alpha, rng)
        if mixstyle is not None:
            x = apply_freq_mixstyle(x, mixstyle)
    if augment.largest_speed > 1:
        x = stretch_time(x, draw_speeds(batch, augment.largest_speed, rng))
    if augment.time_roll_seconds:
        limit = min(frames, round(augment.time_roll_seconds * frame_rate))
        x = roll_time(x, draw_shifts(batch, limit, rng))
    if augment.frequency_shift_fraction:
        limit = round(augment.frequency_shift_fraction * bands)
        x = shift_frequency(x, draw_shifts(batch, limit, rng))
    for axis, count, fraction in (
        (-2, augment.frequency_masks, augment.frequency_mask_fraction),
        (-1, augment.time_masks, augment.time_mask_fraction),
    ):
        if count:
            size = bands if axis == -2 else frames
            x = mask_axis(x, *draw_masks(batch, count, size, round(fraction * size), rng), axis)
    if not augment.mixup_alpha:
        return x, None
    mixup = draw_mixup(batch, augment.mixup_alpha, rng)
    return apply_mixup(x, mixup), mixup


def _other_recording(x: Tensor, augment: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """The same sound (dB) at another level, through another microphone, in other noise."""
    batch, _, bands, _ = x.shape
    if augment.gain_db:
        x = x + draw_gains(batch, augment.gain_db, rng).to(x.device).view(-1, 1, 1, 1)
    if augment.equalizer_db:
        gains = draw_equalizers(batch, bands, augment.equalizer_db, rng).to(x.device)
        x = x + gains[:, None, :, None]
    if augment.noise_probability:
        below = rng.uniform(*augment.noise_db, batch)
        below[rng.random(batch) >= augment.noise_probability] = -np.inf
        level = x.amax((1, 2, 3)) + torch.from_numpy(below.astype(np.float32)).to(x.device)
        colour = draw_equalizers(batch, bands, 10.0, rng).to(x.device)
        x = add_noise_floor(x, level[:, None] + colour)
    return x
