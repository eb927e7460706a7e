"""Made-up acoustic scenes in the official layout of the DCASE corpora."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

_RATE = 22_050
_CLASSES = {
    "dcase2018": {"airport": "airport", "bus": "bus", "park": "park"},
    "dcase2020b": {"airport": "indoor", "bus": "transportation", "park": "outdoor"},
}


def write_scenes(
    folder: Path, corpus: str, *, seconds: float = 0.5, locations: int = 4, clips: int = 2
) -> Path:
    """Stereo recordings of three scenes: a tone each, in noise. The last location is the test part.

    Args:
        folder: made anew.
        corpus: ``"dcase2018"`` (text tables without a header) or ``"dcase2020b"``.
        seconds: length of each.
        locations: of each scene.
        clips: at each location.

    Returns:
        The folder.
    """
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * _RATE)) / _RATE
    header, suffix = corpus != "dcase2018", ".txt" if corpus == "dcase2018" else ".csv"
    meta = ["filename\tscene_label\tidentifier\tsource_label"]
    parts: dict[str, list[str]] = {"train": [], "test": [], "evaluate": []}
    (folder / "audio").mkdir(parents=True)
    for location in range(locations):
        for number, (scene, label) in enumerate(_CLASSES[corpus].items()):
            for clip in range(clips):
                name = f"audio/{scene}-oslo-{location}-{clip}-a.wav"
                tone = 0.2 * np.sin(2 * np.pi * 300 * 4**number * time)[:, None]
                noise = 0.1 * rng.standard_normal((len(time), 2))
                soundfile.write(folder / name, tone + noise, _RATE)
                meta.append(f"{name}\t{label}\toslo-{location}\ta")
                if location < locations - 1:
                    parts["train"].append(f"{name}\t{label}")
                else:
                    parts["test"].append(name)
                    parts["evaluate"].append(f"{name}\t{label}")
    (folder / "meta.csv").write_text("\n".join(meta) + "\n")
    (folder / "evaluation_setup").mkdir()
    for part, lines in parts.items():
        top = ["filename" + ("" if part == "test" else "\tscene_label")] if header else []
        text = "\n".join(top + lines) + "\n"
        (folder / "evaluation_setup" / f"fold1_{part}{suffix}").write_text(text)
    return folder
