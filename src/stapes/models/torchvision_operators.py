"""torchvision beside a torch that its compiled part was not built for.

timm imports torchvision, and torchvision's import describes two of its compiled operators to
torch. Where its compiled part cannot be loaded (a build for CUDA beside a torch without it, as
package registries give), the operators do not exist and the import fails with "operator
torchvision::nms does not exist". Networks do not use them: declaring them is enough.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import torch

__all__ = ["declare_missing_operators"]

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache  # keeps what is declared alive, and declares it once
def declare_missing_operators() -> torch.library.Library | None:
    """Declare the operators that importing torchvision needs, if its own cannot be loaded.

    Call it before ``import timm``. Where torchvision is imported already, is not installed, or
    loads its compiled part, nothing is done.
    """
    spec = None if "torchvision" in sys.modules else importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    for compiled in Path(spec.origin).parent.glob("_C*.*"):
        try:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError):
            continue  # built for another torch
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        library.define(operator)  # type: ignore[no-untyped-call]
    return library
