"""What using a model takes: packages, bytes, and the time from the shell to the answer.

The light installation (``pip install stapes``) is made afresh in an empty environment and has to
answer as the full one does; the full one (``stapes[train]``) is the environment this runs in, of
which the packages that stapes asks for are counted. Needs a package index; takes a minute or two.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

import numpy as np
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks._common import HITS, machine, quick_model
from stapes.bundle import load_bundle
from stapes.deploy.onnx import onnx_model

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 7
CLIP_SECONDS = 10


def main() -> str:
    """Measure and return a markdown section."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = _light_environment(folder / "light")
        light = _site_packages(python)
        trained, exported = quick_model(folder), folder / "model.onnx"
        exported.write_bytes(onnx_model(load_bundle(trained)))
        clip = _ten_seconds(folder / "clip.wav")
        here = Path(sys.executable)
        starts = (("full", here, trained), ("full", here, exported), ("light", python, exported))
        commands = {
            (installation, f"`stapes predict {model.name} clip.wav`"): [
                str(interpreter), "-m", "stapes", "predict", str(model), str(clip)
            ]
            for installation, interpreter, model in starts
        }  # fmt: skip
        answers = {key: _run(command)[2] for key, command in commands.items()}  # warms the files
        if len(set(answers.values())) != 1:
            raise SystemExit(f"the answers differ: {answers}")
        walls: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
        works: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
        for _ in range(REPEATS):
            for key, command in commands.items():
                wall, work, _ = _run(command)
                walls[key].append(wall)
                works[key].append(work)
        counted = {
            "light: `pip install stapes`": _packages(light, "stapes"),
            "full: `pip install \"stapes[train]\"`": _packages(
                Path(sysconfig.get_path("purelib")), "stapes[train]"
            ),
        }  # fmt: skip
    sizes = "\n".join(
        f"| {label} | {len(found)} | {sum(found.values()) / 1e6:.0f} |"
        for label, found in counted.items()
    )
    largest = ", ".join(
        f"{name} {size / 1e6:.0f} MB"
        for name, size in sorted(
            counted["light: `pip install stapes`"].items(), key=lambda pair: -pair[1]
        )[:5]
    )
    rows = "\n".join(
        f"| {install} | {command} | {statistics.median(values):.2f} | {min(values):.2f} "
        f"| {max(values):.2f} | {statistics.median(works[install, command]):.2f} |"
        for (install, command), values in walls.items()
    )
    return (
        "## What an installation takes\n\nPackages with all that they require, stapes itself "
        f"left out; unpacked. {machine()}.\n\n"
        "| installation | packages | MB |\n| --- | ---: | ---: |\n"
        f"{sizes}\n\nLargest of the light one: {largest}.\n\n"
        f"From the shell to the answer for one clip of {CLIP_SECONDS} s, in seconds, median of "
        f"{REPEATS}, and the processors' seconds, which other programs disturb less; all three "
        "print the same.\n\n"
        "| installation | command | seconds | least | most | processor |\n"
        f"| --- | --- | ---: | ---: | ---: | ---: |\n{rows}\n"
    )


def _light_environment(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    done = subprocess.run([python, "-c", "import torch"], check=False, capture_output=True)
    if done.returncode == 0:
        raise SystemExit("the light installation brought torch")
    return python


def _site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def _packages(site: Path, wanted: str) -> dict[str, int]:
    """Bytes of each installed package that a requirement brings, itself left out."""
    installed = {canonicalize_name(d.name): d for d in distributions(path=[str(site)])}
    found: dict[str, int] = {}
    open_ = [Requirement(wanted)]
    seen: set[tuple[str, str]] = set()
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        distribution = installed.get(name)
        if distribution is None:  # for another platform or Python
            continue
        if name != "stapes":
            found[name] = _size(distribution)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            parts = [Requirement(text) for text in distribution.requires or []]
            open_ += [p for p in parts if p.marker is None or p.marker.evaluate({"extra": extra})]
    return found


def _size(distribution: Distribution) -> int:
    paths = [Path(str(file.locate())) for file in distribution.files or []]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _ten_seconds(path: Path) -> Path:
    """Drum hits one after the other, at the rate of most recordings."""
    hits = [soundfile.read(hit, dtype="float32")[0] for hit in sorted(HITS.rglob("*.ogg"))]
    mono = np.concatenate([hit if hit.ndim == 1 else hit.mean(1) for hit in hits])
    samples = np.resize(mono, CLIP_SECONDS * 44_100)
    soundfile.write(path, samples, 44_100)
    return path


def _run(command: list[str]) -> tuple[float, float, str]:
    """Seconds on the clock, seconds of the processors, standard output."""
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = os.times()
    work = after.children_user + after.children_system
    work -= before.children_user + before.children_system
    return time.perf_counter() - started, work, done.stdout


if __name__ == "__main__":
    print(main())
