"""The model that training starts from where nobody names one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soundfile

from stapes.catalogue import ShippedModel, nearest_start
from stapes.data import Dataset
from stapes.training.initialization import INHERITED, WINDOWING

__all__ = ["FEW_CLIPS", "default_start", "leaves_start_open", "start_settings"]

FEW_CLIPS = 600
"""Recordings up to which training starts from a shipped model by default."""

# Recordings whose format is looked at.
_LOOKED_AT = 64
# Corpora that are a part of another.
_PART_OF = {"esc10": "esc50"}


def leaves_start_open(overrides: Sequence[str]) -> bool:
    """Whether these settings say nothing of the weights to start from and what comes with them."""
    for override in overrides:
        section, _, field = override.partition("=")[0].strip().partition(".")
        if section == "audio" and field in WINDOWING:
            continue
        if section in (*INHERITED, "initialization"):
            return False
    return True


def start_settings(n_clips: int) -> list[str]:
    """What the recipe ``finetune`` changes for so few recordings, as ``section.field=value``.

    Their own length makes the windows; 6000 clips in all, in 12 to 30 epochs, are enough, and all
    blocks learn at the same rate: results/README.md has the comparison.
    """
    epochs = min(30, max(12, round(6000 / n_clips)))
    return [
        "audio.window_seconds=auto",
        f"training.epochs={epochs}",
        "training.learning_rate=4e-3",
        "training.layer_decay=1.0",
    ]


def default_start(dataset: Dataset) -> ShippedModel | None:
    """The shipped model nearest to a few recordings.

    Returns:
        None where there are many recordings, no model to start from, or none that has not heard
        recordings of this name.
    """
    if len(dataset) > FEW_CLIPS:
        return None
    rates, seconds = [], []
    for i in np.linspace(0, len(dataset) - 1, min(len(dataset), _LOOKED_AT)).astype(int):
        clip = dataset.clips[i]
        try:
            found = soundfile.info(clip.path)
        except (OSError, soundfile.SoundFileError):  # told of when all are listened to
            continue
        rates.append(found.samplerate)
        end = found.duration if clip.end is None else min(clip.end, found.duration)
        seconds.append(max(0.01, end - (clip.start or 0.0)))
    if not rates:
        return None
    return nearest_start(
        int(np.median(rates)),
        float(np.median(seconds)),
        data=_PART_OF.get(dataset.name, dataset.name),
    )
