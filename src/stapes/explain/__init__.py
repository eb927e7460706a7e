"""What a network listens to, shown on recordings."""

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

__all__ = [
    "EffectiveField",
    "FieldOnRecordings",
    "draw_receptive_field",
    "effective_receptive_field",
    "find_recordings",
    "receptive_field_on_recordings",
    "recordings_of_run",
    "without_damping",
]
