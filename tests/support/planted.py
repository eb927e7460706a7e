"""Spectrograms with a pattern for each class, for tests that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stapes.config import Recipe
from stapes.features import BandNormalizer
from stapes.training.devices import make_accelerator
from stapes.training.loop import Examples, Teacher, fit

__all__ = ["BANDS", "CLASSES", "FRAMES", "Planted", "fit_planted"]

BANDS, FRAMES, CLASSES = 16, 20, 3


class Planted:
    """Each class has its stripes, along frequency, time or none; clips have 1 to 3 windows."""

    def __init__(self, n_clips: int = 30) -> None:
        rng = np.random.default_rng(0)
        self.targets = (np.arange(n_clips) % CLASSES).astype(np.int64)
        self.x = rng.standard_normal((n_clips, 3, 1, BANDS, FRAMES)).astype(np.float32)
        self.x[self.targets == 1, :, :, ::3] += 3
        self.x[self.targets == 2, :, :, :, ::3] += 3

    def n_windows(self, index: int) -> int:
        return 1 + index % 3

    def take(self, indices: NDArray[np.int64], windows: NDArray[np.int64]) -> torch.Tensor:
        assert all(w < self.n_windows(i) for i, w in zip(indices, windows, strict=True))
        return torch.from_numpy(self.x[indices, windows])


def fit_planted(
    network: nn.Module,
    folder: Path,
    recipe: Recipe,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
    validation: int = 0,
    fingerprint: str = "x",
    seed: int = 0,
    teacher: Teacher | None = None,
) -> list[dict[str, Any]]:
    """Train a network on them in place, the first ``validation`` of 30 clips set aside."""
    source = Planted()
    return fit(
        network,
        BandNormalizer(1, BANDS),
        Examples(
            source,
            source.targets,
            train=np.arange(validation, 30),
            validation=np.arange(validation),
            n_classes=CLASSES,
            frame_rate=10.0,
            decibel=torch.ones(BANDS),
            teacher=teacher,
        ),
        recipe,
        seed=seed,
        folder=folder,
        fingerprint=fingerprint,
        accelerator=make_accelerator("cpu", "float32"),
        on_step=on_step,
    )
