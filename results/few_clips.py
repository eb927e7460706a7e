"""From a shipped student and from scratch on five clips a class: python results/few_clips.py DATA

Draws five training clips of each class out of half of the sources (speakers, kits), twenty times,
and trains on them twice: from the shipped student, as ``stapes train`` does by default with so
little data, and with --init none. Both are tested on up to 300 clips of the other sources. Writes
few-clips-NAME.csv here and prints a row for results/README.md. Continues where it was stopped.

    python results/few_clips.py FSDD/
    python results/few_clips.py examples/drum-hits
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import stapes
from stapes.data import Dataset, load_dataset
from stapes.files import write_text

HERE = Path(__file__).resolve().parent
CLIPS, TESTED = 5, 300


def drawn(dataset: Dataset, draw: int) -> Dataset:
    """A training part of five clips a class, and a test part from other sources."""
    rng = np.random.default_rng([51, draw])
    sources = sorted({str(clip.group) for clip in dataset.clips})
    by_source = {s: {c.label for c in dataset.clips if str(c.group) == s} for s in sources}
    while True:
        # Every class must be heard on one side; what one source alone has is left out.
        chosen = set(rng.permutation(sources)[: len(sources) // 2])
        known = set().union(*(by_source[s] for s in chosen))
        if known >= set(dataset.labels):
            break
    order = rng.permutation(len(dataset))
    train: list[int] = []
    for label in dataset.labels:
        own = [i for i in order if dataset.clips[i].label == label]
        train += [i for i in own if str(dataset.clips[i].group) in chosen][:CLIPS]
    test = [i for i in order if str(dataset.clips[i].group) not in chosen][:TESTED]
    clips = [replace(dataset.clips[i], split="train", fold=None) for i in train]
    clips += [replace(dataset.clips[i], split="test", fold=None) for i in test]
    return replace(dataset, clips=tuple(clips))


def interval(differences: np.ndarray) -> str:
    """Mean with its 95 % interval over draws (bootstrap)."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, (10_000, len(differences))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{differences.mean():.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    """All draws, in turn from the student and from scratch."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/few-clips"))
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--init", default="auto", help="the model to start from")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dataset = load_dataset(arguments.data)
    rows: list[list[object]] = []
    for draw in range(arguments.draws):
        part = drawn(dataset, draw)
        row: list[object] = [draw, sum(clip.split == "test" for clip in part.clips)]
        for name, init in (("started", arguments.init), ("scratch", "none")):
            result = stapes.train(
                part,
                init=init,
                out=arguments.out / f"{dataset.name}-{draw}-{name}",
                workers=arguments.threads,
            )
            seconds = result.members[0].history[-1]["seconds"]
            row += [round(100 * result.score.accuracy.value, 2), round(seconds, 1)]
        rows.append(row)
        print(*row, flush=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["draw", "test_clips", "started", "seconds", "scratch", "scratch_seconds"])
    writer.writerows(rows)
    write_text(HERE / f"few-clips-{dataset.name}.csv", table.getvalue())
    values = np.array([row[2:] for row in rows], dtype=float)
    started, seconds, scratch, slower = values.T
    print(
        f"| {dataset.name} | {len(rows)} | {interval(started)} | {interval(scratch)} "
        f"| {interval(started - scratch)} | {np.median(seconds):.1f} | {np.median(slower):.1f} |"
    )


if __name__ == "__main__":
    main()
