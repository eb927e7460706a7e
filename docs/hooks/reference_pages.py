"""Pages of the Python reference: which names they show. The words are the docstrings'."""

from __future__ import annotations

import ast
from pathlib import Path

import stapes

__all__ = ["reference_pages"]

# Rooms of the package that programs use beyond the names of ``stapes`` itself, in the order of the
# navigation. A room joins when it has names to offer.
_ROOMS = {
    "inference": "what every classifier does",
    "runtime": "exported models, without torch",
    "catalogue": "shipped models by name",
    "data": "recordings, corpora and splits",
    "features": "front ends",
    "models": "networks, receptive fields and costs",
    "compression": "pruning and quantisation",
    "training": "runs",
    "shrinking": "models inside a budget",
    "explain": "what a model listens to",
    "deploy.export": "models for elsewhere",
    "deploy.parity": "every way to run a model, side by side",
    "web": "the page for the browser",
    "server": "models over HTTP",
    "archive": "archives of recordings",
    "config": "recipes",
    "errors": "what can go wrong",
}


def reference_pages() -> dict[str, str]:
    """Markdown by address: ``reference/index.md`` with the door, and a page for each room."""
    package = Path(stapes.__file__).parent
    rows = ["| room | |", "| --- | --- |"]
    pages = {"reference/index.md": ""}
    for room, what in _ROOMS.items():
        names = _offered(package, room)
        if not names:
            continue
        rows.append(f"| [`stapes.{room}`]({room}.md) | {what} |")
        pages[f"reference/{room}.md"] = _ROOM.format(
            room=room, blocks=_blocks(package, room, names)
        )
    names = sorted(stapes.__all__, key=_functions_first)
    door = "\n".join(f"::: {_door_path(package, name)}\n" for name in names)
    pages["reference/index.md"] = _DOOR.format(rooms="\n".join(rows), door=door)
    return pages


def _functions_first(name: str) -> tuple[bool, str]:
    return name[0].isupper(), name.lower()


def _blocks(package: Path, room: str, names: list[str]) -> str:
    top = _MODULE.format(room=room)
    ordered, known = sorted(names, key=_functions_first), set(stapes.__all__)
    # What the door shows is on its page.
    return "\n".join(
        [top, *(f"::: {_path(package, room, name)}\n" for name in ordered if name not in known)]
    ) + _also_at_the_door(package, [name for name in ordered if name in known])


def _door_path(package: Path, name: str) -> str:
    home = stapes._HOMES.get(name)
    clash = home is not None and _module_of_same_name(package, home, name)
    return _path(package, home, name) if home is not None and clash else f"stapes.{name}"


def _path(package: Path, room: str, name: str) -> str:
    """Where a name is found by a reader of source, to whom a module is nearer than its function."""
    clash = _module_of_same_name(package, room, name)
    return f"stapes.{room}.{name}.{name}" if clash else f"stapes.{room}.{name}"


def _module_of_same_name(package: Path, room: str, name: str) -> bool:
    return package.joinpath(*room.split("."), f"{name}.py").is_file()


def _also_at_the_door(package: Path, names: list[str]) -> str:
    if not names:
        return ""
    links = ", ".join(f"[`{name}`][{_door_path(package, name)}]" for name in names)
    return f"\nAlso here, and described under [`stapes`](index.md): {links}.\n"


def _offered(package: Path, room: str) -> list[str]:
    """The names in ``__all__``, read without importing: not every room's packages need be there."""
    place = package.joinpath(*room.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


_MODULE = """::: stapes.{room}
    options:
      members: false
      show_root_heading: false
      show_root_toc_entry: false
"""

_ROOM = """# stapes.{room} {{ #stapes.{room} }}

{blocks}
"""

_DOOR = """# Python reference

`import stapes` costs nothing: names are imported when first used. Most programs need only those on
this page; the rooms behind them have more.

Waveforms are float32 in [-1, 1], `(channels, samples)`; spectrograms `(batch, channels, frequency,
time)`. B, C, F, T, N and K stand for batch, channels, frequency bins, frames, samples and labels.

{rooms}

{door}
"""
