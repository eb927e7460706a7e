"""The examples in the documentation: its fenced blocks, and the stapes command lines in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "blocks_of", "command_lines", "pages"]

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"<!-- (?P<kind>not run|while running): (?P<text>[^\n]*?\S) -->\s*\Z")
_ENDS = {";", "|", "||", "&", "&&", "(", ")", ";;"}
_WORDS_OF_THE_SHELL = {"do", "then", "else", "if", "while", "!", "time", "{"}
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced example of a page.

    Attributes:
        page: its file.
        line: number of its fence, from 1.
        language: after the fence: ``"sh"``, ``"python"`` ...
        text: without the fences and their indentation.
        reason: why the tests do not run it, as ``<!-- not run: REASON -->`` above it says; none:
            they do.
        server: the command that has to be running meanwhile, as
            ``<!-- while running: COMMAND -->`` above it says; none: nothing.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None
    server: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README.md and the pages of the site that are written by hand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for fence in _FENCE.finditer(text):
        indent = len(fence["indent"])
        lines = [line[indent:] for line in fence["text"].splitlines()]
        mark = _MARK.search(text, 0, fence.start())
        said = {mark["kind"]: mark["text"]} if mark else {}
        found.append(
            Block(
                page,
                text.count("\n", 0, fence.start()) + 1,
                fence["language"],
                "\n".join(lines) + "\n",
                said.get("not run"),
                said.get("while running"),
            )
        )
    return found


def command_lines(text: str, program: str = "stapes") -> list[list[str]]:
    """The words behind ``program`` of each of its calls in a piece of shell.

    Knows comments, continued lines, pipes and lists, redirections, and variables that the text
    itself sets; a variable that it does not set stays as it is written.
    """
    variables: dict[str, str] = {}
    calls: list[list[str]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        command: list[str] = []
        for word in [*_words(line), ";"]:
            if word not in _ENDS:
                command.append(word)
                continue
            calls += _call(command, variables, program)
            command = []
    return calls


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    lexer.whitespace_split = True
    return list(lexer)


def _call(command: list[str], variables: dict[str, str], program: str) -> list[list[str]]:
    words = _without_redirections(command)
    while words and words[0] in _WORDS_OF_THE_SHELL:
        words = words[1:]
    if words and words[0].startswith("$") and words[0][1:] in variables:
        words = shlex.split(variables[words[0][1:]]) + words[1:]
    while words and (assignment := _ASSIGNMENT.fullmatch(words[0])):
        variables[assignment["name"]] = assignment["value"]
        words = words[1:]
    expanded: list[str] = []
    for word in words:
        known = word.startswith("$") and word[1:] in variables
        expanded += shlex.split(variables[word[1:]]) if known else [word]
    return [expanded[1:]] if expanded and expanded[0] == program else []


def _without_redirections(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in (">", ">>", "<", "2>", "2>>"):
            skip = True
        else:
            kept.append(word)
    return kept
