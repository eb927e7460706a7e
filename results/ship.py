"""Put the model of a finished run among those that come with stapes.

    python results/ship.py esc50-128kB runs/esc50-128kB --description "sounds of 50 kinds" \
        --intended-use "..." --limits "..."

Writes NAME.safetensors, NAME.onnx and the model card NAME.json into src/stapes/shipped/, all of
them or none; the model's score comes from its run. ``stapes models NAME`` then prints the card.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from stapes.bundle import Bundle, load_bundle, save_bundle
from stapes.deploy.export import export
from stapes.errors import StapesError
from stapes.evaluation.card import file_facts, make_card
from stapes.files import write_bytes

LARGEST = 2_000_000  # bytes of all shipped files together
PLACE = Path(__file__).resolve().parents[1] / "src" / "stapes" / "shipped"


def ship(name: str, run: Path, folder: Path, **words: Any) -> dict[str, Any]:
    """Export a run's model, write its card, and put all of it into a folder.

    Args:
        name: letters, digits, dots and hyphens.
        run: run folder.
        folder: of the shipped models.
        words: for :func:`stapes.evaluation.card.make_card`.

    Returns:
        The card.

    Raises:
        StapesError: an impossible name, no model, an export that answers otherwise, or files that
            are too large together. Nothing is written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
        raise StapesError(f"{name}: a name has letters, digits, dots and hyphens only.")
    folds = {path.parent.parent.name for path in run.glob("*/seed-*/test.csv")}
    score: dict[str, Any] = {"folds": len(folds)} if len(folds) > 1 else {}
    if note := words.pop("note", None):
        score["note"] = note
    model = run / "model.safetensors"
    if not model.is_file():
        raise StapesError(f"{model}: missing; give the folder of a finished run.")
    card = make_card(model, name=name, score=score, **words)
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"{name}.{kind}" for kind in ("safetensors", "onnx")]
        save_bundle(_lean(load_bundle(model)), files[0])
        exported = export(run, "onnx", files[1])
        card["files"] = {file.name: file_facts(file) for file in files}
        contents = {file.name: file.read_bytes() for file in files}
    # The card comes last: a model is there when it is.
    contents[f"{name}.json"] = (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode()
    others = [p for p in folder.glob("*") if p.is_file() and p.name not in contents]
    total = sum(map(len, contents.values()))
    total += sum(p.stat().st_size for p in others if p.suffix in (".safetensors", ".onnx", ".json"))
    if total > LARGEST:
        raise StapesError(
            f"{name}: all shipped files together would take {total:,} bytes, more than {LARGEST:,}."
        )
    for file, content in contents.items():
        write_bytes(folder / file, content)
        sys.stdout.write(f"{folder / file}: {len(content):,} bytes\n")
    sys.stdout.write(f"replayed: {exported.replayed}\n")
    sys.stdout.write(f"all shipped files: {total:,} of {LARGEST:,} bytes\n")
    return card


def _lean(bundle: Bundle) -> Bundle:
    """The model without its score's tables, which take kilobytes; the run's report has them."""
    facts = dict(bundle.metadata)
    for key in ("score", "cross_validated_score"):
        if facts.get(key):
            facts[key] = {**facts[key], "per_class": [], "confusion": [], "reliability": []}
    return replace(bundle, metadata=facts)


def teacher_score(run: Path) -> dict[str, Any]:
    """Of a finished run: of its ensemble, if it has one, else of its single models."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    joint = "ensemble" in metrics
    folds = metrics["ensemble"]["folds"] if joint else metrics["folds"]
    score = metrics["ensemble"]["score"] if joint else metrics["pooled"]
    splits = {p.parent.parent.name for p in run.glob("*/seed-*/test.csv")} or set(folds)
    seeds = 1 if joint else max(1, len(folds) // len(splits))
    return {
        "accuracy": score["accuracy"],
        "level": score["level"],
        "kind": "cross-validated" if len(splits) > 1 else "held out",
        "folds": len(splits),
        "seeds": seeds,
        "n_clips": score["n_clips"] // seeds,
        "n_groups": score["n_groups"],
        **({"note": "the mean of the models of each fold"} if joint else {}),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    add = parser.add_argument
    add("name")
    add("run", type=Path, help="finished run folder")
    add("--description", required=True, help="what it hears, in a few words")
    add("--intended-use", required=True, help="what it is for")
    add("--limits", required=True, help="what it is not for and where it fails")
    add("--licence", help="of the model [the licences of the recordings]")
    add("--attribution", action="append", default=[], help="a line that its use owes; repeatable")
    add("--note", help="what must be known of the score")
    add("--teacher-run", type=Path, help="run of the teachers, for their score together")
    add("--start", action="store_true", help="small data are trained from this model by default")
    add("--folder", type=Path, default=PLACE, help="where to put the files")
    given = vars(parser.parse_args(arguments))
    teachers = given.pop("teacher_run")
    try:
        given["teacher_score"] = None if teachers is None else teacher_score(teachers)
        ship(**given)
    except StapesError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
