"""What the site shows beyond the files in ``docs/``, made when it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from command_pages import command_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from recipe_pages import recipe_pages
from reference_pages import reference_pages
from repository_pages import repository_files, rewritten_links, with_tables

from stapes.cli.app import app

_ROOT = Path(__file__).resolve().parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that are generated."""
    lists = {
        "GENERATED: commands": list(command_pages(app)),
        "GENERATED: reference": list(reference_pages()),
        "GENERATED: results": _result_pages(),
    }
    config.nav = _filled(config.nav, lists)
    return config


def _filled(nav: Any, lists: dict[str, list[Any]]) -> Any:
    if isinstance(nav, list):
        return [_filled(entry, lists) for entry in nav]
    if isinstance(nav, dict):
        return {title: _filled(entry, lists) for title, entry in nav.items()}
    return lists.get(nav, nav)


def _result_pages() -> list[Any]:
    """The pages of results; those of a folder together, by the names of their files."""
    shown: list[Any] = ["results/README.md"]
    folders: dict[str, list[dict[str, str]]] = {}
    for address, _ in repository_files(_ROOT):
        if not address.startswith("results/") or address[-3:] != ".md" or address in shown:
            continue
        _, *folder, name = address.split("/")
        stem = name.removesuffix(".md")
        if not folder:
            shown.append({stem.capitalize(): address})
        elif stem == "index":
            folders.setdefault(folder[0], []).insert(0, {folder[0]: address})
        else:
            folders.setdefault(folder[0], []).append({stem: address})
    return shown + [{folder: pages} for folder, pages in folders.items()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and those that stand elsewhere in the repository."""
    generated = {**command_pages(app), **recipe_pages(), **reference_pages()}
    for address, text in generated.items():
        files.append(File.generated(config, address, content=text))
    for address, what in repository_files(_ROOT):
        if isinstance(what, Path):
            files.append(File.generated(config, address, abs_src_path=str(what)))
        else:
            files.append(File.generated(config, address, content=what))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository lead to their pages; put tables in."""
    address = page.file.src_uri
    return with_tables(rewritten_links(markdown, address, _ROOT), address, _ROOT)
