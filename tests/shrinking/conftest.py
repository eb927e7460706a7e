"""A finished toy run, for all tests of the search."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import stapes

TINY = (
    "training.epochs=2", "model.width=8", "model.blocks=[2, 1, 0]", "model.rho=4",
    "features.n_mels=32", "audio.window_seconds=0.5", "training.batch_size=16",
    "training.averaging=none", "quantization.aware=never",
)  # fmt: skip
LABELS = ("kick", "snare", "hi-hat")


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of width 8 for three kinds of drum hits, of four per kit."""
    examples = Path(__file__).resolve().parents[2] / "examples" / "drum-hits"
    folder = tmp_path_factory.mktemp("toy")
    with (examples / "manifest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in LABELS]
    kept: dict[tuple[str, str], int] = {}
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        for row in rows:
            key = (row["group"], row["label"])
            kept[key] = kept.get(key, 0) + 1
            if kept[key] <= 4:
                writer.writerow([examples / row["path"], row["label"], row["group"]])
    result = stapes.train(
        folder / "manifest.csv", overrides=TINY, out=folder / "run", cache=folder / "cache"
    )
    return result.folder
