"""``stapes models``."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stapes.cli.terminal import (
    interval_text,
    millions_text,
    print_table,
    receptive_field_text,
)

if TYPE_CHECKING:
    from stapes.catalogue import ShippedModel

__all__ = ["models"]

_WIDTH, _KEY = 100, 17

Rows = list[tuple[str, list[str]]]


def models(
    name: Annotated[str | None, typer.Argument(help="Print the model card of this one.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Copy its files and its card into this folder."),
    ] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="Of the result.")] = "text",
) -> None:
    """List the models that come with stapes, or print the model card of one.

    Their names stand wherever a model file does: stapes predict NAME street.wav
    """
    from stapes.catalogue import shipped_model, shipped_models
    from stapes.errors import StapesError

    if name is None:
        if out is not None:
            raise StapesError("--out goes with a name: stapes models NAME --out FOLDER.")
        _list(shipped_models(), format)
        return
    model = shipped_model(name)
    if out is not None:
        for path in _copy(model, out):
            sys.stdout.write(f"written    {path}\n")
    elif format == "json":
        sys.stdout.write(json.dumps(model.facts, indent=1) + "\n")
    else:
        sys.stdout.write(_text(model))


def _list(found: list[ShippedModel], format: str) -> None:
    if format == "json":
        sys.stdout.write(json.dumps([dict(model.facts) for model in found], indent=1) + "\n")
        return
    rows = [
        [
            model.name,
            str(len(model.facts["labels"])),
            model.description,
            _accuracy(model.facts["score"]) or "not measured",
            f"{model.size['safetensors']:,}",
            millions_text(model.facts["model"]["macs_per_second"]),
            model.facts["licence"] or "not stated",
        ]
        for model in found
    ]
    header = ["model", "classes", "hears", "accuracy (95 %)", "bytes", "M MACs/s", "licence"]
    print_table(header, rows, right={1, 4, 5})


def _copy(model: ShippedModel, folder: Path) -> list[Path]:
    """Write a model's files and its card as Markdown; gives the paths.

    Raises:
        StapesError: a file of that name and another content is there, or the place cannot be
            written to.
    """
    from stapes.errors import StapesError
    from stapes.files import write_bytes

    contents = {file.name: model.file(kind).read_bytes() for kind, file in model.files.items()}
    contents[f"{model.name}.md"] = _markdown(model).encode()
    if folder.exists() and not folder.is_dir():
        raise StapesError(f"--out {folder}: is a file; name a folder.")
    for name, content in contents.items():
        path = folder / name
        if path.exists() and (not path.is_file() or path.read_bytes() != content):
            raise StapesError(
                f"{path}: is there already and is another file; name another folder with --out."
            )
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return [folder / name for name in contents]


# --- the card ---------------------------------------------------------------------------------


def _text(model: ShippedModel) -> str:
    lines = [model.name, *_wrapped(model.description, ""), ""]
    for key, values in _rows(model.facts):
        for number, value in enumerate(values):
            lead = (key if number == 0 else "").ljust(_KEY)
            lines += _wrapped(value, lead)
    return "\n".join(lines) + "\n"


def _wrapped(text: str, lead: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _markdown(model: ShippedModel) -> str:
    parts = [f"# {model.name}", model.description]
    for key, values in _rows(model.facts):
        parts.append(f"## {key[0].upper()}{key[1:]}")
        parts.append(values[0] if len(values) == 1 else "\n".join(f"- {v}" for v in values))
    return "\n\n".join(parts) + "\n"


def _rows(card: Any) -> Rows:
    """What a model card says, a row for each question."""
    summary = SimpleNamespace(**card["model"])
    audio, labels = card["audio"], card["labels"]
    rows: Rows = [
        ("hears", [f"{len(labels)} classes: {', '.join(labels)}"]),
        ("for", [card["intended_use"]]),
        ("not for", [card["limits"]]),
        ("accuracy", _score_lines(card["score"])),
        ("taught by", _teacher_lines(card["teachers"], card["teacher_score"])),
        ("data", [line for entry in card["data"] for line in _data_lines(entry)]),
        ("attribution", list(card["attribution"])),
        ("licence", [card["licence"] or "not stated"]),
        (
            "input",
            [
                f"{audio['channels']} channel(s) at {audio['sample_rate']} Hz, windows of "
                f"{audio['window_seconds']:g} s"
            ],
        ),
        ("network", [f"{summary.name}, weights in {summary.precision}"]),
        (
            "parameters",
            [f"{summary.parameters:,}, {summary.nonzero_parameters:,} of them not zero"],
        ),
        (
            "arithmetic",
            [
                f"{millions_text(summary.macs_per_window)} million multiply-accumulates a window, "
                f"{millions_text(summary.macs_per_second)} million a second of audio"
            ],
        ),
        ("receptive field", [receptive_field_text(summary)]),
        (
            "files",
            [
                f"{name}: {entry['bytes']:,} bytes, SHA-256 {entry['sha256']}"
                for name, entry in card["files"].items()
            ],
        ),
        (
            "further training",
            ["small data start from it unless told otherwise" if card["start"]
             else "by name only, with --init" if summary.precision != "int8"
             else "no: an int8 model cannot be trained further"],
        ),
        ("trained with", [card["command"]] if card["command"] else []),
    ]  # fmt: skip
    return [(key, values) for key, values in rows if values]


def _accuracy(score: Any) -> str:
    """With its interval; empty where there is none."""
    if not score:
        return ""
    from stapes.evaluation.bootstrap import Interval

    return interval_text(Interval(**score["accuracy"]))


def _score_lines(score: Any) -> list[str]:
    if not score:
        return ["not measured"]
    folds = f" over {score['folds']} folds" if score.get("folds") else ""
    lines = [
        f"{_accuracy(score)}, 95 % interval over sources",
        f"{score['kind']}{folds}, {score['seeds']} seed(s), {score['n_clips']} clips from "
        f"{score['n_groups']} sources",
    ]
    return [*lines, score["note"]] if score.get("note") else lines


def _teacher_lines(teachers: Any, score: Any) -> list[str]:
    """A line for each network; its models are those of folds and seeds."""
    lines = []
    for network in dict.fromkeys(teacher["network"] for teacher in teachers):
        own = [teacher for teacher in teachers if teacher["network"] == network]
        scored = [t["score"]["value"] for t in own if t["score"]]
        line = f"{len(own)} model(s) {network}"
        if scored:
            line += f", accuracy of each by itself {100 * min(scored):.1f} % to "
            line += f"{100 * max(scored):.1f} % on recordings that it had not heard"
        lines.append(line)
    if score:
        lines += [f"together: {_score_lines(score)[0]}", *_score_lines(score)[1:]]
    return lines


def _data_lines(entry: Any) -> list[str]:
    clips = f", {entry['clips']} clips" if entry["clips"] else ""
    licence = entry["licence"] or "licence not stated"
    lines = [f"{entry['role']} {entry['name']}{clips} ({licence})"]
    return [*lines, entry["citation"]] if entry["citation"] else lines
