"""Every way to run a model in one table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_classifier import ToyClassifier
from toy_run import noise_of, toy_run

from stapes.bundle import load_bundle, save_bundle
from stapes.data import Clip
from stapes.deploy import parity as module
from stapes.deploy.c99.compiled import can_compile
from stapes.deploy.export import in_eight_bits
from stapes.deploy.parity import parity
from stapes.errors import ConfigError, DataError, StapesError
from stapes.runtime import OnnxClassifier

needs_compiler = pytest.mark.skipif(not can_compile(), reason="needs a C compiler and make")


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


def test_what_cannot_be_read_or_compiled_is_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "make" else which(name))
    monkeypatch.setattr(module, "_REPEATS", 1)
    asked: list[Clip] = []
    monkeypatch.setattr(
        module, "_memory", lambda ways, clip: asked.append(clip) or dict.fromkeys(module._ORDER)
    )
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    lines = [f"{broken},low", f"{run.parent / '0.wav'},low", f"{run.parent / '1.wav'},high"]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    found = parity(run, manifest)
    assert (found.n_clips, found.n_models) == (2, 1)
    assert [row.name for row in found.rows if "C" in row.name.split()] == []
    assert len(found.rows) == 5
    compiler, unread = found.notes
    assert "no make" in compiler
    assert unread.startswith(f"Left out: {broken}: ")
    assert [clip.path.name for clip in asked] == ["0.wav"]
    manifest.write_text("\n".join(["path,label", lines[0]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"can answer none of the recordings: .*broken\.wav"):
        parity(run, manifest)


def test_only_a_clip_s_segment_is_streamed(tmp_path: Path) -> None:
    heard = []

    class Listening(ToyClassifier):
        def probabilities(self, windows: np.ndarray) -> np.ndarray:
            heard.append(windows)
            return super().probabilities(windows)

    levels = np.repeat(np.array([0.1, 0.2, 0.3, 0.4], np.float32), 1000)
    soundfile.write(tmp_path / "steps.wav", levels, 1000, subtype="FLOAT")
    clips = [
        Clip(tmp_path / "steps.wav", "low", start=1.0, end=2.0),
        Clip(tmp_path / "steps.wav", "low", start=3.0),
    ]
    assert module._stream_difference(Listening(rate=1000, window=0.4), clips) < 1e-6
    whole = np.unique(np.concatenate(heard)[..., 50:350])  # zeros pad the end
    np.testing.assert_array_equal(whole[whole > 0], np.array([0.2, 0.4], np.float32))


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
    other = tmp_path / "other.csv"
    other.write_text(f"path,label\n{run.parent / '0.wav'},thunder\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"label\(s\) thunder; it knows low, high, other"):
        parity(run, other)
    eight = in_eight_bits(load_bundle(run), np.stack([noise_of(i) for i in range(8)]))
    save_bundle(eight, alone)
    with pytest.raises(ConfigError, match="int8 already"):
        parity(alone, run / "1" / "seed-0" / "test.csv")
