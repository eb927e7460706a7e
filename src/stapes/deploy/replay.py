"""Whether two implementations of a model give the same answer.

An export is a second implementation: it is trusted only after it has answered the same windows as
the model it was made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stapes.errors import StapesError

__all__ = ["Agreement", "compare", "refuse_disagreement"]

# Largest difference of probabilities, float32: sums in another order.
_FLOAT_DIFFERENCE = 1e-4
# int8: a feature that lies on the edge between two levels falls to the other side when its last
# bit differs, which is one level in the input and a little more behind it.
_INT8_MEAN_DIFFERENCE = 0.01
_INT8_DECISIONS = 0.02


@dataclass(frozen=True, slots=True)
class Agreement:
    """How nearly two implementations answer alike.

    Attributes:
        windows: how many were answered by both.
        difference: largest absolute difference of probabilities.
        mean_difference: mean over windows and labels.
        changed: windows with another decision.
    """

    windows: int
    difference: float
    mean_difference: float
    changed: int

    @property
    def decisions(self) -> float:
        """Share of equal decisions."""
        return 1 - self.changed / self.windows


def compare(expected: NDArray[np.floating], found: NDArray[np.floating]) -> Agreement:
    """Compare probabilities of the same windows.

    Labels that ``expected`` holds for exactly equally probable (those of a silent clip, say) are
    one decision.

    Args:
        expected: (B, K).
        found: (B, K).

    Raises:
        ValueError: other shapes, or no window.
    """
    if expected.shape != found.shape or expected.ndim != 2 or not len(expected):
        raise ValueError(f"probabilities are (B, K) twice, not {expected.shape}, {found.shape}")
    apart = np.abs(expected.astype(np.float64) - found)
    chosen = np.take_along_axis(expected, found.argmax(1)[:, None], axis=1)[:, 0]
    return Agreement(
        windows=len(expected),
        # NaN is further from anything than any number.
        difference=float(np.where(np.isnan(apart), np.inf, apart).max()),
        mean_difference=float(np.where(np.isnan(apart), np.inf, apart).mean()),
        changed=int((~(chosen == expected.max(1)) | np.isnan(found).any(1)).sum()),
    )


def refuse_disagreement(
    found: Agreement, precision: Literal["float32", "int8"], what: str, path: object
) -> None:
    """Stop an export that does not give the model's answers.

    float32: probabilities within 1e-4, every decision equal. int8: within 0.01 in the mean, one
    decision of fifty may differ (of fewer windows, one).

    Raises:
        StapesError: it disagrees.
    """
    if precision == "float32":
        bad = found.difference > _FLOAT_DIFFERENCE or found.changed > 0
    else:
        allowed = max(1.0, _INT8_DECISIONS * found.windows)
        bad = found.mean_difference > _INT8_MEAN_DIFFERENCE or found.changed > allowed
    if bad:
        raise StapesError(
            f"{path}: not written, since {what} does not give the model's answers: on "
            f"{found.windows} windows probabilities differ by up to {found.difference:.2g} and "
            f"{found.changed} decisions are other ones. Please report this with the model."
        )
