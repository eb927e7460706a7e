"""Image networks of timm on spectrograms, under the contract of all networks here.

A spectrogram is an image whose height is frequency and whose width is time. One spectrogram is
copied to the three colours, as Palanisamy, Singhania, Yao 2020 (*Rethinking CNN Models for Audio
Classification*) do; three spectrograms are the three colours; any other number gets a first
convolution of its own. Nothing here knows about pretrained weights: see
:mod:`stapes.models.weights`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from stapes.errors import ConfigError, UnknownNameError
from stapes.models.blocks import check_blocks, modules_behind
from stapes.models.damping import damp, damping_of
from stapes.models.timm_layers import standardizes_weight
from stapes.models.torchvision_operators import declare_missing_operators
from stapes.models.tracing import meta_input, run_on_meta

__all__ = ["ImageNetwork", "image_network", "timm_model_name"]

# ResNets as first published (He et al. 2015): the first block of stages 2 to 4 takes its stride in
# its first 1x1 convolution. timm has only the later form, with the stride in the 3x3 convolution.
_FIRST_PUBLISHED = "_v1"
_LARGEST = 1024  # bins or frames; no network needs more
# Bins and frames that every network takes that is not made for one size: multiples of 32.
_COMMON_SIZE = (224, 352)
# Where nothing is near the name that was asked for.
_USUAL = ("convnext_atto", "densenet201", "inception_v3", "resnet50", "tf_efficientnet_lite0")


class ImageNetwork(nn.Module):
    """A timm network that takes spectrograms; satisfies :class:`stapes.models.Network`.

    Args:
        body: network of timm, with its classifier.
        settings: what rebuilds it.
        in_channels: spectrograms that go in.
        copies: of a single spectrogram, for the colours of the body.

    Attributes:
        layout: of the body's features: ``"map"``, ``"channels last"`` or ``"tokens"``.

    Shape:
        (B, in_channels, F, T) -> (B, n_classes). The feature map of a network without one (a
        vision transformer) is its row of tokens, (B, n_features, 1, tokens).
    """

    def __init__(
        self, body: nn.Module, settings: dict[str, Any], *, in_channels: int, copies: int
    ) -> None:
        super().__init__()
        self.body = body
        self.in_channels = in_channels
        self.n_classes: int = settings["n_classes"]
        self.copies = copies
        self._settings = settings
        self.layout = "map"
        self.n_features = self._measure()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of spectrograms (B, in_channels, F, T)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map (B, n_features, F', T') of spectrograms (B, in_channels, F, T)."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"spectrograms must be (batch, {self.in_channels}, frequency, time), "
                f"not {tuple(x.shape)}"
            )
        if min(x.shape[2:]) < 1:
            raise ValueError(self._too_small(x))
        if self.copies > 1:
            x = x.expand(-1, self.copies, -1, -1)
        try:
            return self._as_map(self.body.forward_features(x))  # type: ignore[operator]
        except (RuntimeError, ValueError, AssertionError) as error:
            # Asked only now: finding the smallest size takes some runs.
            if min(x.shape[2:]) < self.min_input_size:
                raise ValueError(self._too_small(x)) from error
            if not self._accepts(*x.shape[2:]):
                raise ConfigError(
                    f"{x.shape[2]} frequency bins and {x.shape[3]} frames do not go through "
                    f"'{self._settings['architecture']}', which halves maps and adds them up "
                    "again; multiples of 32 do: change features.n_mels, features.hop_length and "
                    "audio.window_seconds, or choose another network."
                ) from error
            raise

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, n_classes) of a feature map; or what the last layer reads (B, n_read).

        With as many values as the map has channels, unless the head has a layer in between.
        """
        if self.layout == "channels last":
            x = x.permute(0, 2, 3, 1)
        elif self.layout == "tokens":
            x = x.squeeze(2).transpose(1, 2)
        result: Tensor = self.body.forward_head(x, pre_logits=pre_logits)  # type: ignore[operator]
        return result.flatten(1)

    def reset_classifier(self, n_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Replace the head's last layer by a freshly drawn one for ``n_classes`` classes."""
        if n_classes < 1:
            raise ValueError(f"n_classes = {n_classes!r}: must be 1 or more")
        like = next(self.parameters())
        with _drawing_from(generator):
            self.body.reset_classifier(n_classes)  # type: ignore[operator]
        self.body.to(device=like.device, dtype=like.dtype).train(self.training)
        self.n_classes = n_classes
        self._settings = {**self._settings, "n_classes": n_classes}

    def blocks(self) -> tuple[str, ...]:
        """Modules at which the network's blocks end, in order (timm's points of each scale)."""
        ends = tuple(f"body.{part['module']}" for part in _scales(self.body))
        kept: int | None = self._settings["blocks"]
        return ends[:kept]

    def settings(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network: ``create_model(**settings)``."""
        return {**self._settings, "damping": damping_of(self)}

    def classifier(self) -> tuple[str, ...]:
        """Names of the modules that :meth:`reset_classifier` replaces."""
        named: Any = self.body.default_cfg["classifier"]  # type: ignore[index]
        return tuple(f"body.{n}" for n in ((named,) if isinstance(named, str) else named))

    @cached_property
    def min_input_size(self) -> int:
        """Fewest frequency bins, and fewest frames, that the network accepts."""
        low, high = 0, 1
        while not self._accepts(high, high):
            low, high = high, 2 * high
            if high > _LARGEST:
                raise ValueError(f"no input up to {_LARGEST} by {_LARGEST} is accepted")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._accepts(middle, middle) else (middle, high)
        return high

    def _accepts(self, n_bins: int, n_frames: int) -> bool:
        x = meta_input(self, (2, self.in_channels * self.copies, n_bins, n_frames))
        try:
            run_on_meta(self.body, x)
        except (RuntimeError, ValueError, AssertionError):
            return False
        return True

    def _too_small(self, x: Tensor) -> str:
        return (
            f"{x.shape[2]} frequency bins and {x.shape[3]} frames are too few: this network "
            f"needs {self.min_input_size} of each (a longer window, a shorter hop, more bands)"
        )

    def _measure(self) -> int:
        """Find the layout of the body's features, and their number."""
        x = meta_input(self.body, (2, self.in_channels * self.copies, *_COMMON_SIZE))
        try:
            features = run_on_meta(self.body, x, method="forward_features")
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"it takes images of one size only ({_first_line(error)}); choose a "
                "convolutional network."
            ) from None
        wide: int = self.body.num_features  # type: ignore[assignment]
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise ConfigError(
                "its features are neither a map nor a row of tokens; choose a convolutional "
                "network."
            )
        if features.ndim == 3:
            self.layout = "tokens"
            return int(features.shape[2])
        if features.shape[1] != wide and features.shape[3] == wide:
            self.layout = "channels last"
            return wide
        return int(features.shape[1])

    def _as_map(self, features: Tensor) -> Tensor:
        if self.layout == "channels last":
            return features.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            return features.transpose(1, 2).unsqueeze(2)
        return features


def image_network(
    *,
    n_classes: int,
    in_channels: int = 1,
    architecture: str = "tf_efficientnet_lite0",
    blocks: int | None = None,
    copy_mono: bool = True,
    damping: float | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> ImageNetwork:
    """A network of timm by its name, with freshly drawn weights.

    Args:
        n_classes: number of logits.
        in_channels: channels of the spectrogram.
        architecture: timm's name, such as ``densenet201``, ``resnet50`` or ``inception_v3``; with
            ``_v1`` behind it, a ResNet of bottlenecks as first published.
        blocks: cut the network off after this many blocks; none: all of it.
        copy_mono: copy a single spectrogram to three colours; else the first convolution has one
            input channel.
        damping: frequency damping of every convolution at its kernel's edges, 0 to 1; none: none.
        dropout: in front of the last layer, 0 to 1.
        generator: source of the initial weights; none: torch's default generator.

    Raises:
        UnknownNameError: timm has no such network.
        ConfigError: it cannot be cut off there, gives no feature map, takes one size only, or
            cannot be damped.
    """
    copies = 3 if copy_mono and in_channels == 1 else 1
    name = timm_model_name(architecture)
    with _drawing_from(generator):
        try:
            body = _build(name, num_classes=n_classes, in_chans=in_channels * copies,
                          drop_rate=dropout)  # fmt: skip
        except (TypeError, AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"model.architecture = '{architecture}': timm cannot build it for spectrograms "
                f"({_first_line(error)}); choose another network."
            ) from None
        settings = {
            "name": "timm",
            "n_classes": n_classes,
            "in_channels": in_channels,
            "architecture": architecture,
            "blocks": blocks,
            "copy_mono": copy_mono,
            "dropout": dropout,
        }
        try:
            if name != architecture:
                _stride_first(body)
            if damping is not None:
                _refuse_damping(body)
            if blocks is not None:
                _cut(body, blocks, n_classes, in_channels * copies)
            network = ImageNetwork(body, settings, in_channels=in_channels, copies=copies)
        except ConfigError as error:
            raise ConfigError(f"model.architecture = '{architecture}': {error}") from None
    return network if damping is None else damp(network, damping)


def timm_model_name(architecture: str) -> str:
    """Name under which timm builds an architecture.

    Raises:
        UnknownNameError: there is none; names close ones.
    """
    declare_missing_operators()
    import timm

    if "/" in architecture or ":" in architecture:
        raise ConfigError(
            f"model.architecture = '{architecture}': give timm's own name, such as "
            f"'{architecture.rpartition('/')[2]}', without a repository."
        )
    later = architecture.removesuffix(_FIRST_PUBLISHED)
    if later != architecture and timm.is_model(later) and "." not in later:
        return later
    plain = architecture.partition(".")[0]
    if timm.is_model(plain):
        return architecture
    # A thousand names would help nobody.
    close = difflib.get_close_matches(plain, timm.list_models(), n=5, cutoff=0.6)
    raise UnknownNameError("timm network", architecture, close or _USUAL)


def _build(name: str, **options: Any) -> nn.Module:
    import timm

    make: Callable[..., nn.Module] = partial(timm.create_model, name, pretrained=False, **options)
    try:  # transformers have a fixed size, unless told otherwise
        return make(dynamic_img_size=True, dynamic_img_pad=True)
    except TypeError:
        return make()


def _scales(body: nn.Module) -> list[dict[str, Any]]:
    described: Any = getattr(body, "feature_info", None) or []
    return [dict(part) for part in described]


def _stride_first(body: nn.Module) -> None:
    for number in (2, 3, 4):
        block: Any = getattr(body, f"layer{number}")[0]
        if not hasattr(block, "conv3"):
            raise ConfigError("only ResNets of bottlenecks have the form as first published.")
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _cut(body: nn.Module, blocks: int, n_classes: int, channels: int) -> None:
    """Put nothing in the place of all that runs after a block, and a head that fits."""
    scales = _scales(body)
    check_blocks(blocks, tuple(str(part["module"]) for part in scales), "model.blocks")
    last = scales[blocks - 1]
    if blocks == len(scales):
        return
    body.in_channels = channels  # type: ignore[assignment]
    for name in modules_behind(body, str(last["module"])):
        parent = body.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], nn.Identity())
    x = meta_input(body, (2, channels, *_COMMON_SIZE))
    try:
        features = run_on_meta(body, x, method="forward_features")
        body.num_features = body.head_hidden_size = int(features.shape[1])  # type: ignore[assignment]
        body.reset_classifier(n_classes)  # type: ignore[operator]
        run_on_meta(body, x)
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"it cannot be cut off after block {blocks} ({_first_line(error)}); leave out "
            "model.blocks, or choose another network."
        ) from None


def _refuse_damping(body: nn.Module) -> None:
    if any(standardizes_weight(module) for module in body.modules()):
        raise ConfigError(
            "it standardises its weights, which undoes model.damping; leave that out, or choose "
            "another network."
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def _drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """timm draws from torch's default generator: seed that from ours, and leave it as it was."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
