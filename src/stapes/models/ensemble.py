"""Several networks as one: the mean of their probabilities, under the contract of all networks.

Palanisamy, Singhania, Yao 2020 (*Rethinking CNN Models for Audio Classification*) average the
softmax of networks that were trained from different seeds. Members may also be different networks.
Each has its own normalisation, since members of different folds or recipes learned other
statistics::

                  ┌─ normalise ─ network ─ log softmax ─┐
    spectrogram ──┼─ normalise ─ network ─ log softmax ─┼─ log of the mean of exp ── logits
                  └─ normalise ─ network ─ log softmax ─┘

The logits are the logarithm of the mean probability, so that their softmax is that mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stapes.features import BandNormalizer
from stapes.models.quantized import is_quantized

__all__ = ["Ensemble", "EnsembleMember", "ensemble_network"]


class EnsembleMember(nn.Module):
    """A network with its own normalisation.

    Args:
        normalizer: its statistics, for (C, F).
        network: any registered one that does not compute in eight bits.

    Shape:
        (B, C, F, T) -> (B, K) log-probabilities.

    Raises:
        ValueError: an int8 network.
    """

    def __init__(self, normalizer: BandNormalizer, network: nn.Module) -> None:
        super().__init__()
        if is_quantized(network):
            raise ValueError("an int8 network cannot be a member of an ensemble")
        self.normalizer = normalizer
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self._normalized(x))
        return logits.log_softmax(1)

    def _normalized(self, x: Tensor) -> Tensor:
        """By the statistics; at another number of bands by those of the nearest places between."""
        mean, std = self.normalizer.mean, self.normalizer.std
        if x.shape[2] == mean.shape[1]:
            normalized: Tensor = self.normalizer(x)
            return normalized
        # A network takes any number of bands, here as by itself (its receptive field is measured
        # on a larger input than a front end gives).
        mean, std = (
            functional.interpolate(t.permute(2, 0, 1), size=x.shape[2], mode="linear")
            .permute(1, 2, 0)
            for t in (mean, std)
        )  # fmt: skip
        return (x - mean) / std


class Ensemble(nn.Module):
    """The mean of the members' probabilities; satisfies :class:`stapes.models.Network`.

    It has no feature map of its own: what it makes of a spectrogram are its members'
    log-probabilities.

    Args:
        members: M of them, each of K classes.
        n_bins: bands of the spectrogram that the members' statistics are for.

    Attributes:
        n_classes: of the logits.
        in_channels: channels of the spectrogram.
        n_features: M * K.
        head: none, unless :meth:`reset_classifier` gave the ensemble another one.

    Shape:
        (B, in_channels, F, T) -> (B, n_classes); softmax of it is the mean of the members'.

    Raises:
        ValueError: no members, or members with another number of classes or channels.
    """

    def __init__(self, members: Sequence[EnsembleMember], n_bins: int) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs members")
        networks: list[Any] = [member.network for member in members]
        for what in ("n_classes", "in_channels"):
            found = sorted({int(getattr(network, what)) for network in networks})
            if len(found) > 1:
                raise ValueError(f"the members of an ensemble differ in {what}: {found}")
        self.members = nn.ModuleList(members)
        self.n_bins = n_bins
        self.n_classes: int = networks[0].n_classes
        self.in_channels: int = networks[0].in_channels
        self.n_features = len(networks) * self.n_classes
        self.head: nn.Linear | None = None

    @property
    def min_input_size(self) -> int:
        """Fewest frequency bins, and fewest frames, that every member accepts."""
        networks: list[Any] = [member.network for member in self.members]
        return max(int(network.min_input_size) for network in networks)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of spectrograms (B, in_channels, F, T)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The members' log-probabilities (B, n_features, 1, 1), one member after the other."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"spectrograms must be (batch, {self.in_channels}, frequency, time), "
                f"not {tuple(x.shape)}"
            )
        try:
            answers = [member(x) for member in self.members]
        except (RuntimeError, ValueError) as error:
            # Asked only now: some networks find their smallest size by trying.
            needed = self.min_input_size
            if min(x.shape[2:]) < needed:
                raise ValueError(
                    f"{x.shape[2]} frequency bins and {x.shape[3]} frames are too few: this "
                    f"ensemble needs {needed} of each (a longer window, a shorter hop, more bands)"
                ) from error
            raise
        return torch.cat(answers, dim=1)[:, :, None, None]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, n_classes) of log-probabilities; or these as (B, n_features)."""
        x = x.flatten(1)
        if pre_logits:
            return x
        if self.head is not None:
            answer: Tensor = self.head(x)
            return answer
        # log(1/M * sum of p_m)
        # (B, M, K); not reshape, with which an exporter takes the batch for fixed.
        each = x.unflatten(1, (len(self.members), -1))  # type: ignore[no-untyped-call]
        mean: Tensor = each.logsumexp(1) - math.log(len(self.members))
        return mean

    def reset_classifier(self, n_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Let a freshly drawn linear layer for ``n_classes`` classes read the members' answers.

        From then on the logits are no mean any more.
        """
        if n_classes < 1:
            raise ValueError(f"n_classes = {n_classes!r}: must be 1 or more")
        like = next(self.parameters())
        # Made without numbers, which would be drawn from torch's own generator.
        head = nn.Linear(self.n_features, n_classes, device="meta", dtype=like.dtype)
        head = head.to_empty(device=like.device).train(self.training)
        nn.init.kaiming_uniform_(head.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(head.bias)
        self.head = head
        self.n_classes = n_classes

    def blocks(self) -> tuple[str, ...]:
        """The members, which stand beside each other: each is a block that ends in its answer."""
        return tuple(f"members.{i}" for i in range(len(self.members)))

    def settings(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the ensemble: ``create_model(**settings)``."""
        from stapes.models.registry import network_settings  # it knows this module

        parts: list[Any] = list(self.members)
        return {
            "name": "ensemble",
            "n_classes": self.n_classes,
            "in_channels": self.in_channels,
            "n_bins": self.n_bins,
            "own_head": self.head is not None,
            "members": [network_settings(member.network) for member in parts],
        }


def ensemble_network(
    *,
    n_classes: int,
    in_channels: int = 1,
    members: Sequence[Mapping[str, Any]] = (),
    n_bins: int = 128,
    own_head: bool = False,
    generator: torch.Generator | None = None,
) -> Ensemble:
    """An ensemble of freshly drawn networks whose normalisation changes nothing yet.

    Args:
        n_classes: number of logits.
        in_channels: channels of the spectrogram.
        members: of each member what :func:`stapes.models.create_model` takes; ``n_classes`` and
            ``in_channels`` may be left out.
        n_bins: bands of the spectrogram.
        own_head: instead of averaging, a linear layer reads the members' answers.
        generator: source of the initial weights; none: torch's default generator.

    Raises:
        UnknownNameError: a member's network or option is not known.
        ValueError: no members, or members that do not fit each other or the classes.
    """
    from stapes.models.registry import create_model  # it knows this module

    common = {"n_classes": n_classes, "in_channels": in_channels}
    parts = [
        EnsembleMember(
            BandNormalizer(in_channels, n_bins),
            create_model(**{**common, **settings}, generator=generator),
        )
        for settings in members
    ]
    network = Ensemble(parts, n_bins)
    if own_head:
        network.reset_classifier(n_classes, generator=generator)
    for what, value in common.items():
        if getattr(network, what) != value:
            raise ValueError(
                f"{what} = {value}: the members of the ensemble have {getattr(network, what)}"
            )
    return network
