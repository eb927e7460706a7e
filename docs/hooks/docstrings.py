"""Docstrings as Markdown: the roles that they are written with become links."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Roles"]

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(?P<short>~?)(?P<path>[\w.]+)`")
_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_RESULT = re.compile(r"^(Returns|Yields):\n(\s+)(?=\S)", re.MULTILINE)
_LITERAL = re.compile(r"::$", re.MULTILINE)
_FLAG = re.compile(r"[ \t]*# doctest:.*")
_CODE = re.compile(r"``([^`]+)``")


class Roles(griffe.Extension):
    """``:class:`X``` becomes a link where X has a place on the site, and code where it has none."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object with its docstring."""
        if obj.docstring is None:
            return

        def link(role: re.Match[str]) -> str:
            path = role["path"]
            full = path if path.startswith("stapes") else f"{_home(obj)}.{path}"
            shown = path.rpartition(".")[2] if role["short"] else path
            return f'<autoref identifier="{full}" optional><code>{shown}</code></autoref>'

        text = _CODE.sub(r"`\1`", _ROLE.sub(link, obj.docstring.value))
        text = _LITERAL.sub(":", _DOCTEST.sub(_session, text))
        # What stands before a colon would be taken for a type; types are in the signature.
        obj.docstring.value = _RESULT.sub(r"\1:\n\2: ", text)


def _session(doctest: re.Match[str]) -> str:
    return f"```pycon\n{_FLAG.sub('', doctest[0])}\n```"


def _home(obj: griffe.Object) -> str:
    """Where a bare name is looked up: the class of a method, else the module."""
    if obj.parent is not None and obj.parent.is_class:
        return obj.parent.path
    return obj.module.path
