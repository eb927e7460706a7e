"""Recipes: everything that decides what a training run computes, as strict TOML.

A recipe is frozen, every field has a meaning and a range, and an unknown key is refused with the
valid ones listed. ``"auto"`` values are filled in from the data by :func:`resolve` before
training; the resolved recipe is what the run folder and the model file keep, so that a run can be
repeated without the data's help.
"""

from __future__ import annotations

from stapes.config.reading import (
    load_recipe,
    override_recipe,
    parse_recipe,
    recipe_names,
    recipe_source,
    to_toml,
)
from stapes.config.resolving import resolve
from stapes.config.schema import (
    KINDS,
    AudioConfig,
    AugmentConfig,
    CpResNetConfig,
    DistillationConfig,
    InitializationConfig,
    LogMelConfig,
    NormalizationConfig,
    PerceptualMelConfig,
    PruningConfig,
    QuantizationConfig,
    Recipe,
    ThreeWindowLogMelConfig,
    TimmConfig,
    TrainingConfig,
    sections,
)

__all__ = [
    "KINDS",
    "AudioConfig",
    "AugmentConfig",
    "CpResNetConfig",
    "DistillationConfig",
    "InitializationConfig",
    "LogMelConfig",
    "NormalizationConfig",
    "PerceptualMelConfig",
    "PruningConfig",
    "QuantizationConfig",
    "Recipe",
    "ThreeWindowLogMelConfig",
    "TimmConfig",
    "TrainingConfig",
    "load_recipe",
    "override_recipe",
    "parse_recipe",
    "recipe_names",
    "recipe_source",
    "resolve",
    "sections",
    "to_toml",
]
