"""What a network listens to, and what training changed in it."""

from __future__ import annotations

from stapes.explain.attribution import IntegratedGradients, grad_cam, integrated_gradients
from stapes.explain.attribution_figures import draw_attribution
from stapes.explain.audible import AudiblePart, apply_gains, audible_part, write_sound
from stapes.explain.effective_field import (
    EffectiveField,
    FieldOnRecordings,
    effective_receptive_field,
    receptive_field_on_recordings,
    without_damping,
)
from stapes.explain.explanation import Explanation, explain_recording, explain_windows
from stapes.explain.faithfulness import Curve, Faithfulness, faithfulness
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
    "AudiblePart",
    "Curve",
    "EffectiveField",
    "Explanation",
    "Faithfulness",
    "FieldOnRecordings",
    "IntegratedGradients",
    "LayerChange",
    "PairSimilarity",
    "Representations",
    "WeightChange",
    "apply_gains",
    "audible_part",
    "block_activations",
    "compare_representations",
    "draw_attribution",
    "draw_receptive_field",
    "draw_similarity",
    "draw_weight_change",
    "effective_receptive_field",
    "explain_recording",
    "explain_windows",
    "faithfulness",
    "find_recordings",
    "grad_cam",
    "integrated_gradients",
    "linear_cka",
    "receptive_field_on_recordings",
    "recordings_of_run",
    "svcca",
    "weight_change",
    "without_damping",
    "write_sound",
]
