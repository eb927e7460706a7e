"""A run folder as training leaves it, with a small untrained model and made-up recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch

from stapes.bundle import Bundle, save_bundle
from stapes.config import load_recipe, resolve
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model

RATE, WINDOW = 8000, 0.5
LABELS = ("low", "high", "other")


def toy_bundle(**audio: str) -> Bundle:
    """A CP-ResNet that tells noises apart without having learnt anything."""
    chosen = {"window_seconds": str(WINDOW), "sample_rate": str(RATE), **audio}
    recipe = load_recipe("small", [f"audio.{key}={value}" for key, value in chosen.items()])
    recipe = resolve(recipe, sample_rates=[], durations=[])
    frontend = create_frontend(sample_rate=RATE, **recipe.features.model_dump()).eval()
    torch.manual_seed(0)
    channels = recipe.audio.channels
    network = create_model(
        "cp_resnet", n_classes=3, in_channels=channels, rho=3, width=8, blocks=(2, 1, 0),
        damping=0.1,
    )  # fmt: skip
    normalizer = BandNormalizer(channels, frontend.n_bins)
    with torch.no_grad():
        noise = torch.from_numpy(np.stack([noise_of(seed, channels) for seed in range(8)]))
        features = frontend(noise)
        normalizer.fit(features.numpy())
        network.train()  # sets the statistics of batch norm, so that activations keep their size
        for _ in range(20):
            network(normalizer(features))
        network.head.norm.weight.fill_(2.0)
    return Bundle(frontend, normalizer.eval(), network.eval(), LABELS, recipe)


def noise_of(seed: int, channels: int = 1, seconds: float = WINDOW) -> np.ndarray:
    """Noise of a colour and level of its own, (channels, N)."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    spectrum = rng.standard_normal((channels, n // 2 + 1)) * rng.uniform(0.2, 1, n // 2 + 1)
    spectrum = spectrum * np.linspace(1, rng.uniform(0, 1), n // 2 + 1) ** 4
    wave = np.fft.irfft(spectrum, n)
    return (wave / np.abs(wave).max() * 10 ** rng.uniform(-2, 0)).astype(np.float32)


def toy_run(folder: Path, n_clips: int = 8) -> Path:
    """A run folder with one member, half of whose recordings are its test part."""
    bundle = toy_bundle()
    run = folder / "run"
    member = run / "1" / "seed-0"
    member.mkdir(parents=True)
    for path in (run, member):
        save_bundle(bundle, path / "model.safetensors")
    rows = []
    for i in range(n_clips):
        soundfile.write(folder / f"{i}.wav", noise_of(i).T, RATE, subtype="FLOAT")
        rows.append((f"{i}.wav", LABELS[i % 3]))
    _table(run / "clips.csv", rows, "../")
    _table(member / "test.csv", rows[: n_clips // 2], "../../../")
    return run


def _table(path: Path, rows: list[tuple[str, str]], above: str) -> None:
    lines = [f"{above}{name},{label}" for name, label in rows]
    path.write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
