"""The most accurate model inside a budget: what ``stapes shrink`` does."""

from __future__ import annotations

from stapes.shrinking.limits import Limits, parse_macs, parse_size
from stapes.shrinking.search import ShrinkResult, shrink

__all__ = ["Limits", "ShrinkResult", "parse_macs", "parse_size", "shrink"]
