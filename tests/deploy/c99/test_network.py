"""The network in C against torch's, under sanitizers, with warnings as errors."""

from __future__ import annotations

import platform
import re
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
from stapes.models.quantized import ActivationQuantizer, QuantizedConv2d

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


def flags_of(processor: str) -> list[str]:
    """Compiler flags for a kind of vectors; skips where this machine has no such."""
    known = Path("/proc/cpuinfo")
    has = known.read_text().split() if known.is_file() else []
    needs = {"AVX-512": {"avx512f", "avx512bw", "avx512_vnni"}, "AVX2": {"avx2"}}
    if platform.machine() != "x86_64" or not needs.get(processor, set()) <= set(has):
        pytest.skip(f"needs a processor with {processor}")
    return {
        "none": ["-O0", "-DSTAPES_PLAIN"],
        "AVX2": ["-O0", "-mavx2"],
        "AVX-512": ["-O0", "-mavx512f", "-mavx512bw", "-mavx512vnni"],
    }[processor]


def int8_network(bins: int, frames: int, **options: Any) -> Any:
    plain = make_network(**options)
    shape = (plain.in_channels, bins, frames)
    return quantize(plain, [noise(4, *shape, seed=seed) for seed in (5, 6)])


def check_levels(program: Program, network: Any, x: Tensor) -> None:
    """The last levels that are made are torch's, to the bit."""
    expected, totals = answers(network, x)
    found, sums = program(x, piece=3)
    # In whole numbers: sums of values over the scale of a level.
    last = [m for m in network.modules() if isinstance(m, ActivationQuantizer)][-1]
    whole = (totals.double() / last.scale.double()).round()
    assert float(whole.max()) > 100
    assert torch.equal(sums[:, : whole.shape[1]].double(), whole)
    assert float((found - expected).abs().max()) < 2e-6 * float(expected.abs().max())


def check_logits(program: Program, network: Any, x: Tensor, piece: int = 3) -> None:
    expected, _ = answers(network, x)
    scale = float(expected.abs().max())
    assert scale > 0.1
    assert float((program(x, piece)[0] - expected).abs().max()) < 2e-6 * scale


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
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    program = Program(tmp_path, network, bins, frames, **export)
    x = noise(3, network.in_channels, bins, frames)
    check_logits(program, network, x)
    # Not how the columns come, nor what was there before, makes a difference.
    found, _ = program(x, piece=3)
    for piece in (1, frames):
        assert torch.equal(program(x.flip(0), piece)[0].flip(0), found)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in kept.items())


@pytest.mark.parametrize(("options", "bins", "frames", "export"), VARIANTS[::2] + VARIANTS[5:])
def test_int8_networks_compute_the_very_levels_of_torchs(
    tmp_path: Path, options: dict[str, Any], bins: int, frames: int, export: dict[str, Any]
) -> None:
    network = int8_network(bins, frames, **options)
    program = Program(tmp_path, network, bins, frames, **export)
    shape = (network.in_channels, bins, frames)
    # The last is louder than anything before, so that levels are clipped too.
    check_levels(program, network, torch.cat([noise(3, *shape), 5 * noise(1, *shape, seed=3)]))


@pytest.mark.parametrize("processor", ["none", "AVX2", "AVX-512"])
def test_every_kind_of_vectors(tmp_path: Path, processor: str) -> None:
    flags = flags_of(processor)
    # Runs of every length, groups of 8, 4, 2 and 1 channels, dense and sparse layers.
    network = make_network(width=15, blocks=(4, 1, 0))
    with torch.no_grad():
        for name in ("stage1.block2.conv1", "stage1.block4.conv2", "stage2.block1.conv2"):
            weight = network.get_submodule(name).weight
            weight *= noise(*weight.shape, seed=4) > 0.8
    x = noise(2, 1, 48, 70)
    program = Program(tmp_path / "float", network, 48, 70, flags, chunk=12)
    assert program.part.source.count("STAPES_SPARSE") == 3
    check_logits(program, network, x)
    network = quantize(network, [x])
    for sparse in (False, True):
        options = {"chunk": 12, "sparse": sparse}
        program = Program(tmp_path / f"int8-{sparse}", network, 48, 70, flags, **options)
        check_levels(program, network, x)


