"""What every reproduced paper declares, and what reproducing one of its tables or figures gives."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stapes.config import Recipe
from stapes.data import Dataset, fold_names
from stapes.errors import StapesError, UnknownNameError
from stapes.evaluation.bootstrap import Interval
from stapes.files import write_text

__all__ = [
    "Published",
    "Study",
    "StudyResult",
    "change_notes",
    "changes",
    "check_request",
    "default_folder",
    "seed_notes",
    "tested_fold",
    "thousands",
    "verdict",
    "write_tables",
]


@dataclass(frozen=True, slots=True)
class Published:
    """What a paper says of one of its networks.

    Attributes:
        parameters: that are not zero.
        accuracy: 0 to 1.
    """

    parameters: int
    accuracy: float


@dataclass(frozen=True)
class StudyResult:
    """A table or figure, reproduced.

    Attributes:
        study: name of the paper.
        item: such as ``"table1"``.
        title: one line.
        folder: where the files and all runs are.
        header: names of the columns.
        rows: cells as text.
        numeric: columns to align to the right.
        records: the same and more as numbers, by column of the CSV.
        statements: what the numbers say, one sentence each.
        notes: what a reader must know: what was changed, what cannot be compared.
        files: written, tables and figures.
    """

    study: str
    item: str
    title: str
    folder: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int]
    records: tuple[Mapping[str, Any], ...]
    statements: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Study:
    """A paper whose results can be reproduced.

    Attributes:
        name: what ``stapes reproduce`` takes.
        citation: one line.
        items: its tables and figures, each with what it shows.
        reproduce: trains what is missing and writes one of them. Takes the item and the data, and
            by name what every study takes: corpus, out, quick, epochs, overrides, fold, seeds,
            cache, workers, device, reporter, command; see
            :func:`stapes.studies.koutini2020.reproduce`.
        options: what it takes beyond that, such as ``"rhos"``.
    """

    name: str
    citation: str
    items: Mapping[str, str]
    reproduce: Callable[..., StudyResult]
    options: frozenset[str] = frozenset()


def changes(paper: Recipe, ours: Recipe) -> list[str]:
    """What one recipe changes in another, one text a section, such as ``model: width 128 -> 32``.

    Fields that the paper leaves to the data (``"auto"``) and fields that only one of two front
    ends has are left out; so are the recipes' names.
    """
    before, after = paper.model_dump(mode="json"), ours.model_dump(mode="json")
    lines = []
    for section, old in before.items():
        new = after[section]
        if not isinstance(old, dict):
            continue
        parts = [
            f"{field} {_value(value)} -> {_value(new[field])}"
            for field, value in old.items()
            if field in new and value != "auto" and value != new[field]
        ]
        if parts:
            lines.append(f"{section}: {', '.join(parts)}")
    return lines


def check_request(
    study: str,
    items: Iterable[str],
    item: str,
    *,
    data: str | Path | Dataset,
    corpus: str | None,
    seeds: int,
    epochs: int | None,
) -> None:
    """Refuse what no study can do.

    Raises:
        UnknownNameError: the study has no such item.
        StapesError: fewer than one seed or epoch.
        ValueError: a corpus beside a dataset that was already read.
    """
    if item not in items:
        raise UnknownNameError(f"item of {study}", item, items)
    if seeds < 1:
        raise StapesError(f"--seeds {seeds}: must be at least 1.")
    if epochs is not None and epochs < 1:
        raise StapesError(f"--epochs {epochs}: must be at least 1.")
    if isinstance(data, Dataset) and corpus is not None:
        raise ValueError("corpus goes with a folder or manifest, not with a Dataset")


def default_folder(study: str, dataset: Dataset, quick: bool) -> Path:
    """Where a study goes if nobody says otherwise."""
    return Path("runs") / f"{study}-{dataset.name}{'-quick' if quick else ''}"


def tested_fold(dataset: Dataset, fold: str | None, quick: bool) -> str | None:
    """The fold to test on: the one asked for, of a small version the first; none: all."""
    if quick and fold is None and dataset.has_folds and not dataset.has_splits:
        return fold_names(dataset)[0]
    return fold


def change_notes(
    paper: Recipe, ours: Recipe, *, quick: bool, epochs: int | None, of_epochs: int
) -> list[str]:
    """What a reader must know of a recipe that is not the paper's, in one sentence or none.

    Args:
        paper: its recipe.
        ours: what was trained.
        quick: whether it is the small version.
        epochs: that the schedule was shrunk to; none: it was not.
        of_epochs: in the paper.
    """
    changed = changes(paper, ours)
    if quick:
        changed = ["a small version (--quick)", *changed]
    elif epochs is not None:
        changed = [f"the schedule shrunk to {epochs} of {of_epochs} epochs", *changed]
    return [f"Changed in the paper's recipe: {'; '.join(changed)}."] if changed else []


def seed_notes(seeds: Sequence[int]) -> list[str]:
    """What the intervals of a single seed leave out."""
    if len(seeds) > 1:
        return []
    return [
        "One seed: the intervals do not hold what another seed would change; --seeds 3 shows it."
    ]


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def thousands(count: int) -> str:
    """A number of parameters as papers write it, such as ``1061.6K``."""
    return f"{count / 1000:.1f}K"


def verdict(gap: Interval) -> str:
    """Whether a difference is sure, in words."""
    if gap.low > 0:
        return "better"
    return "worse" if gap.high < 0 else "no sure difference"


def write_tables(
    folder: Path,
    item: str,
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: frozenset[int],
    records: Sequence[Mapping[str, Any]],
    *,
    below: Sequence[str],
    figures: Sequence[str] = (),
    command: str = "",
) -> tuple[Path, Path]:
    """Write ``item.md`` and ``item.csv``.

    Args:
        folder: where to.
        item: stem of the files.
        title: heading of the page.
        header: names of the columns.
        rows: cells as text, for the page.
        numeric: columns of the page to align to the right.
        records: the same and more as numbers, for the CSV; an absent value is None.
        below: sentences under the table.
        figures: file names of pictures to show.
        command: that made it, if a command did.

    Returns:
        Paths of both.

    Raises:
        StapesError: the disk is full or the place cannot be written to.
    """
    lines = [f"# {title}", ""]
    if command:
        lines += [f"    {command}", ""]
    for figure in figures:
        lines += [f"![{title}]({figure})", ""]
    lines.append("| " + " | ".join(header) + " |")
    lines.append(
        "| " + " | ".join("---:" if i in numeric else "---" for i in range(len(header))) + " |"
    )
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {sentence}" for sentence in below)]
    page = folder / f"{item}.md"
    write_text(page, "\n".join(lines) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    table = folder / f"{item}.csv"
    write_text(table, text.getvalue())
    return page, table
