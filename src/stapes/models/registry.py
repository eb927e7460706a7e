"""Networks by name.

Every network is a ``torch.nn.Module`` on spectrograms with one contract, :class:`Network`, so that
training, explaining, shrinking and exporting need no special cases. A builder is a function
``(n_classes, in_channels, **options, generator) -> Network``; its keyword arguments are the
network's options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stapes.errors import UnknownNameError
from stapes.models.cp_resnet import cp_resnet
from stapes.models.ensemble import ensemble_network
from stapes.models.imagenet import image_network
from stapes.models.quantized import int8_structure, is_quantized

__all__ = [
    "Network",
    "create_model",
    "model_names",
    "model_options",
    "network_settings",
    "register_model",
]


@runtime_checkable
class Network(Protocol):
    """What every registered network offers.

    ``forward(x)`` is ``forward_head(forward_features(x))``.
    """

    n_classes: int
    in_channels: int
    n_features: int
    """Channels of the feature map."""
    min_input_size: int
    """Fewest frequency bins, and fewest frames, that the network accepts."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of spectrograms (B, in_channels, F, T)."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map (B, n_features, F', T') of spectrograms (B, in_channels, F, T)."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, n_classes) of a feature map; or what the last layer reads, one row a clip."""

    def reset_classifier(self, n_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Replace the head by a freshly drawn one for ``n_classes`` classes."""

    def blocks(self) -> tuple[str, ...]:
        """Names of the modules at which the network's blocks end, in the order of their use; see
        :mod:`stapes.models.blocks`."""

    def settings(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network: ``create_model(**settings)``."""


Builder = Callable[..., nn.Module]

# The one place where a network becomes known by name.
_BUILDERS: dict[str, Builder] = {
    "cp_resnet": cp_resnet,
    "ensemble": ensemble_network,
    "timm": image_network,
}

# Arguments of create_model itself, not options of a network.
_COMMON = ("n_classes", "in_channels", "generator", "precision")


def register_model(name: str, builder: Builder) -> None:
    """Make a network available to :func:`create_model` under a name.

    Args:
        name: new name.
        builder: function with the keyword arguments ``n_classes``, ``in_channels`` and
            ``generator``, and one for each option.

    Raises:
        ValueError: the name is taken.
    """
    if name in _BUILDERS:
        raise ValueError(f"a network named '{name}' is registered already")
    _BUILDERS[name] = builder


def model_names() -> list[str]:
    """Names that :func:`create_model` knows, sorted."""
    return sorted(_BUILDERS)


def model_options(name: str) -> Mapping[str, Any]:
    """Options of a network and their default values.

    Raises:
        UnknownNameError: no network has that name.
    """
    if name not in _BUILDERS:
        raise UnknownNameError("network", name, model_names())
    parameters = inspect.signature(_BUILDERS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in _COMMON}


def create_model(
    name: str,
    *,
    n_classes: int,
    in_channels: int = 1,
    generator: torch.Generator | None = None,
    precision: Literal["float32", "int8"] = "float32",
    **options: Any,
) -> nn.Module:
    """Build a network with fresh weights.

    >>> model = create_model("cp_resnet", n_classes=10, in_channels=2, rho=7, width=8)
    >>> model(torch.zeros(1, 2, 64, 64)).shape
    torch.Size([1, 10])

    Args:
        name: one of :func:`model_names`.
        n_classes: number of logits, 1 or more.
        in_channels: channels of the spectrogram, 1 or more.
        generator: source of the initial weights; none: torch's default generator.
        precision: ``"int8"``: the structure of the network quantised, to be filled with a stored
            state; see :func:`stapes.models.quantized.int8_structure`.
        **options: the network's own, see :func:`model_options`.

    Returns:
        The network, in training mode (with int8: in evaluation mode, it has no other); it satisfies
        :class:`Network`.

    Raises:
        UnknownNameError: unknown network or option.
        ValueError: an option out of range.
    """
    known = model_options(name)
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of network '{name}'", option, known)
    for label, value in (("n_classes", n_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{label} = {value!r}: must be a whole number, 1 or more")
    if precision not in ("float32", "int8"):
        raise ValueError(f'precision = {precision!r}: must be "float32" or "int8"')
    network = _BUILDERS[name](
        n_classes=n_classes, in_channels=in_channels, generator=generator, **options
    )
    return int8_structure(network) if precision == "int8" else network


def network_settings(network: nn.Module) -> dict[str, Any]:
    """Plain JSON values that rebuild a network: ``create_model(**network_settings(network))``.

    What the network says of itself, and its precision if it computes in eight bits.
    """
    settings: dict[str, Any] = network.settings()  # type: ignore[operator]
    return settings | ({"precision": "int8"} if is_quantized(network) else {})
