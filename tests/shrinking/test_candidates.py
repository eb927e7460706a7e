"""Sizes derived before training: inside the limits, and not far inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stapes.bundle import Bundle, save_bundle
from stapes.compression import finish, half_precision, prune, quantize
from stapes.config import CpResNetConfig, PruningConfig, Recipe
from stapes.data import Split
from stapes.features import BandNormalizer
from stapes.models import count_complexity
from stapes.shrinking.candidates import (
    Choice,
    Space,
    Unfit,
    _largest,
    describe,
    fit_recipe,
    tighten,
)
from stapes.shrinking.costs import Gauge
from stapes.shrinking.limits import Limits
from stapes.training.experiment import open_run
from stapes.training.finished import read_run
from stapes.training.members import Run

Open = Callable[[int, Limits], tuple[Run, Gauge]]


@pytest.fixture(scope="module")
def opened(toy_run: Path) -> tuple[Run, Split]:
    dataset, recipe = read_run(toy_run)
    run, splits, _ = open_run(dataset, recipe, out=toy_run.parent / "none", force=True)
    return run, splits[0]


@pytest.fixture
def at_width(opened: tuple[Run, Split]) -> Open:
    """The toy run as if it had another width, and a gauge."""

    def make(width: int, limits: Limits) -> tuple[Run, Gauge]:
        run, split = opened
        model = run.recipe.model.model_copy(update={"width": width})
        run = replace(run, recipe=run.recipe.model_copy(update={"model": model}))
        return run, Gauge(run, split, limits, "stapes shrink runs/toy --size 32kB --macs 30M")

    return make


def trained(run: Run, recipe: Recipe) -> Bundle:
    """A network that went through the recipe's reduction with weights as uneven as trained ones."""
    network = replace(run, recipe=recipe).new_network(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:  # layers of very different magnitude: pruned very unevenly
                parameter.mul_(10.0 ** (len(name) % 3))
    if recipe.pruning.method == "magnitude":
        network = finish(prune(network, keep_parameters=recipe.pruning.keep_parameters))
    x = torch.randn(4, 1, 32, 64, generator=generator)
    precision = recipe.quantization.precision
    network = quantize(network, [x]) if precision == "int8" else half_precision(network)
    normalizer = BandNormalizer(1, 32)
    normalizer.mean.copy_(torch.randn(1, 32, 1, generator=generator))
    labels = run.dataset.labels
    return Bundle(run.frontend, normalizer, network.eval(), labels, recipe, {}, precision)


@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("keep", [None, 0.2, 0.9])
def test_no_trained_file_is_larger_than_expected(
    at_width: Open, tmp_path: Path, precision: str, keep: float | None
) -> None:
    run, gauge = at_width(24, Limits(file_bytes=60_000))
    choice = Choice("width", precision, run.recipe.model.blocks, 4)  # type: ignore[arg-type]
    recipe = fit_recipe(choice, run.recipe, gauge, Limits(file_bytes=10**9))
    assert isinstance(recipe, Recipe)
    if keep is not None:
        n = int(keep * gauge.expect(recipe).parameters)
        pruning = PruningConfig(method="magnitude", keep_parameters=n, ramp_epochs=1)
        recipe = recipe.model_copy(update={"pruning": pruning})
    expected = gauge.expect(recipe).file_bytes
    bundle = trained(run, recipe)
    bundle = replace(bundle, metadata=gauge.metadata(gauge._any_facts(), gauge._any_score, {}))
    save_bundle(bundle, tmp_path / "model.safetensors")
    real = (tmp_path / "model.safetensors").stat().st_size
    assert real <= expected
    # Between the two lie the margin for the header's text, positions of layers that are not worth
    # them, and weights that damping leaves too small for eight bits.
    assert expected - real < 500 + 0.05 * real


@pytest.mark.parametrize("method", ["width", "magnitude", "channels", "decomposition"])
@pytest.mark.parametrize("limits", [Limits(12_000), Limits(40_000, 6_000_000)], ids=str)
def test_recipes_use_the_limits_up_and_stay_inside(
    at_width: Open, method: str, limits: Limits
) -> None:
    run, gauge = at_width(32, limits)
    extra = {"decomposition": 4} if method == "decomposition" else {}
    if method in ("magnitude", "channels"):
        extra = {"start": 1.5}
    choice = Choice(method, "int8", run.recipe.model.blocks, 4, **extra)  # type: ignore[arg-type]
    found = fit_recipe(choice, run.recipe, gauge, limits)
    if isinstance(found, Unfit):  # nothing to prune where arithmetic is the tighter limit
        assert method == "magnitude"
        assert limits.macs_per_second is not None
        return
    cost = gauge.expect(found)
    assert limits.allow(cost.file_bytes, cost.macs_per_second)
    if method in ("width", "decomposition"):
        assert found.model.width <= 32
        if found.model.width == 32:
            return
        wider = found.model.model_copy(update={"width": found.model.width + 1})
        beyond = gauge.expect(found.model_copy(update={"model": wider}))
    else:
        keep = found.pruning.keep_parameters
        assert keep is not None
        more = found.pruning.model_copy(update={"keep_parameters": int(1.03 * keep) + 30})
        beyond = gauge.expect(found.model_copy(update={"pruning": more}))
    assert not limits.allow(beyond.file_bytes, beyond.macs_per_second)


def test_products_with_zeros_count(at_width: Open) -> None:
    limits = Limits(10_000, 8_000_000)
    run, gauge = at_width(32, limits)
    choice = Choice("magnitude", "int8", (2, 1, 0), 4, start=3.0)
    found = fit_recipe(choice, run.recipe, gauge, limits)
    assert isinstance(found, Recipe)
    assert found.pruning.method == "magnitude"
    network = replace(run, recipe=found).new_network(0)  # dense: nothing is taken out of it
    shape = (1, 1, 32, run.frontend.n_frames(run.store.window))
    assert count_complexity(network, shape).macs / 0.5 <= 8_000_000
    assert gauge.expect(found).macs_per_second == count_complexity(network, shape).macs / 0.5


def test_what_cannot_fit_says_how_small_it_could_be(at_width: Open) -> None:
    limits = Limits(1500)
    run, gauge = at_width(8, limits)
    found = fit_recipe(Choice("width", "int8", (2, 1, 0), 4), run.recipe, gauge, limits)
    assert isinstance(found, Unfit)
    assert found.least is not None
    assert found.least.file_bytes > 1500
    assert found.least.parameters < 200


def test_a_limit_above_the_run_leaves_nothing_to_prune(at_width: Open) -> None:
    limits = Limits(10**6)
    run, gauge = at_width(8, limits)
    whole = fit_recipe(Choice("width", "float16", (2, 1, 0), 4), run.recipe, gauge, limits)
    assert isinstance(whole, Recipe)
    assert whole.model == run.recipe.model
    pruned = Choice("magnitude", "int8", (2, 1, 0), 4, start=2.0)
    assert isinstance(fit_recipe(pruned, run.recipe, gauge, limits), Unfit)


def test_a_model_that_came_out_too_large_is_asked_to_be_smaller(at_width: Open) -> None:
    limits = Limits(10_000)
    run, gauge = at_width(32, limits)
    found = fit_recipe(
        Choice("channels", "int8", (2, 1, 0), 4, start=1.5), run.recipe, gauge, limits
    )
    assert isinstance(found, Recipe)
    cost = replace(gauge.expect(found), file_bytes=11_000)
    smaller = tighten(found, cost, limits)
    assert smaller is not None
    assert found.pruning.keep_parameters is not None
    assert smaller.pruning.keep_parameters is not None
    assert smaller.pruning.keep_parameters <= found.pruning.keep_parameters * 10 / 11
    narrow = run.recipe.model_copy(update={"model": CpResNetConfig(width=1)})
    assert tighten(narrow, cost, limits) is None


def test_the_space_starts_at_the_run_and_only_shrinks() -> None:
    space = Space(CpResNetConfig(rho=3, blocks=(2, 1, 0)), Limits(1000, 1000))
    assert space.blocks == ((2, 1, 0), (2, 0, 0), (1, 0, 0))
    assert space.rhos == (3, 2, 1)
    assert {choice.method for choice in space.first_guesses()} == set(space.methods)
    by_macs = Space(CpResNetConfig(), Limits(macs_per_second=1000))
    assert "magnitude" not in by_macs.methods
    assert by_macs.precisions == ("float16",)
    assert {choice.precision for choice in by_macs.first_guesses()} == {"float16"}
    # A network with nothing to take away but width.
    smallest = Space(CpResNetConfig(rho=0, blocks=(1, 0, 0)), Limits(1000))
    assert len(set(smallest.first_guesses())) == len(smallest.first_guesses())


def test_choices_go_through_plain_values(at_width: Open) -> None:
    for choice in Space(CpResNetConfig(), Limits(1000)).first_guesses():
        assert Choice.from_parameters(choice.parameters()) == choice
    run, _ = at_width(8, Limits(1000))
    pruning = PruningConfig(method="channels", keep_parameters=1234, ramp_epochs=1)
    recipe = run.recipe.model_copy(update={"pruning": pruning})
    assert describe(recipe) == "width 8, blocks 2-1-0, rho 4, channels pruned to 1,234, float32"


@given(
    st.lists(st.floats(0, 2), min_size=2, max_size=60).map(sorted),
    st.integers(0, 5),
)
def test_the_largest_that_fits_is_found(loads: list[float], low: int) -> None:
    high = low + len(loads) - 1
    slow = [low + i for i, value in enumerate(loads) if value <= 1]
    asked = []

    def load(n: int) -> float:
        asked.append(n)
        return loads[n - low]

    assert _largest(low, high, load) == (max(slow) if slow else None)
    assert len(asked) <= 2 + 2 * len(loads).bit_length() + 2
