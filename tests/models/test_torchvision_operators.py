"""timm beside a torchvision whose compiled part is of another torch, or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Stands in for torchvision: asks torch for the operators as the real one does when imported.
_STAND_IN = """
import torch
@torch.library.register_fake("torchvision::nms")
def _(dets, scores, threshold): return dets.new_empty(0)
"""


def _run(code: str, folder: Path | None = None) -> str:
    paths = ([str(folder)] if folder else []) + [p for p in sys.path if p]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def _torchvision(folder: Path, compiled: bytes | None) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(_STAND_IN)
    if compiled is not None:
        (package / "_C.so").write_bytes(compiled)
    return folder


@pytest.mark.parametrize("compiled", [None, b"built for another torch"])
def test_where_the_compiled_part_cannot_be_loaded_the_import_works(
    tmp_path: Path, compiled: bytes | None
) -> None:
    folder = _torchvision(tmp_path, compiled)
    failing = "try:\n import torchvision\nexcept RuntimeError as error: print(error)"
    assert "torchvision::nms does not exist" in _run(failing, folder)
    declared = (
        "from stapes.models.torchvision_operators import declare_missing_operators as declare\n"
        "one = declare(); assert one is not None and declare() is one\n"
        "import torchvision; print('imported')"
    )
    assert _run(declared, folder) == "imported"


def test_where_it_can_be_loaded_nothing_is_declared(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "loaded = []\n"
        "torch.ops.load_library = loaded.append\n"
        "from stapes.models.torchvision_operators import declare_missing_operators\n"
        "assert declare_missing_operators() is None\n"
        "assert not hasattr(torch.ops.torchvision, 'nms')\n"
        "print(loaded[0])"
    )
    folder = _torchvision(tmp_path, b"")
    assert _run(code, folder) == str(tmp_path / "torchvision" / "_C.so")


def test_what_is_imported_already_is_left_alone() -> None:
    code = (
        "import sys, types\n"
        "sys.modules['torchvision'] = types.ModuleType('torchvision')\n"
        "from stapes.models.torchvision_operators import declare_missing_operators\n"
        "print(declare_missing_operators())"
    )
    assert _run(code) == "None"


def test_timm_can_be_imported_in_a_fresh_process() -> None:
    code = (
        "import sys\n"
        "import stapes.models\n"
        "assert 'timm' not in sys.modules\n"  # no work at import
        "stapes.models.create_model('timm', n_classes=2, architecture='resnet10t')\n"
        "print('timm' in sys.modules)"
    )
    assert _run(code) == "True"
