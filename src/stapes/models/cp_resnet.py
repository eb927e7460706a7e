"""CP-ResNet: a ResNet on spectrograms whose receptive field is set by one number, rho.

References:
    Koutini, Eghbal-zadeh, Dorfer, Widmer, "The Receptive Field as a Regularizer in Deep
    Convolutional Neural Networks for Acoustic Scene Classification", EUSIPCO 2019.
    Koutini, Henkel, Eghbal-zadeh, Widmer, "Low-Complexity Models for Acoustic Scene
    Classification Based on Receptive Field Regularization and Frequency Damping", DCASE 2020.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stapes.models.damping import damp, damping_of
from stapes.models.decomposition import DecomposedConv2d

__all__ = [
    "KERNELS",
    "BasicBlock",
    "ConvFactory",
    "CpResNet",
    "cp_resnet",
    "decomposed_conv",
    "he_conv",
]

# Kernel sizes for rho = 0, 1, 2, ...: three stages of four blocks, two convolutions each, all
# square. Each step of rho widens the next 1x1 to 3x3, from the input on, and so widens the
# receptive field; the second convolution of the network stays 1x1, and so does the last one.
KERNELS: tuple[tuple[str, str, str], ...] = (
    # stage 1        stage 2        stage 3
    ("31 11 11 11", "11 11 11 11", "11 11 11 11"),  # rho 0
    ("31 31 11 11", "11 11 11 11", "11 11 11 11"),
    ("31 33 11 11", "11 11 11 11", "11 11 11 11"),
    ("31 33 31 11", "11 11 11 11", "11 11 11 11"),
    ("31 33 33 11", "11 11 11 11", "11 11 11 11"),
    ("31 33 33 31", "11 11 11 11", "11 11 11 11"),  # rho 5
    ("31 33 33 33", "11 11 11 11", "11 11 11 11"),
    ("31 33 33 33", "31 11 11 11", "11 11 11 11"),
    ("31 33 33 33", "33 11 11 11", "11 11 11 11"),
    ("31 33 33 33", "33 31 11 11", "11 11 11 11"),
    ("31 33 33 33", "33 33 11 11", "11 11 11 11"),  # rho 10
    ("31 33 33 33", "33 33 31 11", "11 11 11 11"),
    ("31 33 33 33", "33 33 33 11", "11 11 11 11"),
    ("31 33 33 33", "33 33 33 31", "11 11 11 11"),
    ("31 33 33 33", "33 33 33 33", "11 11 11 11"),
    ("31 33 33 33", "33 33 33 33", "31 11 11 11"),  # rho 15
    ("31 33 33 33", "33 33 33 33", "33 11 11 11"),
    ("31 33 33 33", "33 33 33 33", "33 31 11 11"),
    ("31 33 33 33", "33 33 33 33", "33 33 11 11"),
    ("31 33 33 33", "33 33 33 33", "33 33 31 11"),
    ("31 33 33 33", "33 33 33 33", "33 33 33 11"),  # rho 20
    ("31 33 33 33", "33 33 33 33", "33 33 33 31"),
)

# 2x2 max pooling follows these blocks of stage 1.
_POOLED_BLOCKS = (1, 2, 4)

ConvFactory = Callable[[int, int, int], nn.Module]
"""``(in_channels, out_channels, kernel_size)`` to a convolution of stride 1 that keeps the size.

