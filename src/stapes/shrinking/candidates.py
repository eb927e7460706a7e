"""What a search may try: combinations of the reduction methods, sized to fit before training.

A :class:`Choice` says how to make the run's network small, without any size in it. From choice
and limits follows the one recipe that uses the limits up: the widest network that fits, or the
most parameters left of a wider one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from stapes.config import CpResNetConfig, PruningConfig, Recipe, parse_recipe
from stapes.errors import ConfigError
from stapes.shrinking.costs import Cost, Gauge
from stapes.shrinking.limits import Limits

__all__ = ["Choice", "Space", "Unfit", "describe", "fit_recipe", "tighten"]

Method = Literal["width", "magnitude", "channels", "decomposition"]

# Of a network pruned to less, too little is left to pay for its positions and norms.
_LEAST_PART = 0.05
# Start of the network to prune, in widths of the one that fits unpruned.
SMALLEST_START, LARGEST_START, START_STEP = 1.2, 3.0, 0.1


@dataclass(frozen=True)
class Choice:
    """One way to make the run's network small.

    Attributes:
        method: ``"width"``: a narrower network; ``"magnitude"`` or ``"channels"``: a wider one,
            pruned; ``"decomposition"``: decomposed convolutions.
        precision: of the weights.
        blocks: residual blocks of each stage.
        rho: receptive-field control.
        start: for the two prunings: width at the start, in widths of the network that fits
            unpruned.
        decomposition: Z, for that method.
    """

    method: Method
    precision: Literal["int8", "float16"]
    blocks: tuple[int, int, int]
    rho: int
    start: float | None = None
    decomposition: int | None = None

    def parameters(self) -> dict[str, Any]:
        """As plain values; :meth:`from_parameters` reads them back."""
        found: dict[str, Any] = {
            "method": self.method,
            "precision": self.precision,
            "blocks": " ".join(map(str, self.blocks)),
            "rho": self.rho,
        }
        if self.start is not None:
            found["start"] = self.start
        if self.decomposition is not None:
            found["decomposition"] = self.decomposition
        return found

    @classmethod
    def from_parameters(cls, found: dict[str, Any]) -> Choice:
        """The choice that :meth:`parameters` described."""
        first, second, third = (int(count) for count in found["blocks"].split())
        return cls(
            method=found["method"],
            precision=found["precision"],
            blocks=(first, second, third),
            rho=int(found["rho"]),
            start=found.get("start"),
            decomposition=found.get("decomposition"),
        )


class Space:
    """All choices for a run.

    Args:
        model: the run's network.
        limits: what the model may cost.

    Attributes:
        methods: magnitude is left out without a limit on bytes: zeros are multiplied, too.
        precisions: int8 only with a limit on bytes: it saves no products.
        blocks: the run's, then with the last block taken away, up to three times.
        rhos: the run's and smaller ones.
        decompositions: values of Z.
    """

    def __init__(self, model: CpResNetConfig, limits: Limits) -> None:
        sized = limits.file_bytes is not None
        self.methods: tuple[Method, ...] = ("width", "channels", "decomposition")
        if sized:
            self.methods = ("width", "magnitude", "channels", "decomposition")
        self.precisions: tuple[Literal["int8", "float16"], ...] = (
            ("int8", "float16") if sized else ("float16",)
        )
        self.blocks = _fewer_blocks(model.blocks)
        self.rhos = tuple(rho for rho in (model.rho - step for step in (0, 1, 2, 4)) if rho >= 0)
        own = () if model.decomposition is None else (model.decomposition,)
        self.decompositions = tuple(sorted({2, 4, 8, *own}))

    def first_guesses(self) -> list[Choice]:
        """Choices that are often good, best first, so that a short search has tried them."""
        precision, blocks, rho = self.precisions[0], self.blocks[0], self.rhos[0]
        fewer, lower = (
            self.blocks[min(1, len(self.blocks) - 1)],
            self.rhos[min(2, len(self.rhos) - 1)],
        )
        guesses = [
            Choice("width", precision, blocks, rho),
            Choice("magnitude", precision, blocks, rho, start=1.5),
            Choice("channels", precision, blocks, rho, start=1.5),
            Choice("width", precision, fewer, rho),
            Choice("magnitude", precision, blocks, lower, start=1.8),
            Choice("width", precision, blocks, lower),
            Choice("decomposition", precision, blocks, rho, decomposition=4),
            Choice("width", self.precisions[-1], blocks, rho),
        ]
        # Of a run with one block, or with rho 0, some are the same.
        return [choice for choice in dict.fromkeys(guesses) if choice.method in self.methods]


@dataclass(frozen=True)
class Unfit:
    """A choice that gives no recipe.

    Attributes:
        reason: in words.
        least: the smallest that it could be; none: it was left out for another reason.
    """

    reason: str
    least: Cost | None = None


def fit_recipe(choice: Choice, run: Recipe, gauge: Gauge, limits: Limits) -> Recipe | Unfit:
    """The largest recipe of a choice that the limits allow, or why there is none.

    Args:
        choice: the way to make it small.
        run: the resolved recipe of the run.
        gauge: knows costs.
        limits: what the model may cost.
    """

    def dense(width: int) -> Recipe:
        return _recipe(run, choice, width)

    def load(recipe: Recipe) -> float:
        cost = gauge.expect(recipe)
        return limits.load(cost.file_bytes, cost.macs_per_second)

    widest = run.cp_resnet("stapes shrink").width
    width = _largest(1, widest, lambda n: load(dense(n)))
    if width is None:
        return Unfit("too large at width 1", gauge.expect(dense(1)))
    if choice.start is None:
        return dense(width)
    start = min(widest, round(choice.start * width))
    if choice.method == "magnitude" and limits.macs_per_second is not None:
        # Zeros are multiplied: the start has to be inside already.
        only_macs = Limits(macs_per_second=limits.macs_per_second)
        start = _largest(
            width, start, lambda n: only_macs.load(0, gauge.expect(dense(n)).macs_per_second)
        ) or width  # fmt: skip
    if start <= width:
        return Unfit("nothing to prune: the network fits as it is")

    total = gauge.expect(dense(start)).parameters
    step = max(1, total // 1000)  # a thousandth is fine enough

    def pruned(steps: int) -> Recipe:
        keep = PruningConfig(
            method="magnitude" if choice.method == "magnitude" else "channels",
            keep_parameters=steps * step,
            ramp_epochs=_ramp_epochs(run),
        )
        return parse_recipe(dense(start).model_copy(update={"pruning": keep}).model_dump())

    fewest = max(1, math.ceil(_LEAST_PART * total / step))
    try:
        steps = _largest(fewest, total // step, lambda n: load(pruned(n)))
    except ConfigError:  # less than its norms and biases alone need
        steps = None
    if steps is None:
        return Unfit(f"less than {100 * _LEAST_PART:.0f} % of width {start} would be left")
    return pruned(steps)


def tighten(recipe: Recipe, cost: Cost, limits: Limits) -> Recipe | None:
    """A smaller recipe, after a model of this one came out too large; none: it cannot be.

    Args:
        recipe: that was trained.
        cost: of the trained model.
        limits: which it is beyond.
    """
    over = limits.load(cost.file_bytes, cost.macs_per_second)
    keep = recipe.pruning.keep_parameters
    if recipe.pruning.method == "none" or keep is None:
        model = recipe.cp_resnet("stapes shrink")
        if model.width == 1:
            return None
        narrower = model.model_copy(update={"width": model.width - 1})
        return recipe.model_copy(update={"model": narrower})
    pruning = recipe.pruning.model_copy(update={"keep_parameters": int(0.98 * keep / over)})
    return recipe.model_copy(update={"pruning": pruning})


def describe(recipe: Recipe) -> str:
    """A recipe's network in a few words, such as ``width 22, pruned to 12,345, int8``."""
    model, pruning = recipe.cp_resnet("stapes shrink"), recipe.pruning
    words = [f"width {model.width}", f"blocks {'-'.join(map(str, model.blocks))}"]
    words.append(f"rho {model.rho}")
    if model.decomposition is not None:
        words.append(f"decomposed by {model.decomposition}")
    if pruning.method != "none":
        left = (
            f"{pruning.keep_parameters:,}"
            if pruning.keep_parameters is not None
            else f"{100 * (pruning.keep or 1):g} %"
        )
        what = "channels" if pruning.method == "channels" else "weights"
        words.append(f"{what} pruned to {left}")
    return ", ".join([*words, recipe.quantization.precision])


