"""``stapes inspect``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stapes.cli.terminal import (
    interval_text,
    millions_text,
    print_table,
    receptive_field_text,
)

__all__ = ["inspect"]


def inspect(
    model: Annotated[Path, typer.Argument(help="Model file, run folder or shipped model.")],
    layers: Annotated[bool, typer.Option("--layers", help="And what each layer costs.")] = False,
    format: Annotated[Literal["text", "json"], typer.Option(help="Of the result.")] = "text",
) -> None:
    """Say what a model is: labels, input, size, cost, receptive field, score and origin.

    Two counting rules are given: up to 2020 challenges counted the parameters that are not zero;
    since 2022 zeros count too, as parameters and in the arithmetic.
    """
    from stapes.bundle import load_bundle
    from stapes.catalogue import find_model
    from stapes.config import to_toml
    from stapes.evaluation.describe import describe_layers, describe_model
    from stapes.models.registry import network_settings

    bundle = load_bundle(model)
    summary = describe_model(bundle)
    each = describe_layers(bundle) if layers else ()
    file = find_model(model, "safetensors")
    file = file / "model.safetensors" if file.is_dir() else file
    n_bytes = file.stat().st_size
    if format == "json":
        tree = {
            "labels": list(bundle.labels),
            "file_bytes": n_bytes,
            "model": asdict(summary),
            **({"layers": [asdict(layer) for layer in each]} if layers else {}),
            "frontend": bundle.frontend.settings(),
            "network": network_settings(bundle.network),
            "recipe": bundle.recipe.model_dump(mode="json"),
            "metadata": bundle.metadata,
        }
        sys.stdout.write(json.dumps(tree, indent=1) + "\n")
        return
    lines = [
        f"file             {file} ({n_bytes:,} bytes, weights in {summary.precision})",
        f"labels           {', '.join(bundle.labels)}",
        f"input            {bundle.recipe.audio.channels} channel(s) at {summary.sample_rate} Hz, "
        f"windows of {summary.window_seconds:g} s",
        f"front end        {summary.front_end}",
        f"network          {summary.name}",
        f"parameters       {summary.parameters:,} (rule since 2022: zeros count), "
        f"{summary.nonzero_parameters:,} not zero (rule of 2020)",
        f"bytes, dense     {summary.bytes_float32:,} float32, {summary.bytes_float16:,} float16, "
        f"{summary.bytes_int8:,} int8",
        f"bytes, sparse    {summary.bytes_float32_sparse:,} float32, "
        f"{summary.bytes_float16_sparse:,} float16, {summary.bytes_int8_sparse:,} int8 "
        "(zeros as bits where that is smaller)",
        f"arithmetic       {millions_text(summary.macs_per_second)} million multiply-accumulates "
        "per second of audio (rule since 2022: those with zeros count), "
        f"{millions_text(summary.nonzero_macs_per_second)} million without zeros",
        f"activations      {summary.peak_activation_bytes:,} bytes at the peak, for one window "
        "in float32",
        f"receptive field  {receptive_field_text(summary)}",
        *_origin(bundle.metadata),
    ]
    sys.stdout.write("\n".join(lines) + "\n\n")
    if each:
        _print_layers(each)
    sys.stdout.write(to_toml(bundle.recipe))


def _origin(facts: dict[str, Any]) -> list[str]:
    """Score and provenance, where they are known."""
    from stapes.evaluation.metrics import Score

    lines = []
    found = facts.get("cross_validated_score") or facts.get("score")
    if found:
        score = Score.from_json(found)
        kind = "cross-validated" if facts.get("cross_validated_score") else "held out"
        seeds = facts.get("cross_validated_seeds", 1)
        lines.append(
            f"accuracy         {interval_text(score.accuracy)}, {kind}, "
            f"{score.n_clips // seeds} clips from {score.n_groups} sources, {seeds} seed(s)"
        )
    data = facts.get("data", {})
    if data:
        lines.append(f"trained on       {data['name']}, {data['train_clips']} clips")
    for key in ("licence", "citation"):
        if data.get(key):
            lines.append(f"{key:<16} {data[key]}")
    for member in facts.get("members", []):
        words = [member["network"], *(f"{k} {member[k]}" for k in ("split", "seed") if k in member)]
        lines.append(f"member           {', '.join(words)}")
    origin = facts.get("origin", {})
    if origin:
        source = origin.get("data", {}).get("name") or origin.get("architecture", "")
        lines.append(f"started from     {source} ({origin['weights']}, {origin['sha256'][:12]})")
        for key in ("licence", "citation"):
            if origin.get("data", {}).get(key):
                lines.append(f"  {key:<14} {origin['data'][key]}")
    for teacher in facts.get("teachers", []):
        words = [
            teacher["network"],
            *(f"{k} {teacher[k]}" for k in ("split", "seed") if k in teacher),
        ]
        data = teacher.get("data", {})
        words += [data[key] for key in ("name", "licence") if data.get(key)]
        lines.append(f"taught by        {', '.join(words)}")
    if facts.get("command"):
        lines.append(f"command          {facts['command']}")
    return lines


def _print_layers(layers: tuple[Any, ...]) -> None:
    rows = []
    for layer in layers:
        field = ["all", ""]
        if layer.receptive_field_bins is not None:
            low, high = layer.receptive_field_hz
            field = [
                f"{layer.receptive_field_bins} x {layer.receptive_field_frames}",
                f"{low:.0f} to {high:.0f} Hz, {layer.receptive_field_seconds:.2f} s",
            ]
        rows.append(
            [
                layer.name,
                layer.kind,
                " x ".join(map(str, layer.output_shape)),
                f"{layer.parameters:,}",
                f"{layer.nonzero_parameters:,}",
                f"{layer.macs_per_second:,.0f}",
                *field,
            ]
        )
    header = ["layer", "kind", "output", "parameters", "not zero", "MACs/s", "field", ""]
    print_table(header, rows, right={3, 4, 5, 6})
    sys.stdout.write(
        "\noutput: channels x bins x frames; field: bins x frames that one unit sees, in the "
        "middle\n\n"
    )
