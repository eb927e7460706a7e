"""Networks in operators of ONNX, by torch's exporter, made tidy.

What the exporter gives is renamed by the modules that it comes from, and what it tells of itself
and of the machine (stack traces, sources) is left behind.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from stapes.deploy.onnx.building import OPSET, GraphBuilder
from stapes.deploy.onnx.eight_bits import add_integers, symmetric_padding, with_levels
from stapes.errors import ConfigError
from stapes.models import is_quantized
from stapes.models.folding import fold_with_gains, replace_module
from stapes.models.timm_layers import pads_to_size

__all__ = ["add_network"]

# Bytes of a float32 weight below which three nodes more would take what half precision saves.
_LEAST_HALF = 2048
_PREFIX = "network."  # of the one part of _Probabilities
_IMPLIED = {"dilations": {1}, "pads": {0}, "strides": {1}}
_SCOPES = "pkg.torch.onnx.name_scopes"


class _Probabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits.softmax(1)


def add_network(
    graph: GraphBuilder, network: nn.Module, spectrogram: str, shape: tuple[int, int, int]
) -> tuple[str, bool]:
    """Probabilities of normalised spectrograms.

    Args:
        graph: gets the nodes.
        network: float or int8, with or without damping and masks; it is not changed.
        spectrogram: (B, C, F, T) float32.
        shape: C, F and T of one window.

    Returns:
        (B, K) float32, and whether T may be another.

    Raises:
        ConfigError: the network cannot be exported.
    """
    eight_bits = is_quantized(network)
    if eight_bits:
        plain, same = with_levels(network)
    else:
        plain, gains = fold_with_gains(network)
        same = _pad_symmetrically(plain)
    model, any_length = _export(_Probabilities(plain).eval(), shape)
    _rename(model)
    nodes = defaultdict(list)
    for node in model.graph.node:
        if node.domain:
            raise ConfigError(
                f"This network needs '{node.domain}.{node.op_type}', which is not part of ONNX: "
                "it cannot be exported; choose another network."
            )
        nodes[_module_of(node)].append(node)
    for name in same:
        for node in nodes[name]:
            if node.op_type == "Conv":
                _pad_to_size(node)
    if eight_bits:
        add_integers(graph, network, nodes)
    used = {name for node in model.graph.node for name in node.input}
    constants = [_bare(t) for t in model.graph.initializer if t.name in used]
    if not eight_bits:
        layers = dict(network.named_modules())
        constants = [t for t in constants if not _add_half(graph, layers, gains, t)]
    graph.initializers += constants
    for node in model.graph.node:
        own_input = model.graph.input[0].name
        node.input[:] = [spectrogram if name == own_input else name for name in node.input]
        graph.nodes.append(_bare(node))
    return model.graph.output[0].name, any_length


# --- torch's exporter -------------------------------------------------------------------------


def _export(network: nn.Module, shape: tuple[int, int, int]) -> tuple[onnx.ModelProto, bool]:
    """The network's graph, for any number of frames if the network allows it."""
    x = torch.zeros(2, *shape)
    batch = {0: Dim.DYNAMIC}
    try:
        return _exported(network, x, {**batch, 3: Dim.DYNAMIC}), True
    except Exception:  # the exporter wraps whatever goes wrong in the network
        pass
    try:
        return _exported(network, x, batch), False
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        reason = str(root).strip().partition("\n")[0].rstrip(".") or type(root).__name__
        raise ConfigError(
            f"torch cannot export this network to ONNX ({reason}); choose another network."
        ) from error


def _exported(network: nn.Module, x: Tensor, dynamic: Mapping[int, Any]) -> onnx.ModelProto:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (x,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(dict(dynamic),),
            input_names=["spectrogram"],
            output_names=["probabilities"],
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of its own affairs: not to our user."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- padding to the size of the input ---------------------------------------------------------


def _pad_symmetrically(network: nn.Module) -> set[str]:
    """Give convolutions that pad as their input needs a padding that gives maps as large, in place.

    Their padding is arithmetic on sizes, which would become a dozen nodes; ONNX has an attribute
    for it, which :func:`_pad_to_size` sets.

    Returns:
        Names of those modules in the exported graph.
    """
    found = set()
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and pads_to_size(module):
            kernel: Any = module.kernel_size
            stride: Any = module.stride
            dilation: Any = module.dilation
            if any(taps % 2 == 0 for taps in kernel):
                continue  # no symmetric padding keeps the size: the exporter sees what timm does
            plain = nn.Conv2d(
                module.in_channels, module.out_channels, kernel, stride,
                symmetric_padding(kernel, dilation), dilation, module.groups,
                bias=module.bias is not None, device="meta",
            )  # fmt: skip
            plain.weight, plain.bias = module.weight, module.bias
            replace_module(network, module, plain)
            found.add(name)
    return found


def _pad_to_size(node: onnx.NodeProto) -> None:
    kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("auto_pad", "SAME_UPPER")])


