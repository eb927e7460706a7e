"""``stapes recipes``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stapes.cli.terminal import print_table

__all__ = ["recipes"]


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
    fields: Annotated[
        bool, typer.Option("--fields", help="List every field with its default and meaning.")
    ] = False,
) -> None:
    """List the recipes, print one, or list all fields that --set can change."""
    from stapes import config

    if name is not None:
        sys.stdout.write(config.recipe_source(name))
        return
    if not fields:
        rows = [[n, config.load_recipe(n).description] for n in config.recipe_names()]
        print_table(["recipe", "what it is for"], rows)
        return
    for section, schema in config.sections():
        sys.stdout.write(f"\n[{section}] {(schema.__doc__ or '').partition('(')[0].strip()}\n")
        rows = [
            [
                f"  {key}",
                "none" if field.default is None else str(field.default),
                field.description or "",
            ]
            for key, field in schema.model_fields.items()
        ]
        print_table(["  field", "default", "meaning"], rows)
