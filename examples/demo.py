"""What ``make demo`` runs: drum hits become a classifier, scored on kits it has never heard."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN, SCRATCH = Path("runs/drum-hits-demo"), Path("runs/drum-hits-from-nothing")
# A cross-validation of a minute: short windows, four folds of whole kits.
COMMON = ("--folds", "4", "--set", "audio.window_seconds=1")


def main() -> None:
    """Cross-validate over kits, from a shipped model and from nothing, and use the first."""
    data = "examples/drum-hits"
    print("With few recordings, training starts from a model that comes with stapes:\n")
    _stapes("train", data, *COMMON, "--out", str(RUN))
    print("\nThe same from random weights, and the two on the same hits:\n")
    _stapes(
        "train", data, *COMMON, "--recipe", "quick", "--no-final", "--out", str(SCRATCH)
    )  # fmt: skip
    _stapes("compare", str(SCRATCH), str(RUN))
    member = RUN / "1" / "seed-0"
    with (ROOT / member / "test.csv").open(encoding="utf-8") as file:
        hits = {row["label"]: ROOT / member / row["path"] for row in csv.DictReader(file)}
    paths = [str(path.resolve().relative_to(ROOT)) for path in hits.values()]
    print("\nHits from kits that this fold's model has never heard (the folder is the kit):\n")
    _stapes("predict", str(member / "model.safetensors"), *paths)
    print(f"\nThe report: {RUN / 'report.html'} (open it in a browser: curves, confusions,")
    print("mistakes to look at and listen to). The model trained on all kits: ", end="")
    print(f"{RUN / 'model.safetensors'}")


def _stapes(*arguments: str) -> None:
    shown = shlex.join(arguments[:3] if arguments[0] == "predict" else arguments)
    print(f"$ stapes {shown}{' ...' if arguments[0] == 'predict' else ''}", flush=True)
    done = subprocess.run([sys.executable, "-m", "stapes", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
