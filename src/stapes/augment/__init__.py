"""Random changes of training examples: one function draws, another applies."""

from stapes.augment.impulse import ImpulseResponse, convolve, impulse_response
from stapes.augment.mixing import (
    FreqMixStyle,
    Mixup,
    apply_freq_mixstyle,
    apply_mixup,
    draw_freq_mixstyle,
    draw_mixup,
)
from stapes.augment.spectrogram import (
    add_noise_floor,
    draw_equalizers,
    draw_gains,
    draw_masks,
    draw_shifts,
    draw_speeds,
    mask_axis,
    roll_time,
    shift_frequency,
    stretch_time,
)
from stapes.augment.waveform import WaveformChange, change_waveform, draw_waveform_changes

__all__ = [
    "FreqMixStyle",
    "ImpulseResponse",
    "Mixup",
    "WaveformChange",
    "add_noise_floor",
    "apply_freq_mixstyle",
    "apply_mixup",
    "change_waveform",
    "convolve",
    "draw_equalizers",
    "draw_freq_mixstyle",
    "draw_gains",
    "draw_masks",
    "draw_mixup",
    "draw_shifts",
    "draw_speeds",
    "draw_waveform_changes",
    "impulse_response",
    "mask_axis",
    "roll_time",
    "shift_frequency",
    "stretch_time",
]
