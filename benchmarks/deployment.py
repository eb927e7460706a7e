"""Exported models: from file to label, and C against ONNX Runtime. One thread everywhere.

The first table sets an int8 ONNX file against the authors' way: ``librosa.load``, the librosa
feature chain, and the same network in float32, eager. The second sets compiled C against ONNX
Runtime in float32 on samples that are in memory, and a network pruned to a quarter against its
own dense form. Weights are random: the time does not depend on them, but for their zeros.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import prune

from benchmarks._common import HITS, machine
from stapes.audio import read
from stapes.bundle import Bundle
from stapes.config import parse_recipe
from stapes.deploy.c99.compiled import CompiledClassifier
from stapes.deploy.c99.folder import write_c
from stapes.deploy.export import in_eight_bits
from stapes.deploy.onnx import onnx_model
from stapes.features import BandNormalizer, LogMel, PerceptualMel
from stapes.models import create_model
from stapes.runtime import OnnxClassifier

RATE, SECONDS, CLASSES, REPEATS = 22_050, 10, 10, 15
STUDENT_SECONDS = 5


def _bundle(
    frontend: LogMel | PerceptualMel, width: int = 32, keep: float = 1.0, seconds: int = SECONDS
) -> Bundle:
    torch.manual_seed(0)
    network = create_model("cp_resnet", n_classes=CLASSES, rho=7, width=width, blocks=(4, 3, 0))
    network.eval()
    if keep < 1:
        convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        parts = [(conv, "weight") for conv in convs]
        prune.global_unstructured(parts, prune.L1Unstructured, amount=1 - keep)
        for conv in convs:
            prune.remove(conv, "weight")  # type: ignore[no-untyped-call]
    features = frontend.settings()
    audio = {"sample_rate": RATE, "window_seconds": float(seconds)}
    recipe = {"name": "speed", "audio": audio, "features": {"name": features["name"]}}
    normalizer = BandNormalizer(1, frontend.n_bins)
    noise = torch.randn(1, 1, RATE * SECONDS)
    normalizer.fit(frontend(noise).numpy())
    return Bundle(
        frontend=frontend,
        normalizer=normalizer,
        network=network,
        labels=tuple(f"class {i}" for i in range(CLASSES)),
        recipe=parse_recipe({**recipe, "model": {"name": "cp_resnet"}}, "benchmark"),
    )


def _interleaved(ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):  # the first round warms up
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - started)
    return times


def _ratio(slow: list[float], fast: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _authors_way(path: Path, bundle: Bundle) -> Callable[[], object]:
    import librosa

    mean, std = (t.numpy() for t in (bundle.normalizer.mean, bundle.normalizer.std))
    settings = bundle.frontend.settings()
    paper = isinstance(bundle.frontend, PerceptualMel)

    def run() -> int:
        wave, rate = librosa.load(path, sr=RATE)
        common = {"n_fft": settings["n_fft"], "hop_length": settings["hop_length"]}
        if paper:
            stft = librosa.stft(wave, pad_mode="reflect", **common)
            bins = librosa.fft_frequencies(sr=rate, n_fft=settings["n_fft"])
            levels = librosa.perceptual_weighting(
                np.abs(stft) ** 2, bins, ref=1.0, amin=1e-10, top_db=80.0
            )
            mel = librosa.feature.melspectrogram(
                S=levels, sr=rate, n_mels=settings["n_mels"], **common
            )
        else:
            power = librosa.feature.melspectrogram(
                y=wave, sr=rate, n_mels=settings["n_mels"], pad_mode="reflect", **common
            )
            mel = librosa.power_to_db(power, ref=1.0, top_db=None)
        x = torch.from_numpy(((mel[None] - mean) / std).astype(np.float32))[None]
        with torch.inference_mode():
            return int(bundle.network(x).argmax())

    return run


def _ten_seconds(folder: Path, files: list[Path]) -> tuple[Path, NDArray[np.float32]]:
    import soundfile

    wave = np.concatenate([read(path, sample_rate=44_100, channels=1)[0] for path in files])
    wave = np.resize(wave, 44_100 * SECONDS)
    path = folder / "ten.wav"
    soundfile.write(path, wave, 44_100, subtype="PCM_16")
    return path, read(path, sample_rate=RATE, channels=1)


def main(files: list[Path] | None = None) -> str:
    """Measure and return a markdown section."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # librosa: log of the A-weighting at 0 Hz
            return _measure(Path(name), files or sorted(HITS.rglob("*.ogg"))[:40])
    finally:
        torch.set_num_threads(before)


