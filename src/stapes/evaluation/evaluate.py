"""Scoring a model on labelled recordings, through the same features as training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stapes.bundle import Bundle, load_bundle
from stapes.data import Clip, Dataset, groups_of, load_dataset, scan
from stapes.data.loader import FeatureStore
from stapes.errors import DataError
from stapes.evaluation.devices import usable_device
from stapes.evaluation.metrics import Score, score
from stapes.features import default_cache_folder

__all__ = ["Evaluation", "evaluate", "refuse_unknown_labels", "store_probabilities"]

_BATCH = 32  # windows at once


@dataclass(frozen=True)
class Evaluation:
    """What a model said about labelled recordings.

    Attributes:
        dataset: the recordings that could be read.
        labels: (K,) of the model.
        probabilities: (M, K).
        targets: (M,) indices into ``labels``.
        groups: (M,) source numbers.
        score: metrics with intervals.
        unreadable: what could not be read, one sentence each.
    """

    dataset: Dataset
    labels: tuple[str, ...]
    probabilities: NDArray[np.float64]
    targets: NDArray[np.int64]
    groups: NDArray[np.int64]
    score: Score
    unreadable: tuple[str, ...]


def evaluate(
    bundle: Bundle | str | Path,
    dataset: Dataset | str | Path,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score a model on labelled recordings.

    Args:
        bundle: the model, or its file.
        dataset: recordings, or where they are; their labels must be among the model's.
        cache: folder of the feature cache; none: the user's.
        workers: threads; none: all cores.
        device: where the network computes.
        progress: called with (stage, done, total).

    Raises:
        DataError: a label that the model does not know, or no readable recording.
        ConfigError: a device that is not there.
        ModelFileError: a model file that cannot be used.
    """
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    if not isinstance(dataset, Dataset):
        dataset = load_dataset(dataset, min_classes=1)
    device = usable_device(device)
    refuse_unknown_labels(dataset.name, dataset.clips, bundle.labels)

    def stage(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    cache = cache or default_cache_folder()
    scans = scan(
        dataset, workers=workers, memo=cache / "scan.sqlite", progress=stage("Reading recordings")
    )
    good = [i for i, result in enumerate(scans) if result.error is None]
    bad = tuple(
        f"{clip.path}: {found.error}"
        for clip, found in zip(dataset.clips, scans, strict=True)
        if found.error is not None
    )
    if not good:
        raise DataError(f"{dataset.name}: no recording could be read.")
    dataset, scans = dataset.subset(good), [scans[i] for i in good]
    store = FeatureStore(dataset.clips, scans, bundle.frontend, bundle.recipe.audio, cache)
    indices = np.arange(len(dataset))
    store.prepare(indices, workers=workers, progress=stage("Computing features"))
    probabilities = store_probabilities(
        bundle, store, indices, device=device, progress=stage("Classifying")
    )
    position = {label: i for i, label in enumerate(bundle.labels)}
    targets = np.array([position[clip.label] for clip in dataset.clips], dtype=np.int64)
    groups = groups_of(dataset, scans)
    result = score(probabilities, targets, groups, bundle.labels)
    return Evaluation(dataset, bundle.labels, probabilities, targets, groups, result, bad)


def refuse_unknown_labels(name: object, clips: Iterable[Clip], labels: Sequence[str]) -> None:
    """Stop where recordings have a label that a model does not.

    Args:
        name: of the recordings, for the message.
        clips: to be scored.
        labels: (K,) of the model.

    Raises:
        DataError: such a label.
    """
    unknown = sorted({clip.label for clip in clips} - set(labels))
    if unknown:
        raise DataError(
            f"{name}: the model does not know the label(s) {', '.join(unknown[:5])}; it knows "
            f"{', '.join(labels)}."
        )


@torch.inference_mode()
def store_probabilities(
    bundle: Bundle,
    store: FeatureStore,
    indices: Sequence[int] | NDArray[np.int64],
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Probabilities of clips from cached features, (M, K): the mean over each clip's windows."""
    network = bundle.network.to(device).eval()
    normalizer = bundle.normalizer.to(device)
    result = np.zeros((len(indices), len(bundle.labels)))
    position = np.repeat(np.arange(len(indices)), [store.n_windows(int(i)) for i in indices])
    clips = np.asarray(indices, dtype=np.int64)[position]
    # Window numbers restart at every clip.
    first = np.searchsorted(position, np.arange(len(indices)))
    windows = np.arange(len(position)) - first[position]
    for start in range(0, len(position), _BATCH):
        part = slice(start, start + _BATCH)
        x = store.take(clips[part], windows[part]).to(device)
        probabilities = network(normalizer(x)).float().softmax(1).cpu().numpy()
        np.add.at(result, position[part], probabilities.astype(np.float64))
        if progress is not None:
            progress(min(start + _BATCH, len(position)), len(position))
    mean: NDArray[np.float64] = result / np.bincount(position)[:, None]
    return mean
