"""From windows of a waveform to decisions, whatever computes the probabilities. Needs no torch."""

from stapes.inference.classifier import BaseClassifier
from stapes.inference.events import EventDetector, Smoother, merge_events
from stapes.inference.predictions import Event, Prediction, WindowScores
from stapes.inference.settings import AudioSettings
from stapes.inference.streaming import Gap, Listener

__all__ = [
    "AudioSettings",
    "BaseClassifier",
    "Event",
    "EventDetector",
    "Gap",
    "Listener",
    "Prediction",
    "Smoother",
    "WindowScores",
    "merge_events",
]
