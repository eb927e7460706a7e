"""Every way to run a model in one table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_run import noise_of, toy_run

from stapes.bundle import load_bundle, save_bundle
from stapes.deploy import parity as module
from stapes.deploy.c99.compiled import c_compiler
from stapes.deploy.export import in_eight_bits
from stapes.deploy.parity import parity
from stapes.errors import ConfigError, DataError, StapesError
from stapes.runtime import OnnxClassifier

needs_compiler = pytest.mark.skipif(
    c_compiler() is None or shutil.which("make") is None, reason="needs a C compiler and make"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("parity"))


@needs_compiler
def test_all_ways_give_one_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REPEATS", 1)
    asked: list[list[str]] = []
    monkeypatch.setattr(module, "_peak", lambda arguments: asked.append(arguments) or 123)
    found = parity(run, limit=3)
    assert (found.n_clips, found.n_models) == (3, 1)
    rows = {row.name: row for row in found.rows}
    assert list(rows) == list(module._ORDER)
    for name in ("ONNX float32", "C float32", "streaming"):
        assert rows[name].difference is not None
        assert rows[name].difference < (1e-5 if name == "streaming" else 1e-4)
        assert rows[name].decisions == 1
    assert rows["C int8"].difference < 0.02  # type: ignore[operator]
    assert rows["torch float32"].difference is None
    assert len({row.accuracy.value for row in (rows["torch float32"], rows["C float32"])}) == 1
    for row in found.rows:
        assert row.milliseconds > 0
        assert row.size > 0
        assert row.ram == 123 if "C" not in row.name.split() else row.ram > 123
    assert [arguments[0] for arguments in asked] == ["predict"] * 4 + ["listen"]
    header, cells = found.cells()
    assert all(len(line) == len(header) for line in cells)
    assert found.markdown().count("\n") == len(cells) + 2


def test_memory_is_that_of_the_command_alone() -> None:
    mine = np.ones(50_000_000)  # 400 MB, which a child's peak must not hold
    peak = module._peak(["--help"])
    assert peak is None or 5_000_000 < peak < mine.nbytes
    assert module._peak(["no-such-verb"]) is None


@needs_compiler
def test_a_wrong_way_is_seen(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = OnnxClassifier.probabilities
    monkeypatch.setattr(module, "_REPEATS", 1)
    monkeypatch.setattr(module, "_memory", lambda ways, clip: dict.fromkeys(module._ORDER))
    monkeypatch.setattr(
        OnnxClassifier,
        "probabilities",
        lambda self, windows: np.roll(true(self, windows), 1, axis=1),
    )
    rows = {row.name: row for row in parity(run, limit=3).rows}
    assert rows["ONNX float32"].difference > 1e-3  # type: ignore[operator]
    assert rows["ONNX float32"].decisions < 1  # type: ignore[operator]
    assert rows["C float32"].difference < 1e-4  # type: ignore[operator]


def test_bad_input_is_one_sentence(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "model.safetensors", alone)
    with pytest.raises(DataError, match="--data"):
        parity(alone, int8=alone)
    with pytest.raises(StapesError, match="folds and seeds"):
        parity(tmp_path)
    with pytest.raises(ConfigError, match=r"is not .* in int8"):
        parity(run, int8=run, limit=1)
    with pytest.raises(ConfigError, match="--int8"):
        parity(alone, run.parent / "run" / "1" / "seed-0" / "test.csv")
    eight = in_eight_bits(load_bundle(run), np.stack([noise_of(i) for i in range(8)]))
    save_bundle(eight, alone)
    with pytest.raises(ConfigError, match="int8 already"):
        parity(alone, run / "1" / "seed-0" / "test.csv")
