"""The network in C against torch's, under sanitizers, with warnings as errors."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stapes.compression import quantize
from stapes.deploy import c99
from stapes.deploy.c99.compiled import c_compiler
from stapes.deploy.c99.network import network_part
from stapes.errors import ConfigError
from stapes.models import create_model
from stapes.models.quantized import ActivationQuantizer

SOURCE = Path(c99.__file__).parent / "source"
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow",
            "-Wdouble-promotion", "-Werror"]  # fmt: skip
SANITIZERS = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Reads windows of columns, pushes them in pieces of a size, and writes logits.
DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include "network.h"

static stapes_network state;
static float columns[STAPES_FRAMES][STAPES_CHANNELS * STAPES_BINS];

int main(int argc, char **argv)
{
    const int piece = argc > 1 ? atoi(argv[1]) : 1;
    float logits[STAPES_LABELS];
    while (fread(columns, sizeof columns, 1, stdin) == 1) {
        stapes_network_begin(&state);
        for (int i = 0; i < STAPES_FRAMES; i += piece) {
            const int left = STAPES_FRAMES - i;
            stapes_network_push(&state, columns[i], piece < left ? piece : left);
        }
        stapes_network_end(&state, logits);
        fwrite(logits, sizeof logits, 1, stdout);
        for (int i = 0; i < STAPES_FEATURES; i++) {
            const float total = (float)state.totals[i];
            fwrite(&total, sizeof total, 1, stdout);
        }
    }
    fprintf(stderr, "%zu", sizeof state);
    return 0;
}
"""

pytestmark = pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")


def make_network(seed: int = 0, **options: Any) -> Any:
    """Small, with norms that are not at their initial values."""
    options = {"rho": 4, "width": 4, "n_classes": 3, "in_channels": 1} | options
    generator = torch.Generator().manual_seed(seed)
    network = create_model("cp_resnet", generator=generator, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.0, 0.5, generator=generator)
    return network.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Program:
    """A network compiled with the driver."""

    def __init__(
        self,
        folder: Path,
        network: Any,
        bins: int,
        frames: int,
        flags: Sequence[str] = SANITIZERS,
        **options: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.labels = network.n_classes
        self.part = network_part(network, bins, frames, **options)
        for name in ("network.h", "network.c", "layers.h", "conv_float.c", "conv_int8.c"):
            shutil.copy(SOURCE / name, folder)
        sizes = {
            "CHANNELS": network.in_channels,
            "BINS": bins,
            "FRAMES": frames,
            "LABELS": network.n_classes,
        }
        defined = "".join(f"#define STAPES_{key} {value}\n" for key, value in sizes.items())
        guard = "#ifndef STAPES_MODEL_H\n#define STAPES_MODEL_H\n"
        (folder / "model.h").write_text(f"{guard}{defined}{self.part.header}\n#endif\n")
        (folder / "model.c").write_text(f'#include "model.h"\n{self.part.source}')
        (folder / "driver.c").write_text(DRIVER)
        compiler = c_compiler()
        assert compiler is not None
        files = [str(path) for path in sorted(folder.glob("*.c"))]
        self.path = folder / "program"
        subprocess.run([compiler, *WARNINGS, *flags, "-o", self.path, *files, "-lm"], check=True)

    def __call__(self, x: Tensor, piece: int = 4) -> tuple[Tensor, Tensor]:
        """Logits (B, K) of spectrograms (B, C, F, T), and the feature map's totals (B, C')."""
        columns = np.ascontiguousarray(x.numpy().transpose(0, 3, 1, 2))
        done = subprocess.run(
            [self.path, str(piece)], input=columns.tobytes(), capture_output=True, check=True
        )
        assert int(done.stderr) == self.part.ram
        rows = torch.from_numpy(np.frombuffer(done.stdout, np.float32).copy()).view(len(x), -1)
        return rows[:, : self.labels], rows[:, self.labels :]


def answers(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch."""
    with torch.no_grad():
        features = network.forward_features(x)
        return network.forward_head(features), features.sum((2, 3))


VARIANTS = [
    # Options of the network, bins, frames, options of the export.
    ({"in_channels": 2, "damping": 0.1}, 40, 50, {"chunk": 7}),
    ({"rho": 12, "width": 5, "blocks": (4, 2, 1)}, 33, 37, {"chunk": 1}),
    ({"rho": 21, "width": 3, "blocks": (4, 4, 4), "n_classes": 1}, 35, 64, {"chunk": 16}),
    ({"rho": 0, "width": 9, "blocks": (1, 0, 0)}, 9, 10, {}),
    ({"decomposition": 2, "rho": 8, "blocks": (4, 1, 0)}, 48, 41, {"chunk": 4, "sparse": True}),
    ({"channels": ((11, 3, 13), (1,), (7, 5)), "blocks": (2, 0, 1)}, 31, 53, {"chunk": 1000}),
]


@pytest.mark.parametrize(("options", "bins", "frames", "export"), VARIANTS)
def test_float_networks_of_every_kind(
    tmp_path: Path, options: dict[str, Any], bins: int, frames: int, export: dict[str, Any]
) -> None:
    network = make_network(**options)
    program = Program(tmp_path, network, bins, frames, **export)
    x = noise(3, network.in_channels, bins, frames)
    expected, _ = answers(network, x)
    found, _ = program(x, piece=3)
    scale = float(expected.abs().max())
    assert scale > 0.1
    assert float((found - expected).abs().max()) < 2e-6 * scale
    # Not how the columns come, nor what was there before, makes a difference.
    for piece in (1, frames):
        assert torch.equal(program(x.flip(0), piece)[0].flip(0), found)


@pytest.mark.parametrize(("options", "bins", "frames", "export"), VARIANTS)
def test_int8_networks_compute_the_very_levels_of_torchs(
    tmp_path: Path, options: dict[str, Any], bins: int, frames: int, export: dict[str, Any]
) -> None:
    plain = make_network(**options)
    shape = (plain.in_channels, bins, frames)
    network = quantize(plain, [noise(4, *shape, seed=seed) for seed in (5, 6)])
    program = Program(tmp_path, network, bins, frames, **export)
    # Louder than anything before, so that levels are clipped too.
    x = torch.cat([noise(3, *shape), 5 * noise(1, *shape, seed=3)])
    expected, totals = answers(network, x)
    found, sums = program(x, piece=3)
    # The last levels that were made, in whole numbers: sums of values over the scale of a level.
    last = [m for m in network.modules() if isinstance(m, ActivationQuantizer)][-1]
    whole = (totals.double() / last.scale.double()).round()
    assert float(whole.max()) > 100
    assert torch.equal(sums[:, : whole.shape[1]].double(), whole)
    assert float((found - expected).abs().max()) < 2e-6 * float(expected.abs().max())
