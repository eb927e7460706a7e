"""Plain text of the program as Markdown."""

from __future__ import annotations

import re

__all__ = ["cell", "code_names"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|])")
_SECTIONS = (
    "audio|features|normalization|model|initialization|augment|training|distillation|pruning|"
    "quantization"
)
_CODE = re.compile(
    r"(?P<quoted>'(?:stapes|torchrun)\b[^']*')"  # as help texts quote commands
    r"|(?P<ticks>``[^`]+``|`[^`]+`)"
    r"|(?P<command>\b(?:stapes|torchrun)"
    r"(?:(?<=stapes)\s[a-z]+\b|\s(?:--?[a-z][\w-]*|[A-Z]{2,}[\w/.-]*|\d+|[\w-]+\.wav|stapes|\.\.\.))+)"
    r"|(?P<option>(?<![\w-])--?[a-z][\w-]*)"
    rf"|(?P<field>\b(?:{_SECTIONS})\.[a-z_]+(?:=[\w.]+)?\b)"
    r"|(?P<named>\b[A-Za-z0-9]+_\w+\b)"
)


def code_names(text: str) -> str:
    """Escape what Markdown would read, and set options, fields and commands as code."""
    parts, at = [], 0
    for found in _CODE.finditer(text):
        parts.append(_SPECIAL.sub(r"\\\1", text[at : found.start()]))
        parts.append("`" + found.group().strip("'`") + "`")
        at = found.end()
    parts.append(_SPECIAL.sub(r"\\\1", text[at:]))
    return "".join(parts)


def cell(text: str) -> str:
    """For a cell of a table: one line."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))
