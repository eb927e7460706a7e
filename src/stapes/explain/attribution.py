"""What in a spectrogram made a network answer as it did: Integrated Gradients and Grad-CAM.

References:
    Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (Integrated
    Gradients).
    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017.
    Palanisamy, Singhania, Yao, "Rethinking CNN Models for Audio Classification", 2020
    (Integrated Gradients on spectrograms).

Integrated Gradients gives each value of a spectrogram ``x`` its share of the change of a logit
``y`` on the straight way from a baseline ``b`` to ``x`` (equation 1)::

    a_i = (x_i - b_i) * integral over s from 0 to 1 of  dy / dx_i (b + s (x - b))  ds

All shares add up to ``y(x) - y(b)`` (completeness, proposition 1), which tells how well the
integral was computed. The way leads through spectrograms before normalisation. Since normalising
shifts and scales each band, the result is the same as with the normalised ones of ``b`` and ``x``.

Grad-CAM weighs the K channels ``A_k`` of a feature map by the mean of their gradient over all
positions and keeps what speaks for the label (equations 1 and 2)::

    c(f, t) = max(0, sum over k  of  A_k(f, t) * mean over f', t' of dy / dA_k(f', t'))

It is as coarse as the map: compare its sizes with those of the receptive field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stapes.errors import StapesError, UnknownNameError
from stapes.models.tracing import evaluating

__all__ = [
    "IntegratedGradients",
    "grad_cam",
    "integrated_gradients",
    "label_probabilities",
    "upsample",
]

Floats = NDArray[np.float64]

_BATCH = 4  # spectrograms with gradients at once: a wide network's graph takes some 100 MB for each
_SCORED = 16  # windows without gradients at once


@dataclass(frozen=True, eq=False)
class IntegratedGradients:
    """Shares of a logit's change between two spectrograms.

    Attributes:
        values: (C, F, T), in units of the logit.
        difference: of the logit, spectrogram minus baseline.
        error: sum of the values minus ``difference``, which it should be.
        steps: points of the way at which the gradient was taken.
    """

    values: Floats
    difference: float
    error: float
    steps: int

    @property
    def completeness_error(self) -> float:
        """Size of the error as a share of the logit's difference; infinite where that is 0."""
        if self.error == 0:
            return 0.0
        return abs(self.error) / abs(self.difference) if self.difference else float("inf")


