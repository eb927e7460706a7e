"""An exported model whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_onnx import toy_model


@pytest.fixture(scope="session")
def toy_onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx``, alone in its folder."""
    path = tmp_path_factory.mktemp("toy-onnx") / "model.onnx"
    path.write_bytes(toy_model())
    return path
