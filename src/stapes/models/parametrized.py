"""Taking parametrizations off, also of copies."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["unparametrize"]


def unparametrize(layer: nn.Module, name: str = "weight", *, fold: bool) -> None:
    """Take everything off that parametrizes one tensor of a layer, in place.

    The parameter stays the same object, at the same place among the layer's parameters.

    Args:
        layer: a layer with parametrizations on that tensor.
        name: of the tensor.
        fold: whether the parametrized value becomes the plain one, or the raw one does.
    """
    # torch gives a parametrized layer a class of its own, which holds a property for the tensor,
    # and deletes that property here. But a deep copy shares the class with its original, which
    # would be left without its weight: so this layer gets a class that nobody shares.
    shared = type(layer)
    contents = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, contents)
    order = [key for key in layer._parameters if key != name]
    parametrize.remove_parametrizations(layer, name, leave_parametrized=fold)
    if name == "weight":  # torch appends it; a fresh layer has it first
        for key in order:
            layer.register_parameter(key, layer._parameters.pop(key))
