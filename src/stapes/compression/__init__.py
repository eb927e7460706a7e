"""Make a network small: fewer weights, fewer channels."""

from __future__ import annotations

from stapes.compression.channels import prune_channels, remove_channels
from stapes.compression.masks import WeightMask, finish, keep_zeros
from stapes.compression.pruning import Pruner, prune

__all__ = [
    "Pruner",
    "WeightMask",
    "finish",
    "keep_zeros",
    "prune",
    "prune_channels",
    "remove_channels",
]
