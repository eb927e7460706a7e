"""Networks on spectrograms, by name, and what can be said about them without data."""

from __future__ import annotations

from stapes.models.complexity import Complexity, LayerComplexity, count_complexity
from stapes.models.damping import FrequencyDamping, damp, damping_of, fold_damping
from stapes.models.folding import fold_batch_norm
from stapes.models.low_rank import LayerDecomposition, decompose
from stapes.models.quantized import (
    QuantizationPoint,
    int8_structure,
    is_quantized,
    quantization_points,
)
from stapes.models.receptive_field import (
    AxisField,
    ReceptiveField,
    layer_receptive_fields,
    published_receptive_field,
    receptive_field,
)
from stapes.models.registry import (
    Network,
    create_model,
    model_names,
    model_options,
    network_settings,
    register_model,
)

__all__ = [
    "AxisField",
    "Complexity",
    "FrequencyDamping",
    "LayerComplexity",
    "LayerDecomposition",
    "Network",
    "QuantizationPoint",
    "ReceptiveField",
    "count_complexity",
    "create_model",
    "damp",
    "damping_of",
    "decompose",
    "fold_batch_norm",
    "fold_damping",
    "int8_structure",
    "is_quantized",
    "layer_receptive_fields",
    "model_names",
    "model_options",
    "network_settings",
    "published_receptive_field",
    "quantization_points",
    "receptive_field",
    "register_model",
]
