"""An archive of recordings, answered into a folder: resumable to the file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from stapes.archive.answers import Answer, End, Job, Settings, Task
from stapes.archive.listing import Changes, Listing
from stapes.archive.local import answer_here
from stapes.archive.locking import locked
from stapes.archive.parts import FORMATS, Folder, Format, Part, Sealed, is_foreign, need_packages
from stapes.errors import AudioError, ModelFileError, StapesError
from stapes.files import write_text
from stapes.machine import usable_cores
from stapes.runtime import OnnxClassifier, load

__all__ = ["Engine", "Progress", "Sweep", "sweep"]

Engine = Literal["local", "ray"]

_PART_FILES = 1000
_PART_BYTES = 4 << 30
_PLAN_FORMAT = 1


@dataclass
class Progress:
    """How far a sweep is.

    Attributes:
        recordings: of the archive.
        bytes: of them.
        done: recordings that are answered, now or before.
        bytes_done: of them.
        failed: of those, recordings with an error.
        audio_seconds: length of what was answered.
        elapsed: seconds since this command's first answer.
        audio_now, bytes_now: what it has answered in that time.
    """

    recordings: int
    bytes: int
    done: int = 0
    bytes_done: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    elapsed: float = 0.0
    audio_now: float = 0.0
    bytes_now: int = 0

    @property
    def speed(self) -> float:
        """Seconds of audio a second."""
        return self.audio_now / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the end, if the rest takes as long a byte as what was done; none: not known yet."""
        if not self.bytes_now:
            return None
        return (self.bytes - self.bytes_done) * self.elapsed / self.bytes_now


@dataclass(frozen=True)
class Sweep:
    """An archive that is answered.

    Attributes:
        folder: with ``rows/``, ``errors/`` and ``sweep.json``.
        recordings: all that were answered, in this folder.
        failed: of those, the ones that have an error instead of an answer, or beside it.
        rows: of the answers.
        parts: files they are in.
        audio_seconds: length of what could be read.
        changes: what differed from the list with which the sweep began.
    """

    folder: Path
    recordings: int
    failed: int
    rows: int
    parts: int
    audio_seconds: float
    changes: Changes = field(repr=False)


