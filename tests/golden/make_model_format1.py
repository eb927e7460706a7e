"""Wrote ``model_format1.safetensors`` beside it, with stapes at commit 27c4af8 (format version 1).

Later versions write later formats: this says where the file comes from and is not run again.
"""

from __future__ import annotations

from pathlib import Path

import torch

from stapes.bundle import Bundle, save_bundle
from stapes.config import load_recipe, resolve
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model


def make() -> None:
    torch.manual_seed(1)
    words = ["model.width=2", "model.blocks=[1,1,0]", "audio.window_seconds=0.5",
             "features.n_mels=32"]  # fmt: skip
    recipe = resolve(load_recipe("small", words), sample_rates=[8000], durations=[0.5])
    frontend = create_frontend(sample_rate=8000, **recipe.features.model_dump())
    normalizer = BandNormalizer(1, frontend.n_bins)
    normalizer.mean.normal_()
    normalizer.std.uniform_(1, 2)
    network = create_model(n_classes=2, in_channels=1, **recipe.model.model_dump())
    for _ in range(2):
        network(torch.randn(2, 1, frontend.n_bins, 40) * 2 + 1)
    bundle = Bundle(frontend, normalizer, network.eval(), ("a", "ç"), recipe, {})
    time = torch.arange(4000) / 8000
    waveform = torch.sin(2 * torch.pi * 1000 * time**2).reshape(1, 1, -1)
    with torch.inference_mode():
        bundle.metadata["logits"] = bundle.module()(waveform)[0].tolist()
    save_bundle(bundle, Path(__file__).with_name("model_format1.safetensors"))


if __name__ == "__main__":
    make()
