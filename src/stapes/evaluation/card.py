"""The model card of a model that is passed on: what it is, for what, how good, and whom it owes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stapes.bundle import Bundle, load_bundle
from stapes.errors import ConfigError
from stapes.evaluation.describe import describe_model
from stapes.evaluation.metrics import Score
from stapes.models.registry import network_settings

__all__ = ["file_facts", "make_card"]

_OF_MODEL = (
    "name", "precision", "parameters", "nonzero_parameters", "macs_per_second",
    "peak_activation_bytes", "receptive_field_bins", "receptive_field_frames",
    "receptive_field_seconds", "receptive_field_hz", "global_context", "front_end",
)  # fmt: skip
_OF_TEACHER = ("network", "split", "seed", "score", "sha256")


def make_card(
    model: str | Path,
    *,
    name: str,
    description: str,
    intended_use: str,
    limits: str,
    score: Mapping[str, Any] | None = None,
    licence: str | None = None,
    attribution: Sequence[str] = (),
    teacher_score: Mapping[str, Any] | None = None,
    start: bool = False,
) -> dict[str, Any]:
    """What is to be known of a model, as plain JSON values.

    Args:
        model: model file.
        name: of the model.
        description: what it hears, in a few words.
        intended_use: what it is for, a sentence.
        limits: what it is not for and where it fails, a sentence.
        score: entries on top of the score that the model carries, such as ``folds`` or ``note``.
        licence: under which the model may be used; none: the licences of the recordings that it
            learnt from.
        attribution: further lines that its use owes.
        teacher_score: of the teachers together, as ``score`` of the result; none: each has its
            own only.
        start: whether training starts from it by default where data are small.

    Returns:
        ``name``, ``description``, ``start``, ``intended_use``, ``limits``, ``licence``,
        ``attribution``; ``labels``; ``audio`` (:class:`stapes.inference.AudioSettings`);
        ``score``: ``accuracy`` (``value``, ``low``, ``high``), ``level``, ``kind``, ``n_clips``
        (each counted once), ``n_groups``, ``seeds``, or none; ``teachers``: each ``network``,
        ``split``, ``seed``, ``score``, ``sha256``; ``teacher_score``; ``data``: recordings of the
        whole line of models, each ``role``, ``name``, ``clips``, ``licence``, ``citation``;
        ``model``: what :func:`stapes.evaluation.describe.describe_model` counts, and
        ``macs_per_window``; ``command``; ``versions``. Whoever writes the files adds ``files``:
        :func:`file_facts` of each by its name.

    Raises:
        ModelFileError: a model file that cannot be used.
        ConfigError: ``start`` for a model that cannot be trained further.
    """
    bundle = load_bundle(model)
    if start and (
        bundle.precision == "int8" or network_settings(bundle.network)["name"] != "cp_resnet"
    ):
        raise ConfigError(
            f"{model}: training cannot start from this model; give a CP-ResNet in float32 or "
            "float16, or leave out --start."
        )
    summary = describe_model(bundle)
    facts = asdict(summary)
    data = list(_data(bundle.metadata))
    licences = [entry["licence"] or f"of '{entry['name']}': not stated" for entry in data]
    found = _score(bundle)
    return {
        "name": name,
        "description": description,
        "start": start,
        "intended_use": intended_use,
        "limits": limits,
        "licence": ", ".join(dict.fromkeys(licences)) if licence is None else licence,
        "attribution": list(attribution),
        "labels": list(bundle.labels),
        "audio": asdict(bundle.audio),
        "score": None if found is None else {**found, **(score or {})},
        "teachers": [
            {key: teacher.get(key) for key in _OF_TEACHER}
            for teacher in bundle.metadata.get("teachers", ())
        ],
        "teacher_score": None if teacher_score is None else dict(teacher_score),
        "data": data,
        "model": {
            **{key: facts[key] for key in _OF_MODEL},
            "macs_per_window": round(summary.macs_per_second * summary.window_seconds),
        },
        "command": bundle.metadata.get("command", ""),
        "versions": bundle.metadata.get("versions", {}),
    }


def file_facts(path: str | Path) -> dict[str, Any]:
    """``bytes`` and ``sha256`` of a file."""
    content = Path(path).read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _score(bundle: Bundle) -> dict[str, Any] | None:
    """The accuracy that a model file states, and how it was obtained."""
    facts = bundle.metadata
    crossed = facts.get("cross_validated_score")
    stated = crossed or facts.get("score")
    if not stated:
        return None
    found, seeds = Score.from_json(stated), facts.get("cross_validated_seeds", 1)
    return {
        "accuracy": asdict(found.accuracy),
        "level": found.level,
        "kind": "cross-validated" if crossed else "held out",
        "n_clips": found.n_clips // seeds,
        "n_groups": found.n_groups,
        "seeds": seeds,
    }


def _data(facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Recordings that a model, its members, its teachers and what it started from learnt from."""
    seen: set[tuple[str, str]] = set()

    def walk(facts: Mapping[str, Any], role: str) -> Iterator[dict[str, Any]]:
        data = facts.get("data")
        if isinstance(data, Mapping) and (role, data.get("name", "")) not in seen:
            seen.add((role, data.get("name", "")))
            yield {
                "role": role,
                "name": data.get("name", ""),
                "clips": data.get("train_clips"),
                "licence": data.get("licence", ""),
                "citation": data.get("citation", ""),
            }
        for member in facts.get("members", ()):
            yield from walk(member, role)
        for teacher in facts.get("teachers", ()):
            yield from walk(teacher, "taught by models of")
        if isinstance(facts.get("origin"), Mapping):
            yield from walk(facts["origin"], "started from a model of")

    yield from walk(facts, "trained on")