def _measure(folder: Path, files: list[Path]) -> str:
    clip, samples = _ten_seconds(folder, files)
    window = samples[None]
    small = LogMel(sample_rate=RATE, n_fft=1024, hop_length=551, n_mels=128)
    paper = PerceptualMel(sample_rate=RATE)
    lines = [
        "## Exported models\n",
        f"One thread each, median of {REPEATS} passes with least and most, alternating. "
        f"{machine()}.\n",
        f"From a file of {SECONDS} s (16-bit wav, 44.1 kHz) to its label; rho 7.\n",
        "| features | width | librosa and eager float32, ms | ONNX int8, ms | times faster |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for label, frontend, width in (
        ("256 bands, A-weighted: the authors'", paper, 128),
        ("the same", paper, 64),
        ("the same", paper, 32),
        ("128 bands, log-mel: `small`", small, 32),
    ):
        bundle = _bundle(frontend, width)
        path = folder / "int8.onnx"
        path.write_bytes(onnx_model(in_eight_bits(bundle, window)))
        light = OnnxClassifier(path, threads=1)
        times = _interleaved(
            {"authors": _authors_way(clip, bundle), "ours": partial(light.classify, clip)}
        )
        slow, fast = times["authors"], times["ours"]
        lines.append(
            f"| {label} | {width} | {1000 * statistics.median(slow):.1f} | "
            f"{1000 * statistics.median(fast):.1f} | {_ratio(slow, fast)} |"
        )
    lines += [
        f"\nCompiled C from {SECONDS} s of samples to probabilities, 128 bands; speed: times that "
        "of ONNX Runtime on the same model in float32.\n",
        "| width | compiled | dense, ms | speed | pruned to 25 %, ms | times as fast as dense |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for width in (32, 64):
        dense, sparse = _bundle(small, width), _bundle(small, width, keep=0.25)
        path = folder / "float32.onnx"
        path.write_bytes(onnx_model(dense))
        light = OnnxClassifier(path, threads=1)
        for flags in ("-O3 -march=native", "-O3"):
            ways: dict[str, Callable[[], object]] = {"ort": partial(light.probabilities, window)}
            for kind, bundle in (("dense", dense), ("sparse", sparse)):
                place = folder / f"c-{width}-{kind}-{flags.count('=')}"
                made = write_c(bundle, place, measure=False)
                way = CompiledClassifier(place, bundle.labels, bundle.audio, made.ram, flags=flags)
                ways[kind] = partial(way.probabilities, window)
            times = _interleaved(ways)
            ort, plain, pruned = times["ort"], times["dense"], times["sparse"]
            lines.append(
                f"| {width} | `gcc {flags}` | {1000 * statistics.median(plain):.1f} | "
                f"{_ratio(ort, plain)} | {1000 * statistics.median(pruned):.1f} | "
                f"{_ratio(plain, pruned)} |"
            )
    lines += [
        f"\nStudents in C: bytes of flash (constants, program) and of RAM (state, window of "
        f"{STUDENT_SECONDS} s as float) on a processor without vectors; a hop of 1 s runs the same "
        "window again.\n",
        "| student | in C | constants | program | state | window | RAM in all |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, width, eight in (
        ("500 kB in float16: width 48", 48, False),
        ("the same", 48, True),
        ("128 kB in int8: width 34", 34, True),
    ):
        student = _bundle(small, width, seconds=STUDENT_SECONDS)
        if eight:
            student = in_eight_bits(student, window[:, :, : RATE * STUDENT_SECONDS])
        made = write_c(student, folder / f"student-{width}-{eight}")
        lines.append(
            f"| {label} | {'int8' if eight else 'float32'} | {made.flash:,} | {made.code or 0:,} | "
            f"{made.ram_plain:,} | {made.window:,} | {made.ram_plain + made.window:,} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="recordings to use instead of the drum hits")
    chosen = parser.parse_args().data
    print(main(sorted(chosen.rglob("*.*"))[:4] if chosen else None))