# --- half precision ---------------------------------------------------------------------------


def _add_half(
    graph: GraphBuilder,
    layers: Mapping[str, nn.Module],
    gains: Mapping[str, Tensor],
    constant: onnx.TensorProto,
) -> bool:
    """Store a weight that holds values of half precision in two bytes each, where that is smaller.

    The graph makes of it, when it is loaded, the very float32 numbers that it stands for: with the
    batch norm's gain for each channel, in float64 as :mod:`stapes.models.folding` does it.

    Args:
        graph: gets the nodes, which give the weight under its name.
        layers: of the network, with their weights as they are in the model file.
        gains: of the layers that took in a batch norm.
        constant: of the folded network.

    Returns:
        Whether it was done.
    """
    name = constant.name.removesuffix(".weight")
    layer = layers.get(name)
    if name == constant.name or not isinstance(layer, nn.Conv2d | nn.Linear):
        return False
    weight = layer.weight.detach().cpu().numpy()
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if not np.array_equal(half, weight) or weight.nbytes < _LEAST_HALF:
        return False
    gain = np.ones(()) if name not in gains else gains[name].numpy()
    gain = gain.reshape(-1, *[1] * (weight.ndim - 1)) if gain.ndim else gain
    folded = (half.astype(np.float64) * gain).astype(np.float32)
    if not np.array_equal(folded, numpy_helper.to_array(constant)):
        return False  # the exporter has turned it round
    stored = f"{constant.name}_half"
    graph.initializers.append(numpy_helper.from_array(half, stored))
    if gain.ndim:
        wide = graph.cast(stored, np.float64)
        stored = graph.add("Mul", wide, graph.constant(gain, np.float64))
    graph.nodes.append(
        onnx.helper.make_node("Cast", [stored], [constant.name], to=onnx.TensorProto.FLOAT)
    )
    return True


# --- names ------------------------------------------------------------------------------------


def _module_of(node: onnx.NodeProto) -> str:
    """The network's module that a node comes from."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            # Modules from the outside in, then the name of the operation.
            return str(ast.literal_eval(entry.value)[-2]).removeprefix(_PREFIX)
    return ""


def _rename(model: onnx.ModelProto) -> None:
    """Name nodes and values by module and operator; constants by the network's own names."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}

    def fresh(name: str) -> str:
        count = counts[name] = counts.get(name, -1) + 1
        return f"{name}_{count}" if count else name

    graph = model.graph
    for tensor in graph.initializer:
        own = tensor.name.startswith(_PREFIX)
        names[tensor.name] = tensor.name.removeprefix(_PREFIX) if own else fresh("constant")
    for node in graph.node:
        module = _module_of(node).removesuffix(".layer")  # of eight_bits, nobody else's
        name = fresh(f"{module or 'network'}/{node.op_type}")
        # They are many, and their outputs say as much.
        node.name = "" if node.op_type in ("QuantizeLinear", "DequantizeLinear") else name
        for index, value in enumerate(node.output):
            names[value] = name if index == 0 else f"{name}:{index}"
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for tensor in (*graph.initializer, *graph.output):
        tensor.name = names.get(tensor.name, tensor.name)


def _bare(thing: Any) -> Any:
    """A node or a tensor without remarks and without what goes without saying."""
    plain = copy.deepcopy(thing)
    plain.ClearField("doc_string")
    plain.ClearField("metadata_props")
    if isinstance(thing, onnx.NodeProto):
        known = onnx.defs.get_schema(thing.op_type, OPSET, thing.domain).attributes
        kept = [
            attribute
            for attribute in thing.attribute
            if _stated(attribute) != _stated(known[attribute.name].default_value)
            and _IMPLIED.get(attribute.name) != set(attribute.ints)
        ]
        del plain.attribute[:]
        plain.attribute.extend(kept)
    return plain


def _stated(attribute: onnx.AttributeProto) -> Any:
    return onnx.helper.get_attribute_value(attribute) if attribute.type else None
