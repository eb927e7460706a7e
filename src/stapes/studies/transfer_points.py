"""Points of a study of transfer: one network, started, frozen and cut in different ways.

A way is where the ImageNet weights end, where learning begins and where the network ends, in blocks
from the input on. The ends of these rows meet: weights in no block are a random start, weights in
all of them the whole pretrained network, and so are no frozen block and a cut behind the last one.
Equal ways are one point, which is trained once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stapes.config import InitializationConfig, parse_recipe
from stapes.models.imagenet import image_network
from stapes.studies.points import Bench, Point
from stapes.training.initialization import pin_weights

__all__ = ["ChosenNetwork", "Way", "block_names", "folder_name", "transfer_point"]


@dataclass(frozen=True, slots=True)
class ChosenNetwork:
    """A network of timm, and where its ImageNet weights are.

    Attributes:
        architecture: timm's name.
        file: its weights; none: timm's hub.
    """

    architecture: str
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """How a network starts and learns, in blocks from the input on.

    Attributes:
        pretrained: blocks that take ImageNet weights; the others are drawn. None: all.
        frozen: blocks that do not learn.
        kept: blocks that the network has; none: all.
    """

    pretrained: int | None = None
    frozen: int = 0
    kept: int | None = None

    def plain(self, n_blocks: int) -> Way:
        """The same way of a network of so many blocks, written in one form only."""
        return Way(
            None if self.pretrained == n_blocks else self.pretrained,
            self.frozen,
            None if self.kept == n_blocks else self.kept,
        )

    def key(self) -> str:
        """Part of a folder's name."""
        if self.pretrained == 0:
            parts = ["random"]
        else:
            parts = ["pretrained" if self.pretrained is None else f"fused-{self.pretrained}"]
        parts += [f"frozen-{self.frozen}"] if self.frozen else []
        parts += [f"cut-{self.kept}"] if self.kept is not None else []
        return "-".join(parts)

    def label(self) -> str:
        """What a reader calls it."""
        if self.pretrained == 0:
            text = "random weights"
        elif self.pretrained is None:
            text = "ImageNet weights"
        else:
            text = f"ImageNet weights up to block {self.pretrained}"
        text += f", frozen up to block {self.frozen}" if self.frozen else ""
        return text + (f", cut after block {self.kept}" if self.kept is not None else "")


@cache
def block_names(architecture: str) -> tuple[str, ...]:
    """Modules at which the blocks of a network of timm end, by their names in timm.

    Raises:
        UnknownNameError: timm has no such network.
    """
    network = image_network(n_classes=2, architecture=architecture)
    return tuple(name.removeprefix("body.") for name in network.blocks())


def folder_name(network: ChosenNetwork) -> str:
    """A network's name as part of the name of a file or folder."""
    return re.sub("[^A-Za-z0-9_.-]", "_", network.architecture)


def transfer_point(
    bench: Bench, study: str, network: ChosenNetwork, way: Way, published: Any = None
) -> Point:
    """One network trained in one way.

    Weights that are not on this machine are fetched.

    Args:
        bench: whose recipe this is a variation of; its model is a network of timm.
        study: name, for the recipe.
        network: which.
        way: how.
        published: see :class:`Point`.

    Raises:
        ConfigError, ModelFileError, StapesError: no such weights, or none that fit.
    """
    way = way.plain(len(block_names(network.architecture)))
    key = f"{folder_name(network)}-{way.key()}"
    label = f"{network.architecture}, {way.label()}"
    tree = bench.recipe.model_dump()
    tree["name"] = f"{study}-{key}"
    tree["description"] = f"{label}: of the study {study}"
    tree["model"] |= {"architecture": network.architecture, "blocks": way.kept}
    tree["initialization"] = InitializationConfig().model_dump() | _start(network, way)
    recipe = parse_recipe(tree, tree["name"])
    with bench.run.accelerator.main_process_first():
        recipe = pin_weights(recipe)
    return Point(key, label, recipe, published)


def _start(network: ChosenNetwork, way: Way) -> dict[str, Any]:
    if way.pretrained == 0:
        return {"frozen_blocks": way.frozen}
    return {
        "weights": "imagenet",
        "file": None if network.file is None else str(network.file),
        "blocks": way.pretrained,
        "frozen_blocks": way.frozen,
    }
