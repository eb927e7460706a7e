"""Effective receptive field: how much of the theoretical one a network really uses.

References:
    Luo, Li, Urtasun, Zemel, "Understanding the Effective Receptive Field in Deep Convolutional
    Neural Networks", NeurIPS 2016.
    Koutini, Eghbal-zadeh, Widmer, "Receptive-Field-Regularized CNN Variants for Acoustic Scene
    Classification", DCASE 2019 (the same measure on spectrograms).

Let ``y_k`` be the channels of one unit in the middle of the feature map and ``x`` a normalised
spectrogram. The unit uses the input position (f, t) as much as its channels change with it::

    energy(f, t) = mean over clips of  sum over k  (d y_k / d x(f, t))^2

scaled so that it adds up to 1. One gradient gives it without bias, that of ``sum_k s_k y_k`` with
random signs ``s_k``: in the mean of its square every product of two channels cancels, since
E[s_j s_k] is 0. Summing the channels without signs, or their gradients without squares, would let
channels that pull in opposite directions cancel.

Where an int8 network rounds, the gradient is that of no rounding; where it clips, none.

The theoretical field says where the energy can be, not how it lies: of a deep stack of equal
convolutions it is a bell curve, much narrower than the field (Luo et al., section 2).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stapes.bundle import Bundle
from stapes.data import Clip
from stapes.errors import AudioError, DataError, StapesError
from stapes.explain.recordings import spectrograms
from stapes.features.axis import bin_edges
from stapes.models import AxisField, FrequencyDamping, ReceptiveField, damping_of, receptive_field
from stapes.models.ensemble import Ensemble
from stapes.models.tracing import evaluating

__all__ = [
    "EffectiveField",
    "FieldOnRecordings",
    "effective_receptive_field",
    "receptive_field_on_recordings",
    "without_damping",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Floats = NDArray[np.float64]
Axis = Literal["frequency", "time"]


@dataclass(frozen=True, eq=False)
class EffectiveField:
    """Where the gradient of one unit of the feature map lies on the spectrogram.

    Attributes:
        energy: (F, T) squared gradient, summed over the unit's channels and the spectrogram's,
            averaged over clips; it adds up to 1.
        unit: row and column of the unit in the feature map.
        theoretical: what any unit can see, see :func:`stapes.models.receptive_field`.
        n_clips: spectrograms measured.
    """

    energy: Floats
    unit: tuple[int, int]
    theoretical: ReceptiveField
    n_clips: int

    def profile(self, axis: Axis) -> Floats:
        """Energy along one axis, (F,) or (T,), summed over the other; it adds up to 1."""
        found: Floats = self.energy.sum(axis=1 if axis == "frequency" else 0)
        return found

    def centre(self, axis: Axis) -> float:
        """Middle of the unit's theoretical field in bins or frames from the first."""
        field, unit = self._axis(axis)
        return field.centre + unit * field.stride

    def bounds(self, axis: Axis) -> tuple[int, int]:
        """First and last bin or frame of the unit's theoretical field, cut at the edges."""
        field, unit = self._axis(axis)
        first = field.offset + unit * field.stride
        last = first + field.size - 1
        return max(0, first), min(self.energy.shape[axis == "time"] - 1, last)

    def interval(self, axis: Axis, share: float) -> tuple[int, int]:
        """First and last of the fewest neighbouring bins or frames that hold this much energy.

        Of several as short the one with most energy, then the first.

        Args:
            axis: along which.
            share: of the energy, above 0 and up to 1.

        Raises:
            ValueError: ``share`` out of range.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share = {share!r}: must be above 0 and up to 1")
        below = np.concatenate([[0.0], np.cumsum(self.profile(axis))])
        # Rounding of the sums must not ask for one more bin, nor for a share that is never met.
        wanted = share - 1e-9
        ends = np.searchsorted(below, below[:-1] + wanted, side="left")
        starts = np.flatnonzero(ends < len(below))
        sizes = ends[starts] - starts
        held = below[ends[starts]] - below[starts]
        best = starts[np.lexsort((starts, -held, sizes))[0]]
        return int(best), int(ends[best]) - 1

    def deviation(self, axis: Axis) -> float:
        """Standard deviation of the energy in bins or frames: of the Gaussian with its variance.

        That of the gradient itself, where it is a bell curve, is the square root of 2 times wider.
        """
        profile = self.profile(axis)
        places = np.arange(len(profile))
        mean = float(profile @ places)
        return float(np.sqrt(profile @ (places - mean) ** 2))

    def _axis(self, axis: Axis) -> tuple[AxisField, int]:
        if axis == "frequency":
            return self.theoretical.frequency, self.unit[0]
        return self.theoretical.time, self.unit[1]


def effective_receptive_field(
    network: nn.Module,
    spectrograms: Tensor | Iterable[Tensor],
    *,
    probes: int = 2,
    seed: int = 0,
) -> EffectiveField:
    """Measure where the middle unit of a network's feature map looks.

    The unit is the one whose theoretical field lies nearest to the spectrograms' middle; as far
    as that field reaches beyond the spectrogram, it is cut. The network is run in evaluation mode
    and is not changed.

    Args:
        network: any network with ``forward_features``.
        spectrograms: normalised, (B, C, F, T), or batches of such, all of one F and T.
        probes: random signs drawn for each clip; the more, the less noise.
        seed: of these signs.

    Raises:
        StapesError: an ensemble, a network without receptive field, or no gradient reaches the
            input.
        ValueError: no spectrograms, or of several sizes, or ``probes`` below 1.
    """
    if probes < 1:
        raise ValueError(f"probes = {probes!r}: must be 1 or more")
    if isinstance(network, Ensemble):
        raise StapesError(
            "An ensemble has no feature map of its own, so no receptive field to measure; give one "
            "of its members."
        )
    generator = torch.Generator().manual_seed(seed)
    try:
        theoretical = receptive_field(network)
    except ValueError as error:
        raise StapesError(
            f"This network has no receptive field to measure ({error}); see what decides with "
            "--integrated-gradients."
        ) from None
    weights = next(network.parameters(), torch.zeros(()))
    total: Tensor | None = None
    unit, n_clips = (0, 0), 0
    with evaluating(network), torch.enable_grad():
        for batch in [spectrograms] if isinstance(spectrograms, Tensor) else spectrograms:
            # A clone: a tensor made in inference mode cannot be differentiated.
            x = batch.to(device=weights.device, dtype=torch.float32).clone().requires_grad_()
            features = network.forward_features(x)  # type: ignore[operator]
            unit = (
                _middle_unit(theoretical.frequency, features.shape[-2], x.shape[-2]),
                _middle_unit(theoretical.time, features.shape[-1], x.shape[-1]),
            )
            channels = features[:, :, unit[0], unit[1]]  # (B, K)
            energy = _squared_gradients(channels, x, probes, generator)  # (F, T)
            if total is not None and total.shape != energy.shape:
                raise ValueError(
                    f"spectrograms of {tuple(total.shape)} and {tuple(energy.shape)} bins and "
                    "frames: they must be of one size"
                )
            total = energy if total is None else total + energy
            n_clips += len(x)
    if total is None or not n_clips:
        raise ValueError("no spectrograms: at least one is needed")
    whole = float(total.sum())
    if not 0 < whole < float("inf"):
        raise StapesError(
            "No gradient reaches the spectrogram, so there is no effective receptive field: the "
            "unit in the middle does not change with it."
        )
    return EffectiveField((total / whole).numpy(), unit, theoretical, n_clips)


def _squared_gradients(
    channels: Tensor, x: Tensor, probes: int, generator: torch.Generator
) -> Tensor:
    """Sum over clips, (F, T) float64, of the mean over probes of the squared gradient."""
    energy = torch.zeros(x.shape[-2:], dtype=torch.float64)
    if not channels.requires_grad:
        return energy
    for probe in range(probes):
        signs = torch.randint(0, 2, channels.shape, generator=generator) * 2 - 1
        # Clips do not meet in evaluation mode: the gradient of their sum holds each one's own.
        (gradient,) = torch.autograd.grad(
            (channels * signs.to(channels)).sum(),
            x,
            retain_graph=probe + 1 < probes,
            allow_unused=True,
        )
        if gradient is not None:
            energy += gradient.double().square().sum(dim=(0, 1)).cpu()
    return energy / probes


def _middle_unit(axis: AxisField, n_units: int, size: int) -> int:
    distance = [abs(axis.centre + i * axis.stride - (size - 1) / 2) for i in range(n_units)]
    return distance.index(min(distance))


def without_damping(network: ModuleT) -> ModuleT:
    """A copy with the same raw weights whose damping windows are all ones.

    Batch norms keep their statistics, those of the damped network. It shows what the windows hold
    back, not what training without them would have found.
    """
    network = copy.deepcopy(network)
    for part in network.modules():
        if isinstance(part, FrequencyDamping):
            part.floor = 1.0
            part.damping.fill_(1.0)
    return network


@dataclass(frozen=True, eq=False)
class FieldOnRecordings:
    """The effective receptive field of a model, in Hz and seconds too.

    Attributes:
        field: of the model as it is.
        undamped: of the same raw weights without damping; none for a network without (or with
            folded) damping.
        damping: floor of the damping window; none as above.
        frequencies: (F,) Hz, the centre of each bin, rising.
        frame_rate: frames per second.
    """

    field: EffectiveField
    undamped: EffectiveField | None
    damping: float | None
    frequencies: Floats
    frame_rate: float

    def hertz(self, bins: tuple[int, int]) -> tuple[float, float]:
        """From the lower edge of the first bin to the upper edge of the last, at least 0 Hz."""
        edges = bin_edges(self.frequencies)
        return float(edges[bins[0]]), float(edges[bins[1] + 1])

    def seconds(self, frames: tuple[int, int]) -> float:
        """What these frames span."""
        return (frames[1] - frames[0] + 1) / self.frame_rate

    def summary(self) -> dict[str, object]:
        """Everything but the maps, as plain JSON values.

        ``effective`` is the model as it is. The theoretical field counts what lies beyond the
        edges in ``bins``, ``frames`` and ``seconds``; its ``hz`` are cut there.
        """
        middle = (self.field.centre("frequency"), self.field.centre("time"))
        return {
            "n_clips": self.field.n_clips,
            "unit_hz": float(np.interp(middle[0], np.arange(len(self.frequencies)),
                                       self.frequencies)),
            "unit_seconds": (middle[1] + 0.5) / self.frame_rate,
            "damping": self.damping,
            "effective": self._numbers(self.field),
            "before_damping": self._numbers(self.undamped) if self.undamped else None,
            "theoretical": {
                "bins": self.field.theoretical.frequency.size,
                "frames": self.field.theoretical.time.size,
                "hz": self.hertz(self.field.bounds("frequency")),
                "seconds": self.field.theoretical.time.size / self.frame_rate,
            },
        }  # fmt: skip

    def _numbers(self, field: EffectiveField) -> dict[str, object]:
        tree: dict[str, object] = {}
        for share in (0.5, 0.95):
            bins, frames = field.interval("frequency", share), field.interval("time", share)
            tree[f"share_{100 * share:.0f}"] = {
                "bins": bins[1] - bins[0] + 1,
                "frames": frames[1] - frames[0] + 1,
                "hz": self.hertz(bins),
                "seconds": self.seconds(frames),
            }
        tree["deviation"] = {
            "bins": field.deviation("frequency"),
            "frames": field.deviation("time"),
            "seconds": field.deviation("time") / self.frame_rate,
        }
        return tree


def receptive_field_on_recordings(
    bundle: Bundle,
    clips: Sequence[Clip | str | Path],
    *,
    probes: int = 2,
    seed: int = 0,
    unreadable: Callable[[AudioError], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FieldOnRecordings:
    """Measure a model's effective receptive field, before and after damping.

    Args:
        bundle: the model.
        clips: recordings; the middle window of each is used.
        probes: see :func:`effective_receptive_field`.
        seed: see :func:`effective_receptive_field`.
        unreadable: told about each recording that cannot be read, which is then left out; none:
            the first one is an error.
        progress: called with (clips done, clips in all).

    Raises:
        AudioError: a recording cannot be read.
        DataError: no recording, or none that could be read.
        StapesError: no gradient reaches the spectrograms.
    """
    audio, frontend = bundle.recipe.audio, bundle.frontend
    assert not isinstance(audio.window_seconds, str)
    batches = list(spectrograms(bundle, clips, unreadable))
    if not batches:
        raise DataError("No recording could be read, and at least one is needed.")
    n_clips = sum(len(batch) for batch in batches)
    damping = damping_of(bundle.network)
    networks = [bundle.network] if damping is None else [
        bundle.network, without_damping(bundle.network)
    ]  # fmt: skip
    fields = []
    for number, network in enumerate(networks):

        def told(first: int = number * n_clips) -> Iterator[Tensor]:
            done = first
            for batch in batches:
                yield batch
                done += len(batch)
                if progress is not None:
                    progress(done, len(networks) * n_clips)

        fields.append(effective_receptive_field(network, told(), probes=probes, seed=seed))
    return FieldOnRecordings(
        field=fields[0],
        undamped=fields[1] if len(fields) > 1 else None,
        damping=damping,
        frequencies=frontend.band_frequencies().double().numpy(),
        frame_rate=frontend.frame_rate(round(audio.window_seconds * frontend.sample_rate)),
    )
