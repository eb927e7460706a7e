"""A model file made into what runs elsewhere, checked before it is written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stapes.bundle import Bundle, load_bundle
from stapes.compression import quantize
from stapes.deploy.c99.compiled import CompiledClassifier, can_compile
from stapes.deploy.c99.folder import CExport, write_c
from stapes.deploy.onnx import onnx_model
from stapes.deploy.page import beside, page_of_exported
from stapes.deploy.recordings import (
    calibration_windows,
    clip_windows,
    clips_of_run,
    made_up_windows,
    recording_windows,
)
from stapes.deploy.replay import Agreement, compare, refuse_disagreement
from stapes.errors import ConfigError
from stapes.evaluation.predict import Classifier
from stapes.files import write_bytes
from stapes.runtime import OnnxClassifier
from stapes.web import Page, write_page

__all__ = ["Export", "Target", "export", "export_c", "export_onnx", "export_page", "in_eight_bits"]

Target = Literal["onnx", "c", "web"]
ExportPrecision = Literal["float32", "int8"]

_ENDINGS = {"onnx": ".onnx", "c": "-c", "web": "-web"}
_REPLAYED = 32  # windows
_BATCH = 16


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the file, or the folder of C sources or of the page.
        precision: of the network in it.
        size: bytes of the file or of the page; of C, the constants that lie in flash (without the
            program).
        agreement: of the replay; none where it could not be done.
        replayed: what was replayed, in words; or why nothing was.
        c: what C takes; none for other targets.
        page: the page; none for other targets.
    """

    path: Path
    precision: ExportPrecision
    size: int
    agreement: Agreement | None
    replayed: str
    c: CExport | None = None
    page: Page | None = None


def export(
    model: str | Path,
    to: Target,
    out: str | Path | None = None,
    *,
    precision: ExportPrecision | None = None,
    replay: Sequence[str | Path] = (),
    calibrate: Sequence[str | Path] = (),
    chunk: int | None = None,
) -> Export:
    """Write a model for where it runs, after it has given the model's answers.

    Recordings are replayed through torch and through what is to be written; where the answers
    differ, nothing is written (see :func:`stapes.deploy.replay.refuse_disagreement`).

    Args:
        model: model file or run folder; for ``"web"`` also what was exported to ONNX already.
        to: ``"onnx"``: one file from waveform to probabilities; ``"c"``: a folder of C99;
            ``"web"``: a folder for any static web server, a page on which a browser runs the model.
        out: file or folder to write; none: beside the model.
        precision: ``"int8"`` of a model in floating point quantises it; none: the model's own
            (float16 becomes float32).
        replay: recordings, or folders of them; none: the run's test clips, else made-up signals.
        calibrate: recordings for the ranges of int8; none: the run's training clips.
        chunk: of C, columns of the spectrogram that the network takes at once, 1 to 4096: fewer
            take less RAM and are slower; none: as many as it takes to be fast, some 1024 divided
            by the spectrogram's bins.

    Raises:
        ModelFileError: a model file that cannot be used.
        ConfigError: a network or front end that cannot be exported, or a precision that cannot be
            had.
        AudioError: a named recording cannot be read.
        StapesError: the export would give other answers; or it cannot be written.
    """
    if to not in get_args(Target):
        raise ConfigError(f"--to {to}: must be one of {', '.join(get_args(Target))}.")
    if chunk is not None and to != "c":
        raise ConfigError("--chunk goes with --to c.")
    if to == "web":
        page = page_of_exported(model, out, precision, replay, calibrate)
        if page is not None:
            return _of_page(page, None, "nothing: it was exported, and checked, before")
    bundle = load_bundle(model)
    wanted = precision or ("int8" if bundle.precision == "int8" else "float32")
    if wanted == "float32" and bundle.precision == "int8":
        raise ConfigError(
            f"{model}: is an int8 model, which has no float32 weights; export the model that it "
            "was made of."
        )
    if calibrate and (wanted == "float32" or bundle.precision == "int8"):
        raise ConfigError("--calibrate goes with --precision int8 of a model in floating point.")
    if wanted == "int8" and bundle.precision != "int8":
        bundle = in_eight_bits(bundle, _calibration(bundle, model, calibrate))
    classifier = Classifier(bundle)
    windows, replayed = _replay_windows(classifier, model, replay)
    target = Path(out) if out is not None else beside(Path(model), _ENDINGS[to])
    expected = classifier.probabilities(windows)
    if to == "onnx":
        return export_onnx(bundle, target, wanted, windows, expected, replayed)
    if to == "web":
        name = _name(Path(model))
        return export_page(bundle, target, name, wanted, windows, expected, replayed)
    return export_c(bundle, target, wanted, windows, expected, replayed, chunk)


def export_onnx(
    bundle: Bundle,
    target: Path,
    precision: ExportPrecision,
    windows: NDArray[np.float32],
    expected: NDArray[np.float32],
    replayed: str,
) -> Export:
    """Write an ONNX file that gives the expected probabilities of some windows.

    Args:
        bundle: in the precision to be written.
        target: file.
        precision: the bundle's.
        windows: (B, C, N).
        expected: (B, K), the bundle's answers.
        replayed: what the windows are, in words.

    Raises:
        ConfigError: the network or front end cannot be exported.
        StapesError: other answers, or the file cannot be written.
    """
    if target.suffix.lower() != ".onnx":
        raise ConfigError(f"--out {target}: must end in .onnx.")
    content, agreement = _checked_onnx(bundle, target, precision, windows, expected)
    write_bytes(target, content)
    return Export(target, precision, len(content), agreement, replayed)


