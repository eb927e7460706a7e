"""Recipes from TOML and back, and what is wrong with one in a sentence."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stapes.config.schema import KINDS, Recipe, Strict
from stapes.errors import ConfigError, UnknownNameError

__all__ = [
    "load_recipe",
    "override_recipe",
    "parse_recipe",
    "recipe_names",
    "recipe_source",
    "to_toml",
]


def recipe_names() -> list[str]:
    """Names of the recipes that come with stapes."""
    folder = resources.files("stapes.recipes")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def recipe_source(name: str) -> str:
    """Text of a shipped recipe, comments included.

    Raises:
        UnknownNameError: no recipe has that name.
    """
    if name not in recipe_names():
        raise UnknownNameError("recipe", name, recipe_names())
    return (resources.files("stapes.recipes") / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``section.field=value`` overrides.

    Args:
        name_or_path: a shipped recipe's name or a TOML file.
        overrides: such as ``"training.epochs=30"``; the value is TOML (a bare word is a string,
            ``none`` is no value).

    Raises:
        ConfigError: unreadable file, unknown field, value out of range.
        UnknownNameError: neither a file nor a shipped recipe.
    """
    text = str(name_or_path)
    path = Path(text)
    if path.suffix == ".toml" or path.is_file():
        try:
            source = path.read_text(encoding="utf-8-sig")  # editors may put a mark in front
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot read this recipe ({error}).") from None
    else:
        source = recipe_source(text)
    try:
        tree = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{text}: not valid TOML ({error}).") from None
    tree.setdefault("name", path.stem)
    for override in overrides:
        _override(tree, override)
    return parse_recipe(tree, text)


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with ``section.field=value`` overrides, as :func:`load_recipe` takes them.

    Raises:
        ConfigError: unknown field, value out of range.
    """
    tree = recipe.model_dump()
    for override in overrides:
        _override(tree, override)
    return parse_recipe(tree, recipe.name)


def parse_recipe(tree: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate a recipe that is already a mapping (from TOML or a model file's header).

    Raises:
        ConfigError: names the field, what is wrong with it and what would be valid.
    """
    try:
        return Recipe.model_validate(_none_words_to_none(tree))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def _none_words_to_none(tree: Any) -> Any:
    # TOML has no null: the word "none" stands for it where a field allows no value.
    nullable = {
        "hop_seconds", "win_length", "f_max", "mel_norm", "top_db", "damping", "decay_end_epoch",
        "gradient_clip", "early_stopping_epochs", "decomposition", "keep", "keep_parameters",
        "file", "sha256", "blocks", "impulse_responses", "impulse_responses_sha256",
    }  # fmt: skip
    if isinstance(tree, Mapping):
        return {
            key: None if key in nullable and value == "none" else _none_words_to_none(value)
            for key, value in tree.items()
        }
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    field, separator, raw = override.partition("=")
    keys = field.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override}: write section.field=value, e.g. training.epochs=30.")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: '{key}' is a value, not a section.")
    if keys[:-1] and keys[0] in KINDS and keys[-1] == "name" and node.get("name") != value:
        # What both kinds have stays, as far as the new one can take it.
        kind = KINDS[keys[0]].get(str(value), Strict)
        for field in list(node):
            try:
                kind.model_validate(_none_words_to_none({field: node[field]}))
            except ValidationError:
                del node[field]
    node[keys[-1]] = value


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        # Drop the unions' tags from the path: a user never wrote "log_mel" there.
        location = [str(key) for key in item["loc"] if key not in _UNION_TAGS]
        if len(location) > 1 and location[1] in KINDS.get(location[0], {}):
            del location[1]
        field = ".".join(location) or "recipe"
        if item["type"] == "extra_forbidden":
            valid = _fields_beside(location)
            close = difflib.get_close_matches(location[-1], valid, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            parts.append(f"unknown field '{field}'.{hint} Valid here: {', '.join(valid)}.")
        else:
            message = item["msg"].removeprefix("Value error, ")
            # Where fields do not go together, the input is all of them: the message names them.
            whole = isinstance(item["input"], Mapping | Strict)
            subject = field if whole else f"{field} = {item['input']!r}"
            parts.append(f"{subject}: {message[0].lower()}{message[1:]}.")
    return " ".join(dict.fromkeys(parts))


_UNION_TAGS = {"constrained-int", "constrained-float", "literal['auto']"}


def _fields_beside(location: Sequence[str]) -> list[str]:
    if len(location) == 1:
        return sorted(Recipe.model_fields)
    if location[0] in KINDS:
        return sorted({f for kind in KINDS[location[0]].values() for f in kind.model_fields})
    section = Recipe.model_fields[location[0]].annotation
    return sorted(section.model_fields) if isinstance(section, type) else []


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML that :func:`load_recipe` reads back to an equal recipe."""
    lines = []
    sections = []
    for key, value in recipe.model_dump(mode="python").items():
        if isinstance(value, dict):
            sections.append(f"\n[{key}]")
            sections.extend(f"{k} = {_toml_value(v)}" for k, v in value.items())
        else:
            lines.append(f"{key} = {_toml_value(value)}")
    return "\n".join(lines + sections) + "\n"


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML takes the escapes of JSON, and wants one more.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return repr(value)
