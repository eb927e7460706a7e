"""How long a shell command takes: ``stapes --help`` and ``stapes predict`` of one clip, with the
trained model and with the exported one.

The baselines are what no program on this base can beat: starting Python, and importing torch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._common import HITS, machine, quick_model
from stapes.bundle import load_bundle
from stapes.deploy.onnx import onnx_model

REPEATS = 7


def main() -> str:
    """Measure and return a markdown section."""
    clip = sorted(HITS.rglob("*.ogg"))[0]
    with tempfile.TemporaryDirectory() as name:
        model, exported = quick_model(Path(name)), Path(name) / "model.onnx"
        exported.write_bytes(onnx_model(load_bundle(model)))
        python = sys.executable
        predict = [python, "-m", "stapes", "predict"]
        commands = {
            "`python -c pass`": [python, "-c", "pass"],
            "`stapes --help`": [python, "-m", "stapes", "--help"],
            "`python -c 'import torch'`": [python, "-c", "import torch"],
            "`stapes predict MODEL CLIP`": [*predict, str(model), str(clip)],
            "`stapes predict MODEL.onnx CLIP`": [*predict, str(exported), str(clip)],
        }
        times: dict[str, list[float]] = {label: [] for label in commands}
        for repeat in range(REPEATS + 1):
            for label, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if repeat:  # the first round warms the file system
                    times[label].append(time.perf_counter() - started)
    rows = [
        f"| {label} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"
        for label, values in times.items()
    ]
    ratio = statistics.median(times["`stapes predict MODEL CLIP`"]) / statistics.median(
        times["`python -c 'import torch'`"]
    )
    return (
        f"## From the shell\n\nMedian of {REPEATS} starts, alternating. {machine()}.\n\n"
        "| command | seconds | least | most |\n| --- | ---: | ---: | ---: |\n"
        + "\n".join(rows)
        + f"\n\nClassifying one clip takes {ratio:.2f} times as long as importing torch alone.\n"
    )


if __name__ == "__main__":
    print(main())