def export_page(
    bundle: Bundle,
    target: Path,
    name: str,
    precision: ExportPrecision,
    windows: NDArray[np.float32],
    expected: NDArray[np.float32],
    replayed: str,
) -> Export:
    """Write the page of a model whose ONNX gives the expected probabilities of some windows.

    Args:
        bundle, target, precision, windows, expected, replayed: as for :func:`export_onnx`, with a
            folder as target.
        name: what the page calls the model.

    Raises:
        ConfigError: the network or front end cannot be exported, or the folder holds other files.
        StapesError: other answers, or the folder cannot be written.
    """
    content, agreement = _checked_onnx(bundle, target, precision, windows, expected)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.onnx"
        exported.write_bytes(content)
        page = write_page(exported, target, name=name)
    return _of_page(page, agreement, replayed)


def _of_page(page: Page, agreement: Agreement | None, replayed: str) -> Export:
    precision: ExportPrecision = "int8" if page.precision == "int8" else "float32"
    return Export(page.path, precision, page.size, agreement, replayed, page=page)


def _checked_onnx(
    bundle: Bundle,
    target: Path,
    precision: ExportPrecision,
    windows: NDArray[np.float32],
    expected: NDArray[np.float32],
) -> tuple[bytes, Agreement]:
    content = onnx_model(bundle)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "model.onnx"
        trial.write_bytes(content)
        exported = OnnxClassifier(trial)
        found = np.concatenate([exported.probabilities(part) for part in _parts(windows)])
        del exported
    agreement = compare(expected, found)
    refuse_disagreement(agreement, precision, "ONNX Runtime", target)
    return content, agreement


def export_c(
    bundle: Bundle,
    target: Path,
    precision: ExportPrecision,
    windows: NDArray[np.float32],
    expected: NDArray[np.float32],
    replayed: str,
    chunk: int | None = None,
) -> Export:
    """Write a folder of C that gives the expected probabilities of some windows.

    Without a C compiler and make here it is written unchecked, and ``replayed`` says so.

    Args:
        bundle, target, precision, windows, expected, replayed: as for :func:`export_onnx`.
        chunk: as for :func:`export`.

    Raises:
        ConfigError: the network or front end cannot be exported.
        StapesError: other answers, or the folder cannot be written.
    """
    agreement = None

    def replay(aside: CExport) -> None:
        nonlocal agreement
        exported = CompiledClassifier(aside.folder, bundle.labels, bundle.audio, aside.ram)
        agreement = compare(expected, exported.probabilities(windows))
        refuse_disagreement(agreement, precision, "the compiled C", target)

    compiles = can_compile()
    if not compiles:
        replayed = "nothing: C cannot be compiled here (make test in the folder where it can)"
    made = write_c(bundle, target, chunk=chunk, check=replay if compiles else None)
    return Export(target, precision, made.flash, agreement, replayed, made)


def in_eight_bits(bundle: Bundle, windows: NDArray[np.float32]) -> Bundle:
    """A model with its network quantised, calibrated on windows, without fine-tuning.

    Args:
        bundle: in floating point.
        windows: (B, C, N) of training recordings.

    Raises:
        ConfigError: a network that cannot be quantised.
    """
    quantized = quantize(bundle.network, _features(bundle, windows))
    return replace(bundle, network=quantized, precision="int8")


@torch.inference_mode()
def _features(bundle: Bundle, windows: NDArray[np.float32]) -> list[Tensor]:
    return [bundle.normalizer(bundle.frontend(torch.from_numpy(part))) for part in _parts(windows)]


def _parts(windows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [windows[first : first + _BATCH] for first in range(0, len(windows), _BATCH)]


def _calibration(
    bundle: Bundle, model: str | Path, given: Sequence[str | Path]
) -> NDArray[np.float32]:
    windows = calibration_windows(model, bundle.audio, given)
    if windows is None:
        raise ConfigError(
            f"{model}: --precision int8 sets the ranges of numbers from recordings, and those of "
            "its training are not at hand; name some with --calibrate, or export what 'stapes "
            "quantize RUN' makes."
        )
    return windows


def _replay_windows(
    classifier: Classifier, model: str | Path, given: Sequence[str | Path]
) -> tuple[NDArray[np.float32], str]:
    if given:
        windows = recording_windows(given, classifier.audio, _REPLAYED)
        return windows, f"{len(windows)} windows of {', '.join(map(str, given))}"
    clips = clips_of_run(model)
    for part, name in ((clips.test, "test"), (clips.train, "training")):
        found = clip_windows(part, classifier.audio, _REPLAYED)
        if found is not None:
            return found, f"{len(found)} {name} clips of its run"
    made_up = made_up_windows(classifier.audio)
    return made_up, f"{len(made_up)} made-up signals (--replay takes recordings)"


def _name(model: Path) -> str:
    """What people call a model: its folder where the file has the name that every run gives it."""
    path = model.resolve()
    return path.parent.name if path.stem == "model" else path.stem if path.is_file() else path.name
