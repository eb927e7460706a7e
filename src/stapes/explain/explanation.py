"""A recording and what in it spoke for a label: attributions of the windows of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stapes.audio import in_batches
from stapes.bundle import Bundle
from stapes.data import Clip
from stapes.errors import AudioError, StapesError, UnknownNameError
from stapes.explain.attribution import (
    Floats,
    IntegratedGradients,
    grad_cam,
    integrated_gradients,
    label_probabilities,
    upsample,
)
from stapes.features import FrontEnd

__all__ = [
    "BASELINES",
    "Baseline",
    "Explanation",
    "Method",
    "choose_baseline",
    "explain_recording",
    "explain_windows",
    "frame_times",
]

Method = Literal["integrated_gradients", "grad_cam"]
Baseline = Literal["quiet", "silence", "mean"]
BASELINES: tuple[Baseline, ...] = ("quiet", "silence", "mean")

_SCORED = 16  # windows without gradients at once


@dataclass(frozen=True, eq=False)
class Explanation:
    """One window of a recording, and what in it spoke for a label.

    Attributes:
        source: the recording.
        start: of the window in the recording, seconds.
        label: that was explained.
        index: of the label, 0 to K - 1.
        probability: of the label in this window.
        predicted: the most probable label of the whole recording.
        method: ``"integrated_gradients"`` or ``"grad_cam"``.
        block: module whose output Grad-CAM looked at; none: the feature map, or another method.
        waveform: (C, N) of the window, at ``sample_rate``.
        sample_rate: Hz.
        spectrogram: (C', F, T) before normalisation, in the front end's units.
        baseline: (C', F, T), what stands for "nothing there", in the same units.
        values: (F, T), what speaks for the label (above 0) or against it: shares of the logit's
            change, summed over channels; of Grad-CAM, 0 and above, without unit.
        frequencies: (F,) Hz, centres of the bins.
        times: (T,) seconds from the window's beginning, middles of the frames.
        gradients: of Integrated Gradients, with the completeness error.
    """

    source: str
    start: float
    label: str
    index: int
    probability: float
    predicted: str
    method: Method
    block: str | None
    waveform: NDArray[np.float32]
    sample_rate: int
    spectrogram: Tensor
    baseline: Tensor
    values: Floats
    frequencies: Floats
    times: Floats
    gradients: IntegratedGradients | None

    @property
    def end(self) -> float:
        """Of the window in the recording, seconds; beyond the recording's if that is shorter."""
        return self.start + float(self.waveform.shape[1] / self.sample_rate)

    def summary(self) -> dict[str, object]:
        """Everything but the arrays, as plain JSON values."""
        tree: dict[str, object] = {
            "recording": self.source,
            "start": self.start,
            "end": self.end,
            "predicted": self.predicted,
            "label": self.label,
            "probability": self.probability,
            "method": self.method,
        }
        if self.gradients is None:
            return {**tree, "block": self.block}
        return {
            **tree,
            "steps": self.gradients.steps,
            "logit_difference": self.gradients.difference,
            "completeness_error": self.gradients.completeness_error,
        }


def explain_recording(
    bundle: Bundle,
    recording: Clip | str | Path,
    method: Method = "integrated_gradients",
    *,
    label: str | None = None,
    block: str | None = None,
    baseline: Baseline = "quiet",
    tolerance: float = 0.01,
    max_steps: int = 1296,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Explain a model's answer in the window of a recording where the label is most probable.

    Args:
        bundle: the model.
        recording: of any length; it is decoded twice, in constant memory.
        method: what computes the attribution.
        label: to explain; none: the most probable one of the whole recording.
        block: see :func:`~stapes.explain.attribution.grad_cam`.
        baseline: see :func:`choose_baseline`.
        tolerance: see :func:`~stapes.explain.attribution.integrated_gradients`.
        max_steps: see :func:`~stapes.explain.attribution.integrated_gradients`.
        progress: called with (steps done, steps of this round).

    Raises:
        AudioError: the recording cannot be read.
        StapesError: the model has no such label or block, or the method does not suit it.
    """
    return next(_explained(bundle, recording, method, label, block, baseline, tolerance, max_steps,
                           progress, every=False))  # fmt: skip


def explain_windows(
    bundle: Bundle,
    recording: Clip | str | Path,
    method: Method = "integrated_gradients",
    *,
    label: str | None = None,
    block: str | None = None,
    baseline: Baseline = "quiet",
    tolerance: float = 0.01,
    max_steps: int = 1296,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Explanation]:
    """Explain a model's answer in every window of a recording, in the order of time.

    Arguments and errors are those of :func:`explain_recording`; errors come with the iteration.
    """
    return _explained(bundle, recording, method, label, block, baseline, tolerance, max_steps,
                      progress, every=True)  # fmt: skip


def _explained(
    bundle: Bundle,
    recording: Clip | str | Path,
    method: Method,
    label: str | None,
    block: str | None,
    baseline: Baseline,
    tolerance: float,
    max_steps: int,
    progress: Callable[[int, int], None] | None,
    *,
    every: bool,
) -> Iterator[Explanation]:
    if method not in ("integrated_gradients", "grad_cam"):
        raise ValueError(f"method = {method!r}: either 'integrated_gradients' or 'grad_cam'")
    if label is not None and label not in bundle.labels:
        raise UnknownNameError("label", label, bundle.labels)
    clip = recording if isinstance(recording, Clip) else Clip(Path(recording), "")
    frontend = bundle.frontend
    network = nn.Sequential(bundle.normalizer, bundle.network)
    rows = []
    for _, waveforms in in_batches(_windows(bundle, clip), _SCORED):
        with torch.no_grad():
            rows.append(label_probabilities(network, frontend(torch.from_numpy(waveforms))))
    if not rows:
        raise AudioError(clip.path, "holds no audio.")
    probabilities = np.concatenate(rows)
    predicted = bundle.labels[int(probabilities.mean(0).argmax())]
    index = bundle.labels.index(label or predicted)
    best = int(probabilities[:, index].argmax())
    for number, (first, waveform) in enumerate(_windows(bundle, clip)):
        if not every and number != best:
            continue
        with torch.no_grad():
            spectrogram = frontend(torch.from_numpy(waveform)[None])[0]
        nothing = choose_baseline(bundle, spectrogram, waveform.shape[1], baseline)
        gradients = None
        if method == "integrated_gradients":
            gradients = integrated_gradients(
                network, spectrogram, nothing, index,
                tolerance=tolerance, max_steps=max_steps, progress=progress,
            )  # fmt: skip
            values: Floats = gradients.values.sum(0)
        else:
            with torch.no_grad():
                normalized = bundle.normalizer(spectrogram[None])[0]
            cam = grad_cam(bundle.network, normalized, index, block)
            values = upsample(cam, (spectrogram.shape[1], spectrogram.shape[2]))
        yield Explanation(
            source=str(clip.path),
            start=(clip.start or 0.0) + first / frontend.sample_rate,
            label=bundle.labels[index],
            index=index,
            probability=float(probabilities[number, index]),
            predicted=predicted,
            method=method,
            block=block,
            waveform=waveform,
            sample_rate=frontend.sample_rate,
            spectrogram=spectrogram,
            baseline=nothing,
            values=values,
            frequencies=frontend.band_frequencies().double().numpy(),
            times=frame_times(frontend, waveform.shape[1]),
            gradients=gradients,
        )
        if not every:
            return


def _windows(bundle: Bundle, clip: Clip) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The windows that a prediction is made of."""
    return bundle.audio.cut(clip.path, start=clip.start or 0.0, end=clip.end)


def frame_times(frontend: FrontEnd, n_samples: int) -> Floats:
    """Middles of the frames of a window, (T,) seconds from its beginning.

    Frames are taken to lie evenly around the window's middle, which is right to half a frame.
    """
    n_frames, rate = frontend.n_frames(n_samples), frontend.frame_rate(n_samples)
    first = (n_samples / frontend.sample_rate - (n_frames - 1) / rate) / 2
    times: Floats = first + np.arange(n_frames) / rate
    return times


def choose_baseline(
    bundle: Bundle, spectrogram: Tensor, n_samples: int, kind: Baseline = "quiet"
) -> Tensor:
    """The spectrogram that stands for "nothing there".

    Args:
        bundle: the model.
        spectrogram: (C, F, T) before normalisation.
        n_samples: of its waveform.
        kind: ``"quiet"``: the level of the quietest place of this spectrogram, in dB above digital
            silence, at all places. Everything that sounds is above it, a steady tone too, so an
            attribution above 0 says that sound speaks for the label by being there.
            ``"silence"``: digital silence; farther from all that a network has heard.
            ``"mean"``: each band's mean over the training part; what is quieter than usual gets
            attributions, too.

    Returns:
        (C, F, T)

    Raises:
        StapesError: ``"mean"``, and the model knows no means.
        ValueError: no such kind.
    """
    if kind not in BASELINES:
        raise ValueError(f"baseline = {kind!r}: one of {', '.join(BASELINES)}")
    if kind == "mean":
        mean, std = bundle.normalizer.mean, bundle.normalizer.std
        if not mean.any() and bool((std == 1).all()):
            raise StapesError(
                "This model learnt no means of the bands, so they cannot be the baseline: take "
                f"{' or '.join(name for name in BASELINES if name != 'mean')}."
            )
        return mean.to(spectrogram).expand_as(spectrogram)
    with torch.no_grad():
        channels = bundle.recipe.audio.channels
        silence: Tensor = bundle.frontend(torch.zeros(1, channels, n_samples))[0]
    if kind == "silence":
        return silence
    decibel = bundle.frontend.decibel()[:, None]  # (F, 1); a band without any bin has 0
    loudness = (spectrogram - silence) / torch.where(decibel > 0, decibel, torch.inf)
    heard = (decibel > 0).expand_as(loudness)
    quietest = loudness.masked_fill(~heard, torch.inf).amin((1, 2), keepdim=True)
    level: Tensor = silence + quietest * decibel
    return level
