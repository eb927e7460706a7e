"""Exported C, compiled for this machine and called from Python: to compare and to time it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stapes.errors import StapesError
from stapes.inference.classifier import BaseClassifier
from stapes.inference.settings import AudioSettings

__all__ = ["CompiledClassifier", "c_compiler", "can_compile"]

_ALIGNMENT = 64


def c_compiler() -> str | None:
    """The C compiler of this machine: ``CC``, ``cc``, gcc or clang, the first that is there."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    return None


def can_compile() -> bool:
    """Whether this machine has what a :class:`CompiledClassifier` takes: a C compiler and make."""
    return c_compiler() is not None and shutil.which("make") is not None


class CompiledClassifier(BaseClassifier):
    """A folder of exported C as a classifier.

    Compiled as its Makefile compiles it, into a shared library.

    Args:
        folder: as ``stapes export --to c`` writes it.
        labels: (K,).
        audio: what the model listens to.
        state_bytes: of the C state.
        flags: in place of the Makefile's optimisation, such as ``-O3``; none: as it says.

    Raises:
        StapesError: no compiler or no make, or the compiler refuses the sources.
    """

    def __init__(
        self,
        folder: str | Path,
        labels: tuple[str, ...],
        audio: AudioSettings,
        state_bytes: int,
        *,
        flags: str | None = None,
    ) -> None:
        super().__init__(labels, audio)
        if not can_compile():
            raise StapesError(
                "C cannot be compiled here: install make, and gcc or clang (or set CC)."
            )
        compiler = c_compiler()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            place = Path(name) / "c"
            shutil.copytree(folder, place)
            chosen = [] if flags is None else [f"OPTIMISE={flags}"]
            done = subprocess.run(
                ["make", "-s", "-C", str(place), f"CC={compiler}", *chosen, "libstapes.so"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise StapesError(f"{folder}: {compiler} does not compile it: {done.stderr[-500:]}")
            # Loaded, the library no longer needs its file.
            library = ctypes.CDLL(str(place / "libstapes.so"))
        self._classify = library.stapes_classify
        self._classify.restype = None
        self._classify.argtypes = [ctypes.c_void_p] * 3
        # The state is the caller's to place. An address that suits any type:
        memory = np.zeros(state_bytes + _ALIGNMENT, dtype=np.uint8)
        first = -memory.ctypes.data % _ALIGNMENT
        self._state = memory[first : first + state_bytes]

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of windows, one by one.

        Shape:
            (B, C, window) to (B, K)

        Raises:
            ValueError: windows of another size than the one that was compiled in.
        """
        windows = np.ascontiguousarray(windows, dtype=np.float32)
        expected = (self.audio.channels, self.audio.window)
        if windows.ndim != 3 or windows.shape[1:] != expected:
            raise ValueError(f"windows are (B, {expected[0]}, {expected[1]}), not {windows.shape}")
        found = np.empty((len(windows), len(self.labels)), dtype=np.float32)
        for window, row in zip(windows, found, strict=True):
            self._classify(self._state.ctypes.data, window.ctypes.data, row.ctypes.data)
        return found
