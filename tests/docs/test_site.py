"""The documentation site, built as ``make docs`` does and read as a browser would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documented import ROOT

import stapes
from stapes import config
from stapes.cli.app import app

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a browser would load, anchors, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.anchors: list[str] = []
        self.words: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors += [given["id"]] if "id" in given else []
        if tag != "a":
            self.loaded += [given[n] for n in ("src", "href", "data", "action") if n in given]
            self.loaded += re.findall(r"[^\s,]+:[^\s,]+|//\S+", given.get("srcset", ""))
        self.loaded += re.findall(r"url\(([^)]*)\)", given.get("style", ""))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout, done.stdout
    assert "Deprecat" not in done.stdout, done.stdout
    return folder


def test_nothing_comes_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for file in pages:
        for address in Page(file).loaded:
            # data: is in the page itself.
            assert not re.match(r"\s*['\"]?(?:[a-z]+:)?//", address), f"{file.name}: {address}"
    for file in site.rglob("*.css"):
        for address in re.findall(
            r"(?:url\(|@import\s*)['\"]?([^)'\";]+)", file.read_text("utf-8")
        ):
            assert not re.match(r"(?:https?:)?//", address), f"{file.name}: {address}"


def _commands(command: object, name: str = "") -> Iterator[tuple[str, object]]:
    for child_name, child in getattr(command, "commands", {}).items():
        path = f"{name} {child_name}".strip()
        yield (path, child) if not hasattr(child, "commands") else ("", None)
        yield from _commands(child, path)


def test_every_command_and_option_is_there(site: Path) -> None:
    """Against what ``--help`` prints, in the program's own words."""
    import typer
    from typer.testing import CliRunner

    for path, command in _commands(typer.main.get_command(app)):
        if command is None:
            continue
        page = Page(site / "commands" / f"{path.split()[0]}.html")
        help_text = (
            CliRunner().invoke(app, [*path.split(), "--help"], env={"COLUMNS": "200"}).output
        )
        options = set(re.findall(r"(?<![\w'\"-])--[a-z][\w-]*", help_text)) - {"--help"}
        assert options or path == "data corpora", help_text
        for option in options:
            assert option in page.text, f"stapes {path} {option}"
        assert f"stapes {path}" in page.text
        for parameter in command.params:  # type: ignore[attr-defined]
            assert "".join((parameter.help or "").split("[")[0].split())[:40].replace("'", "") in (
                "".join(page.text.split()).replace("'", "")
            ), f"stapes {path}: {parameter.name}"


def test_every_recipe_field_is_there_with_its_meaning(site: Path) -> None:
    page = Page(site / "recipe-fields.html")
    for section, schema in config.sections():
        for key, field in schema.model_fields.items():
            assert f"{section}.{key}" in page.text
            if key != "name":
                assert field.description, f"{section}.{key} does not say what it means"
                words = "".join(field.description.split())
                assert words in "".join(page.text.split()), f"{section}.{key}"
    recipes = Page(site / "recipes.html")
    assert set(config.recipe_names()) <= set(recipes.anchors)


def test_limits_of_a_field_are_those_that_recipes_keep(site: Path) -> None:
    page = Page(site / "recipe-fields.html").text
    assert "model.rho whole number from 0 to 21 7 receptive-field control" in page
    assert "training.learning_rate number above 0 0.001" in page
    assert 'audio.shorter "pad" , "repeat" "pad"' in page


def test_every_public_name_is_there(site: Path) -> None:
    page = Page(site / "reference" / "index.html")
    shown = " ".join(page.anchors)
    for name in stapes.__all__:
        assert re.search(rf"(?:^|[ .]){name}(?: |$)", shown), name
    assert ":class:" not in page.text
    assert ":func:" not in page.text


def test_results_are_shown_as_they_are_written(site: Path) -> None:
    page = Page(site / "results" / "index.html").text
    for heading in re.findall(r"^## (.+)$", (ROOT / "results" / "README.md").read_text(), re.M):
        assert heading in page
    papers = Page(site / "papers.html").text
    assert "damped, decomposed Z = 4 417.0K 30.9K" in papers, "the table of the study is missing"
