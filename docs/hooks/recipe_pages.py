"""Pages of the recipes, from their schema and files."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic.fields import FieldInfo
from site_text import cell, code_names

from stapes import config

__all__ = ["recipe_pages"]

_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def recipe_pages() -> dict[str, str]:
    """Markdown of ``recipe-fields.md``, every field, and ``recipes.md``, every shipped recipe."""
    return {"recipe-fields.md": "\n".join(_fields()) + "\n", "recipes.md": "\n".join(_recipes())}


def _fields() -> Iterator[str]:
    yield _FIELDS_TOP
    for section, schema in config.sections():
        kind = schema.model_fields.get("name")
        name = f"`[{section}]`" if kind is None else f'`[{section}]` with `name = "{kind.default}"`'
        anchor = section if kind is None else f"{section}-{kind.default}"
        yield f"## {name} {{ #{anchor.replace('_', '-')} }}\n"
        yield code_names(" ".join((schema.__doc__ or "").split())) + "\n"
        yield '<div class="fields" markdown>\n'
        yield "| field | values | default | meaning |"
        yield "| --- | --- | --- | --- |"
        for key, field in schema.model_fields.items():
            yield _row(section, key, field)
        yield "\n</div>\n"


def _row(section: str, key: str, field: FieldInfo) -> str:
    default = _written(field.default)
    meaning = field.description or ("which kind" if key == "name" else "")
    values = _values(field.annotation, field.metadata)
    cells = [f"`{section}.{key}`", values, f"`{default}`", code_names(meaning)]
    return "| " + " | ".join(cell(text) for text in cells) + " |"


def _values(annotation: Any, metadata: list[Any]) -> str:
    """What a field may hold, as a reader would say it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = inner[1].metadata if isinstance(inner[1], FieldInfo) else list(inner[1:])
        return _values(inner[0], limits)
    if origin is Literal:
        return ", ".join(f"`{_written(value)}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return ", ".join(
            "`none`" if part is type(None) else _values(part, metadata) for part in inner
        )
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"a list, each: {_values(inner[0], [])}"
        return f"{len(inner)} values: " + "; ".join(_values(part, []) for part in inner)
    return " ".join([_KINDS[annotation], *_limits(metadata)])


def _limits(metadata: list[Any]) -> Iterator[str]:
    by_name = {
        name: getattr(limit, name)
        for limit in metadata
        for name in ("ge", "gt", "le", "lt", "min_length", "pattern")
        if getattr(limit, name, None) is not None
    }
    if "ge" in by_name and "le" in by_name:
        yield f"from {by_name['ge']:,} to {by_name['le']:,}"
    elif by_name:
        words = {"ge": "from {:,}", "gt": "above {:,}", "le": "to {:,}", "lt": "below {:,}"}
        found = [words[n].format(by_name[n]) for n in words if n in by_name]
        yield ", ".join(found)
        if by_name.get("pattern") == "^[0-9a-f]{64}$":
            yield "(SHA-256, hexadecimal)"


def _written(value: Any) -> str:
    """As a recipe writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_written(part) for part in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


_FIELDS_TOP = """# Recipe fields

A recipe is a TOML file; what it leaves out has the default below. `stapes train --recipe NAME`
takes a [shipped recipe](recipes.md) or a file, and `--set section.field=value` changes one field:

```sh
stapes recipes --fields                        # this table, in the terminal
stapes recipes small > mine.toml               # a recipe to start from
```

`none` switches a field off where it is allowed. `"auto"` is filled in from the recordings, and the
run keeps what it became in its `recipe.toml`. Unknown fields and values out of range are refused,
with the name of the field. In Python the sections are classes of
[`stapes.config`](reference/config.md).

Besides its sections a recipe has a `name` and a `description`.
"""


def _recipes() -> Iterator[str]:
    yield "# Shipped recipes\n"
    yield (
        "`stapes train DATA --recipe NAME` takes one of these; `stapes recipes NAME` prints it. "
        "[Recipe fields](recipe-fields.md) explains every line.\n"
    )
    yield "| recipe | what it is for |\n| --- | --- |"
    for name in config.recipe_names():
        yield f"| [`{name}`](#{name}) | {cell(code_names(config.load_recipe(name).description))} |"
    for name in config.recipe_names():
        source = re.sub(r"^```", "'''", config.recipe_source(name).strip(), flags=re.MULTILINE)
        yield f"\n## {name} {{ #{name} }}\n"
        yield f"```toml\n{source}\n```"
