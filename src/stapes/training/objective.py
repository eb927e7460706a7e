"""The loss: cross entropy with soft targets, label smoothing and class weights; distillation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = ["balanced_class_weights", "distillation_loss", "soft_cross_entropy"]


def soft_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of soft targets.

    Args:
        logits: (B, K).
        targets: (B, K) probabilities, rows sum to 1 (mixup gives soft ones).
        label_smoothing: part in [0, 1) spread evenly over the classes.
        class_weights: (K,) factor of each class, or none.

    Returns:
        A scalar: sum over examples of their weighted loss, divided by the sum of the weights of
        their targets, so that the mean stays a mean (as torch's cross_entropy does for hard
        targets).
    """
    if class_weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    total = F.cross_entropy(
        logits, targets, weight=class_weights, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (targets @ class_weights).sum()


def distillation_loss(logits: Tensor, softened: Tensor, temperature: float) -> Tensor:
    """Mean divergence of a student from its teachers (Hinton et al. 2015, section 2).

    Args:
        logits: (B, K) of the student.
        softened: (B, K) probabilities of the teachers at this temperature, rows sum to 1.
        temperature: T above 0, that the logits are divided by.

    Returns:
        A scalar: T^2 KL(softened || softmax(logits / T)). The square keeps the size of the
        gradients about the same for every T.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, softened, reduction="batchmean")


def balanced_class_weights(targets: NDArray[np.int64], n_classes: int) -> Tensor:
    """Weights M / (K * count of the class), (K,) float32; a class with no clip gets 0."""
    counts = np.bincount(targets, minlength=n_classes).astype(np.float64)
    present = counts > 0
    weights = np.zeros(n_classes)
    weights[present] = targets.size / (present.sum() * counts[present])
    return torch.from_numpy(weights.astype(np.float32))