def sweep(
    model: str | Path,
    archive: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    *,
    format: Format = "parquet",
    workers: int | None = None,
    engine: Engine = "local",
    ray_address: str | None = None,
    part_files: int = _PART_FILES,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Sweep:
    """Classify every recording under a folder, into another folder.

    Stopped at any moment, by whatever, and called again, it goes on where it was; the files are
    those of an undisturbed run. Recordings that were added since are done as well, as further
    parts. How it is computed (workers, engine) makes no difference to the result.

    Args:
        model: an exported model (``.onnx``), a folder that holds one, or a shipped model's name.
        archive: a folder of recordings, of any lengths and formats.
        out: a folder that is new, or holds this sweep.
        settings: what is asked of each recording; none: its most probable label.
        format: of the rows; ``"parquet"`` needs polars.
        workers: processes; none: one for each core, on Ray one for each CPU of the cluster.
        engine: ``"local"``: processes of this machine; ``"ray"``: a Ray cluster.
        ray_address: of the cluster; none: ``RAY_ADDRESS``, else this machine.
        part_files: most recordings of a file of rows, fewer where they are large (4 GiB).
        on_progress: is called after every recording.
        on_note: is told, in a sentence, what the user may want to know.

    Raises:
        AudioError: the archive is no folder.
        ModelFileError: no exported model, or a damaged one.
        MissingPackageError: Parquet without polars, Ray without ray.
        StapesError: the folder belongs to another sweep, is in use, or cannot be written to; the
            archive went away.
        ValueError: an argument out of range.
    """
    settings = settings or Settings()
    if part_files < 1 or (workers is not None and workers < 1):
        raise ValueError(f"part_files and workers are 1 or more, not {part_files}, {workers}")
    if format not in FORMATS or engine not in get_args(Engine):
        raise ValueError(f"no such format or engine: {format!r}, {engine!r}")
    archive, out = Path(archive), Path(out)
    note = on_note or (lambda _: None)
    need_packages(format)
    if not archive.is_dir():
        raise AudioError(archive, "there is no such folder; check the name.")
    classifier = load(model, threads=1)
    if settings.timeline:
        classifier.audio.steps(settings.hop_seconds)
    digest = hashlib.sha256(classifier.path.read_bytes()).hexdigest()
    job = Job(str(classifier.path.resolve()), digest, str(archive.resolve()), settings)
    if not (out / "sweep.json").is_file() and is_foreign(out):
        raise StapesError(
            f"{out}: this folder is not empty and holds no sweep of an archive; choose another "
            "--out."
        )
    folder = Folder(out, format, settings.columns)
    with locked(folder.state / "lock", out):
        _claim(out, _plan(job, classifier, str(model), format, part_files), note)
        listing = Listing(folder.state, part_files, _PART_BYTES)
        first = not any(folder.state.glob("files-*.jsonl"))
        changes = listing.update(archive)
        _tell(changes, archive, first, note)
        sealed = folder.sealed()
        folder.tidy(sealed)
        progress = Progress(changes.recordings, changes.bytes)
        for number, entries in enumerate(listing.parts()):
            if number in sealed:
                _count(progress, sealed[number], sum(entry.size for entry in entries))
        run = _Run(folder, listing, sealed, progress, archive, on_progress)
        with closing(_engine(engine, job, run.tasks(), workers, ray_address)) as found:
            run.take(found)
        folder.settle(sealed)
    return Sweep(
        folder=out,
        recordings=sum(part.recordings for part in sealed.values()),
        failed=sum(part.failed for part in sealed.values()),
        rows=sum(part.rows for part in sealed.values()),
        parts=len(sealed),
        audio_seconds=sum(part.seconds for part in sealed.values()),
        changes=changes,
    )


def _engine(
    engine: Engine, job: Job, tasks: Iterator[Task], workers: int | None, address: str | None
) -> Generator[Answer]:
    if engine == "local":
        return answer_here(job, tasks, workers or usable_cores())
    from stapes.archive.cluster import answer_on_ray

    return answer_on_ray(job, tasks, workers, address)


class _Run:
    """Answers on their way from an engine into parts."""

    def __init__(
        self,
        folder: Folder,
        listing: Listing,
        sealed: dict[int, Sealed],
        progress: Progress,
        archive: Path,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._folder, self._listing, self._sealed = folder, listing, sealed
        self._progress, self._archive, self._told = progress, archive, on_progress
        self._open: dict[int, Part] = {}
        self._began: float | None = None

    def tasks(self) -> Iterator[Task]:
        """What is to be done, in the order of the list; parts are opened as they are come to."""
        for number, entries in enumerate(self._listing.parts()):
            if number in self._sealed:
                continue
            part = Part(self._folder, number, entries)
            for place, (seconds, error) in part.ends.items():
                self._progress.done += 1
                self._progress.failed += error is not None
                self._progress.bytes_done += entries[place].size
                self._progress.audio_seconds += seconds
            self._open[number] = part
            pending = part.pending()
            self._seal_if_complete(part)
            for place in pending:
                yield Task(number, place, entries[place].path)

    def take(self, answers: Iterator[Answer]) -> None:
        """Keep all answers."""
        try:
            for answer in answers:
                if isinstance(answer, End) and answer.error is not None:
                    self._check_archive()
                part = self._open.get(answer.part)
                if part is None or not part.take(answer):
                    continue  # answered twice, which happens where workers die
                if isinstance(answer, End):
                    self._count(answer, part.entries[answer.place].size)
                    self._seal_if_complete(part)
        finally:
            for part in self._open.values():
                part.close()

    def _seal_if_complete(self, part: Part) -> None:
        if part.complete:
            self._sealed[part.number] = part.seal()
            del self._open[part.number]

    def _count(self, end: End, size: int) -> None:
        progress = self._progress
        progress.done += 1
        progress.failed += end.error is not None
        progress.bytes_done += size
        progress.audio_seconds += end.seconds
        if self._began is None:  # what it took to begin says nothing of the rest
            self._began = time.monotonic()
        else:
            progress.bytes_now += size
            progress.audio_now += end.seconds
            progress.elapsed = time.monotonic() - self._began
        if self._told is not None:
            self._told(progress)

    def _check_archive(self) -> None:
        """A disk that was pulled out is no archive of damaged recordings."""
        try:
            with os.scandir(self._archive) as found:
                if next(found, None) is not None:
                    return
        except OSError:
            pass
        raise StapesError(
            f"{self._archive}: the archive is no longer there; connect it again and repeat the "
            "command, which goes on where it was."
        )


def _count(progress: Progress, part: Sealed, size: int) -> None:
    progress.done += part.recordings
    progress.failed += part.failed
    progress.bytes_done += size
    progress.audio_seconds += part.seconds


def _plan(
    job: Job, classifier: OnnxClassifier, name: str, format: Format, part_files: int
) -> dict[str, Any]:
    """What is pinned when a sweep begins."""
    return {
        "format_version": _PLAN_FORMAT,
        "archive": job.archive,
        "model": {
            "name": Path(name).name,
            "sha256": job.sha256,
            "labels": classifier.labels,
            "audio": dataclasses.asdict(classifier.audio),
            "precision": classifier.precision,
            "card": classifier.card,
        },
        "settings": {
            **dataclasses.asdict(job.settings),
            "format": format,
            "part_files": part_files,
        },
        "columns": {column: kind.__name__ for column, kind in job.settings.columns.items()},
        "stapes": [metadata.version("stapes")],
    }


def _claim(out: Path, plan: dict[str, Any], note: Callable[[str], None]) -> None:
    """Make the folder this sweep's own, or refuse one that belongs to another."""
    path = out / "sweep.json"
    if not path.is_file():
        write_text(path, json.dumps(plan, indent=1))
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["format_version"] > _PLAN_FORMAT:
            raise ModelFileError(f"{path}: written by a newer stapes; upgrade stapes.")
        other = _difference(old, plan, path)
        versions = list(old["stapes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StapesError(
            f"{path}: damaged ({error}); choose another --out, or put the file back."
        ) from None
    if other:
        raise StapesError(f"{out}: {other}, or choose another --out.")
    if plan["stapes"][0] not in versions:
        note(f"{out}: begun with stapes {versions[-1]}, goes on with {plan['stapes'][0]}.")
        old["stapes"] = [*versions, *plan["stapes"]]
        write_text(path, json.dumps(old, indent=1))


def _difference(old: dict[str, Any], plan: dict[str, Any], path: Path) -> str:
    """Why a sweep cannot go on in a folder, and how it could; empty: it can."""
    if old["model"]["sha256"] != plan["model"]["sha256"]:
        return (
            f"begun with another model ({old['model']['name']}, SHA-256 "
            f"{old['model']['sha256'][:12]}...); give that one to go on"
        )
    if old["archive"] != plan["archive"]:
        return (
            f"begun with the archive {old['archive']}; give that one to go on, or, where it has "
            f"moved, write its new place into {path}"
        )
    others = [
        f"{name} {old['settings'].get(name)!r}, not {value!r}"
        for name, value in plan["settings"].items()
        if old["settings"].get(name) != value
    ]
    if others:
        return f"begun with other settings ({'; '.join(others)}); give those to go on"
    return ""


def _tell(changes: Changes, archive: Path, first: bool, note: Callable[[str], None]) -> None:
    """Say what the user may not expect."""
    if not changes.recordings:
        raise StapesError(f"{archive}: no recordings found.")

    def examples(kind: str) -> str:
        return ", ".join(changes.examples[kind]) + (
            ", ..." if getattr(changes, kind) > len(changes.examples[kind]) else ""
        )

    if changes.added and not first:
        note(f"{changes.added} recordings were added to the archive and are done as well.")
    if changes.changed:
        note(
            f"{changes.changed} recordings have changed since they were listed "
            f"({examples('changed')}): those that were done keep their answers."
        )
    if changes.vanished:
        note(
            f"{changes.vanished} recordings are no longer there ({examples('vanished')}): those "
            "that were done keep their answers, others become errors."
        )
    if changes.unreadable:
        note(
            f"{changes.unreadable} folders may not be read and are left out "
            f"({examples('unreadable')})."
        )
