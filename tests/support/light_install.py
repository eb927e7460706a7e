"""The command in a Python that has none of the training packages."""

from __future__ import annotations

from collections.abc import Collection

from stapes.errors import TRAINING_PACKAGES

# typer itself may bring these two.
BLOCKED = TRAINING_PACKAGES - {"pydantic", "rich"}
COMMAND = "from stapes.cli import main; sys.argv[0] = 'stapes'; main()\n"


def without(packages: Collection[str]) -> str:
    """The beginning of a program that cannot import these; it imports ``sys``."""
    return f"import sys; sys.modules.update(dict.fromkeys({sorted(packages)!r}))\n"
