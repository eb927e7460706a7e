"""A few real drum hits, for tests that train."""

from __future__ import annotations

import csv
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "drum-hits"
LABELS = ("kick", "snare", "hi-hat")


def write_few_hits(folder: Path) -> Path:
    """Up to four hits of three classes from every kit that has them, as a manifest of its own."""
    with (EXAMPLES / "manifest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in LABELS]
    kept: dict[tuple[str, str], int] = {}
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        for row in rows:
            key = (row["group"], row["label"])
            kept[key] = kept.get(key, 0) + 1
            if kept[key] <= 4:
                writer.writerow([EXAMPLES / row["path"], row["label"], row["group"]])
    return manifest
