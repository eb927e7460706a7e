"""From clips to batches of features, through the cache.

Decoding, windowing and the front end run once per recording and setting; training then reads
half-precision features from memory-mapped files. Variants of a recording, with other pitch and
pace or of another device, are kept in the same way, so that an epoch costs no audio work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stapes.audio import cut_recording, fit_length, in_batches, iter_windows, stream
from stapes.augment import WaveformChange, change_waveform, convolve, draw_waveform_changes
from stapes.config import AudioConfig, AugmentConfig
from stapes.data.impulse_responses import ImpulseResponses, read_impulse_responses
from stapes.data.manifest import Clip
from stapes.data.scan import Scan
from stapes.features import FeatureCache, FrontEnd
from stapes.machine import usable_cores

__all__ = ["FeatureStore", "WithVariants"]

_BATCH = 16  # windows at once
_BLOCK_SECONDS = 30.0
# Part of every variant's key: to be counted up when variants are computed in another way.
_METHOD = 1
# The same for the part that is convolved.
_CONVOLUTION_METHOD = 1

_UNCHANGED = WaveformChange(semitones=0.0, speed=1.0)

Samples = NDArray[np.float32]


class FeatureStore:
    """Features of all windows of all clips, computed once.

    Args:
        clips: the recordings.
        scans: one per clip; their digests key the cache, so that a renamed file is not computed
            again and a changed one is.
        frontend: waveform (B, C, N) to spectrogram (B, C', F, T).
        audio: resolved: rate, channels, window, hop, what to do with shorter and longer clips.
        cache: folder of the feature cache.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        scans: Sequence[Scan],
        frontend: FrontEnd,
        audio: AudioConfig,
        cache: Path,
    ) -> None:
        if isinstance(audio.window_seconds, str) or isinstance(audio.sample_rate, str):
            raise ValueError("the recipe must be resolved before features are computed")
        self.clips = clips
        self.frontend = frontend
        self.audio = audio
        self.sample_rate = audio.sample_rate
        self.window = round(audio.window_seconds * audio.sample_rate)
        self.hop = round((audio.hop_seconds or audio.window_seconds) * audio.sample_rate)
        # Through JSON, so that the same settings give the same key whatever their Python types.
        settings: Mapping[str, Any] = json.loads(
            json.dumps({"frontend": frontend.settings(), "audio": audio.model_dump(mode="json")})
        )
        self._cache = FeatureCache(cache, settings)
        self._keys = [scan.digest for scan in scans]
        self._arrays: dict[str, NDArray[np.float16]] = {}
        self._responses: dict[tuple[str | None, str | None], ImpulseResponses] = {}
        self._workers: int | None = None

    def prepare(
        self,
        indices: Iterable[int],
        *,
        variants: AugmentConfig | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute what the cache lacks.

        Decoding, resampling and torch's kernels release the interpreter, so threads use all cores
        without the seconds that new processes take to start.

        Args:
            indices: of the clips.
            variants: none: the clips as they are; else also the variants that it asks for.
            workers: threads; none: as many as the last time, at first all cores.
            progress: called with (computed, wanted).

        Raises:
            AudioError: a clip could not be read.
            ConfigError: the variants' impulse responses could not be read, or are others.
            StapesError: the cache's disk is full.
        """
        wanted: dict[str, tuple[int, WaveformChange | None]] = {}
        for i in map(int, indices):
            wanted[self._keys[i]] = (i, None)
            if variants is not None:
                for number in range(1, variants.waveform_variants + 1):
                    key, change = self._drawn(i, number, variants)
                    wanted[key] = (i, change)
        self._workers = workers or self._workers
        self._fill(wanted, progress)

    def windows(self, index: int) -> NDArray[np.float16]:
        """All windows of one clip, (W, C, F, T), read-only, memory-mapped."""
        return self._read(self._keys[index], index, None)

    def variant(self, index: int, number: int, augment: AugmentConfig) -> NDArray[np.float16]:
        """The windows of one clip at another pitch and pace, of another device, (W, C, F, T).

        They are as many as those of :meth:`windows`, and each has its middle at the same moment
        of the recording. Played faster, a window begins earlier and ends later in the recording,
        as far as that reaches; what is short then is padded or repeated as in a recording that is
        too short. Played slower, it loses both ends. The device is the last to change the sound:
        its impulse response is not moved in pitch, and reaches over the ends of windows as in a
        recording convolved as a whole.

        Args:
            index: of the clip.
            number: 1 or more. Its pitch, pace and device are a function of what the clip holds, of
                this number, of the two ranges and of the impulse responses with their probability,
                and of nothing else: all runs share a variant.
            augment: the ranges and the impulse responses.

        Raises:
            ConfigError: the impulse responses could not be read, or are others than the recipe
                says.
        """
        key, change = self._drawn(index, number, augment)
        return self._read(key, index, change)

    def key(self, index: int, number: int = 0, augment: AugmentConfig | None = None) -> str:
        """What tells a clip, or a variant of it, from all others: the same in every store."""
        if number == 0:
            return self._keys[index]
        assert augment is not None
        return self._drawn(index, number, augment)[0]

    def n_windows(self, index: int) -> int:
        """Windows of one clip."""
        return int(self.windows(index).shape[0])

    def take(self, indices: NDArray[np.int64], windows: NDArray[np.int64]) -> Tensor:
        """One window of each clip as a batch (B, C, F, T), float32."""
        return _batch(self.windows(int(i))[int(w)] for i, w in zip(indices, windows, strict=True))

    def origins(self, indices: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Clip, variant (0: the clip itself) and window of it, (B, 3)."""
        return np.stack([indices, np.zeros_like(indices), windows], axis=1)

    def iterate(self, indices: Iterable[int]) -> Iterator[NDArray[np.float16]]:
        """Every window of the given clips, (C, F, T) each."""
        for index in indices:
            yield from self.windows(int(index))

    def _drawn(
        self, index: int, number: int, augment: AugmentConfig
    ) -> tuple[str, WaveformChange | None]:
        """Where a variant is kept, and what it is; none: the recording as it is."""
        digest = self._keys[index]
        ranges = (augment.pitch_semitones, augment.time_stretch)
        decisive: list[Any] = [_METHOD, digest, number, *ranges]
        devices: dict[str, Any] = {}
        if augment.impulse_responses is not None:  # else keys stay what they were without any
            found = self._impulse_responses(augment)
            probability = augment.impulse_response_probability
            decisive += [_CONVOLUTION_METHOD, found.sha256, probability]
            devices = {"responses": found.responses, "response_probability": probability}
        drawn = hashlib.sha256(json.dumps(decisive).encode())
        rng = np.random.default_rng(int.from_bytes(drawn.digest(), "little"))
        (change,) = draw_waveform_changes(1, *ranges, rng, **devices)
        if change == _UNCHANGED:
            return digest, None
        return f"{digest}-{drawn.hexdigest()[:32]}", change

    def _impulse_responses(self, augment: AugmentConfig) -> ImpulseResponses:
        named = (augment.impulse_responses, augment.impulse_responses_sha256)
        if named not in self._responses:
            self._responses[named] = read_impulse_responses(augment, self.sample_rate)
        return self._responses[named]

    def _read(self, key: str, index: int, change: WaveformChange | None) -> NDArray[np.float16]:
        array = self._arrays.get(key)
        if array is None:
            try:
                array = self._cache.get(key)
            except KeyError:  # someone cleared the cache meanwhile
                self._fill({key: (index, change)})
                array = self._cache.get(key)
            self._arrays[key] = array
        return array

    def _fill(
        self,
        wanted: Mapping[str, tuple[int, WaveformChange | None]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute what the cache lacks of some keys."""
        first = self._cache.missing(list(wanted))
        total, done = len(wanted), len(wanted) - len(first)
        if progress is not None and first:
            progress(done, total)
        threads = self._workers or usable_cores()
        with one_thread_per_operation(), ThreadPoolExecutor(threads) as pool:
            jobs = {pool.submit(self._compute, *wanted[key]): key for key in first}
            try:
                for job in as_completed(jobs):
                    self._cache.put(jobs.pop(job), job.result())
                    done += 1
                    if progress is not None:
                        progress(done, total)
            finally:
                # What is done stays, also when one clip fails or the user stops.
                for job in jobs:
                    job.cancel()
                self._cache.flush()

    def _compute(self, index: int, change: WaveformChange | None) -> NDArray[np.float16]:
        clip = self.clips[index]
        if change is None:
            windows = cut_recording(
                clip.path,
                self.window,
                self.hop,
                sample_rate=self.sample_rate,
                channels=self.audio.channels,
                start=clip.start or 0.0,
                end=clip.end,
                shorter=self.audio.shorter,
                longer=self.audio.longer,
            )
        else:
            windows = self._changed_windows(clip, change)
        # Half precision at once, as the cache keeps it: of a day-long recording only this stays.
        # A value too large for it becomes infinite, and the cache refuses that.
        with torch.inference_mode(), np.errstate(over="ignore"):
            parts = [
                self.frontend(torch.from_numpy(batch)).numpy().astype(np.float16)
                for _, batch in in_batches(windows, _BATCH)
            ]
        return np.concatenate(parts)

    def _changed_windows(self, clip: Clip, change: WaveformChange) -> Iterator[tuple[int, Samples]]:
        """The windows of a variant: their numbers, and (C, window)."""
        needed = math.ceil(self.window * change.speed)  # samples that become one window
        # What the impulse response reaches of the sound around them: its taps behind its peak
        # bring what was before.
        before = after = 0
        if change.response is not None:
            before = math.ceil(change.response.after * change.speed)
            after = math.ceil(change.response.before * change.speed)
        context = max(0, needed - self.window) + max(before, after)
        for number, (around, start) in enumerate(self._surroundings(clip, context)):
            length = around.shape[1]
            taken = min(needed, length)
            middle = start + min(self.window, length - start) / 2
            first = min(max(0, round(middle - taken / 2)), length - taken)
            begin, end = max(0, first - before), min(length, first + taken + after)
            changed = change_waveform(
                around[:, begin:end],
                self.sample_rate,
                semitones=change.semitones,
                speed=change.speed,
            )
            if change.response is not None:
                n_samples = round(taken / change.speed)
                # Lengths are rounded one by one: never a sample too few for that.
                skipped = min(round((first - begin) / change.speed), changed.shape[1] - n_samples)
                changed = convolve(changed, change.response)[:, skipped : skipped + n_samples]
            yield number, fit_length(changed, self.window, shorter=self.audio.shorter)

    def _surroundings(self, clip: Clip, context: int) -> Iterator[tuple[Samples, int]]:
        """Each window of a clip with what is around it, in constant memory.

        Yields:
            (C, n), the window and up to ``context`` samples before and behind it, fewer where the
            clip begins or ends; and where in this the window begins. A window is never padded.
        """

        def blocks() -> Iterator[Samples]:
            return stream(
                clip.path,
                sample_rate=self.sample_rate,
                channels=self.audio.channels,
                start=clip.start or 0.0,
                end=clip.end,
                block_seconds=_BLOCK_SECONDS,
            )

        if self.audio.longer == "crop":
            length = sum(block.shape[1] for block in blocks())  # known at the end only
            start = max(0, (length - self.window) // 2)
            first = max(0, start - context)
            yield _span(blocks(), first, min(length, start + self.window + context)), start - first
            return

        length = 0  # as far as it was read

        def within_silence() -> Iterator[Samples]:
            nonlocal length
            silence = np.zeros((self.audio.channels, context), np.float32)
            yield silence
            for block in blocks():
                length += block.shape[1]
                yield block
            yield silence

        # With as much silence at both ends as there is context, the windows of the longer sound
        # are those of the clip with their context. The silence is cut off again: a window can
        # reach what was not read yet only by reaching behind the end.
        wide = self.window + 2 * context
        for start, window in iter_windows(within_silence(), wide, self.hop):
            first = max(0, context - start)
            yield window[:, first : length + context - start], context - first


class WithVariants:
    """A store whose clips come with their variants, as the training loop takes them.

    Drawn one at a time (``augment.variants_per_epoch = "one"``), variants are further windows of
    their clip: with W windows, number ``v * W + w`` is window w of variant v, and below W are
    those of the clip itself. A window drawn at random is of the clip or of any variant alike, and
    the first one, which validation takes, is the clip's.

    All in every epoch (``"all"``), they are further clips: with M clips, number ``v * M + i`` is
    variant v of clip i.

    Args:
        store: what holds them.
        augment: number and ranges of the variants, and how they are taken.
    """

    def __init__(self, store: FeatureStore, augment: AugmentConfig) -> None:
        self.store = store
        self.augment = augment
        self._all = augment.variants_per_epoch == "all"
        self._copies = augment.waveform_variants + 1

    def clips(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The clips with the variants of them that are clips of their own."""
        if not self._all:
            return indices
        steps = np.arange(self._copies) * len(self.store.clips)
        return (steps[:, np.newaxis] + indices).reshape(-1)

    def targets(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M,) classes of the store's clips to those of all clips here."""
        return np.tile(targets, self._copies) if self._all else targets

    def n_windows(self, index: int) -> int:
        """Windows of a clip, or of a variant that is one."""
        n = self.store.n_windows(index % len(self.store.clips))
        return n if self._all else n * self._copies

    def take(self, indices: NDArray[np.int64], windows: NDArray[np.int64]) -> Tensor:
        """One window of each clip as a batch (B, C, F, T), float32."""
        return _batch(self._window(*row) for row in self.origins(indices, windows).tolist())

    def _window(self, clip: int, variant: int, window: int) -> NDArray[np.float16]:
        found = self.store.windows(clip)
        if variant:
            found = self.store.variant(clip, variant, self.augment)
        one: NDArray[np.float16] = found[window]
        return one

    def origins(self, indices: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Clip, variant (0: the clip itself) and window of it, (B, 3)."""
        if self._all:
            variants, clips = np.divmod(indices, len(self.store.clips))
        else:
            clips = indices
            counts = np.array([self.store.n_windows(int(clip)) for clip in clips], dtype=np.int64)
            variants, windows = np.divmod(windows, counts)
        return np.stack([clips, variants, windows], axis=1)


def _span(blocks: Iterable[Samples], first: int, stop: int) -> Samples:
    """(C, stop - first), samples of a streamed waveform."""
    parts, position = [], 0
    for block in blocks:
        parts.append(block[:, max(0, first - position) : max(0, stop - position)].copy())
        position += block.shape[1]
    return np.concatenate(parts, axis=1)


def _batch(windows: Iterable[NDArray[np.float16]]) -> Tensor:
    """(C, F, T) each, as (B, C, F, T), float32."""
    return torch.from_numpy(np.stack(list(windows)).astype(np.float32))


@contextlib.contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """Parallel over recordings instead of inside each small operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
