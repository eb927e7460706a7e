"""A finished toy run, for all tests of the search."""

from __future__ import annotations

from pathlib import Path

import pytest
from hits import write_few_hits

import stapes

TINY = (
    "training.epochs=2", "model.width=8", "model.blocks=[2, 1, 0]", "model.rho=4",
    "features.n_mels=32", "audio.window_seconds=0.5", "training.batch_size=16",
    "training.averaging=none", "quantization.aware=never",
)  # fmt: skip


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of width 8 for three kinds of drum hits, of four per kit."""
    folder = tmp_path_factory.mktemp("toy")
    result = stapes.train(
        write_few_hits(folder), overrides=TINY, out=folder / "run", cache=folder / "cache"
    )
    return result.folder
