"""The folder of the page: what is in it, and what it may replace."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from light_install import BLOCKED, COMMAND, without
from toy_onnx import LABELS, toy_model

import stapes.web
from stapes import files
from stapes.errors import ConfigError, ModelFileError, StapesError
from stapes.web import page_files, write_page

_ROOT = Path(__file__).resolve().parents[2]
_SOURCE = Path(stapes.web.__file__).parent


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "noises.onnx"
    path.write_bytes(toy_model(channels=2, hop_seconds=0.25, longer="crop"))
    return path


def _content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_folder_is_the_page_the_runtime_and_the_model(model: Path, tmp_path: Path) -> None:
    page = write_page(model, tmp_path / "new" / "page")
    found = _content(tmp_path / "new" / "page")
    assert found["model.onnx"] == model.read_bytes()
    facts = json.loads(found["model.json"])
    assert facts["files"] == sorted(found)
    expected = {
        "stapes": version("stapes"), "name": "noises", "labels": list(LABELS),
        "sample_rate": 8000, "channels": 2, "window_samples": 4000, "window_seconds": 0.5,
        "hop_samples": 2000, "hop_seconds": 0.25, "shorter": "pad", "longer": "crop",
        "precision": "float32", "bytes": model.stat().st_size, "card": {"licence": "CC0-1.0"},
    }  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    for source in (_SOURCE / "page").rglob("*"):
        if source.is_file():
            assert found[source.relative_to(_SOURCE / "page").as_posix()] == source.read_bytes()
    assert found["onnxruntime/LICENSE.txt"].startswith(b"MIT License")
    assert {"onnxruntime/ThirdPartyNotices.txt", "index.html"} <= set(found)
    assert page.path == tmp_path / "new" / "page"
    assert (page.name, page.precision) == ("noises", "float32")
    assert page.size == sum(map(len, found.values()))
    assert page.model_size == model.stat().st_size


def test_what_a_server_sends(model: Path, tmp_path: Path) -> None:
    page = write_page(model, tmp_path / "page")
    sent = page_files(model)
    assert {name: file.content for name, file in sent.items()} == _content(tmp_path / "page")
    for name, file in sent.items():
        if file.gzip is not None:
            assert gzip.decompress(file.gzip) == file.content, name
    assert sent["index.html"].media_type == "text/html; charset=utf-8"
    for name in sent:  # a browser runs no module that is sent as anything else
        if name.endswith((".js", ".mjs")):
            assert sent[name].media_type.startswith("text/javascript")
    assert page.gzip_size == sum(len(file.gzip or file.content) for file in sent.values())
    assert page.gzip_size < page.size < 6_000_000


def test_what_the_runtime_is_taken_from_is_what_is_stored() -> None:
    folder = _SOURCE / "onnxruntime"
    bundle = gzip.decompress((folder / "ort.wasm.bundle.min.mjs.gz").read_bytes())
    stated = (folder / "VERSION").read_text()
    (number,) = re.findall(r"onnxruntime-web (\S+)", stated)
    assert f"ONNX Runtime Web v{number}".encode() in bundle[:200]
    script = (_ROOT / "tools" / "onnxruntime_web.py").read_text()
    assert f'VERSION = "{number}"' in script
    assert stated.splitlines()[1] in script
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.gz")):
        digest.update(gzip.decompress(path.read_bytes()) if "Notices" not in path.name else b"")
    assert digest.hexdigest() == _STORED


_STORED = "577c5b94c6d89b1a6087dba473cdad0877151aaaa538d61ae2f05ecb7c956048"


def test_a_page_is_replaced_whole(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "page"
    write_page(model, out)
    facts = json.loads((out / "model.json").read_text())
    # A version before had a file that this one has not.
    (out / "old.js").write_text("old")
    (out / "model.json").write_text(json.dumps({**facts, "files": [*facts["files"], "old.js"]}))
    other = tmp_path / "other.onnx"
    other.write_bytes(toy_model())
    write_page(other, out)
    assert json.loads((out / "model.json").read_text())["name"] == "other"
    assert not (out / "old.js").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noises.onnx", "other.onnx", "page"]


@pytest.mark.parametrize("where", ["thesis.txt", "page.css.backup", "engine/mine.js", ".git/HEAD"])
def test_other_peoples_files_are_left_alone(where: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "page"
    write_page(model, out)
    (out / where).parent.mkdir(exist_ok=True)
    (out / where).write_text("mine")
    before = _content(out)
    with pytest.raises(ConfigError, match=re.escape(f"({where}); name a new folder")):
        write_page(model, out)
    assert _content(out) == before


def test_a_folder_that_only_looks_like_a_page_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"files": ["noises.onnx", "model.json"]}')
    with pytest.raises(ConfigError, match="holds other files than an exported page"):
        write_page(model, tmp_path)
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        write_page(model, model)


@pytest.mark.parametrize("name", ["index.html", "model.onnx"])
def test_names_of_a_page_do_not_make_one(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(ConfigError, match=re.escape(f"({name}); name a new folder")):
        write_page(model, tmp_path / "mine")
    assert (tmp_path / "mine" / name).read_text() == "mine"


def test_where_one_works_is_not_replaced(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for out in (".", "..", tmp_path / "inside"):
        with pytest.raises(ConfigError, match="is where you work"):
            write_page(model, out)


def test_an_empty_folder_may_become_a_page(model: Path, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    assert write_page(model, tmp_path / "page").size > 0


def test_a_failure_leaves_the_old_page(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page"
    write_page(model, out)
    before = _content(out)
    write = files.write_bytes

    def failing(path: Path, content: bytes) -> None:
        if path.name == "model.onnx":
            raise StapesError(f"{path}: the disk is full.")
        write(path, content)

    monkeypatch.setattr(files, "write_bytes", failing)
    with pytest.raises(StapesError, match="disk is full") as caught:
        write_page(model, out)
    assert ".partial" not in str(caught.value)
    assert _content(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noises.onnx", "page"]


def test_what_is_no_exported_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"foreign")
    with pytest.raises(ModelFileError, match="stapes export"):
        write_page(tmp_path / "foreign.onnx", tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_the_light_install_writes_pages(model: Path, tmp_path: Path) -> None:
    for name, out in ((str(model), tmp_path / "one"), ("drum-hits", tmp_path / "two")):
        done = subprocess.run(
            [sys.executable, "-c", without(BLOCKED) + COMMAND, "export", name, "--to", "web",
             "--out", str(out)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert f"python -m http.server --bind 127.0.0.1 -d {out}" in done.stdout
        assert (out / "index.html").is_file()
