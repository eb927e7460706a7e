from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stapes.training.objective import (
    balanced_class_weights,
    distillation_loss,
    soft_cross_entropy,
)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 4.0])])
def test_hard_targets_agree_with_torch(weights: torch.Tensor | None) -> None:
    logits, hard = torch.randn(20, 3), torch.randint(0, 3, (20,))
    ours = soft_cross_entropy(logits, F.one_hot(hard, 3).float(), class_weights=weights)
    assert float(ours) == pytest.approx(float(F.cross_entropy(logits, hard, weight=weights)))


def test_label_smoothing_agrees_with_torch() -> None:
    logits, hard = torch.randn(20, 3), torch.randint(0, 3, (20,))
    ours = soft_cross_entropy(logits, F.one_hot(hard, 3).float(), label_smoothing=0.1)
    assert float(ours) == pytest.approx(float(F.cross_entropy(logits, hard, label_smoothing=0.1)))


def test_soft_targets_are_the_mixture_of_hard_losses() -> None:
    logits = torch.tensor([[2.0, -1.0]])
    both = [float(F.cross_entropy(logits, torch.tensor([k]))) for k in (0, 1)]
    ours = float(soft_cross_entropy(logits, torch.tensor([[0.7, 0.3]])))
    assert ours == pytest.approx(0.7 * both[0] + 0.3 * both[1])


def test_balanced_weights_agree_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    targets = np.array([0, 0, 0, 0, 1, 2, 2])
    theirs = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert balanced_class_weights(targets, 3).tolist() == pytest.approx(theirs.tolist())
    assert balanced_class_weights(targets, 4)[3] == 0


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(logits / temperature)
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_agrees_with_the_formula_and_with_torch(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 20, 5)) * 3
    q, p = _softmax(student, temperature), _softmax(teacher, temperature)
    ours = distillation_loss(torch.from_numpy(student), torch.from_numpy(p), temperature)
    formula = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert float(ours) == pytest.approx(formula, rel=1e-9)
    theirs = F.kl_div(torch.from_numpy(q).log(), torch.from_numpy(p), reduction="sum") / 20
    assert float(ours) == pytest.approx(temperature**2 * float(theirs), rel=1e-9)


def test_a_student_that_says_the_same_loses_nothing() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    assert float(distillation_loss(logits, (logits / 3).softmax(1), 3.0)) == pytest.approx(0)


def test_a_certain_teacher_at_temperature_one_is_a_label() -> None:
    logits, hard = torch.randn(20, 3), torch.randint(0, 3, (20,))
    ours = distillation_loss(logits, F.one_hot(hard, 3).float(), 1.0)
    assert float(ours) == pytest.approx(float(F.cross_entropy(logits, hard)), rel=1e-6)


def _gradient(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    student = student.clone().requires_grad_()
    distillation_loss(student, (teacher / temperature).softmax(1), temperature).backward()
    assert student.grad is not None
    return student.grad


def test_gradients_keep_their_size_at_every_temperature() -> None:
    """Hinton et al. 2015, equation 4: at a high temperature, the difference of the logits."""
    student, teacher = torch.randn(
        2, 50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    hot = _gradient(student, teacher, 1000.0)
    torch.testing.assert_close(hot, (student - teacher) / 10 / 50, rtol=0.01, atol=1e-5)
    for temperature in (1.0, 3.0, 20.0):
        ratio = float(_gradient(student, teacher, temperature).norm() / hot.norm())
        assert 0.7 < ratio < 1.5
