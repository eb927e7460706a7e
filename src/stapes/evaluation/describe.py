"""What a model is and costs, in numbers, for ``inspect`` and the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stapes.bundle import Bundle
from stapes.evaluation.report import ModelSummary
from stapes.features.axis import bin_edges
from stapes.models import (
    Complexity,
    ReceptiveField,
    count_complexity,
    layer_receptive_fields,
    receptive_field,
)
from stapes.models.registry import network_settings

__all__ = ["LayerSummary", "describe_layers", "describe_model"]


@dataclass(frozen=True)
class LayerSummary:
    """One layer with parameters or multiplications.

    The receptive field is that of one unit of its output, in Hz that of a unit in the middle; none
    behind a global pooling, where a unit sees everything.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]  # without the batch
    parameters: int
    nonzero_parameters: int
    macs_per_second: float  # multiply-accumulates per second of audio, those with zeros too
    receptive_field_bins: int | None
    receptive_field_frames: int | None
    receptive_field_hz: tuple[float, float] | None
    receptive_field_seconds: float | None


def describe_model(bundle: Bundle) -> ModelSummary:
    """Parameters, bytes, multiply-accumulates, memory and receptive field of a model.

    The receptive field is that of one unit of the feature map, in bins and frames of the
    spectrogram; in Hz it is the range that a unit in the middle sees, cut at the spectrogram's
    edges; in seconds its frames times the hop. None where it is not known.
    """
    frontend = bundle.frontend
    cost, seconds = _cost(bundle), _window_seconds(bundle)
    frequencies = frontend.band_frequencies().double().numpy()
    field = _field(bundle)
    network = network_settings(bundle.network)
    settings = ", ".join(f"{k} {v}" for k, v in frontend.settings().items() if v is not None)
    return ModelSummary(
        name=" ".join(str(network[k]) for k in ("name", "architecture") if k in network),
        precision=bundle.precision,
        parameters=cost.parameters,
        nonzero_parameters=cost.nonzero_parameters,
        bytes_float32=cost.bytes_float32,
        bytes_float32_sparse=cost.bytes_float32_sparse,
        bytes_float16=cost.bytes_float16,
        bytes_float16_sparse=cost.bytes_float16_sparse,
        bytes_int8=cost.bytes_int8,
        bytes_int8_sparse=cost.bytes_int8_sparse,
        macs_per_second=cost.macs / seconds,
        nonzero_macs_per_second=cost.nonzero_macs / seconds,
        peak_activation_bytes=cost.peak_activation_bytes,
        receptive_field_bins=field.frequency.size if field else None,
        receptive_field_frames=field.time.size if field else None,
        receptive_field_seconds=field.time.size / _frame_rate(bundle) if field else None,
        receptive_field_hz=_hertz(field, frequencies) if field else None,
        sample_rate=frontend.sample_rate,
        window_seconds=seconds,
        front_end=settings,
        global_context=field is not None and field.global_context,
    )


def describe_layers(bundle: Bundle) -> tuple[LayerSummary, ...]:
    """The same layer by layer, in the order of use."""
    seconds, rate = _window_seconds(bundle), _frame_rate(bundle)
    frequencies = bundle.frontend.band_frequencies().double().numpy()
    fields = layer_receptive_fields(bundle.network)
    layers = []
    for layer in _cost(bundle).layers:
        field = fields.get(layer.name)
        layers.append(
            LayerSummary(
                name=layer.name,
                kind=layer.kind,
                output_shape=layer.output_shape[1:],
                parameters=layer.parameters,
                nonzero_parameters=layer.nonzero_parameters,
                macs_per_second=layer.macs / seconds,
                receptive_field_bins=field.frequency.size if field else None,
                receptive_field_frames=field.time.size if field else None,
                receptive_field_hz=_hertz(field, frequencies) if field else None,
                receptive_field_seconds=field.time.size / rate if field else None,
            )
        )
    return tuple(layers)


def _field(bundle: Bundle) -> ReceptiveField | None:
    """None of a network that is more than convolutions, pooling and branches."""
    try:
        return receptive_field(bundle.network)
    except ValueError:
        return None


def _cost(bundle: Bundle) -> Complexity:
    """Of one window."""
    n_samples = round(_window_seconds(bundle) * bundle.frontend.sample_rate)
    with torch.inference_mode():
        spectrogram = bundle.frontend(torch.zeros(1, bundle.recipe.audio.channels, n_samples))
    return count_complexity(bundle.network, tuple(spectrogram.shape))


def _window_seconds(bundle: Bundle) -> float:
    seconds = bundle.recipe.audio.window_seconds
    assert not isinstance(seconds, str)
    return seconds


def _frame_rate(bundle: Bundle) -> float:
    n_samples = round(_window_seconds(bundle) * bundle.frontend.sample_rate)
    return bundle.frontend.frame_rate(n_samples)


def _hertz(field: ReceptiveField, frequencies: NDArray[np.float64]) -> tuple[float, float]:
    """What so many bins around the middle one span, cut at the edges of the spectrogram."""
    edges = bin_edges(frequencies)
    first = len(frequencies) // 2 - field.frequency.size // 2
    last = first + field.frequency.size
    return float(edges[max(0, first)]), float(edges[min(len(frequencies), last)])
