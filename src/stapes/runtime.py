"""Exported models on ONNX Runtime. Needs numpy, soundfile, soxr and onnxruntime only.

>>> from stapes.runtime import load
>>> load("model.onnx").classify("street.wav").label      # doctest: +SKIP
'tram'
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stapes.catalogue import find_model
from stapes.errors import ModelFileError
from stapes.inference.classifier import BaseClassifier
from stapes.inference.saturation import integer_sums_saturate
from stapes.inference.sealing import is_intact, is_sealed
from stapes.inference.settings import AudioSettings

__all__ = ["FORMAT_VERSION", "OnnxClassifier", "load"]

FORMAT_VERSION = 1
"""Of the metadata under the key ``stapes``."""

_INPUT, _OUTPUT = "waveform", "probabilities"
_EXACT_SUMS = "session.x64quantprecision"
_SILENT = 4  # fatal faults only: what goes wrong otherwise is raised as well


class OnnxClassifier(BaseClassifier):
    """An exported model, ready to use.

    Args:
        path: an ``.onnx`` file that stapes wrote.
        threads: of the arithmetic, 1 or more; none: one for each core.

    Attributes:
        path: as given.
        precision: of the network, ``"float32"`` or ``"int8"``.
        card: what is known about the model: ``network``, ``frontend``, ``metrics``, ``data``,
            ``licence``, ``citation``, ``versions``, as far as the exporter knew them.

    Raises:
        ModelFileError: missing, truncated, altered, foreign, or of a newer format.
        ValueError: less than one thread.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is 1 or more, not {threads}")
        self.path = Path(path)
        self._session = _session(_read(self.path), self.path, threads or 0)
        header = _header(self._session, self.path)
        try:
            labels = [str(label) for label in header["labels"]]
            audio = AudioSettings(
                **{name: header["audio"][name] for name in AudioSettings.__dataclass_fields__}
            )
            self.precision = str(header["precision"])
            self.card: Mapping[str, Any] = dict(header["card"])
            _check_shapes(self._session, labels, audio)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ModelFileError(
                f"{path}: this version of stapes cannot use the model ({problem})."
            ) from None
        super().__init__(labels, audio)

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`stapes.inference.BaseClassifier.probabilities`.

        Raises:
            ValueError: not (B, C, N) with the model's channels, or fewer samples than it needs.
        """
        windows = np.ascontiguousarray(windows, dtype=np.float32)
        if windows.ndim != 3 or windows.shape[1] != self.audio.channels:
            raise ValueError(
                f"windows are (B, {self.audio.channels}, N), not of shape {windows.shape}"
            )
        if not len(windows):
            return np.zeros((0, len(self.labels)), np.float32)
        options = onnxruntime.RunOptions()
        options.log_severity_level = _SILENT
        try:
            found = self._session.run([_OUTPUT], {_INPUT: windows}, options)[0]
        except Exception as error:  # onnxruntime's errors have no base of their own
            if windows.shape[2] == self.audio.window:
                raise
            raise ValueError(
                f"the model cannot answer {windows.shape[2]} samples; its windows have "
                f"{self.audio.window}"
            ) from error
        result: NDArray[np.float32] = found
        return result


def load(path: str | Path, *, threads: int | None = None) -> OnnxClassifier:
    """Load an exported model.

    Args:
        path: an ``.onnx`` file that stapes wrote, a folder that holds ``model.onnx``, or the name
            of a shipped model (:mod:`stapes.catalogue`).
        threads: of the arithmetic, 1 or more; none: one for each core.

    Raises:
        ModelFileError: missing, truncated, altered, foreign, or of a newer format.
        UnknownNameError: neither a file nor a shipped model.
        ValueError: less than one thread.
    """
    path = find_model(path, "onnx")
    if path.is_dir():
        if not (path / "model.onnx").is_file():
            raise ModelFileError(
                f"{path}: this folder holds no model.onnx; give a file that 'stapes export' wrote."
            )
        path = path / "model.onnx"
    return OnnxClassifier(path, threads=threads)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read this model file ({error.strerror}).") from None
    if not is_sealed(content):
        raise ModelFileError(
            f"{path}: not an ONNX file that stapes wrote, or a truncated one; 'stapes export' "
            "writes one from a trained model."
        )
    if not is_intact(content):
        raise ModelFileError(
            f"{path}: the content does not match its digest; the file was altered or damaged, "
            "take a fresh copy."
        )
    return content


def _session(content: bytes, path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if integer_sums_saturate():  # the exact way takes twice as long
        options.add_session_config_entry(_EXACT_SUMS, "1")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        # The file is as it was written, and what wrote it had run it.
        reason = str(error).rpartition(" : ")[2].strip().rstrip(".").replace(os.linesep, " ")
        raise ModelFileError(
            f"{path}: the installed onnxruntime {onnxruntime.__version__} cannot run this model "
            f"({reason}); upgrade onnxruntime and stapes."
        ) from None


def _header(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(session.get_modelmeta().custom_metadata_map["stapes"])
        version = int(header["format_version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelFileError(
            f"{path}: not an ONNX file that stapes wrote; 'stapes export' writes one from a "
            "trained model."
        ) from None
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: written by a newer stapes (format {version}, this one reads up to "
            f"{FORMAT_VERSION}); upgrade stapes."
        )
    return dict(header)


def _check_shapes(
    session: onnxruntime.InferenceSession, labels: list[str], audio: AudioSettings
) -> None:
    """Refuse metadata that do not belong to the graph; free axes have names for numbers."""
    shapes = {
        **{found.name: found.shape for found in session.get_inputs()},
        **{found.name: found.shape for found in session.get_outputs()},
    }
    if set(shapes) != {_INPUT, _OUTPUT}:
        raise ValueError(f"it goes from {sorted(shapes)} instead of from waveform to probabilities")
    for name, axis, length in ((_INPUT, 1, audio.channels), (_OUTPUT, 1, len(labels))):
        found = shapes[name][axis]
        if isinstance(found, int) and found != length:
            raise ValueError(f"axis {axis} of {name} has {found} entries, not {length}")
