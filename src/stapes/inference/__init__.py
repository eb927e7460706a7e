"""From windows of a waveform to decisions, whatever computes the probabilities. Needs no torch."""

from stapes.inference.classifier import BaseClassifier
from stapes.inference.events import merge_events
from stapes.inference.predictions import Event, Prediction, WindowScores
from stapes.inference.settings import AudioSettings

__all__ = [
    "AudioSettings",
    "BaseClassifier",
    "Event",
    "Prediction",
    "WindowScores",
    "merge_events",
]
