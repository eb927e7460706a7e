"""Model files made into ONNX and C, and refused where the answers differ."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_run import LABELS, noise_of, toy_bundle, toy_run

import stapes
from stapes.bundle import Bundle, load_bundle, save_bundle
from stapes.deploy import export as exporting
from stapes.deploy.c99.compiled import CompiledClassifier, can_compile
from stapes.deploy.export import export
from stapes.errors import AudioError, ConfigError, ModelFileError, StapesError
from stapes.models import create_model

needs_compiler = pytest.mark.skipif(not can_compile(), reason="needs a C compiler and make")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("export"))


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_onnx_is_replayed_and_answers_as_the_model(
    run: Path, tmp_path: Path, precision: Any
) -> None:
    out = tmp_path / "m.onnx"
    made = export(run / "1" / "seed-0", "onnx", out, precision=precision)
    assert made.path == out
    assert made.size == out.stat().st_size
    assert made.replayed == "4 test clips of its run"
    assert made.agreement is not None
    assert made.agreement.windows == 4
    exported, model = stapes.load(out), stapes.load(run)
    assert exported.labels == LABELS
    assert made.agreement.mean_difference < (1e-6 if precision == "float32" else 0.01)
    if precision == "float32":
        clip = run.parent / "0.wav"
        expected = model.classify(clip).probabilities
        np.testing.assert_allclose(exported.classify(clip).probabilities, expected, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_c_is_compiled_and_answers_as_the_model(run: Path, tmp_path: Path, precision: Any) -> None:
    made = export(run, "c", tmp_path / "c", precision=precision, replay=[run.parent / "1.wav"])
    assert made.agreement is not None
    assert made.agreement.windows == 1
    assert made.c is not None
    assert 0 < made.c.ram_plain <= made.c.ram
    assert made.size == made.c.flash
    assert {"stapes.h", "model.c", "Makefile", "main.c"} <= _files(made.path)


def test_without_recordings_signals_are_made_up(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "model.safetensors", alone)
    made = export(alone, "onnx")
    assert made.path == tmp_path / "alone.onnx"
    assert made.replayed.startswith("8 made-up signals")
    with pytest.raises(ConfigError, match="--calibrate"):
        export(alone, "onnx", precision="int8")
    made = export(alone, "onnx", precision="int8", calibrate=[run.parent])
    assert made.precision == "int8"


def test_an_int8_model_is_exported_as_it_is(run: Path, tmp_path: Path) -> None:
    windows = np.stack([noise_of(seed) for seed in range(8)])
    eight = exporting.in_eight_bits(load_bundle(run), windows)
    save_bundle(eight, tmp_path / "eight.safetensors")
    made = export(tmp_path / "eight.safetensors", "onnx")
    assert made.precision == "int8"
    with pytest.raises(ConfigError, match="is an int8 model"):
        export(tmp_path / "eight.safetensors", "onnx", precision="float32")
    with pytest.raises(ConfigError, match="--calibrate goes with"):
        export(tmp_path / "eight.safetensors", "onnx", calibrate=[run.parent])


def _other_network(write: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(bundle: Bundle, *arguments: Any, **options: Any) -> Any:
        torch.manual_seed(1)
        settings = {k: v for k, v in bundle.network.settings().items() if k != "name"}  # type: ignore[operator]
        return write(
            replace(bundle, network=create_model("cp_resnet", **settings).eval()),
            *arguments,
            **options,
        )

    return wrong


def test_an_onnx_file_that_disagrees_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "onnx_model", _other_network(exporting.onnx_model))
    out = tmp_path / "m.onnx"
    out.write_text("what was there")
    with pytest.raises(StapesError, match=r"m\.onnx: not written"):
        export(run, "onnx", out)
    assert out.read_text() == "what was there"
    assert _files(tmp_path) == {"m.onnx"}


@needs_compiler
def test_c_that_disagrees_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "write_c", _other_network(exporting.write_c))
    with pytest.raises(StapesError, match="not written"):
        export(run, "c", tmp_path / "new" / "c")
    assert _files(tmp_path) == set()


@pytest.mark.parametrize("missing", ["make", "compiler"])
def test_c_is_written_unchecked_where_it_cannot_be_compiled(
    run: Path, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which

    def without(name: str) -> str | None:
        return None if (name == "make") == (missing == "make") else which(name)

    monkeypatch.setattr(shutil, "which", without)
    assert not can_compile()
    made = exporting.export_c(
        load_bundle(run), tmp_path / "c", "float32", noise_of(0)[None], np.ones((1, 3)), "a clip"
    )
    assert made.agreement is None
    assert made.replayed.startswith("nothing: C cannot be compiled here")
    assert {"stapes.h", "model.c", "Makefile", "main.c"} <= _files(made.path)
    with pytest.raises(StapesError, match="install make, and gcc or clang"):
        CompiledClassifier(made.path, LABELS, stapes.load(run).audio, 1)


def test_bad_input_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        export(run, "onnx", tmp_path / "m.tflite")
    with pytest.raises(ConfigError, match="onnx, c"):
        export(run, "tflite", tmp_path / "m")  # type: ignore[arg-type]
    with pytest.raises(AudioError, match=r"none\.wav"):
        export(run, "onnx", tmp_path / "m.onnx", replay=[tmp_path / "none.wav"])
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    with pytest.raises(ModelFileError):
        export(tmp_path / "broken.safetensors", "onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(StapesError, match=r"folder\.onnx"):
        export(run, "onnx", tmp_path / "folder.onnx")
    assert _files(tmp_path) == {"broken.safetensors", "folder.onnx"}


def test_stereo_and_short_hops_survive(tmp_path: Path) -> None:
    bundle = toy_bundle(channels="2", hop_seconds="0.25", longer="crop")
    save_bundle(bundle, tmp_path / "m.safetensors")
    made = export(tmp_path / "m.safetensors", "onnx")
    audio = stapes.load(made.path).audio
    assert (audio.channels, audio.hop_seconds, audio.longer) == (2, 0.25, "crop")