def _recipe(run: Recipe, choice: Choice, width: int) -> Recipe:
    """The unpruned recipe of a choice."""
    model = {
        "rho": choice.rho,
        "width": width,
        "blocks": choice.blocks,
        "decomposition": choice.decomposition,
    }
    changed = run.model_copy(
        update={
            "model": run.model.model_copy(update=model),
            "pruning": PruningConfig(ramp_epochs=_ramp_epochs(run)),
            "quantization": run.quantization.model_copy(update={"precision": choice.precision}),
        }
    )
    return parse_recipe(changed.model_dump())


def _ramp_epochs(run: Recipe) -> float:
    assert not isinstance(run.training.epochs, str)
    return run.training.epochs / 2


def _fewer_blocks(blocks: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    found = [blocks]
    for _ in range(3):
        first, second, third = found[-1]
        if third:
            third -= 1
        elif second:
            second -= 1
        elif first > 1:
            first -= 1
        else:
            break
        found.append((first, second, third))
    return tuple(found)


def _largest(low: int, high: int, load: Callable[[int], float]) -> int | None:
    """The largest whole number from ``low`` to ``high`` whose load is at most 1; loads rise.

    Guesses on the straight line between the two ends, which bytes nearly follow, and halves the
    interval in turns, since products do not.
    """
    below, above = load(low), load(high)
    if above <= 1:
        return high
    if below > 1:
        return None
    halve = False
    while high - low > 1:
        part = 0.5 if halve else (1 - below) / (above - below)
        guess = min(high - 1, max(low + 1, low + math.floor(part * (high - low))))
        found = load(guess)
        if found <= 1:
            low, below = guess, found
        else:
            high, above = guess, found
        halve = not halve
    return low
