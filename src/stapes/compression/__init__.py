"""Make a network small: fewer weights, fewer channels, fewer bits."""

from __future__ import annotations

from stapes.compression.channels import prune_channels, remove_channels
from stapes.compression.masks import WeightMask, finish, keep_zeros
from stapes.compression.pruning import Pruner, prune
from stapes.compression.quantization import finish_qat, half_precision, prepare_qat, quantize

__all__ = [
    "Pruner",
    "WeightMask",
    "finish",
    "finish_qat",
    "half_precision",
    "keep_zeros",
    "prepare_qat",
    "prune",
    "prune_channels",
    "quantize",
    "remove_channels",
]