def integrated_gradients(
    network: nn.Module,
    x: Tensor,
    baseline: Tensor,
    label: int,
    *,
    steps: int = 16,
    tolerance: float = 0.01,
    max_steps: int = 1296,
    batch: int = _BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> IntegratedGradients:
    """Attribute a network's logit to its input (Sundararajan et al. 2017).

    The integral is taken by the midpoint rule; as long as the completeness error is above the
    tolerance, with three times as many steps, since the old midpoints are midpoints again. The
    network is run in evaluation mode and is not changed.

    Args:
        network: (B, C, F, T) to logits (B, K).
        x: (C, F, T).
        baseline: (C, F, T).
        label: which logit, 0 to K - 1.
        steps: to begin with.
        tolerance: of the error, as a share of the logit's difference; infinite: no more steps.
        max_steps: no more than this many, whatever the error.
        batch: steps at once: memory grows with it.
        progress: called with (steps done, steps of this round).

    Raises:
        ValueError: ``x`` and ``baseline`` differ in shape or have not three axes, no such label,
            or a number out of range.
    """
    if x.ndim != 3 or x.shape != baseline.shape:
        raise ValueError(
            f"x and baseline are (C, F, T), both the same, not {tuple(x.shape)} and "
            f"{tuple(baseline.shape)}"
        )
    if min(steps, batch) < 1 or max_steps < steps or not tolerance > 0:
        raise ValueError(
            f"steps = {steps}, max_steps = {max_steps}, batch = {batch}, tolerance = {tolerance}: "
            "need 1 <= steps <= max_steps, 1 <= batch and a tolerance above 0"
        )
    device = _device(network)
    # Clones: what was made in inference mode cannot be differentiated.
    x, baseline = (t.to(device=device, dtype=torch.float32).clone() for t in (x, baseline))
    way = x - baseline
    total = torch.zeros(x.shape, dtype=torch.float64, device=device)
    with evaluating(network):
        with torch.no_grad():
            logits = network(torch.stack([baseline, x]))
        _check_label(label, logits)
        difference = float(logits[1, label].double() - logits[0, label].double())
        done, n = 0, steps
        places = (np.arange(n) + 0.5) / n
        while True:
            for first in range(0, len(places), batch):
                at = torch.from_numpy(places[first : first + batch]).to(way)
                total += _gradient_sum(network, baseline + at[:, None, None, None] * way, label)
                done += len(at)
                if progress is not None:
                    progress(done, n)
            values = total / n * way
            error = float(values.sum()) - difference
            found = IntegratedGradients(values.cpu().numpy(), difference, error, n)
            if found.completeness_error <= tolerance or 3 * n > max_steps:
                return found
            # Thirds of the old steps; the middle third's midpoint is the old one.
            n *= 3
            places = (np.add.outer(np.arange(0, n, 3), [0.5, 2.5]) / n).reshape(-1)


def _gradient_sum(network: nn.Module, x: Tensor, label: int) -> Tensor:
    """Gradients of one logit of each of (B, C, F, T), summed over B, as (C, F, T) float64."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logit = network(x)[:, label].sum()  # inputs do not meet: the sum holds each one's own
        gradient = None
        if logit.requires_grad:
            (gradient,) = torch.autograd.grad(logit, x, allow_unused=True)
    return torch.zeros_like(x[0], dtype=torch.float64) if gradient is None else (
        gradient.double().sum(0)
    )  # fmt: skip


def grad_cam(network: nn.Module, x: Tensor, label: int, block: str | None = None) -> Floats:
    """Where in a feature map a label was found (Selvaraju et al. 2017).

    The network is run in evaluation mode and is not changed.

    Args:
        network: with ``forward_features`` and ``forward_head``.
        x: (C, F, T), normalised.
        label: which logit, 0 to K - 1.
        block: name of the module whose output is the map, such as one of ``network.blocks()``;
            none: the feature map in front of the head.

    Returns:
        (F', T') of the map, 0 and above; :func:`upsample` brings it to the spectrogram's size.

    Raises:
        StapesError: there is no such module, the network does not use it, or its output is no map
            with several places.
        ValueError: ``x`` has not three axes, or there is no such label.
    """
    if x.ndim != 3:
        raise ValueError(f"x is (C, F, T), not {tuple(x.shape)}")
    given = x.to(device=_device(network), dtype=torch.float32)[None].clone()
    where = f"The output of {block}" if block else "The network's feature map"
    with evaluating(network), torch.enable_grad():
        given.requires_grad_()
        if block is None:
            features = network.forward_features(given)  # type: ignore[operator]
            if getattr(network, "layout", "map") == "tokens":
                raise StapesError(
                    f"{where} is a row of tokens without places in frequency and time: use "
                    "Integrated Gradients."
                )
            logits = network.forward_head(features)  # type: ignore[operator]
        else:
            features, logits = _run_watching(network, given, block)
        if not isinstance(features, Tensor) or features.ndim != 4 or features[0, 0].numel() < 2:
            hint = "Integrated Gradients"
            if hasattr(network, "blocks") and block is None:
                hint += f", or name a module inside {' or '.join(network.blocks())}"  # type: ignore[operator]
            raise StapesError(
                f"{where} has no places in frequency and time, which Grad-CAM needs: use {hint}."
            )
        _check_label(label, logits)
        gradient = None
        if features.requires_grad:
            (gradient,) = torch.autograd.grad(logits[0, label], features, allow_unused=True)
    if gradient is None:
        raise StapesError(f"{where} has no influence on the answer: name another block.")
    weights = gradient.double().mean((2, 3), keepdim=True)
    cam = (features.detach().double() * weights).sum(1)[0].clamp(min=0)
    return cast(Floats, cam.cpu().numpy())


def _run_watching(network: nn.Module, x: Tensor, block: str) -> tuple[Any, Tensor]:
    """The (first) output of one module, and the logits."""
    modules = {name: module for name, module in network.named_modules() if name}
    if block not in modules:
        known = network.blocks() if hasattr(network, "blocks") else modules  # type: ignore[operator]
        raise UnknownNameError("block", block, known)
    outputs: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if outputs:
            return None
        outputs.append(output)
        # A copy goes on: what comes next may work in place and change what was kept.
        return output.clone() if isinstance(output, Tensor) else None

    handle = modules[block].register_forward_hook(keep)
    try:
        logits: Tensor = network(x)
    finally:
        handle.remove()
    if not outputs:
        raise StapesError(f"{block}: the network does not use this module; name another block.")
    return outputs[0], logits


def upsample(cam: Floats, size: tuple[int, int]) -> Floats:
    """A map at another size, (F, T), by linear interpolation.

    The map's cells are taken to cover the spectrogram evenly.
    """
    grid = torch.from_numpy(np.ascontiguousarray(cam))[None, None]
    larger = functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return cast(Floats, larger[0, 0].numpy())


@torch.no_grad()
def label_probabilities(network: nn.Module, x: Tensor, batch: int = _SCORED) -> Floats:
    """Probabilities (B, K) of spectrograms (B, C, F, T), a few at a time, in evaluation mode."""
    device = _device(network)
    with evaluating(network):
        parts = [
            network(part.to(device)).double().softmax(1).cpu() for part in torch.split(x, batch)
        ]
    return cast(Floats, torch.cat(parts).numpy())


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters(), torch.zeros(())).device


def _check_label(label: int, logits: Tensor) -> None:
    if not 0 <= label < logits.shape[1]:
        raise ValueError(f"label = {label}: the network has {logits.shape[1]}, counted from 0")
