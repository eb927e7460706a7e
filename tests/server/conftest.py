"""A server of two models, one whose answers are known and a shipped one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Client, served
from toy_onnx import toy_model


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy-onnx") / "signs.onnx"
    path.write_bytes(toy_model())
    return path


@pytest.fixture(scope="module")
def client(toy: Path) -> Iterator[Client]:
    with served([toy, "drum-hits"]) as client:
        yield client


@pytest.fixture(scope="session")
def hits() -> list[Path]:
    folder = Path(__file__).resolve().parents[2] / "examples" / "drum-hits"
    return sorted(folder.rglob("*.ogg"))[::12][:12]
