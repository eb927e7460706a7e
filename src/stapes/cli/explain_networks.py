"""``stapes explain --weight-change`` and ``--similarity``: a model against other networks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stapes.cli.terminal import Terminal, print_table

if TYPE_CHECKING:
    from torch import nn

    from stapes.bundle import Bundle
    from stapes.explain import Representations, WeightChange
    from stapes.explain.representations import Floats

__all__ = ["AGAINST_HELP", "similarity", "weight_change"]

AGAINST_HELP = (
    "What to compare with: another model file or run folder; start: the weights that training "
    "started from; imagenet; or random ones. --similarity takes it several times "
    "[start; for --similarity also random]."
)

_MOST = 400  # recordings; enough for the directions of all but the widest blocks
_CLEAR = 0.5  # what SVCCA may be by chance and still tell something

# Seeds of runs are small, so these are no run's weights. Of a seed, torch uses 32 bits.
_SEEDS = 2**31


def weight_change(model: Path, against: Sequence[str], seed: int, out: Path, format: str) -> None:
    """Compare the weights of a model with others, draw and print."""
    from stapes.bundle import load_bundle
    from stapes.errors import StapesError
    from stapes.explain import draw_weight_change
    from stapes.explain import weight_change as compare
    from stapes.explain.figures import check_figure_name

    check_figure_name(out)
    if len(against) > 1:
        raise StapesError("--weight-change compares with one network: give --against once.")
    bundle, other = load_bundle(model), (against or ["start"])[0]
    found = compare(_other(bundle, other, seed, model).network, bundle.network)
    draw_weight_change(found, out, title=f"{_short(str(model))} against {_short(other)}")
    if format == "json":
        tree = {"against": other, **found.summary(), "picture": str(out)}
        sys.stdout.write(json.dumps(tree, indent=1) + "\n")
        return
    sys.stdout.write(
        f"Relative change of the weights, |after - before| / |before|, from {other} to {model}; "
        "root mean square, lowest and highest of a block's convolutions and linear layers.\n\n"
    )
    print_table(
        ["block", "layers", "change", "lowest", "highest", "cosine"],
        _change_rows(found),
        right={1, 2, 3, 4, 5},
    )
    for name, reason in found.left_out.items():
        sys.stdout.write(f"left out: {name}: {reason}\n")
    sys.stdout.write(f"\npicture  {out}\n")


def _change_rows(found: WeightChange) -> list[list[str]]:
    rows = []
    for block, name in enumerate([*found.blocks, "head"]):
        own = [
            x
            for x in found.layers
            if x.block == block and x.kind in ("convolution", "linear") and x.relative is not None
        ]
        mean = found.by_block()[block]
        if mean is None:
            rows.append([name, "0", "", "", "", ""])
            continue
        changes = [x.relative for x in own if x.relative is not None]
        cosines = [x.cosine for x in own if x.cosine is not None]
        rows.append(
            [
                name,
                str(len(own)),
                f"{mean:.4f}",
                f"{min(changes):.4f}",
                f"{max(changes):.4f}",
                f"{sum(cosines) / len(cosines):.4f}" if cosines else "",
            ]
        )
    return rows


def similarity(
    model: Path,
    against: Sequence[str],
    recordings: list[Path],
    most: int | None,
    seed: int,
    out: Path,
    format: str,
) -> int:
    """Compare what networks make of recordings, draw and print.

    Returns:
        The number of recordings that could not be read.
    """
    from stapes.bundle import load_bundle
    from stapes.explain import compare_representations, draw_similarity
    from stapes.explain.figures import check_figure_name
    from stapes.explain.recordings import find_recordings, recordings_of_run

    check_figure_name(out)
    bundle = load_bundle(model)
    if not against:
        drawn = bundle.recipe.initialization.weights == "random"
        against = ["start"] if drawn else ["start", "random"]
    models = {"model": bundle, **{word: _other(bundle, word, seed, model) for word in against}}
    most = most or _MOST
    clips = find_recordings(recordings, most) if recordings else recordings_of_run(model, most)
    bad = []
    with Terminal() as terminal:

        def unreadable(error: Exception) -> None:
            bad.append(error)
            terminal.note(f"Error: {error}")

        found = compare_representations(
            models,
            clips,
            unreadable=unreadable,
            progress=lambda done, total: terminal.progress("Comparing", done, total),
        )
    title = f"{_short(str(model))}, {found.n_recordings} recordings"
    draw_similarity(found, out, title=title)
    if format == "json":
        sys.stdout.write(json.dumps({**found.summary(), "picture": str(out)}, indent=1) + "\n")
        return len(bad)
    sys.stdout.write(
        f"What {model} and others make of {found.n_recordings} recordings, block by block, "
        "0 to 1; beside it what unrelated networks have by chance.\n\n"
    )
    print_table(
        ["networks", "block", "SVCCA", "by chance", "linear CKA", "by chance"],
        _similarity_rows(found),
        right={2, 3, 4, 5},
    )
    by_chance = max(_largest(pair.svcca_by_chance) for pair in found.pairs)
    if by_chance > _CLEAR:
        sys.stdout.write(
            f"\nSVCCA is up to {by_chance:.2f} by chance: with more recordings (--most, or name "
            "some) it tells more.\n"
        )
    sys.stdout.write(f"\npicture  {out}\n")
    return len(bad)


def _similarity_rows(found: Representations) -> list[list[str]]:
    """Blocks of the same name; of networks of another kind, each block and the one most like it."""
    import numpy as np

    rows = []
    for pair in found.pairs:
        matched = found.matched(pair)
        places = [(k, k) for k in range(len(matched))]
        if not matched:
            places = [
                (k, int(np.nan_to_num(row, nan=-1).argmax()))
                for k, row in enumerate(pair.linear_cka)
            ]
        for i, (k, m) in enumerate(places):
            one, other = found.blocks[pair.first][k], found.blocks[pair.second][m]
            rows.append(
                [
                    f"{_short(pair.first)} and {_short(pair.second)}" if i == 0 else "",
                    one if matched else f"{one} and {other}",
                    *(
                        "-" if np.isnan(values[k, m]) else f"{values[k, m]:.3f}"
                        for values in (
                            pair.svcca,
                            pair.svcca_by_chance,
                            pair.linear_cka,
                            pair.linear_cka_by_chance,
                        )
                    ),
                ]
            )
    return rows


def _largest(values: Floats) -> float:
    """Of those that are numbers; 0 if there is none."""
    return max((float(value) for value in values.flat if value == value), default=0.0)


def _other(bundle: Bundle, word: str, seed: int, model: Path) -> Bundle:
    """The network to compare with, behind the front end that belongs to it."""
    from stapes.bundle import load_bundle
    from stapes.errors import StapesError
    from stapes.models import network_settings
    from stapes.training.initialization import starting_network

    if word not in ("start", "imagenet", "random"):
        return load_bundle(word)
    settings = network_settings(bundle.network)
    if settings["name"] == "ensemble":
        raise StapesError(
            f"{model}: an ensemble has no weights of its own to start from; give one of its "
            "members, or a model with --against."
        )
    if word == "random":
        return replace(bundle, network=_random(settings, seed))
    recipe = bundle.recipe
    if word == "imagenet":
        given = recipe.initialization
        imagenet = {"weights": "imagenet", "blocks": None}
        if given.weights != "imagenet":
            imagenet |= {"file": None, "sha256": None}
        recipe = recipe.model_copy(update={"initialization": given.model_copy(update=imagenet)})
    # ImageNet's weights are the same for every seed, all but the head's.
    if word == "start" and "seed" not in bundle.metadata:
        raise StapesError(
            f"{model}: does not say which seed it was trained with, so its first weights cannot "
            "be drawn again; give another model, imagenet or random with --against."
        )
    network = starting_network(
        recipe,
        bundle.labels,
        in_channels=settings["in_channels"],
        seed=bundle.metadata.get("seed", 0),
    )
    return replace(bundle, network=network)


def _random(settings: dict[str, Any], seed: int) -> nn.Module:
    import torch

    from stapes.models import create_model

    plain = {key: value for key, value in settings.items() if key != "precision"}
    generator = torch.Generator().manual_seed(_SEEDS + seed)
    return create_model(**plain, generator=generator).eval()


def _short(name: str) -> str:
    """The end of a long path."""
    return name if len(name) < 50 else f"…{name[-49:]}"
