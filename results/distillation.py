"""Students alone and taught, of three sizes: python results/distillation.py ESC-50/ --teacher RUN

Trains each student on each official fold of ESC-50 twice, with the same recipe, budget and seed:
once on the labels alone, and once with that fold's teacher. Writes distillation.md and
distillation.csv beside this script. A training is one call of ``stapes train``, so whatever was
stopped continues, and what is finished is not trained again; with --only and --fold several
processes share the work. What has not been run is left out of the tables.

Teachers are run folders, cross-validated on the same folds or one for each fold, such as those of

    stapes train ESC-50/ --recipe results/transfer/esc50-densenet121.toml -o runs/densenet121
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np
import torch

import stapes
from stapes.data import load_dataset
from stapes.evaluation.compare import paired_accuracy
from stapes.evaluation.evaluate import evaluate
from stapes.evaluation.metrics import Interval
from stapes.files import write_text

HERE = Path(__file__).resolve().parent
SIZES = {
    "500kB": ("float16", 47),
    "128kB": ("int8", 33),
    "32kB": ("int8", 14),
}
WAYS = ("alone", "taught")


def overrides(size: str, precision: str) -> list[str]:
    """What a student of this size changes in the recipe."""
    stored, width = SIZES[size]
    return [
        f"model.width={width}",
        f"quantization.precision={stored}",
        f"training.precision={precision}",
    ]


def student(arguments: argparse.Namespace, size: str, way: str, fold: str) -> Path:
    """Train one, or find it, and give the folder of its model."""
    out = arguments.out / f"{size}-{way}" / f"fold-{fold}"
    member = out / fold / f"seed-{arguments.seed}"
    if arguments.tables:
        return member
    result = stapes.train(
        arguments.data,
        recipe="student",
        overrides=overrides(size, arguments.precision),
        init=None,
        teachers=arguments.teacher if way == "taught" else (),
        corpus="esc50",
        fold=fold,
        seed=arguments.seed,
        out=out,
        workers=arguments.threads,
    )
    print(f"{size} {way} fold {fold}: {result.score.accuracy.value:.4f}", flush=True)
    return member


def judged(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Which test clips of a member's model file are right, and their sources."""
    found = evaluate(folder / "model.safetensors", folder / "test.csv")
    right = found.probabilities.argmax(1) == found.targets
    return right.astype(float), [str(clip.group) for clip in found.dataset.clips]


def percent(one: Interval) -> str:
    """An accuracy with its interval."""
    return f"{100 * one.value:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"


def points(one: Interval) -> str:
    """A difference with its interval."""
    return f"{100 * one.value:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def tables(arguments: argparse.Namespace, folds: list[str]) -> None:
    """Write what was run."""
    teacher: dict[str, np.ndarray] = {}
    for run in arguments.teacher:
        for fold in folds:
            folder = Path(run) / fold / "seed-0"
            if (folder / "model.safetensors").is_file():
                teacher[fold] = judged(folder)[0]
    rows = []
    lines = [
        "| student | file, largest, bytes | folds | clips, sources | alone | taught "
        "| gain, points | teacher |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size in SIZES:
        found: dict[str, dict[str, tuple[np.ndarray, list[str]]]] = {way: {} for way in WAYS}
        largest = 0
        for way in WAYS:
            for fold in folds:
                folder = student(arguments, size, way, fold)
                if (folder / "model.safetensors").is_file():
                    found[way][fold] = judged(folder)
                    largest = max(largest, (folder / "model.safetensors").stat().st_size)
        for way, by_fold in found.items():
            for fold, (right, _) in by_fold.items():
                rows.append([size, way, fold, len(right), int(right.sum())])
        both = [fold for fold in folds if all(fold in found[way] for way in WAYS)]
        for shown, ways in (
            (both, WAYS),
            ([f for f in found["taught"] if f not in both], WAYS[1:]),
        ):
            if not shown:
                continue
            right = [np.concatenate([found[way][f][0] for f in shown]) for way in ways]
            groups = [f"{f} {g}" for f in shown for g in found[ways[0]][f][1]]
            if all(fold in teacher for fold in shown):
                right.append(np.concatenate([teacher[fold] for fold in shown]))
            pairs = paired_accuracy(right, groups)
            alone = percent(pairs[0][0]) if len(ways) == 2 else "not run"
            taught = percent(pairs[len(ways) - 1][0])
            gain = points(pairs[1][1]) if len(ways) == 2 and pairs[1][1] else ""
            above = percent(pairs[-1][0]) if len(pairs) > len(ways) else ""
            precision, width = SIZES[size]
            lines.append(
                f"| {size}, {precision}, width {width} | {largest:,} | {', '.join(shown)} | "
                f"{len(groups)}, {len(set(groups))} | {alone} | {taught} | {gain} | {above} |"
            )
    text = "\n".join(lines) + "\n"
    page = HERE / "distillation.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end of table -->\n")
    write_text(page, f"{before}<!-- table -->\n{text}<!-- end of table -->\n{after}")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["student", "way", "fold", "clips", "right"])
    writer.writerows(rows)
    write_text(HERE / "distillation.csv", table.getvalue())
    print(text)


def main() -> None:
    """Train what is asked for; write the tables unless only a part was."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="ESC-50, as downloaded")
    parser.add_argument("--teacher", nargs="+", required=True, type=Path, help="run folders")
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--only", nargs="+", help="such as 500kB-taught 500kB-alone")
    parser.add_argument("--fold", nargs="+", help="official folds [all five]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32", help="of training, e.g. bfloat16")
    parser.add_argument("--threads", type=int, help="of torch [all cores]")
    parser.add_argument("--tables", action="store_true", help="train nothing, write what was run")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folds = arguments.fold or sorted({str(c.fold) for c in load_dataset(arguments.data).clips})
    if arguments.only:
        for name in arguments.only:
            size, way = name.split("-")
            for fold in folds:
                student(arguments, size, way, fold)
    else:
        tables(arguments, folds)


if __name__ == "__main__":
    main()
