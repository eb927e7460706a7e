"""An exported model as a folder that any static web server can give out.

The page is the files of ``page/`` as they are, the browser's ONNX Runtime, the exported model, and
``model.json``, which says what the model listens to. Nothing is built, and nothing on the page asks
another host for anything.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stapes.errors import ConfigError
from stapes.files import cannot_write, write_folder
from stapes.runtime import OnnxClassifier, load

__all__ = ["Page", "PageFile", "page_files", "write_page"]

_PAGE = Path(__file__).with_name("page")
_RUNTIME = Path(__file__).with_name("onnxruntime")
# The page unpacks this one itself: few static servers compress what they send, and it is the bulk.
_UNPACKED_BY_THE_PAGE = "ort-wasm-simd-threaded.wasm.gz"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".gz": "application/gzip",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page.

    Attributes:
        content: its bytes.
        media_type: for the header ``Content-Type``.
        gzip: the content gzipped, for a server to send with ``Content-Encoding: gzip``; none where
            that would not make it smaller by a tenth.
    """

    content: bytes
    media_type: str
    gzip: bytes | None


@dataclass(frozen=True, slots=True)
class Page:
    """What was written.

    Attributes:
        path: the folder.
        name: of the model.
        precision: of the model.
        size: bytes of the folder.
        model_size: bytes of the model in it.
        gzip_size: bytes of the folder, each file gzipped where that makes it smaller: what a
            visitor loads from a server that compresses.
    """

    path: Path
    name: str
    precision: str
    size: int
    model_size: int
    gzip_size: int


def page_files(model: str | Path, *, name: str | None = None) -> Mapping[str, PageFile]:
    """The files of the page of a model.

    Args:
        model: an ``.onnx`` file that stapes wrote, a folder that holds ``model.onnx``, or the name
            of a shipped model.
        name: what the page calls the model; none: the file's name, or its folder's where the file
            is called ``model.onnx``.

    Returns:
        By their paths in the folder, with ``/``; ``index.html`` is the page.

    Raises:
        ModelFileError: missing, truncated, altered, foreign, or of a newer format.
        UnknownNameError: neither a file nor a shipped model.
    """
    classifier = load(model, threads=1)
    path = classifier.path
    content = path.read_bytes()
    if name is None:
        name = path.stem if path.stem != "model" else path.resolve().parent.name
    files = {
        found.relative_to(_PAGE).as_posix(): found.read_bytes()
        for found in sorted(_PAGE.rglob("*"))
        if found.is_file()
    }
    stored: dict[str, bytes] = {}
    for found in sorted(_RUNTIME.glob("*.gz")):
        packed = found.read_bytes()
        if found.name == _UNPACKED_BY_THE_PAGE:
            files[f"onnxruntime/{found.name}"] = packed
            continue
        inside = f"onnxruntime/{found.stem}" + ("" if Path(found.stem).suffix else ".txt")
        files[inside] = gzip.decompress(packed)
        stored[inside] = packed
    files["model.onnx"] = content
    facts = {**_facts(classifier, name, len(content)), "files": sorted({*files, "model.json"})}
    files["model.json"] = (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode()
    return {
        inside: PageFile(found, _media_type(inside), _smaller(found, stored.get(inside)))
        for inside, found in sorted(files.items())
    }


def write_page(model: str | Path, out: str | Path, *, name: str | None = None) -> Page:
    """Write the page of a model: a folder for any static web server, all of it or nothing.

    A folder that holds such a page is replaced.

    Args:
        model, name: as for :func:`page_files`.
        out: the folder to make.

    Raises:
        ModelFileError: as :func:`page_files`.
        UnknownNameError: as :func:`page_files`.
        ConfigError: ``out`` is a file, or holds other files than such a page.
        StapesError: the disk is full or the place cannot be written to.
    """
    out = Path(out)
    files = page_files(model, name=name)
    _check_place(out)
    write_folder(out, {inside: file.content for inside, file in files.items()})
    facts = json.loads(files["model.json"].content)
    return Page(
        path=out,
        name=facts["name"],
        precision=facts["precision"],
        size=sum(len(file.content) for file in files.values()),
        model_size=facts["bytes"],
        gzip_size=sum(len(file.gzip or file.content) for file in files.values()),
    )


def _facts(classifier: OnnxClassifier, name: str, size: int) -> dict[str, Any]:
    """What the page knows of the model, without its file list."""
    audio = classifier.audio
    return {
        "stapes": version("stapes"),
        "name": name,
        "labels": list(classifier.labels),
        "sample_rate": audio.sample_rate,
        "channels": audio.channels,
        "window_samples": audio.window,
        "window_seconds": audio.window_seconds,
        "hop_samples": audio.hop,
        "hop_seconds": audio.hop_seconds,
        "shorter": audio.shorter,
        "longer": audio.longer,
        "precision": classifier.precision,
        "bytes": size,
        "card": dict(classifier.card),
    }


def _media_type(name: str) -> str:
    return _MEDIA_TYPES.get(Path(name).suffix, "application/octet-stream")


def _smaller(content: bytes, packed: bytes | None) -> bytes | None:
    packed = gzip.compress(content, 6, mtime=0) if packed is None else packed
    return packed if len(packed) < 0.9 * len(content) else None


def _check_place(folder: Path) -> None:
    """Refuse to replace what is not ours, or what somebody has added to it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder for the page.")
    here = Path.cwd()
    if folder.resolve() in (here, *here.parents):
        # It is replaced by a new one, and who works in it would be left in one that is gone.
        raise ConfigError(f"{folder}: is where you work; name a new folder for the page.")
    listed = _listed(folder)
    try:
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if name not in listed and (path.is_symlink() or not path.is_dir()):
                raise ConfigError(
                    f"{folder}: holds other files than an exported page ({name}); name a new "
                    "folder."
                )
    except OSError as error:
        raise cannot_write(folder, error) from error


def _listed(folder: Path) -> set[str]:
    """The files of a page that this or another version of stapes has written."""
    try:
        facts = json.loads((folder / "model.json").read_bytes())
        if "stapes" not in facts:
            return set()
        return {str(name) for name in facts["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
