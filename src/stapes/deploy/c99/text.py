"""Pieces of C text: macros, comments, constant arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Values", "comment", "declare", "define", "number", "table"]

Values = Sequence[float] | NDArray[np.generic]
_LINE = 100


def define(name: str, value: int | str, said: str = "") -> str:
    """A line that defines a macro; a truth value as 1 or 0."""
    text = str(int(value)) if isinstance(value, int) else value
    return f"#define {name} {text}" + (f" {comment(said)}" if said else "")


def comment(text: str) -> str:
    """A comment of any text on one line."""
    # A trigraph or a backslash at a line's end would go on into the next line.
    plain = " ".join(text.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/").split())
    return f"/* {plain} */"


def declare(kind: str, name: str, values: Values) -> str:
    """The declaration of :func:`table`'s array, without ``extern`` and semicolon."""
    return f"const {kind} stapes_{name}[{len(values)}]"


def table(kind: str, name: str, values: Values) -> str:
    """The constant array ``stapes_NAME``, ending with a newline; each number reads back exactly.

    Args:
        kind: ``"float"``, ``"stapes_real"`` (see :mod:`stapes.deploy.c99.frontend`), or an integer
            type.
        name: of the array.
        values: finite, at least one.
    """
    if len(values) == 0:
        raise ValueError(f"{name}: C has no empty arrays")
    return f"{declare(kind, name, values)} = {{\n{_wrapped(number(kind, v) for v in values)}\n}};\n"


def _wrapped(items: Iterable[str]) -> str:
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > _LINE:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return "\n".join([*lines, line])


def number(kind: str, value: float | np.generic) -> str:
    """One number of a :func:`table`."""
    if kind == "float":
        return f"{_decimal(np.float32(value))}f"
    if kind == "stapes_real":
        return f"R({_decimal(np.float64(value))})"
    return str(int(value))


def _decimal(value: np.floating) -> str:
    """The shortest decimal that reads back exactly, with what makes it floating-point in C."""
    text = str(value)
    return text if any(mark in text for mark in ".e") else f"{text}.0"