The part of a residual block that can be exchanged (decomposed, for instance).
"""


def he_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Conv2d:
    """Square convolution without bias, drawn from N(0, 2 / fan_in) (He et al. 2015).

    Args:
        in_channels: channels of its input.
        out_channels: channels of its output.
        kernel_size: taps along frequency and along time.
        stride: step along both.
        padding: zeros on each side; none: as many as keep the size at stride 1 (odd kernels).
        generator: source of the weights; none: torch's default generator.
    """
    # skip_init: Conv2d's own initialisation would draw from the global generator.
    conv: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d,
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2 if padding is None else padding,
        bias=False,
    )
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
    return conv


def decomposed_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    decomposition: int,
    generator: torch.Generator | None = None,
) -> DecomposedConv2d:
    """Decomposed convolution with ``C_out / Z`` channels inside (rounded down, at least one).

    Args:
        in_channels: channels of its input.
        out_channels: channels of its output.
        kernel_size: taps of the core along frequency and along time.
        decomposition: Z, 1 or more.
        generator: source of the weights; none: torch's default generator.
    """
    inside = max(1, out_channels // decomposition)
    return DecomposedConv2d(
        he_conv(in_channels, inside, 1, generator=generator),
        he_conv(inside, inside, kernel_size, generator=generator),
        he_conv(inside, out_channels, 1, generator=generator),
    )


class BasicBlock(nn.Module):
    """Two convolutions with batch norm and a shortcut around both.

    Args:
        conv1: C_in to C_inner channels, size kept.
        conv2: C_inner to C_out channels, size kept.
        inner: C_inner, as many as C_out unless channels were pruned.
        channels: C_out.
        shortcut: convolution from C_in to C_out channels; none where they are equal.

    Shape:
        - input: (B, C_in, F, T)
        - output: (B, C_out, F, T)
    """

    def __init__(
        self,
        conv1: nn.Module,
        conv2: nn.Module,
        *,
        inner: int,
        channels: int,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.norm1 = nn.BatchNorm2d(inner)
        # Modules and not functions, so that quantisation can put its own in their place.
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv2
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = (
            nn.Identity() if shortcut is None else _named(conv=shortcut, norm=_norm(channels))
        )
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        # In place: batch norm needs its input for the gradient, not its output.
        y = self.relu2(y.add_(self.shortcut(x)))
        return y


class CpResNet(nn.Module):
    """Stem, three stages of residual blocks, 1x1 convolution to the classes, global average.

    ::

        (B, C, F, T) ─ stem 5x5/2 ─ stage1 ─ stage2 ─ stage3 ─ head 1x1 ─ mean ─ (B, n_classes)
                          1/2        1/16     1/16     1/16      of F and T

    Built by :func:`cp_resnet`.

    Args:
        stem: from ``in_channels``, at half the size.
        stages: three sequences of blocks and pooling; an empty one is skipped.
        n_features: channels after the last stage.
        n_classes: number of logits.
        options: what :meth:`settings` reports besides channels, classes and damping.
        generator: source of the head's weights; none: torch's default generator.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        *,
        in_channels: int,
        n_features: int,
        n_classes: int,
        options: dict[str, Any],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.n_features = n_features
        self._options = options
        self.stem = stem
        self.stage1, self.stage2, self.stage3 = stages
        # Fewest bins or frames of which something is left after the stem (5 taps, padded by 1
        # on either side, step 2) and p halvings: (n + 2 - 5) // 2 + 1 >= 2^p.
        halvings = sum(isinstance(part, nn.MaxPool2d) for part in self.modules())
        self.min_input_size = 2 ** (halvings + 1) + 1
        self.reset_classifier(n_classes, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of spectrograms (B, in_channels, F, T).

        Raises:
            ValueError: another number of axes or channels, or an input too small to pool.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map (B, n_features, F', T'), F' and T' about a sixteenth of F and T."""
        self._check_input(x)
        x = self.stem(x)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, n_classes) of a feature map; or its mean (B, n_features)."""
        if not pre_logits:
            x = self.head(x)
        return x.mean(dim=(2, 3))

    def reset_classifier(self, n_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Replace the head by a freshly drawn one for ``n_classes`` classes."""
        if n_classes < 1:
            raise ValueError(f"n_classes = {n_classes!r}: must be 1 or more")
        self.n_classes = n_classes
        conv = he_conv(self.n_features, n_classes, 1, generator=generator)
        self.head = _named(conv=conv, norm=_norm(n_classes))
        # On the device and in the precision and mode of the rest.
        like = next(self.parameters())
        self.head.to(device=like.device, dtype=like.dtype).train(self.training)

    def blocks(self) -> tuple[str, ...]:
        """Modules at which the network's blocks end: the stem and every residual block."""
        found = ["stem"]
        for stage in ("stage1", "stage2", "stage3"):
            found += [f"{stage}.{name}" for name, _ in self.get_submodule(stage).named_children()]
        return tuple(name for name in found if ".pool" not in name)

    def settings(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network: ``create_model(**settings)``."""
        return {
            "name": "cp_resnet",
            "n_classes": self.n_classes,
            "in_channels": self.in_channels,
            **self._options,
            "damping": damping_of(self),
        }

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"spectrograms must be (batch, {self.in_channels}, frequency, time), "
                f"not {tuple(x.shape)}"
            )
        if min(x.shape[2:]) < self.min_input_size:
            raise ValueError(
                f"{x.shape[2]} frequency bins and {x.shape[3]} frames are too few: this network "
                f"needs {self.min_input_size} of each (a longer window, a shorter hop, more bands)"
            )


def cp_resnet(
    *,
    n_classes: int,
    in_channels: int = 1,
    rho: int = 7,
    width: int = 128,
    blocks: Sequence[int] = (4, 3, 0),
    damping: float | None = None,
    decomposition: int | None = None,
    channels: Sequence[Sequence[int]] | None = None,
    conv: ConvFactory | None = None,
    generator: torch.Generator | None = None,
) -> CpResNet:
    """CP-ResNet with the published numbers.

    Args:
        n_classes: number of logits.
        in_channels: channels of the spectrogram.
        rho: receptive-field control, 0 to 21: a row of :data:`KERNELS`. With all blocks kept,
            0 to 7 see 23, 31, 39, 55, 71, 87, 103 and 135 bins and frames, each further step 32
            more; with ``(4, 3, 0)`` nothing changes beyond 12.
        width: channels of the stem and stage 1; stage 2 has twice, stage 3 four times as many.
        blocks: residual blocks kept in each stage, up to 4; ``(4, 3, 0)`` in the paper.
        damping: frequency damping at the kernels' edges, 0 to 1; none: no damping.
        decomposition: Z, 1 or more: the convolutions of the residual blocks, shortcuts included,
            are decomposed (see :mod:`stapes.models.decomposition`); none: they are not.
        channels: of a network whose channels were pruned, for each stage its channels, then the
            inner channels of each of its blocks, such as ``((30, 12, 25, 30, 8), (61, 50, 44, 7),
            (128,))``; none: all equal to the stage's width. An empty stage's number is not used.
        conv: makes the convolutions of the residual blocks; none: :func:`he_conv`, or
            :func:`decomposed_conv` with ``decomposition``.
        generator: source of the initial weights; none: torch's default generator.

    Raises:
        ValueError: an option out of range.
    """
    blocks = _check_options(rho, width, blocks)
    options: dict[str, Any] = {"rho": rho, "width": width, "blocks": list(blocks)}
    draw = partial(he_conv, generator=generator)
    if decomposition is not None:
        if isinstance(decomposition, bool) or decomposition not in range(1, 65):
            raise ValueError(
                f"decomposition = {decomposition!r}: must be a whole number from 1 to 64, or none"
            )
        options["decomposition"] = decomposition
        conv = conv or partial(decomposed_conv, decomposition=decomposition, generator=generator)
    conv = conv or draw
    sizes = _check_channels(channels, width, blocks)
    if channels is not None:
        options["channels"] = [list(row) for row in sizes]
    # 5x5 with one zero around it, not two: the published numbers depend on it.
    before = sizes[0][0]
    stem = _named(
        conv=draw(in_channels, before, 5, stride=2, padding=1),
        norm=_norm(before),
        relu=nn.ReLU(inplace=True),
    )
    stages = []
    for index, (wide, *inside) in enumerate(sizes):
        stage: dict[str, nn.Module] = {}
        kernels = KERNELS[rho][index].split()
        for number, (kernel, inner) in enumerate(zip(kernels, inside, strict=False), start=1):
            # Only the first block of a later stage changes the channels (also where pruning left
            # both sides with as many: they are not the same ones).
            changes = index > 0 and number == 1
            stage[f"block{number}"] = BasicBlock(
                conv(before, inner, int(kernel[0])),
                conv(inner, wide, int(kernel[1])),
                inner=inner,
                channels=wide,
                shortcut=conv(before, wide, 1) if changes else None,
            )
            before = wide
            if index == 0 and number in _POOLED_BLOCKS:
                stage[f"pool{number}"] = nn.MaxPool2d(2)
        stages.append(_named(**stage))
    network = CpResNet(
        stem,
        stages,
        in_channels=in_channels,
        n_features=before,
        n_classes=n_classes,
        options=options,
        generator=generator,
    )
    return network if damping is None else damp(network, damping)


def _check_options(rho: int, width: int, blocks: Sequence[int]) -> tuple[int, ...]:
    if rho not in range(len(KERNELS)):
        raise ValueError(f"rho = {rho!r}: must be a whole number from 0 to {len(KERNELS) - 1}")
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width = {width!r}: must be a whole number, 1 or more")
    if (
        not isinstance(blocks, Sequence)
        or len(blocks) != 3
        or any(count not in range(5) for count in blocks)
        or blocks[0] == 0
    ):
        raise ValueError(
            f"blocks = {blocks!r}: must be three whole numbers, the blocks kept in each stage: "
            "1 to 4, 0 to 4 and 0 to 4, such as (4, 3, 0)"
        )
    return tuple(int(count) for count in blocks)


def _check_channels(
    channels: Sequence[Sequence[int]] | None, width: int, blocks: Sequence[int]
) -> list[list[int]]:
    """Per stage its channels and its blocks' inner channels, given or by the width."""
    if channels is None:
        return [[width * 2**i] * (1 + count) for i, count in enumerate(blocks)]
    sizes = [list(row) for row in channels]
    if [len(row) for row in sizes] != [1 + count for count in blocks] or any(
        isinstance(n, bool) or not isinstance(n, int) or n < 1 for row in sizes for n in row
    ):
        raise ValueError(
            f"channels = {channels!r}: must be, for each of the three stages, its channels and "
            "then the inner channels of each of its blocks, all 1 or more"
        )
    return sizes


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def _named(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))
