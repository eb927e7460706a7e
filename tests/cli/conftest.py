"""An exported model whose answers are known, and the command in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_onnx import toy_model

from stapes.cli import main


@pytest.fixture(scope="session")
def toy_onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx``, alone in its folder."""
    path = tmp_path_factory.mktemp("toy-onnx") / "model.onnx"
    path.write_bytes(toy_model())
    return path


@pytest.fixture
def stapes_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line and gives exit status, output, complaints."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stapes", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capfd.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run
