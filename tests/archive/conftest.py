"""A model whose answers are known, and an archive of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from archive_of_steps import write_steps
from toy_onnx import toy_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx``: how positive is the mean sample of half a second?"""
    path = tmp_path_factory.mktemp("toy-onnx") / "model.onnx"
    path.write_bytes(toy_model())
    return path


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty recordings in folders, of one to four half seconds at a level each; never changed."""
    return write_steps(tmp_path_factory.mktemp("steps"), 60)
