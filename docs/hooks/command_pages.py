"""Pages of the ``stapes`` command, from the command itself."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import typer
from site_text import cell, code_names

__all__ = ["command_pages"]

_VALUES = {Path: "PATH", int: "INTEGER", float: "NUMBER", str: "TEXT"}
_BRACKETED_DEFAULT = re.compile(r"^(?P<help>.*?)\s*\[(?P<default>[^\]]+)\](?P<end>\.?)$", re.DOTALL)


def command_pages(app: typer.Typer) -> dict[str, str]:
    """Markdown of every command.

    Args:
        app: the command line.

    Returns:
        By address: ``commands/index.md``, which lists the others, and ``commands/NAME.md`` in the
        order of ``stapes --help``; the commands of a group are on one page.
    """
    pages = {"commands/index.md": ""}
    rows = ["| command | |", "| --- | --- |"]
    for name, command in _children(app):
        address = f"{name}.md"
        children = _children(command)
        if children:
            text = [f"# stapes {name}\n", _prose(command.help), ""]
            for child_name, child in children:
                text += [f"## stapes {name} {child_name}\n", *_body(f"{name} {child_name}", child)]
                link = f"{address}#stapes-{name}-{child_name}"
                rows.append(f"| [`stapes {name} {child_name}`]({link}) | {_summary(child)} |")
        else:
            text = [f"# stapes {name}\n", *_body(name, command)]
            rows.append(f"| [`stapes {name}`]({address}) | {_summary(command)} |")
        pages[f"commands/{address}"] = "\n".join(text) + "\n"
    pages["commands/index.md"] = _INDEX.format(table="\n".join(rows))
    return pages


_INDEX = """# Commands

{table}

Every command has `--help`; `stapes --version` prints the version. A model is a `.safetensors` file,
a run folder, an exported `.onnx` file, or the name of a [shipped model](../models.md).

| exit status | |
| --- | --- |
| 0 | done |
| 1 | done, but some recordings could not be answered or checked; standard error names them |
| 2 | a mistake that you can mend; one sentence says which |
| 130 | stopped from the keyboard; the same command continues |

Features are cached in a folder of the user's; the environment variable `STAPES_CACHE` names
another.
"""


def _children(app: Any) -> list[tuple[str, Any]]:
    command = typer.main.get_command(app) if isinstance(app, typer.Typer) else app
    return [(n, c) for n, c in getattr(command, "commands", {}).items() if not c.hidden]


def _body(name: str, command: Any) -> Iterator[str]:
    parameters = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    options = [p for p in parameters if p.param_type_name == "option"]
    hints = typing.get_type_hints(command.callback)
    yield _prose(command.help)
    yield ""
    yield "```text"
    yield " ".join([f"stapes {name}", *(["[OPTIONS]"] if options else []), *map(_place, arguments)])
    yield "```\n"
    for title, members in (("Arguments", arguments), ("Options", options)):
        if members:
            yield f"**{title}**\n"
        for parameter in members:
            yield from _entry(name, parameter, hints.get(parameter.name))


def _entry(command: str, parameter: Any, annotation: Any) -> Iterator[str]:
    """One item of a definition list, with an anchor of its own."""
    if parameter.param_type_name == "argument":
        term, key = f"`{_place(parameter)}`", parameter.name
    else:
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
        value = "" if _is_flag(parameter) else f" {_value(annotation)}"
        term, key = names + value, parameter.opts[0].lstrip("-")
    text, default = _help_and_default(parameter)
    facts = [text] if text else []
    limits = _limits(parameter)
    if limits:
        facts.append(f"Allowed: {limits}.")
    if parameter.required and parameter.param_type_name == "option":
        facts.append("Required.")
    if default:
        facts.append(f"Default: {default}.")
    anchor = f"{command}-{key}".replace(" ", "-").replace("_", "-").lower()
    yield f"{term} {{ #{anchor} }}\n:   {' '.join(facts) or '&nbsp;'}\n"


def _place(parameter: Any) -> str:
    """An argument as usage shows it: DATA, [NAME], FILES..."""
    text = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return text if parameter.required else f"[{text}]"


def _is_flag(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def _value(annotation: Any) -> str:
    """What an option's value is: a list's is that of its members, choices are spelled out."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Annotated, list):
        return _value(inner[0])
    if origin in (typing.Union, types.UnionType):
        return _value(next(part for part in inner if part is not NoneType))
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    return _VALUES[annotation]


def _limits(parameter: Any) -> str:
    # Where typer keeps them has moved.
    holder = parameter if hasattr(parameter, "min") else getattr(parameter, "type", None)
    low, high = getattr(holder, "min", None), getattr(holder, "max", None)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"{low:g} or more"
    return "" if high is None else f"{high:g} or less"


def _help_and_default(parameter: Any) -> tuple[str, str]:
    """What a parameter does, and its default: a value, or what the help says in brackets."""
    text, default = parameter.help or "", parameter.default
    said = _BRACKETED_DEFAULT.match(text)
    if said and default is None:
        return _prose(said["help"] + said["end"]), code_names(said["default"])
    if default is None or default == () or callable(default):
        shown = ""
    elif _is_flag(parameter):
        names = parameter.opts if default else parameter.secondary_opts
        shown = f"`{names[0]}`" if parameter.secondary_opts else ""
    else:
        shown = f"`{default}`"
    return _prose(text), shown


def _summary(command: Any) -> str:
    return cell(_prose((command.help or "").partition("\n\n")[0].replace("\n", " ")))


def _prose(text: str | None) -> str:
    return code_names(inspect.cleandoc(text or ""))
