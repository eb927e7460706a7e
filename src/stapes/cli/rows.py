"""Rows of answers, written as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import IO, Any, Literal

__all__ = ["Format", "row_writer"]

Format = Literal["table", "csv", "jsonl"]

_WIDTHS = {"start": 9, "end": 9, "rank": 4, "score": 6, "label": 16}
_RIGHT = {"start", "end", "rank", "score"}


def row_writer(
    file: IO[str], format: Format, columns: list[str], *, header: bool = True, **widths: int
) -> Callable[[list[Any]], object]:
    """What writes a row, after it has written the header.

    Args:
        file: open for writing.
        format: a table, whose rows are flushed; csv; or one JSON object a line.
        columns: their names.
        header: whether to begin with the names (of jsonl never).
        widths: of a table's columns, where they are not the usual ones.
    """
    if format == "csv":
        rows = csv.writer(file, lineterminator="\n")
        if header:
            rows.writerow(columns)
        return rows.writerow
    if format == "jsonl":
        return lambda row: file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")
    places = {**_WIDTHS, **widths}

    def cell(name: str, value: Any) -> str:
        if isinstance(value, float):
            value = f"{value:.4f}" if name == "score" else f"{value:.2f}"
        text = str(value)
        return text.rjust(places[name]) if name in _RIGHT else text.ljust(places[name])

    def line(row: list[Any]) -> None:
        cells = [cell(name, value) for name, value in zip(columns, row, strict=True)]
        file.write("  ".join(cells).rstrip() + "\n")
        file.flush()

    if header:
        line(columns)
    return line
