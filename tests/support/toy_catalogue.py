"""A folder as that of the shipped models, with one model whose answers are known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from toy_onnx import LABELS, RATE, WINDOW_SECONDS, toy_model

SCORE = {
    "accuracy": {"value": 0.8425, "low": 0.82, "high": 0.861}, "level": 0.95,
    "kind": "cross-validated", "folds": 5, "seeds": 2, "n_clips": 2000, "n_groups": 1300,
}  # fmt: skip


def toy_card(name: str, contents: dict[str, bytes], **others: Any) -> dict[str, Any]:
    """A model card of :mod:`toy_onnx`, as far as its readers know it."""
    return {
        "name": name,
        "description": "the sign of the mean sample",
        "start": False,
        "intended_use": "To try things out.",
        "limits": "Nothing that matters.",
        "licence": "CC BY 3.0",
        "attribution": ["Somebody made the signs."],
        "labels": list(LABELS),
        "audio": {"sample_rate": RATE, "channels": 1, "window_seconds": WINDOW_SECONDS},
        "score": SCORE,
        "teachers": [
            {"network": "resnet50", "split": str(fold), "seed": 0, "sha256": "0" * 64,
             "score": {"value": 0.9 + fold / 100, "low": 0.8, "high": 0.99}}
            for fold in (1, 2)
        ],
        "teacher_score": {**SCORE, "accuracy": {"value": 0.95, "low": 0.94, "high": 0.96}},
        "data": [
            {"role": "trained on", "name": "signs", "clips": 40, "licence": "CC BY 3.0",
             "citation": "A. Author: Signs, 2020."},
            {"role": "taught by models of", "name": "many", "clips": None, "licence": "",
             "citation": ""},
        ],
        "model": {
            "name": "cp_resnet", "precision": "int8", "parameters": 1234,
            "nonzero_parameters": 1200, "macs_per_window": 5_000_000, "macs_per_second": 10e6,
            "receptive_field_bins": 30, "receptive_field_frames": 40,
            "receptive_field_seconds": 0.4, "receptive_field_hz": [100.0, 900.0],
            "global_context": False,
        },
        "command": "stapes train signs/",
        "versions": {},
        "files": {
            file: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for file, content in contents.items()
        },
        **others,
    }  # fmt: skip


def add_toy(folder: Path, name: str = "signs-1kB", **others: Any) -> Path:
    """Write a model under a name into a folder, and give the folder.

    Its ``.safetensors`` is none: who needs one puts it there.
    """
    contents = {f"{name}.onnx": toy_model(), f"{name}.safetensors": b"not a model " * 9}
    folder.mkdir(exist_ok=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    card = toy_card(name, contents, **others)
    (folder / f"{name}.json").write_text(json.dumps(card), encoding="utf-8")
    return folder
