"""Where the files of a run are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from stapes.errors import StapesError

__all__ = ["member_folder", "planned_members"]

# What some system does not take in a file name, the sign of the escape itself, and an end in dots
# or spaces.
_UNSAFE = re.compile(r'[<>:"/\\|?*%\x00-\x1f]|[. ]$|^\.+$')


def member_folder(run: Path, split: str, seed: int) -> Path:
    """Where a member's files go. Fold names come from tables: none may lead elsewhere."""
    return run / _UNSAFE.sub(_escaped, split) / f"seed-{seed}"


def planned_members(run: Path) -> list[tuple[str, int]]:
    """Split and seed of every member of a run.

    Raises:
        StapesError: its plan is damaged or missing.
    """
    path = run / "plan.json"
    try:
        named = [name.rpartition("/seed-") for name in json.loads(path.read_text("utf-8"))]
        return [(split, int(seed)) for split, _, seed in named]
    except (OSError, ValueError, AttributeError) as error:
        raise StapesError(f"{path}: damaged ({error}); give the folder of another run.") from None


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"%{ord(sign):02X}" for sign in match.group())
