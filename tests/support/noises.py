"""Made-up recordings of the three classes of the toy classifiers."""

from __future__ import annotations

from pathlib import Path

import soundfile
from toy_run import LABELS, RATE, noise_of

__all__ = ["write_noises"]


def write_noises(folder: Path, n_clips: int = 30, seconds: float = 0.5) -> Path:
    """Noises of any colour, each a source of its own, as a table.

    Returns:
        The table, ``noises.csv``; clip i is ``{i}.wav`` of class ``i % 3``.
    """
    lines = ["path,label,group"]
    for i in range(n_clips):
        soundfile.write(folder / f"{i}.wav", noise_of(i, seconds=seconds).T, RATE, subtype="FLOAT")
        lines.append(f"{i}.wav,{LABELS[i % len(LABELS)]},{i}")
    table = folder / "noises.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table
