"""Archives of recordings, swept by a model: resumable, in parts, on one machine or many."""

from stapes.archive.answers import Settings
from stapes.archive.listing import Changes
from stapes.archive.sweeping import Progress, Sweep, sweep

__all__ = ["Changes", "Progress", "Settings", "Sweep", "sweep"]
