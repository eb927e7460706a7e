"""What training starts from: its recipe, and the shipped model where nobody names one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from stapes.catalogue import ShippedModel, nearest_start
from stapes.config import Recipe, load_recipe, override_recipe, parse_recipe
from stapes.data import Dataset
from stapes.errors import ConfigError
from stapes.training.initialization import INHERITED, WINDOWING, adopt_model

__all__ = [
    "FEW_CLIPS",
    "SHORTEST_WINDOW",
    "chosen_recipe",
    "default_start",
    "leaves_start_open",
    "start_settings",
]

FEW_CLIPS = 600
"""Recordings up to which training starts from a shipped model by default."""

SHORTEST_WINDOW = 0.5
"""Seconds; shorter windows would give shipped networks fewer frames than they need."""

# Recordings whose format is looked at.
_LOOKED_AT = 64
# Corpora that are a part of another.
_PART_OF = {"esc10": "esc50"}


def chosen_recipe(
    recipe: str | Path | Recipe | None, overrides: Sequence[str], init: str | Path | None
) -> Recipe:
    """The recipe to train by, with what comes from the model that training starts from.

    Args:
        recipe: name, TOML file or recipe; none: ``small``, or ``finetune`` with ``init``.
        overrides: ``section.field=value``, on top of a name or file.
        init: model to start from; none: what the recipe says.

    Raises:
        ConfigError: a wrong recipe, or settings of what comes from the model.
        ModelFileError: a model that cannot be trained further.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise ValueError("overrides go with a recipe's name or file")
        if init is not None:
            tree = recipe.model_dump()
            tree["initialization"] |= {"weights": "model", "file": str(init), "sha256": None}
            recipe = parse_recipe(tree, recipe.name)
    else:
        start = []
        if init is not None:  # in front: what is set by hand may be the number of its blocks
            start = ["weights=model", f"file={json.dumps(str(init))}", "sha256=none"]
        recipe = load_recipe(
            recipe or ("small" if init is None else "finetune"),
            # What comes from the model is refused below, where the message can name it.
            [f"initialization.{part}" for part in start]
            + [o for o in overrides if init is None or not _inherited(o)],
        )
    if recipe.initialization.weights != "model":
        return recipe
    for override in filter(_inherited, overrides):
        if _windowing(override):
            continue
        raise ConfigError(
            f"--set {override}: that section comes from {recipe.initialization.file}, whose "
            "weights fit no other; leave it out, or train from the start with --init none."
        )
    adopted = adopt_model(recipe)
    if recipe.initialization.sha256 is not None:  # of a run, whose windows may have been others
        windows = {k: getattr(recipe.audio, k) for k in WINDOWING}
        adopted = adopted.model_copy(update={"audio": adopted.audio.model_copy(update=windows)})
    return override_recipe(adopted, [f for f in overrides if _windowing(f)])


def leaves_start_open(overrides: Sequence[str]) -> bool:
    """Whether these settings say nothing of the weights to start from and what comes with them."""
    return not any(
        _section(override) == "initialization"
        or (_inherited(override) and not _windowing(override))
        for override in overrides
    )


def start_settings(dataset: Dataset) -> list[str]:
    """What the recipe ``finetune`` changes for so few recordings, as ``section.field=value``.

    Their own length makes the windows, as far as the shipped networks take so short ones. 6000
    clips in all, in 12 to 30 epochs, and one rate for all blocks were enough in a few trials.
    """
    window = "auto"
    _, seconds = _looked_at(dataset)
    if seconds and np.quantile(seconds, 0.9) < SHORTEST_WINDOW:
        window = str(SHORTEST_WINDOW)
    epochs = min(30, max(12, round(6000 / len(dataset))))
    return [
        f"audio.window_seconds={window}",
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
    rates, seconds = _looked_at(dataset)
    if not rates:
        return None
    return nearest_start(
        int(np.median(rates)),
        float(np.median(seconds)),
        data=_PART_OF.get(dataset.name, dataset.name),
    )


def _looked_at(dataset: Dataset) -> tuple[list[int], list[float]]:
    """Sample rates (Hz) and lengths (seconds) of some recordings, by their headers."""
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
    return rates, seconds


def _inherited(override: str) -> bool:
    return _section(override) in INHERITED


def _section(override: str) -> str:
    return override.partition(".")[0].strip()


def _windowing(override: str) -> bool:
    field = override.partition("=")[0].partition(".")[2].strip()
    return _section(override) == "audio" and field in WINDOWING
