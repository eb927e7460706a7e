"""Recordings whose answers by the toy model are known, and folders compared byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from toy_onnx import RATE

__all__ = ["tree", "write_steps"]


def write_steps(folder: Path, count: int, *, seed: int = 0, halves: int | None = None) -> Path:
    """Recordings ``{day}/{number}.wav`` whose half seconds have a level in [-0.5, 0.5] each."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        levels = rng.uniform(-0.5, 0.5, halves or 1 + number % 4).astype(np.float32)
        path = folder / f"day {number % 3}" / f"{number:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.repeat(levels, RATE // 2), RATE, subtype="FLOAT")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
