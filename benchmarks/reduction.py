"""Training steps with damping and pruning masks against the plain network.

Effective weight = weight * damping * mask, computed once per step for each convolution. The
baseline is the same network with neither; batch, optimiser and memory layout are the same.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks._common import machine
from stapes.compression import Pruner
from stapes.config import PruningConfig
from stapes.models import create_model

BATCH, BANDS, FRAMES, CLASSES = 32, 128, 201, 10
STEPS, REPEATS = 10, 7
PRUNING = PruningConfig(method="magnitude", keep=0.25, ramp_epochs=10.0)


def _network(damping: float | None) -> nn.Module:
    torch.manual_seed(0)
    return create_model("cp_resnet", n_classes=CLASSES, rho=7, width=32, damping=damping)


def _steps_per_second(network: nn.Module, pruner: Pruner | None) -> float:
    network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x = torch.randn(BATCH, 1, BANDS, FRAMES)
    targets = F.one_hot(torch.arange(BATCH) % CLASSES, CLASSES).float()
    started = time.perf_counter()
    for step in range(STEPS):
        if pruner is not None:
            pruner.update(1, step, STEPS)
        loss = F.cross_entropy(network(x), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return STEPS / (time.perf_counter() - started)


def main() -> str:
    """Measure and return a markdown table."""
    speeds: dict[str, list[float]] = {"plain": [], "damped": [], "damped and masked": []}
    for repeat in range(REPEATS + 1):  # the first pass warms up
        for name, found in speeds.items():
            network = _network(None if name == "plain" else 0.1)
            pruner = Pruner(network, PRUNING, 20) if "masked" in name else None
            speed = _steps_per_second(network, pruner)
            if repeat:
                found.append(speed)
    # Neighbours in time share what else the machine does: ratios are of the same pass.
    rows = "".join(
        f"| {name} | {statistics.median(found):.2f} | "
        f"{statistics.median(a / b for a, b in zip(found, speeds['plain'], strict=True)):.3f} |\n"
        for name, found in speeds.items()
    )
    return (
        "## Damping and masks\n\n"
        f"CP-ResNet rho 7, width 32; batch {BATCH} of 1 x {BANDS} x {FRAMES}; median of {REPEATS} "
        f"alternating passes of {STEPS} training steps, {torch.get_num_threads()} threads. "
        f"{machine()}.\n\n"
        "| | steps per second | ratio |\n| --- | ---: | ---: |\n" + rows
    )


if __name__ == "__main__":
    print(main())
