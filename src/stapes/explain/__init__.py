"""What a network listens to, and what training changed in it."""

from __future__ import annotations

from stapes.explain.effective_field import (
    EffectiveField,
    FieldOnRecordings,
    effective_receptive_field,
    receptive_field_on_recordings,
    without_damping,
)
from stapes.explain.figures import draw_receptive_field
from stapes.explain.recordings import find_recordings, recordings_of_run
from stapes.explain.representation_figures import draw_similarity, draw_weight_change
from stapes.explain.representations import (
    PairSimilarity,
    Representations,
    block_activations,
    compare_representations,
)
from stapes.explain.similarity import linear_cka, svcca
from stapes.explain.weight_change import LayerChange, WeightChange, weight_change

__all__ = [
    "EffectiveField",
    "FieldOnRecordings",
    "LayerChange",
    "PairSimilarity",
    "Representations",
    "WeightChange",
    "block_activations",
    "compare_representations",
    "draw_receptive_field",
    "draw_similarity",
    "draw_weight_change",
    "effective_receptive_field",
    "find_recordings",
    "linear_cka",
    "receptive_field_on_recordings",
    "recordings_of_run",
    "svcca",
    "weight_change",
    "without_damping",
]
