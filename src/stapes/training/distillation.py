"""What trained models say of the training recordings, for a smaller one to learn from.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015. Teachers and student
need not hear alike: each has its front end, sample rate and window, and what meets are the seconds
of a recording. What a teacher says of a recording or a variant of it is computed once and kept in
the cache of features, so that teachers cost nothing per epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stapes.augment import Mixup, apply_mixup
from stapes.bundle import load_bundle
from stapes.config import AugmentConfig, Recipe
from stapes.data import Dataset, Scan
from stapes.data.loader import FeatureStore, WithVariants
from stapes.features import FeatureCache
from stapes.models.weights import file_sha256
from stapes.training.reporter import Reporter
from stapes.training.teachers import (
    class_columns,
    describe_teachers,
    pin_teachers,
    teacher_files,
)

__all__ = ["Lessons", "Teaching", "overlaps"]

_BATCH = 32  # windows at once
# Part of the key of what is kept: to be counted up when it is computed in another way.
_METHOD = 1


@dataclass(frozen=True)
class Teaching:
    """What all students of a run share.

    Attributes:
        recipe: of the student, resolved, with pinned teachers.
        dataset: the recordings.
        scans: what was found in them.
        student: features of the student.
        cache: folder of the feature cache.
        workers: threads that read recordings; none: all cores.
        reporter: told about progress.
    """

    recipe: Recipe
    dataset: Dataset
    scans: Sequence[Scan]
    student: FeatureStore
    cache: Path
    workers: int | None
    reporter: Reporter

    def digests(self, split: str) -> list[str]:
        """SHA-256 of the models that teach a split."""
        return [file_sha256(path) for path in teacher_files(self.recipe.distillation, split)]

    def lessons(
        self, split: str, clips: NDArray[np.int64], source: FeatureStore | WithVariants
    ) -> Lessons:
        """What the teachers of a split say of some clips, as the training loop asks for it.

        Nothing is read or computed before :meth:`Lessons.prepare`.
        """
        return Lessons(self, split, clips, source)

    def describe(self, split: str) -> list[dict[str, Any]]:
        """The teachers of a split, see :func:`stapes.training.teachers.describe_teachers`."""
        return describe_teachers(self.recipe, split)


class Lessons:
    """Soft targets for one student.

    Args:
        teaching: what all students share.
        split: name of the student's split, whose models teach it where a teacher is a
            cross-validated run.
        clips: indices of the training part.
        source: what the student learns from: the recordings, or these and their variants.
    """

    def __init__(
        self,
        teaching: Teaching,
        split: str,
        clips: NDArray[np.int64],
        source: FeatureStore | WithVariants,
    ) -> None:
        self._teaching = teaching
        self._config = teaching.recipe.distillation
        self._split, self._clips, self._source = split, clips, source
        self._augment = source.augment if isinstance(source, WithVariants) else None
        self._said: dict[tuple[int, int], NDArray[np.float64]] = {}

    @property
    def weight(self) -> float:
        """Part of the loss that is about the teachers."""
        return self._config.weight

    @property
    def temperature(self) -> float:
        """That both sides are softened with."""
        return self._config.temperature

    def prepare(self, device: torch.device) -> None:
        """Compute what the cache lacks.

        Args:
            device: where the teachers compute, now and later.

        Raises:
            ModelFileError: a teacher is gone, or is another one than the recipe says.
            StapesError: the cache's disk is full.
        """
        for teacher in self._teachers:
            teacher.bundle.network.to(device).eval()
            teacher.bundle.normalizer.to(device).eval()
            if self._config.live:
                teacher.listen(self._clips, self._augment)
            else:
                teacher.answer(self._clips, self._augment)

    def take(
        self, indices: NDArray[np.int64], windows: NDArray[np.int64], mixup: Mixup | None
    ) -> Tensor:
        """Soft targets of a batch, softened by the temperature.

        Args:
            indices: (B,) of clips, as the source counts them.
            windows: (B,) of these, as the source counts them.
            mixup: how the student's batch was mixed.

        Returns:
            (B, K) probabilities, float32: the teachers' mean.
        """
        origins = self._source.origins(indices, windows)
        if self._config.live:
            said = torch.stack([t.hear(origins, mixup, self._augment) for t in self._teachers])
            return self._softened(said.mean(0))
        rows = np.stack([self._target(*row) for row in origins.tolist()])
        targets = self._softened(torch.from_numpy(rows))
        return targets if mixup is None else apply_mixup(targets, mixup)

    def _softened(self, probabilities: Tensor) -> Tensor:
        tiny = torch.finfo(torch.float32).tiny
        logits = probabilities.clamp_min(tiny).log() / self._config.temperature
        return logits.softmax(1).float()

    def _target(self, clip: int, variant: int, window: int) -> NDArray[np.float64]:
        key = (clip, variant)
        if key not in self._said:
            means = [teacher.said(clip, variant, self._augment) for teacher in self._teachers]
            self._said[key] = np.mean(means, axis=0)
        row: NDArray[np.float64] = self._said[key][window]
        return row

    @cached_property
    def _teachers(self) -> list[_Teacher]:
        pin_teachers(self._teaching.recipe)  # they may have changed since
        paths = teacher_files(self._config, self._split)
        return [_Teacher(self._teaching, path) for path in paths]


class _Teacher:
    """One model and what it says."""

    def __init__(self, teaching: Teaching, path: Path) -> None:
        self.bundle = bundle = load_bundle(path)
        self._reporter, self._student = teaching.reporter, teaching.student
        self._workers = teaching.workers
        self._durations = [scan.duration for scan in teaching.scans]
        self._columns = class_columns(bundle, teaching.dataset.labels, path)
        self.store = FeatureStore(
            teaching.dataset.clips,
            teaching.scans,
            bundle.frontend,
            bundle.recipe.audio,
            teaching.cache,
        )
        settings = {"method": _METHOD, "teacher": file_sha256(path)}
        self._answers = FeatureCache(teaching.cache, settings)

    def listen(self, clips: Iterable[int], augment: AugmentConfig | None) -> None:
        """Compute the features that the cache lacks."""
        self.store.prepare(
            clips,
            variants=augment,
            workers=self._workers,
            progress=partial(self._reporter.progress, "Computing features of a teacher"),
        )

    def answer(self, clips: NDArray[np.int64], augment: AugmentConfig | None) -> None:
        """Compute the answers that the cache lacks."""
        variants = augment.waveform_variants if augment is not None else 0
        wanted = {
            self.store.key(int(clip), variant, augment): (int(clip), variant)
            for clip in clips
            for variant in range(variants + 1)
        }
        missing = self._answers.missing(list(wanted))
        if not missing:
            return
        self.listen(sorted({wanted[key][0] for key in missing}), augment)
        done = len(wanted) - len(missing)
        with self._answers:  # what is done stays, also when the user stops
            for key in missing:
                clip, variant = wanted[key]
                self._answers.put(key, self._logits(self._windows(clip, variant, augment)))
                done += 1
                self._reporter.progress("Asking a teacher", done, len(wanted))

    def said(self, clip: int, variant: int, augment: AugmentConfig | None) -> NDArray[np.float64]:
        """Probabilities for each window of the student, (W, K)."""
        key = self.store.key(clip, variant, augment)
        try:
            kept = self._answers.get(key)
        except KeyError:  # someone cleared the cache meanwhile
            kept = self._logits(self._windows(clip, variant, augment)).astype(np.float16)
        mean: NDArray[np.float64] = self._shares(clip, len(kept)) @ self._probabilities(kept)
        return mean

    def hear(
        self, origins: NDArray[np.int64], mixup: Mixup | None, augment: AugmentConfig | None
    ) -> Tensor:
        """Probabilities (B, K) of the mixtures themselves.

        Of several windows in which the student's lies, each is heard in the one that has most of
        it: what there is to mix is one spectrogram of each.
        """
        found = []
        for clip, variant, window in origins.tolist():
            own = self._windows(clip, variant, augment)
            found.append(own[int(self._shares(clip, len(own))[window].argmax())])
        normalizer = self.bundle.normalizer
        x = torch.from_numpy(np.stack(found).astype(np.float32)).to(normalizer.mean.device)
        x = normalizer(x)
        with torch.no_grad():
            logits = self.bundle.network(x if mixup is None else apply_mixup(x, mixup))
        return torch.from_numpy(self._probabilities(logits.float().cpu().numpy()))

    def _windows(
        self, clip: int, variant: int, augment: AugmentConfig | None
    ) -> NDArray[np.float16]:
        if augment is None or variant == 0:
            return self.store.windows(clip)
        return self.store.variant(clip, variant, augment)

    @torch.no_grad()
    def _logits(self, windows: NDArray[np.float16]) -> NDArray[np.float32]:
        """(W, K'), for each of the teacher's own windows and classes, 0 for the likeliest.

        The cache keeps half precision: in this way the largest are those that matter least.
        """
        normalizer, network = self.bundle.normalizer, self.bundle.network
        parts = []
        for start in range(0, len(windows), _BATCH):
            x = torch.from_numpy(windows[start : start + _BATCH].astype(np.float32))
            parts.append(network(normalizer(x.to(normalizer.mean.device))).float().cpu().numpy())
        logits = np.concatenate(parts)
        lowered: NDArray[np.float32] = logits - logits.max(1, keepdims=True)
        return lowered

    def _probabilities(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """(W, K) of the student's classes; what the teacher gives to others is left out."""
        chosen = logits[:, self._columns].astype(np.float64)
        powers = np.exp(chosen - chosen.max(1, keepdims=True))
        result: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
        return result

    def _shares(self, clip: int, count: int) -> NDArray[np.float64]:
        """How much each of the teacher's ``count`` windows says of the student's, (W, count)."""
        duration, students = self._durations[clip], self._student.n_windows(clip)
        return overlaps(
            _spans(self._student, students, duration), _spans(self.store, count, duration)
        )


def overlaps(students: NDArray[np.float64], teachers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Parts in which stretches of time lie in other stretches.

    Args:
        students: (W, 2) start and end, seconds.
        teachers: (W', 2) the same.

    Returns:
        (W, W'), rows sum to 1; a stretch that meets none takes all of them alike.

    >>> overlaps(np.array([[0.0, 2.0]]), np.array([[0.0, 1.5], [1.5, 3.0]]))
    array([[0.75, 0.25]])
    """
    start = np.maximum(students[:, None, 0], teachers[None, :, 0])
    end = np.minimum(students[:, None, 1], teachers[None, :, 1])
    common = np.maximum(end - start, 0.0)
    common[common.sum(1) == 0] = 1.0
    shares: NDArray[np.float64] = common / common.sum(1, keepdims=True)
    return shares


def _spans(store: FeatureStore, count: int, duration: float) -> NDArray[np.float64]:
    """Seconds from a clip's beginning in which its ``count`` windows lie, (W, 2)."""
    window, hop = store.window / store.sample_rate, store.hop / store.sample_rate
    last = max(0.0, duration - window)
    if store.audio.longer == "crop":
        starts = np.array([last / 2])
    else:
        starts = np.minimum(np.arange(count) * hop, last)
    return np.stack([starts, np.minimum(starts + window, duration)], axis=1)
