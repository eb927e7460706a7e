"""What a recipe leaves to the data, filled in."""

from __future__ import annotations

import math
from collections.abc import Iterable

from stapes.config.reading import parse_recipe
from stapes.config.schema import LogMelConfig, Recipe
from stapes.errors import ConfigError

__all__ = ["resolve"]


def resolve(recipe: Recipe, *, sample_rates: Iterable[int], durations: Iterable[float]) -> Recipe:
    """Fill in every ``"auto"`` from the data.

    The sample rate becomes the most common one, from 1000 to 22050 Hz. The window holds nine of
    ten recordings (the 90th percentile of their durations), rounded up to a tenth of a second,
    between 0.25 s and 10 s. The hop gives about 200 frames a window, between 8 ms and 25 ms. The
    FFT is the power of two that spans 46 ms or more; mel bands are 128, or 64 below 16 kHz. The
    epochs make 32,000 clips in all, counted before any are held out, so that training takes about
    as long for a few hundred clips as for two thousand and every fold gets the same number. A
    pruning ramp takes half of the epochs from its start on.

    Args:
        recipe: with or without ``"auto"`` values.
        sample_rates: of the recordings, Hz.
        durations: of the recordings, seconds.

    Raises:
        ConfigError: nothing to learn from, or values that do not go together once filled in.
    """
    audio, features = recipe.audio, recipe.features
    durations = sorted(durations)
    rate: int | str = audio.sample_rate
    if rate == "auto":
        counts: dict[int, int] = {}
        for value in sample_rates:
            limited = min(max(value, 1000), 22_050)
            counts[limited] = counts.get(limited, 0) + 1
        if not counts:
            raise ConfigError("audio.sample_rate = 'auto' needs at least one recording.")
        rate = max(counts, key=lambda r: (counts[r], r))
    window = audio.window_seconds
    if window == "auto":
        if not durations:
            raise ConfigError("audio.window_seconds = 'auto' needs at least one recording.")
        ninth = durations[math.ceil(0.9 * len(durations)) - 1]
        window = min(10.0, max(0.25, math.ceil(round(ninth * 10, 6)) / 10))
    audio = audio.model_copy(update={"sample_rate": rate, "window_seconds": window})
    if isinstance(features, LogMelConfig):
        update: dict[str, int] = {}
        hz, seconds = int(rate), float(window)
        if features.n_fft == "auto":
            update["n_fft"] = 2 ** math.ceil(math.log2(0.046 * hz))
        if features.n_mels == "auto":
            update["n_mels"] = 128 if hz >= 16_000 else 64
        if features.hop_length == "auto":
            update["hop_length"] = max(1, round(min(0.025, max(0.008, seconds / 200)) * hz))
        features = features.model_copy(update=update)
    training = recipe.training
    if training.epochs == "auto":
        epochs = min(100, max(15, math.ceil(32_000 / max(1, len(durations)))))
        training = training.model_copy(update={"epochs": epochs})
    pruning = recipe.pruning
    if pruning.ramp_epochs == "auto":
        assert not isinstance(training.epochs, str)
        left = max(0.0, training.epochs - pruning.start_epoch)
        pruning = pruning.model_copy(update={"ramp_epochs": left / 2})
    filled = {"audio": audio, "features": features, "training": training, "pruning": pruning}
    return parse_recipe(recipe.model_copy(update=filled).model_dump(), recipe.name)
