"""From what a user points at (folder, table, known corpus) to a :class:`Dataset`."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from stapes.audio import find_audio, is_audio_name
from stapes.data.clips import Clip, Dataset, SplitWord
from stapes.data.corpora import detect_corpus, get_corpus
from stapes.data.tables import MANIFEST_SUFFIXES, AudioFinder, Row, read_table
from stapes.errors import DataError
from stapes.files import write_text

__all__ = ["Clip", "Dataset", "load_dataset", "write_manifest"]

_FEW = 5  # how many names a message lists before it only counts


def load_dataset(
    path: str | Path,
    *,
    corpus: str | None = None,
    group_by: str | None = None,
    missing: Literal["error", "skip"] = "error",
    min_classes: int = 2,
) -> Dataset:
    """Read labelled recordings.

    ``path`` is one of

    - a table (``.csv``, ``.tsv``, ``.parquet``) with the columns ``path`` and ``label`` and, if
      wanted, ``start``, ``end`` (seconds), ``fold``, ``group``, ``split`` (train, validation,
      test); other columns are ignored. Paths are relative to the table; ``dog.wav`` also finds
      ``dog.ogg``;
    - a folder with a ``manifest.csv``, ``.tsv`` or ``.parquet`` in it;
    - a known corpus in its official layout, recognised or named by ``corpus``;
    - a folder with one subfolder per class, its audio at any depth below.

    Args:
        path: file or folder.
        corpus: name of a known corpus, for a folder that is not recognised or to choose a subset
            (``"esc10"``).
        group_by: ``"folder"``: the name of the folder that a recording lies in is its group;
            else a regular expression searched in the file's name, whose first parenthesis (or
            whole match) is the group. Replaces declared groups.
        missing: a table's row without audio is an error, or skipped and counted in ``notes``. A
            known corpus always skips, since partial copies are common.
        min_classes: refuse fewer; 2 to train on, 1 to score a model on.

    Raises:
        DataError: says what is wrong with which file, column or row.
        UnknownNameError: no corpus has that name.
    """
    path = Path(path)
    if corpus is not None:
        dataset = get_corpus(corpus).load(path)
    elif path.is_dir():
        tables = [path / f"manifest{suffix}" for suffix in MANIFEST_SUFFIXES]
        table = next((t for t in tables if t.is_file()), None)
        known = None if table else detect_corpus(path)
        if table:
            dataset = _from_table(table, path.resolve().name, missing)
        else:
            dataset = known.load(path) if known else _from_folders(path)
    elif not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    elif path.suffix.lower() in MANIFEST_SUFFIXES:
        dataset = _from_table(path, path.stem, missing)
    else:
        raise DataError(
            f"{path}: neither a folder nor a table ({', '.join(MANIFEST_SUFFIXES)}). Give the "
            "folder that holds the recordings."
        )
    if len(dataset.labels) < min_classes:
        raise DataError(
            f"{path}: only one class, '{dataset.labels[0]}'; a classifier needs at least two."
        )
    if group_by is not None:
        dataset = replace(dataset, clips=tuple(_grouped(dataset.clips, group_by)))
    return dataset


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as a table that :func:`load_dataset` reads back, paths relative to the table.

    Args:
        path: the ``.csv`` file; its folder must exist.
        clips: their folds, groups and parts become columns where any clip has one.

    Raises:
        StapesError: the disk is full or the place cannot be written to.
    """
    clips = list(clips)
    columns = ["path", "label", "start", "end"]
    columns += [c for c in ("group", "fold", "split") if any(getattr(clip, c) for clip in clips)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for clip in clips:
        place = clip.path.resolve()
        try:
            relative = os.path.relpath(place, path.parent.resolve())
        except ValueError:  # another drive
            relative = str(place)
        cells = [relative, clip.label]
        for column in columns[2:]:
            value = getattr(clip, column)
            cells.append(
                "" if value is None else repr(value) if column in ("start", "end") else value
            )
        writer.writerow(cells)
    write_text(path, text.getvalue())


def _from_folders(root: Path) -> Dataset:
    files = find_audio(root)
    if not files:
        raise DataError(
            f"{root}: no audio found. Expected one subfolder per class with recordings in it, a "
            "manifest.csv, or a known corpus."
        )
    loose = [f for f in files if f.parent == root]
    if loose:
        raise DataError(
            f"{root}: {_listed(f.name for f in loose)} without a class; move recordings into one "
            "subfolder per class, or write a manifest.csv with the columns path and label."
        )
    clips = tuple(Clip(f, f.relative_to(root).parts[0]) for f in files)
    labels = _labels(clips)
    folders = sorted(f.name for f in root.iterdir() if f.is_dir() and f.name[0] != ".")
    empty = [name for name in folders if name not in labels]
    notes = (f"No audio in the folder {_listed(empty)}: left out.",) if empty else ()
    return Dataset(root.resolve().name, root, clips, labels, notes=notes)


@dataclass(frozen=True)
class _Entry:
    """A row of a manifest, its cells checked, its audio found or not."""

    row: Row
    path: Path | None
    start: float | None
    end: float | None
    split: SplitWord | None

    def clip(self) -> Clip:
        assert self.path is not None
        fold, group = self.row["fold"] or None, self.row["group"] or None
        return Clip(self.path, self.row["label"], self.start, self.end, fold, group, self.split)


def _from_table(table: Path, name: str, missing: Literal["error", "skip"]) -> Dataset:
    rows = read_table(table, required=("path", "label"))
    finder = AudioFinder(table.parent)
    entries = [_entry(table, row, finder) for row in rows]
    _require_full_column(table, rows, "fold")
    _require_full_column(table, rows, "split")
    _refuse_repeats(table, entries)
    absent = [e.row["path"] for e in entries if e.path is None]
    notes: tuple[str, ...] = ()
    if absent and (missing == "error" or len(absent) == len(entries)):
        raise DataError(
            f"{table}: {len(absent)} of {len(entries)} audio files are missing: {_listed(absent)}. "
            f"Paths start from {table.parent.resolve()}."
        )
    if absent:
        notes = (f"{len(absent)} of {len(entries)} rows have no audio and are left out.",)
    clips = tuple(e.clip() for e in entries if e.path is not None)
    return Dataset(name, table.parent, clips, _labels(clips), notes=notes)


def _entry(table: Path, row: Row, finder: AudioFinder) -> _Entry:
    for column in ("path", "label"):
        if not row[column]:
            raise DataError(f"{table}, row {row.number}: the cell '{column}' is empty.")
    start, end = _seconds(table, row, "start"), _seconds(table, row, "end")
    if end is not None and end <= (start or 0.0):
        raise DataError(
            f"{table}, row {row.number}: end {end:g} is not after start {start or 0.0:g}."
        )
    found = finder.find(row["path"])
    if found is not None and not is_audio_name(found):
        raise DataError(f"{table}, row {row.number}: '{row['path']}' is not an audio file.")
    return _Entry(row, found, start, end, _split_word(table, row))


def _seconds(table: Path, row: Row, column: str) -> float | None:
    text = row[column]
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise DataError(
            f"{table}, row {row.number}: {column} is '{text}'; it must be seconds, 0 or more, "
            "with a decimal point."
        )
    return value


def _split_word(table: Path, row: Row) -> SplitWord | None:
    word = row["split"].lower()
    for known in get_args(SplitWord):
        if word == known:
            return known  # type: ignore[no-any-return]
    if not word:
        return None
    raise DataError(
        f"{table}, row {row.number}: split is '{row['split']}'; write train, validation or test."
    )


def _require_full_column(table: Path, rows: Sequence[Row], column: str) -> None:
    # A clip that belongs nowhere would vanish from training without a word.
    empty = [row.number for row in rows if not row[column]]
    if empty and len(empty) < len(rows):
        raise DataError(
            f"{table}, row {empty[0]}: '{column}' is empty here ({len(empty)} rows) but not in "
            "the other rows; fill it in everywhere or nowhere."
        )


def _refuse_repeats(table: Path, entries: Iterable[_Entry]) -> None:
    first: dict[tuple[str | Path, float | None, float | None], Row] = {}
    for entry in entries:
        row = entry.row
        before = first.setdefault((entry.path or row["path"], entry.start, entry.end), row)
        if before is row:
            continue
        said = (
            "repeats"
            if before["label"] == row["label"]
            else f"says '{row['label']}' where '{before['label']}' is said by"
        )
        raise DataError(
            f"{table}, row {row.number}: {row['path']} {said} row {before.number}; keep one of "
            "them."
        )


def _labels(clips: Sequence[Clip]) -> tuple[str, ...]:
    return tuple(sorted({clip.label for clip in clips}))


def _grouped(clips: Sequence[Clip], group_by: str) -> list[Clip]:
    if group_by == "folder":
        return [replace(clip, group=clip.path.parent.name) for clip in clips]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DataError(
            f"--group-by {group_by}: neither 'folder' nor a regular expression ({error})."
        ) from None
    matches = [pattern.search(clip.path.name) for clip in clips]
    # An optional parenthesis that took no part in the match gives no group either.
    groups = [m and (m.group(1) if pattern.groups else m.group()) for m in matches]
    without = [clip.path.name for clip, group in zip(clips, groups, strict=True) if not group]
    if without:
        raise DataError(
            f"--group-by {group_by}: no match in the name of {_listed(without)}; every recording "
            "needs a group."
        )
    return [replace(clip, group=group) for clip, group in zip(clips, groups, strict=True)]


def _listed(names: Iterable[str]) -> str:
    names = list(Counter(names))
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(f"'{name}'" for name in names[:_FEW]) + more