@pytest.mark.parametrize("processor", ["none", "AVX2", "AVX-512"])
def test_what_lies_half_way_between_two_levels_goes_to_the_even_one(
    tmp_path: Path, processor: str
) -> None:
    flags = flags_of(processor)
    network = int8_network(40, 50, width=8)
    generator = torch.Generator().manual_seed(0)
    halves = []
    for name, module in network.named_modules():
        if isinstance(module, QuantizedConv2d) and name != "head.conv":
            relu = name.replace("conv1", "relu1").replace("stem.conv", "stem.relu")
            levels = module.output or network.get_submodule(relu)
            # One unit of the sum is half a level.
            module.scale.fill_(float(levels.scale / 2 / module.source.scale))
            signs = torch.randint(-1, 2, module.weight.shape, generator=generator)
            module.weight.copy_(signs)
            module.bias.zero_()
            module.register_forward_hook(
                lambda module, x, y: (
                    halves.append(_odd(module, x[0])) if module.output is None else None
                )
            )
    program = Program(tmp_path, network, 40, 50, flags, chunk=12)
    check_levels(program, network, noise(4, 1, 40, 50))
    assert min(halves) > 0.2


def _odd(layer: QuantizedConv2d, x: Tensor) -> float:
    """How many of a layer's integer sums are odd, 0 to 1."""
    x = x if layer.input is None else layer.input(x)
    sums = layer.sums((x / layer.source.scale).round(), layer.integer_weight())
    return float((sums % 2 == 1).float().mean())


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_sparse_layers_reach_far_and_hold_channels_without_any_weight(
    tmp_path: Path, precision: str
) -> None:
    network = make_network(width=72, blocks=(1, 0, 0))
    with torch.no_grad():
        for conv in (network.stage1.block1.conv1, network.stage1.block1.conv2):
            # One weight for each output channel, far away from the first that could be there.
            kept = torch.zeros_like(conv.weight)
            kept[1:, -1, -1, -1] = conv.weight[1:, -1, -1, -1]
            conv.weight.copy_(20 * kept)
    x = noise(2, 1, 64, 64)
    if precision == "int8":
        network = quantize(network, [x])
    program = Program(tmp_path, network, 64, 64, ["-O1"], chunk=1000, sparse=True)
    jumps = re.search(r"stapes_jumps\[\d+\] = {([^}]*)}", program.part.source)
    assert jumps is not None
    assert "65535" in jumps[1]
    check = check_logits if precision == "float32" else check_levels
    check(program, network, x)


def test_pruned_layers_are_sparse_where_that_is_faster() -> None:
    network = make_network(width=8)
    with torch.no_grad():
        weight = network.stage1.block2.conv1.weight
        weight *= torch.arange(weight.numel()).view_as(weight) % 8 == 0
    pruned, dense = network_part(network, 48, 64), network_part(network, 48, 64, sparse=False)
    assert pruned.source.count("STAPES_SPARSE") == 1
    assert dense.source.count("STAPES_SPARSE") == 0
    # A weight takes six bytes in place of four, an output channel two more.
    assert dense.flash - pruned.flash == (4 - 6 / 8) * weight.numel() - 2 * 8 + 4 * 9 + 2 + 2


def test_memory_is_what_is_stated_and_does_not_grow_with_the_window(tmp_path: Path) -> None:
    network = make_network(width=8)
    short, long = (network_part(network, 48, frames, chunk=8) for frames in (2000, 40000))
    # Only what is left over at the end differs.
    assert long.ram < 1.1 * short.ram
    assert network_part(network, 48, 300, chunk=2).ram < short.ram
    program = Program(tmp_path, network, 48, 300, ["-O0"], chunk=8)
    program(noise(1, 1, 48, 300))
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm (binutils)")
    listed = subprocess.run([nm, "-S", program.path], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    tables = {row[3]: int(row[1], 16) for row in rows if len(row) == 4 and row[2] == "R"}
    stated = sum(n for name, n in tables.items() if name.startswith("stapes_"))
    assert program.part.flash == stated


@pytest.mark.parametrize(
    ("network", "bins", "frames", "export", "said"),
    [
        ("conv", 40, 50, {}, "Conv2d has no C implementation; only cp_resnet"),
        ("grouped", 40, 50, {}, r"stage1.block2.conv1, Conv2d\(.*groups=2.*, has no C"),
        ("small", 16, 50, {}, "16 frequency bins and 50 frames are too few: this network needs 17"),
        ("small", 40, 16, {}, "40 frequency bins and 16 frames are too few"),
        ("small", 40, 50, {"chunk": 0}, "chunk = 0: 1 to 4096 columns"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    network: str, bins: int, frames: int, export: dict[str, Any], said: str
) -> None:
    found: nn.Module = nn.Conv2d(1, 1, 1) if network == "conv" else make_network()
    if network == "grouped":
        found.stage1.block2.conv1 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    with pytest.raises(ConfigError, match=said):
        network_part(found, bins, frames, **export)
