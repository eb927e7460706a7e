"""Listening to every clip once: what it is, and what is wrong with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from stapes.audio import NotFiniteError, probe, stream
from stapes.data.clips import Clip, Dataset
from stapes.errors import AudioError
from stapes.machine import usable_cores

__all__ = ["Finding", "FindingKind", "Scan", "check", "fingerprint", "scan"]

# An 8-bit recording's positive full scale is 127/128 = 0.992.
_FULL_SCALE = 0.99
Fault = Literal["unreadable", "empty", "nan"]

_RUN = 3  # a single loud sample is no clipping; three in a row at full scale are


@dataclass(frozen=True, slots=True)
class Scan:
    """What one clip holds.

    Args:
        sample_rate: Hz; 0 if unreadable.
        channels: 0 if unreadable.
        duration: seconds of the clip's segment that exist.
        digest: of the decoded samples, channels and rate, so that a WAV and its FLAC copy agree;
            empty if unreadable.
        peak: largest magnitude; full scale is 1.
        rms: root mean square over all channels.
        clipped: part of the samples, 0 to 1, that stand at full scale three or more in a row.
        finite: whether no sample is NaN or infinite.
        error: why the clip cannot be used; none if it can.
        fault: the kind of error.
    """

    sample_rate: int
    channels: int
    duration: float
    digest: str
    peak: float
    rms: float
    clipped: float
    finite: bool
    error: str | None
    fault: Fault | None = None


def scan(
    dataset: Dataset,
    *,
    workers: int | None = None,
    memo: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scan]:
    """Decode every clip once, in constant memory however long it is.

    A bad file never raises; its :class:`Scan` carries ``error``. Threads do the work: decoding,
    hashing and array arithmetic release the interpreter, and threads start at once.

    Args:
        dataset: clips to listen to.
        workers: threads; none: one per core.
        memo: a small database that remembers scans by path, size, time of change and segment, so
            that the next call only looks at new files. Damaged or locked, it is ignored.
        progress: called with (clips done, clips in all) as they complete.

    Returns:
        One per clip, in order.
    """
    known = _Memo(memo)
    keys = [_key(clip) for clip in dataset.clips]
    remembered = known.load([key for key in keys if key is not None])
    scans: list[Scan | None] = [remembered.get(key) if key else None for key in keys]
    todo = [i for i, found in enumerate(scans) if found is None]
    done = len(scans) - len(todo)
    if progress is not None:
        progress(done, len(scans))
    fresh: dict[str, Scan] = {}
    pool = ThreadPoolExecutor(max_workers=workers or usable_cores())
    try:
        futures = {pool.submit(_scan_clip, dataset.clips[i]): i for i in todo}
        for future in as_completed(futures):
            i = futures[future]
            result = future.result()
            scans[i], key = result, keys[i]
            # A failure may pass (a network share, a permission): look again next time.
            if key is not None and result.error is None:
                fresh[key] = result
            if len(fresh) == 500:
                known.store(fresh)
                fresh = {}
            done += 1
            if progress is not None:
                progress(done, len(scans))
    finally:
        # After an interrupt the clips already heard stay known, and the rest is dropped.
        pool.shutdown(cancel_futures=True)
        known.store(fresh)
    return [result for result in scans if result is not None]


def _scan_clip(clip: Clip) -> Scan:
    digest = hashlib.blake2b(digest_size=16)
    frames = clipped = 0
    peak = energy = 0.0
    try:
        info = probe(clip.path)
        if info.frames == 0:
            return _unusable("empty", "holds no samples")
        digest.update(f"{info.sample_rate} {info.channels}".encode())
        for block in stream(clip.path, start=clip.start or 0.0, end=clip.end):  # (C, n)
            # Adding zero turns -0.0 into 0.0: decoders differ in it, and it sounds the same.
            digest.update(np.ascontiguousarray(block.T + np.float32(0)).tobytes())
            magnitude = np.abs(block)
            frames += block.shape[1]
            peak = max(peak, float(magnitude.max()))
            energy += float(np.square(block, dtype=np.float64).sum())
            clipped += _in_runs(magnitude >= _FULL_SCALE)
    except NotFiniteError as error:
        return _unusable("nan", error.reason)
    except AudioError as error:
        empty = clip.path.is_file() and clip.path.stat().st_size == 0
        return _unusable("empty" if empty else "unreadable", error.reason)
    except (OSError, MemoryError) as error:
        return _unusable("unreadable", str(error) or type(error).__name__)
    samples = frames * info.channels
    return Scan(
        sample_rate=info.sample_rate,
        channels=info.channels,
        duration=frames / info.sample_rate,
        digest=digest.hexdigest(),
        peak=peak,
        rms=math.sqrt(energy / samples),
        clipped=clipped / samples,
        finite=True,
        error=None,
    )


def _unusable(fault: Fault, reason: str) -> Scan:
    return Scan(0, 0, 0.0, "", 0.0, 0.0, 0.0, fault != "nan", reason, fault)


def _in_runs(full: npt.NDArray[np.bool_]) -> int:
    """How many entries of (C, n) are true with at least ``_RUN`` in a row.

    A run cut in two by a block's border loses at most its ends there: too little to matter.
    """
    if full.shape[1] < _RUN:
        return 0
    begins = full[:, :-2] & full[:, 1:-1] & full[:, 2:]
    inside = np.zeros_like(full)
    for shift in range(_RUN):
        inside[:, shift : full.shape[1] - _RUN + 1 + shift] |= begins
    return int(inside.sum())


def _key(clip: Clip) -> str | None:
    try:
        stat = clip.path.stat()
    except OSError:
        return None
    return json.dumps(
        [str(clip.path.absolute()), stat.st_size, stat.st_mtime_ns, clip.start, clip.end]
    )


class _Memo:
    """Scans by key in an SQLite file; every trouble with it means "nothing remembered"."""

    # The number changes with what a scan computes, so old entries are never taken for new ones.
    _TABLE = "scans_1"

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self, keys: Sequence[str]) -> dict[str, Scan]:
        found: dict[str, Scan] = {}
        if self._path is None or not self._path.exists():
            return found
        with contextlib.suppress(sqlite3.Error, ValueError, TypeError), self._open() as connection:
            for begin in range(0, len(keys), 500):  # SQLite limits the number of parameters
                part = keys[begin : begin + 500]
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    f"SELECT key, scan FROM {self._TABLE} WHERE key IN ({marks})", part
                )
                found.update((key, Scan(**json.loads(text))) for key, text in rows)
        return found

    def store(self, scans: Mapping[str, Scan]) -> None:
        if self._path is None or not scans:
            return
        rows = [(key, json.dumps(asdict(result))) for key, result in scans.items()]
        for attempt in range(2):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._open() as connection, connection:
                    connection.execute(
                        f"CREATE TABLE IF NOT EXISTS {self._TABLE} "
                        "(key TEXT PRIMARY KEY, scan TEXT)"
                    )
                    connection.executemany(
                        f"INSERT OR REPLACE INTO {self._TABLE} VALUES (?, ?)", rows
                    )
                return
            except sqlite3.OperationalError:  # locked, read-only, no space
                return
            except sqlite3.DatabaseError:  # not a database, or damaged
                if attempt == 0:
                    with contextlib.suppress(OSError):
                        self._path.unlink()
            except OSError:
                return

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        assert self._path is not None
        connection = sqlite3.connect(self._path, timeout=5.0)
        try:
            yield connection
        finally:
            connection.close()


FindingKind = Literal[
    "unreadable", "empty", "nan", "silent", "short", "clipped", "label-conflict", "duplicate"
]


@dataclass(frozen=True)
class Finding:
    """Something about the data that someone should look at.

    Args:
        kind: what it is.
        paths: the recordings concerned, at least one.
        detail: one sentence.
    """

    kind: FindingKind
    paths: tuple[Path, ...]
    detail: str


def check(
    dataset: Dataset,
    scans: Sequence[Scan],
    *,
    short_seconds: float = 0.1,
    silent_db: float = -80.0,
    clipped_part: float = 0.001,
) -> list[Finding]:
    """What is wrong with the clips, the worst kinds first.

    Args:
        dataset: the clips.
        scans: one per clip, from :func:`scan`.
        short_seconds: a clip shorter than this is reported.
        silent_db: a clip whose peak lies below this is silent, dB below full scale.
        clipped_part: a clip with more than this part of its samples clipped is reported, 0 to 1.
    """
    if len(scans) != len(dataset):
        raise ValueError(f"{len(scans)} scans for {len(dataset)} clips")
    findings = []
    for clip, result in zip(dataset.clips, scans, strict=True):
        one = _of_one(result, short_seconds, silent_db, clipped_part)
        findings += [Finding(kind, (clip.path,), detail) for kind, detail in one]
    findings += _same_audio(dataset.clips, scans)
    findings += _overlaps(dataset.clips)
    order = list(FindingKind.__args__)  # type: ignore[attr-defined]
    return sorted(findings, key=lambda finding: order.index(finding.kind))


def _of_one(
    result: Scan, short_seconds: float, silent_db: float, clipped_part: float
) -> Iterator[tuple[FindingKind, str]]:
    if result.error is not None:
        yield result.fault or "unreadable", result.error
        return
    if result.peak < 10 ** (silent_db / 20):
        level = f"{20 * math.log10(result.peak):.0f} dB" if result.peak > 0 else "digital silence"
        yield "silent", f"peak: {level}"
    if result.duration < short_seconds:
        yield "short", f"{result.duration:.3f} s"
    if result.clipped > clipped_part:
        yield "clipped", f"{result.clipped:.1%} of the samples at full scale"


def _same_audio(clips: Sequence[Clip], scans: Sequence[Scan]) -> Iterator[Finding]:
    alike: dict[str, list[Clip]] = defaultdict(list)
    for clip, result in zip(clips, scans, strict=True):
        if result.error is None:
            alike[result.digest].append(clip)
    for same in alike.values():
        if len(same) < 2:
            continue
        paths = tuple(clip.path for clip in same)
        labels = sorted({clip.label for clip in same})
        if len(labels) > 1:
            yield Finding("label-conflict", paths, f"the same audio as {_and(labels)}")
        else:
            yield Finding("duplicate", paths, f"the same audio {len(same)} times, as {labels[0]}")


def _overlaps(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Segments of one file that overlap and have different labels."""
    by_path: dict[Path, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_path[clip.path].append(clip)
    for path, segments in by_path.items():
        segments.sort(key=lambda clip: clip.start or 0.0)
        reach, last = -1.0, segments[0]
        for clip in segments:
            start, end = clip.start or 0.0, math.inf if clip.end is None else clip.end
            if start < reach and clip.label != last.label:
                labels = _and([last.label, clip.label])
                yield Finding("label-conflict", (path,), f"overlapping at {start:g} s as {labels}")
            if end > reach:
                reach, last = end, clip


def _and(labels: Sequence[str]) -> str:
    return " and ".join(f"'{label}'" for label in labels)


def fingerprint(dataset: Dataset, scans: Sequence[Scan]) -> str:
    """A digest of what was learned from: every clip's audio with its label, in any order."""
    lines = sorted(
        f"{result.digest} {clip.label}" for clip, result in zip(dataset.clips, scans, strict=True)
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
