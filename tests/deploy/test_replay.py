"""Two implementations compared."""

from __future__ import annotations

import numpy as np
import pytest

from stapes.deploy.replay import compare, refuse_disagreement
from stapes.errors import StapesError


def test_differences_and_decisions_are_counted() -> None:
    expected = np.array([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]])
    found = np.array([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6]])
    both = compare(expected, found)
    assert both.windows == 3
    assert both.difference == pytest.approx(0.2)
    assert both.mean_difference == pytest.approx((0.1 + 0.2 + 0.1) / 3)
    # The third window has two labels that are equally probable: either is its decision.
    assert both.changed == 1
    assert both.decisions == pytest.approx(2 / 3)


def test_not_a_number_is_never_the_same() -> None:
    both = compare(np.array([[1.0, 0.0]]), np.array([[np.nan, np.nan]]))
    assert both.changed == 1
    assert both.difference == np.inf


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        compare(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        compare(np.ones((0, 3)), np.ones((0, 3)))


def _pair(n: int, changed: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    expected = np.tile([0.8, 0.2], (n, 1))
    found = expected + np.array([-apart, apart])
    found[:changed] = found[:changed, ::-1]
    return expected, found


@pytest.mark.parametrize(
    ("precision", "n", "changed", "apart", "fine"),
    [
        ("float32", 10, 0, 0.9e-4, True),
        ("float32", 10, 0, 1.1e-4, False),
        ("int8", 10, 0, 0.009, True),
        ("int8", 10, 0, 0.011, False),
        ("int8", 200, 3, 0.0, True),
        ("int8", 200, 5, 0.0, False),
    ],
)
def test_limits(precision: str, n: int, changed: int, apart: float, fine: bool) -> None:
    found = compare(*_pair(n, changed, apart))
    if fine:
        refuse_disagreement(found, precision, "C", "model-c")  # type: ignore[arg-type]
    else:
        with pytest.raises(StapesError, match=r"model-c: not written.*C does not give"):
            refuse_disagreement(found, precision, "C", "model-c")  # type: ignore[arg-type]


def test_one_changed_decision_refuses_float() -> None:
    expected = np.array([[0.50001, 0.49999]])
    with pytest.raises(StapesError, match="1 decisions"):
        refuse_disagreement(compare(expected, expected[:, ::-1]), "float32", "C", "x")
