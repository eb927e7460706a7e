"""Papers, reproduced by command: one file a paper, and what all of them share.

``study_names`` and ``load_study`` are all that ``stapes reproduce`` needs to know; a paper is a
module that declares a :class:`Study` called ``STUDY``.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from stapes.errors import UnknownNameError

if TYPE_CHECKING:
    from stapes.studies.study import Study

__all__ = ["load_study", "study_names"]

# Name to module. Imported when asked for, since a study needs torch and its list does not.
_STUDIES = MappingProxyType(
    {
        "koutini2020": "stapes.studies.koutini2020",
        "palanisamy2020": "stapes.studies.palanisamy2020",
    }
)


def study_names() -> list[str]:
    """Names of the papers that can be reproduced, sorted."""
    return sorted(_STUDIES)


def load_study(name: str) -> Study:
    """The study of a paper.

    Raises:
        UnknownNameError: lists the known ones.
    """
    if name not in _STUDIES:
        raise UnknownNameError("paper", name, _STUDIES)
    study: Study = import_module(_STUDIES[name]).STUDY
    return study
