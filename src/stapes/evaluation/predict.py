"""Using a trained model on torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stapes.bundle import Bundle, load_bundle
from stapes.evaluation.devices import usable_device
from stapes.inference import BaseClassifier

__all__ = ["Classifier", "load"]


class Classifier(BaseClassifier):
    """A trained model, ready to use.

    Args:
        bundle: as :func:`stapes.bundle.load_bundle` gives it.
        device: where to compute.

    Raises:
        ConfigError: a device that is not there.
    """

    def __init__(self, bundle: Bundle, device: str | torch.device = "cpu") -> None:
        super().__init__(bundle.labels, bundle.audio)
        self.bundle = bundle
        self.device = usable_device(device)
        self._module = bundle.module().to(self.device)

    @torch.inference_mode()
    def probabilities(self, windows: Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`stapes.inference.BaseClassifier.probabilities`; takes a tensor as well."""
        batch = torch.as_tensor(windows, dtype=torch.float32, device=self.device)
        result: NDArray[np.float32] = self._module(batch).softmax(1).cpu().numpy()
        return result


def load(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Load a model file, or the model of a run folder.

    Args:
        path: a ``.safetensors`` written by stapes, or a folder that holds one.
        device: where to compute.

    Raises:
        ModelFileError: missing, truncated, altered, foreign, or of a newer format.
        ConfigError: a device that is not there.
    """
    return Classifier(load_bundle(path), device)
