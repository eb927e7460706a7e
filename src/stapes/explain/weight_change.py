"""How far training moved the weights of each layer.

Palanisamy, Singhania, Yao, "Rethinking CNN Models for Audio Classification", 2020, draw the
difference between the weights of a pretrained network before and after it was fine-tuned: large
near the output, small near the input.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stapes.errors import StapesError
from stapes.models import is_quantized
from stapes.models.blocks import block_plan

__all__ = ["LayerChange", "WeightChange", "weight_change"]

Kind = Literal["convolution", "linear", "normalization", "other"]

_NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after; its weight and its bias taken as one vector.

    Attributes:
        name: of the module.
        kind: of the module.
        block: the network's block that it belongs to, 0 to K - 1; K is the head.
        parameters: numbers in the vector.
        relative: ``|after - before| / |before|``; none where all were zero before.
        cosine: of the angle between the two, -1 to 1; none where all of one are zero.
        mean_absolute: mean of ``|after - before|`` over the numbers.
    """

    name: str
    kind: Kind
    block: int
    parameters: int
    relative: float | None
    cosine: float | None
    mean_absolute: float


@dataclass(frozen=True)
class WeightChange:
    """All layers of a network, in the order of their use.

    Attributes:
        layers: that both networks have.
        blocks: names of the modules at which the blocks of the network end, K of them.
        left_out: layers that cannot be compared, and why.
    """

    layers: tuple[LayerChange, ...]
    blocks: tuple[str, ...]
    left_out: dict[str, str]

    def by_block(self, kinds: tuple[Kind, ...] = ("convolution", "linear")) -> list[float | None]:
        """Relative change of each block and, last, the head: (K + 1,).

        Root mean square over the block's layers of these kinds, so that layers count alike
        whatever their size; none where there is no such layer.
        """
        found: list[float | None] = []
        for block in range(len(self.blocks) + 1):
            squares = [
                layer.relative**2
                for layer in self.layers
                if layer.block == block and layer.kind in kinds and layer.relative is not None
            ]
            found.append((sum(squares) / len(squares)) ** 0.5 if squares else None)
        return found

    def summary(self) -> dict[str, object]:
        """All of it as plain JSON values."""
        return {
            "blocks": list(self.blocks),
            "by_block": self.by_block(),
            "layers": [asdict(layer) for layer in self.layers],
            "left_out": self.left_out,
        }


def weight_change(before: nn.Module, after: nn.Module) -> WeightChange:
    """Compare two networks layer by layer, matched by the names of their modules.

    The weights are those that the networks compute with, damping included. What is not learned, as
    batch norm's running statistics, is not compared.

    Args:
        before: any network.
        after: a network of the same architecture; the head may have another size.

    Raises:
        StapesError: no layer is in both, an int8 network, or weights that are not finite.
    """
    if is_quantized(before) or is_quantized(after):
        raise StapesError(
            "An int8 network does not have the weights that were trained; compare the model that "
            "it was made from."
        )
    plan = block_plan(after)
    old, new = _layers(before), _layers(after)
    layers: list[LayerChange] = []
    left_out = {}
    seen = set()
    for block, names in enumerate(plan.modules):
        for name in names:
            if name not in new or name in seen:  # nothing learned; or in two blocks, at its first
                continue
            seen.add(name)
            problem = _mismatch(old.get(name), new[name])
            if problem:
                left_out[name] = problem
                continue
            x, y = _vector(old[name]), _vector(new[name])
            if not (x.isfinite().all() and y.isfinite().all()):
                raise StapesError(f"{name}: its weights are not finite; they cannot be compared.")
            kind = _kind(after.get_submodule(name))
            layers.append(LayerChange(name, kind, block, len(y), *_measures(x, y)))
    left_out |= {name: "only in the first network" for name in old if name not in new}
    if not layers:
        raise StapesError(
            "No layer is in both networks, so their weights cannot be compared; compare networks "
            "of one architecture."
        )
    return WeightChange(tuple(layers), plan.names, left_out)


def _layers(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What each module learned: its own parameters as it computes with them, by name."""
    found = {}
    for name, module in network.named_modules():
        if ".parametrizations." in name:
            continue  # the raw weight, which its layer shows as it is used
        own = dict(module.named_parameters(recurse=False))
        if parametrize.is_parametrized(module):
            own |= {n: getattr(module, n) for n in module.parametrizations}
        if own:
            found[name] = {n: p.detach().double() for n, p in sorted(own.items())}
    return found


def _mismatch(old: dict[str, Tensor] | None, new: dict[str, Tensor]) -> str | None:
    """Why two layers cannot be compared; none: they can."""
    if old is None:
        return "only in the second network"
    for name in sorted(old.keys() ^ new.keys()):
        # As where a batch norm was folded into a convolution: its weight is another thing then.
        return f"{name} is only in the {'first' if name in old else 'second'} network"
    for name in new:
        if old[name].shape != new[name].shape:
            return f"{name} has shape {tuple(old[name].shape)} and {tuple(new[name].shape)}"
    return None


def _vector(layer: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in layer.values()]).cpu()


def _measures(x: Tensor, y: Tensor) -> tuple[float | None, float | None, float]:
    """Relative change, cosine and mean absolute change from x to y."""
    change, before, after = (float(v.norm()) for v in (y - x, x, y))
    cosine = float(x @ y) / (before * after) if before and after else None
    return (
        change / before if before else None,
        None if cosine is None else max(-1.0, min(1.0, cosine)),
        float((y - x).abs().mean()),
    )


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, _NORMALIZATIONS):
        return "normalization"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    return "linear" if isinstance(module, nn.Linear) else "other"
