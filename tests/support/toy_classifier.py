"""A classifier whose answers depend on every sample of a window, without a network."""

from __future__ import annotations

import numpy as np

from stapes.inference import AudioSettings, BaseClassifier

LABELS = ("low", "middle", "high")


class ToyClassifier(BaseClassifier):
    """Softmax of random projections of the window; shifting it by a sample changes everything."""

    def __init__(self, rate: int = 1000, window: float = 0.4, channels: int = 1, **audio) -> None:
        settings = AudioSettings(rate, channels, window, **audio)
        super().__init__(LABELS, settings)
        rng = np.random.default_rng(7)
        self._weights = rng.standard_normal((3, channels * settings.window))
        self.calls: list[int] = []

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        assert windows.dtype == np.float32
        assert windows.shape[1:] == (self.audio.channels, self.audio.window)
        self.calls.append(len(windows))
        logits = windows.reshape(len(windows), -1).astype(np.float64) @ self._weights.T
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return (odds / odds.sum(1, keepdims=True)).astype(np.float32)
