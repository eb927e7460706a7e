"""Pages that stand elsewhere in the repository, and links between its files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from markdown.extensions.toc import slugify

__all__ = ["repository_files", "rewritten_links", "with_tables"]

_SHOWN = {"README.md": "index.md", "CHANGELOG.md": "changelog.md",
          "benchmarks/RESULTS.md": "benchmarks.md"}  # fmt: skip
_NOT_COPIED = (".safetensors", ".onnx", ".pyc")
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s]+)(?P<after>\))")
_TABLE = re.compile(r"^<!-- table of (?P<file>\S+?)(?:#(?P<heading>\S+))? -->$", re.MULTILINE)
_HEADING = re.compile(r"^#+ +(?P<title>.+)$", re.MULTILINE)
_ROWS = re.compile(r"^\|.*\n\|[ :|-]+\n(?:\|.*\n)*", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def repository_files(root: Path) -> Iterator[tuple[str, Path | str]]:
    """What the site shows of the repository outside ``docs/``.

    Args:
        root: of the repository.

    Yields:
        The address on the site, and a file, or the text of a page.
    """
    for source, address in _SHOWN.items():
        if source != "README.md":
            yield address, root / source
    for file in sorted((root / "results").rglob("*")):
        if file.is_file() and file.suffix not in _NOT_COPIED and "__pycache__" not in file.parts:
            yield file.relative_to(root).as_posix(), file
    for folder in sorted(p for p in (root / "results").iterdir() if p.is_dir()):
        if folder.name != "__pycache__":
            yield f"results/{folder.name}/index.md", _listing(folder)


def _listing(folder: Path) -> str:
    """A page that says what lies in a folder of results."""
    lines = [f"# results/{folder.name}\n", "| file | bytes | |", "| --- | ---: | --- |"]
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        title = ""
        if file.suffix == ".md":
            title = file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        name = file.name if file.suffix in _NOT_COPIED else f"[{file.name}]({file.name})"
        lines.append(f"| {name} | {file.stat().st_size:,} | {title} |")
    return "\n".join(lines) + "\n"


def with_tables(text: str, address: str, root: Path) -> str:
    """Put the tables that a page names behind the comments that name them.

    ``<!-- table of ../results/README.md#a-heading -->`` stands for the first table behind that
    heading, or of the file; figures are written in one place only.

    Args:
        text: Markdown.
        address: of the page on the site, a file of ``docs/``.
        root: of the repository.

    Raises:
        ValueError: no such file, heading or table.
    """

    def table(comment: re.Match[str]) -> str:
        file = (root / "docs" / address).parent / comment["file"]
        if not file.is_file():
            raise ValueError(f"{address}: {comment[0]}: there is no such file")
        source, start = file.read_text(encoding="utf-8"), 0
        if comment["heading"]:
            ends = [h.end() for h in _HEADING.finditer(source) if _slug(h) == comment["heading"]]
            if not ends:
                raise ValueError(f"{address}: {comment[0]}: there is no such heading")
            start = ends[0]
        rows = _ROWS.search(source, start)
        if rows is None:
            raise ValueError(f"{address}: {comment[0]}: there is no table")
        place = file.resolve().relative_to(root).as_posix()
        return rewritten_links(rows[0], address, root, source=place)

    return _TABLE.sub(table, text)


def _slug(heading: re.Match[str]) -> str:
    return slugify(heading["title"], "-")


def rewritten_links(text: str, address: str, root: Path, source: str = "") -> str:
    """Turn links between files of the repository into links between pages of the site.

    Args:
        text: Markdown.
        address: of the page on the site.
        root: of the repository.
        source: the file whose links they are; where left out, that of the page.

    Returns:
        The text; links that lead to no file of the repository are left for the build to refuse.
    """
    if not source:
        shown_at = {shown: s for s, shown in _SHOWN.items() if s != "README.md"}
        source = shown_at.get(address, "")
    if not source:
        source = address if address.startswith("results/") else f"docs/{address}"

    def rewritten(link: re.Match[str]) -> str:
        target, mark, anchor = link["target"].partition("#")
        if not target or "://" in target:
            return link[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if place.startswith("docs/"):
            return _to(place.removeprefix("docs/"), mark + anchor, link)
        if (root / place).is_dir():
            place += "/index.md"
        return _to(_SHOWN.get(place, place), mark + anchor, link)

    def _to(there: str, anchor: str, link: re.Match[str]) -> str:
        relative = posixpath.relpath(there, posixpath.dirname(address) or ".")
        return f"{link['before']}{relative}{anchor}{link['after']}"

    parts, at = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(rewritten, text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, _LINK.sub(rewritten, text[at:])])
