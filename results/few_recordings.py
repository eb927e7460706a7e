"""Manifests for "A few recordings of other classes": python results/few_recordings.py ESC-50/

Writes esc40.csv (ESC-50 without the classes of ESC-10), few5.csv and few10.csv (ESC-10 with so many
training clips a class, each from a source of its own, out of folds 1 to 4) here. Fold 5 is tested.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]


def write(name: str, rows: Iterable[tuple[Row, str]], audio: dict[str, Path]) -> None:
    """One manifest of rows and their parts."""
    with Path(name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        for row, part in rows:
            path = audio[Path(row["filename"]).stem]
            writer.writerow([path, row["category"], row["src_file"], part])


def main(corpus: Path) -> None:
    """All three."""
    with (corpus / "meta/esc50.csv").open() as file:
        rows = list(csv.DictReader(file))
    audio = {path.stem: path.resolve() for path in (corpus / "audio").iterdir()}
    ten = [row for row in rows if row["esc10"] == "True"]
    others = [row for row in rows if row["esc10"] != "True"]
    parts = [(row, "test" if row["fold"] == "5" else "train") for row in others]
    write("esc40.csv", parts, audio)
    test = [(row, "test") for row in ten if row["fold"] == "5"]
    for count in (5, 10):
        rng = random.Random(0)
        chosen: list[tuple[Row, str]] = []
        for label in sorted({row["category"] for row in ten}):
            by_source: dict[str, Row] = {}
            for row in ten:
                if row["category"] == label and row["fold"] != "5":
                    by_source.setdefault(row["src_file"], row)
            chosen += [(row, "train") for row in rng.sample(list(by_source.values()), count)]
        write(f"few{count}.csv", chosen + test, audio)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
