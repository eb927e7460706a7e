"""Every recording is answered once, as it would be alone, whatever happens on the way."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import polars
import pytest
import soundfile
from archive_of_steps import tree, write_steps
from toy_onnx import RATE, toy_model

from stapes.archive import Progress, Settings, sweep
from stapes.archive.answers import Answer, End, Job, Rows, Task
from stapes.archive.journal import Journal
from stapes.archive.listing import Entry
from stapes.archive.local import answer_here
from stapes.archive.parts import Folder, Part
from stapes.errors import MissingPackageError, StapesError
from stapes.runtime import load

TIMELINE = Settings(timeline=True, hop_seconds=0.5, threshold=0.3)


def rows_of(out: Path) -> list[tuple[Any, ...]]:
    return polars.read_parquet(out / "rows" / "*.parquet").rows()


def test_a_label_for_each_recording_is_what_the_classifier_says(
    model: Path, steps: Path, tmp_path: Path
) -> None:
    result = sweep(model, steps, tmp_path / "out", part_files=7, workers=2)
    one = load(model)
    expected = []
    for path in sorted(steps.rglob("*.wav")):
        said = one.classify(path)
        expected.append((path.relative_to(steps).as_posix(), said.label, round(said.score, 4)))
    assert rows_of(tmp_path / "out") == expected
    assert (result.recordings, result.failed, result.rows) == (60, 0, 60)
    assert result.parts == 9  # 60 / 7
    assert result.audio_seconds == pytest.approx(60 * 2.5 / 2)
    assert not (tmp_path / "out" / "errors").exists()


def test_events_of_a_timeline_are_what_the_classifier_finds(
    model: Path, steps: Path, tmp_path: Path
) -> None:
    settings = Settings(timeline=True, hop_seconds=0.25, threshold=0.6, release=0.4, smoothing=3)
    sweep(model, steps, tmp_path / "out", settings, workers=2)
    one = load(model)
    expected = [
        (path.relative_to(steps).as_posix(), round(event.start, 3), round(event.end, 3),
         event.label, round(event.score, 4))
        for path in sorted(steps.rglob("*.wav"))
        for event in one.timeline(path, hop_seconds=0.25, threshold=0.6, release=0.4, smoothing=3)
    ]  # fmt: skip
    assert len(expected) > 60
    assert rows_of(tmp_path / "out") == expected


def test_several_labels_are_ranked_and_csv_says_the_same(
    model: Path, steps: Path, tmp_path: Path
) -> None:
    sweep(model, steps, tmp_path / "p", Settings(top=2), workers=2, part_files=25)
    sweep(model, steps, tmp_path / "c", Settings(top=2), workers=1, part_files=25, format="csv")
    parquet = polars.read_parquet(tmp_path / "p" / "rows" / "*.parquet")
    assert parquet.schema == {
        "path": polars.String, "rank": polars.Int64, "label": polars.String,
        "score": polars.Float64,
    }  # fmt: skip
    written = polars.concat(
        [polars.read_csv(path) for path in sorted((tmp_path / "c" / "rows").iterdir())]
    )
    assert written.equals(parquet)
    assert parquet["rank"].to_list() == [1, 2] * 60


def test_rows_keep_their_order_and_their_pieces(
    model: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long recordings come in pieces, mixed with those of others."""
    sweep(model, steps, tmp_path / "whole", TIMELINE, workers=2)
    in_worker(monkeypatch, "import stapes.archive.answers as a; a._CHUNK = 1")
    sweep(model, steps, tmp_path / "pieces", TIMELINE, workers=2)
    assert tree(tmp_path / "pieces") == tree(tmp_path / "whole")


def test_other_readers_take_the_folder_of_rows(model: Path, steps: Path, tmp_path: Path) -> None:
    sweep(model, steps, tmp_path / "out", part_files=20, workers=2)
    ours = rows_of(tmp_path / "out")
    arrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    table = arrow.read_table(tmp_path / "out" / "rows")
    assert [tuple(row.values()) for row in table.to_pylist()] == ours
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.read_parquet(tmp_path / "out" / "rows")
    assert [tuple(row) for row in frame.itertuples(index=False)] == ours


def test_what_was_asked_is_in_the_folder(model: Path, steps: Path, tmp_path: Path) -> None:
    sweep(model, steps, tmp_path / "out", TIMELINE, workers=1)
    plan = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert plan["archive"] == str(steps)
    assert plan["model"]["name"] == "model.onnx"
    assert len(plan["model"]["sha256"]) == 64
    assert plan["model"]["labels"] == ["negative", "positive"]
    assert plan["settings"]["threshold"] == 0.3
    assert list(plan["columns"]) == ["path", "start", "end", "label", "score"]


class Stop(Exception):
    """Raised in the middle of a sweep."""


def stop_after(count: int) -> Any:
    left = [count]

    def told(_: Progress) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    return told


def test_what_was_done_is_not_done_again(model: Path, steps: Path, tmp_path: Path) -> None:
    sweep(model, steps, tmp_path / "whole", part_files=7, workers=1)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        sweep(model, steps, out, part_files=7, workers=2, on_progress=stop_after(25))
    seen: list[int] = []
    sweep(model, steps, out, part_files=7, workers=2, on_progress=lambda p: seen.append(p.done))
    assert seen == list(range(26, 61))
    assert tree(out) == tree(tmp_path / "whole")
    sweep(model, steps, out, part_files=7, on_progress=lambda _: pytest.fail("all is done"))
    assert tree(out) == tree(tmp_path / "whole")


# Every record is written in two halves with a pause between, so that kills fall into it.
SLOW = """
import sys, time, stapes.archive.journal as journal
from stapes.archive import Settings, sweep
class Halves:
    def __init__(self, file): self._file = file
    def __getattr__(self, name): return getattr(self._file, name)
    def write(self, data):
        half = max(1, len(data) // 2)
        count = self._file.write(data[:half]); time.sleep(0.004)
        return count + self._file.write(data[half:])
start = journal.Journal.__init__
def begin(self, path):
    start(self, path); self._file = Halves(self._file)
journal.Journal.__init__ = begin
model, archive, out = sys.argv[1:]
sweep(model, archive, out, Settings(timeline=True, hop_seconds=0.5, threshold=0.3),
      part_files=7, workers=2)
"""


def test_killed_at_any_moment_it_ends_the_same(model: Path, steps: Path, tmp_path: Path) -> None:
    sweep(model, steps, tmp_path / "whole", TIMELINE, part_files=7, workers=2)
    rng, out = random.Random(0), tmp_path / "out"
    command = [sys.executable, "-c", SLOW, str(model), str(steps), str(out)]
    for kill in range(3):
        process = subprocess.Popen(command)
        before = done_so_far(out)
        while process.poll() is None and done_so_far(out) <= before:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"kill {kill} came too late"
    assert tree(out) != tree(tmp_path / "whole")
    subprocess.run(command, check=True)
    assert tree(out) == tree(tmp_path / "whole")


def done_so_far(out: Path) -> int:
    """Bytes of journals and rows."""
    found = 0
    for path in [*out.glob("_sweep/journal-*"), *out.glob("rows/part-*")]:
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def test_a_torn_or_damaged_journal_loses_only_what_follows(
    model: Path, steps: Path, tmp_path: Path
) -> None:
    sweep(model, steps, tmp_path / "whole", TIMELINE, workers=1)
    with pytest.raises(Stop):
        sweep(model, steps, tmp_path / "half", TIMELINE, workers=1, on_progress=stop_after(30))
    good = (tmp_path / "half" / "_sweep" / "journal-00000.jsonl").read_bytes()
    last = good.rindex(b"\n", 0, len(good) - 1) + 1
    for damaged in (
        good[:-1],
        good[: last + 3],
        good + bytes(500),
        good[:-6] + b"9" + good[-5:],
        good[: len(good) // 2] + b"\xff" + good[len(good) // 2 :],
        b"",
    ):
        out = tmp_path / "again"
        shutil.copytree(tmp_path / "half", out)
        (out / "_sweep" / "journal-00000.jsonl").write_bytes(damaged)
        (out / "rows" / ".part-00000.parquet.0badcafe.partial").write_bytes(b"PAR1")
        sweep(model, steps, out, TIMELINE, workers=1)
        assert tree(out) == tree(tmp_path / "whole")
        shutil.rmtree(out)


def test_what_follows_a_torn_line_is_kept(model: Path, steps: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        sweep(model, steps, out, workers=1, on_progress=stop_after(20))
    journal = out / "_sweep" / "journal-00000.jsonl"
    journal.write_bytes(journal.read_bytes() + b"5d41402a [")
    with pytest.raises(Stop):
        sweep(model, steps, out, workers=1, on_progress=stop_after(10))
    seen: list[int] = []
    sweep(model, steps, out, workers=1, on_progress=lambda p: seen.append(p.done))
    assert seen == list(range(31, 61))


def test_an_answer_that_comes_twice_is_kept_once(
    model: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(model, steps, tmp_path / "whole", TIMELINE, part_files=7, workers=1)

    def twice(job: Job, tasks: Iterator[Task], workers: int) -> Generator[Answer]:
        kept: list[Answer] = []
        for answer in answer_here(job, tasks, workers):
            kept.append(answer)
            yield answer
            if isinstance(answer, End):
                yield from kept[-4:]

    monkeypatch.setattr("stapes.archive.sweeping.answer_here", twice)
    seen: list[int] = []
    sweep(model, steps, tmp_path / "out", TIMELINE, part_files=7, workers=1,
          on_progress=lambda p: seen.append(p.done))  # fmt: skip
    assert seen == list(range(1, 61))
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["before the ledger", "after the ledger", "torn ledger"])
def test_killed_while_a_part_is_sealed(
    model: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    sweep(model, steps, tmp_path / "whole", part_files=20, workers=1)
    out = tmp_path / "out"

    unlink = Path.unlink

    def die(*_: object) -> None:
        raise Stop

    def die_at_journals(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("journal"):
            raise Stop
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        if moment == "after the ledger":
            patch.setattr(Path, "unlink", die_at_journals)
        else:
            patch.setattr("stapes.archive.parts.Folder.seal", die)
        with pytest.raises(Stop):
            sweep(model, steps, out, part_files=20, workers=1)
    assert [path.name for path in (out / "rows").iterdir()] == ["part-00000.parquet"]
    assert (out / "_sweep" / "journal-00000.jsonl").is_file()
    if moment == "torn ledger":
        (out / "_sweep" / "sealed.jsonl").write_bytes(b"0badcafe [0,20")
    sweep(model, steps, out, part_files=20, workers=1)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_part_that_was_deleted_is_done_again(model: Path, steps: Path, tmp_path: Path) -> None:
    sweep(model, steps, tmp_path / "out", part_files=20, workers=1)
    whole = tree(tmp_path / "out")
    (tmp_path / "out" / "rows" / "part-00001.parquet").unlink()
    seen: list[int] = []
    sweep(model, steps, tmp_path / "out", part_files=20, workers=1,
          on_progress=lambda p: seen.append(p.done))  # fmt: skip
    assert len(seen) == 20
    assert tree(tmp_path / "out") == whole


def test_a_part_that_is_done_again_has_the_errors_of_then(
    model: Path, steps: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(steps, archive)
    sound = next(archive.rglob("*.wav"))
    content = sound.read_bytes()
    sound.write_bytes(b"damaged" * 99)
    assert sweep(model, archive, tmp_path / "out", workers=1).failed == 1
    sound.write_bytes(content)
    (tmp_path / "out" / "rows" / "part-00000.parquet").unlink()
    assert sweep(model, archive, tmp_path / "out", workers=1).failed == 0
    assert not (tmp_path / "out" / "errors").exists()


def test_pieces_of_a_dropped_attempt_stay_dropped(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "csv", {"path": str, "label": str})
    entries = [Entry("a.wav", 1, 1), Entry("b.wav", 1, 1)]
    first = Part(folder, 0, entries)
    first.take(Rows(0, 0, 0, [["dog"]]))
    first.close()  # killed
    second = Part(folder, 0, entries)
    assert second.pending() == [0, 1]
    second.take(End(0, 0, 0.0, "is gone."))
    second.close()  # killed, too
    third = Part(folder, 0, entries)
    assert third.pending() == [1]
    third.take(Rows(0, 1, 0, [["cat"]]))
    third.take(End(0, 1, 1.0, None))
    third.seal()
    assert folder.part_file(0).read_text().splitlines() == ["path,label", "b.wav,cat"]


def test_bad_recordings_are_errors_and_stop_nothing(model: Path, tmp_path: Path) -> None:
    archive = write_steps(tmp_path / "archive", 12)
    (archive / "empty.wav").write_bytes(b"")
    (archive / "page.flac").write_bytes(b"<html>404</html>" * 99)
    (archive / "lost.ogg").symlink_to("nowhere.ogg")
    (archive / "nothing to see.txt").write_text("x")
    result = sweep(model, archive, tmp_path / "out", part_files=6, workers=2)
    assert (result.recordings, result.failed, result.rows) == (15, 3, 12)
    errors = []
    for path in sorted((tmp_path / "out" / "errors").iterdir()):
        with path.open(newline="") as file:
            errors += list(csv.DictReader(file))
    assert errors == [
        {"path": "empty.wav", "error": "is empty (0 bytes); remove it or copy it again."},
        {"path": "lost.ogg", "error": "does not exist; check the name."},
        {"path": "page.flac", "error": "is not audio of a known format; convert it to WAV or "
         "FLAC, or remove it."},
    ]  # fmt: skip


def test_a_recording_that_breaks_off_has_events_and_an_error(model: Path, tmp_path: Path) -> None:
    archive = write_steps(tmp_path / "archive", 1, halves=100)
    path = next(archive.rglob("*.wav"))
    data, _ = soundfile.read(path)
    soundfile.write(archive / "broken.flac", data, RATE)
    path.unlink()
    whole = (archive / "broken.flac").read_bytes()
    (archive / "broken.flac").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    found, problem = [], None
    try:
        for event in load(model).timeline(archive / "broken.flac", hop_seconds=0.5, threshold=0.3):
            found.append(("broken.flac", round(event.start, 3)))
    except StapesError as error:
        problem = str(error)
    assert problem
    result = sweep(model, archive, tmp_path / "out", TIMELINE, workers=1)
    assert result.failed == 1
    assert [row[:2] for row in rows_of(tmp_path / "out")] == found


def test_a_folder_that_may_not_be_read_is_told_and_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lost+found is, at the root of a disk."""
    archive, notes, scan = write_steps(tmp_path / "archive", 6), list[str](), os.scandir

    def refused(folder: Path) -> Any:
        if Path(folder).name == "day 1":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr("stapes.audio.decode.os.scandir", refused)
    result = sweep(model, archive, tmp_path / "out", workers=1, on_note=notes.append)
    assert (result.recordings, result.changes.unreadable) == (4, 1)
    assert notes == ["1 folders may not be read and are left out (day 1)."]


def test_names_that_are_no_text_stay_apart(model: Path, steps: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    one = next(iter(sorted(steps.rglob("*.wav")))).read_bytes()
    names = [b'a "quoted", name.wav', b"new\nline.wav", b"\xe9t\xe9.wav", "été.wav".encode()]
    try:
        for name in names:
            Path(os.fsdecode(os.fsencode(archive) + b"/" + name)).write_bytes(one)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    sweep(model, archive, tmp_path / "p", workers=1)
    found = [row[0] for row in rows_of(tmp_path / "p")]
    assert found == ['a "quoted", name.wav', "new\nline.wav", "été.wav", "\\udce9t\\udce9.wav"]
    sweep(model, archive, tmp_path / "c", workers=1, format="csv")
    assert b"\n\xe9t\xe9.wav,positive," in (tmp_path / "c" / "rows" / "part-00000.csv").read_bytes()


def in_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have workers run something first."""
    import stapes.archive.local as local

    begin, end = local._PROGRAM.split("from stapes")
    monkeypatch.setattr(local, "_PROGRAM", f"{begin}exec({code!r}); from stapes{end}")


DEADLY = """
import os, stapes.archive.answers as a
from pathlib import Path
real = a._rows
def rows(classifier, path, settings):
    for number, row in enumerate(real(classifier, path, settings)):
        if path.name == {name!r} and number == 1 and not (ONCE and Path({mark!r}).exists()):
            Path({mark!r}).write_text("")
            os.kill(os.getpid(), 9)
        yield row
a._rows, a._CHUNK = rows, 1
"""


@pytest.mark.parametrize("once", [True, False])
def test_a_worker_that_dies_takes_one_recording_with_it(
    model: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    settings = Settings(timeline=True, hop_seconds=0.1)
    sweep(model, steps, tmp_path / "whole", settings, workers=1)
    expected = rows_of(tmp_path / "whole")
    ((path, _),) = Counter(row[0] for row in expected).most_common(1)
    name = Path(path).name
    assert sum(row[0] == path for row in expected) > 1
    code = DEADLY.format(name=name, mark=str(tmp_path / "died")).replace("ONCE", str(once))
    in_worker(monkeypatch, code)
    result = sweep(model, steps, tmp_path / "out", settings, workers=2)
    assert (result.recordings, result.failed) == (60, 0 if once else 1)
    assert (tmp_path / "died").exists()
    if once:
        assert rows_of(tmp_path / "out") == expected
    else:
        assert rows_of(tmp_path / "out") == [row for row in expected if row[0] != path]
        (error,) = polars.read_csv(tmp_path / "out" / "errors" / "part-00000.csv").rows()
        assert error[0] == path
        assert error[1].startswith("ended the process that read it, twice; ")


def test_workers_that_cannot_begin_are_a_sentence(
    model: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_worker(monkeypatch, "import os; os._exit(9)")
    with pytest.raises(StapesError, match=r"before it could begin \(status 9\).*--workers"):
        sweep(model, steps, tmp_path / "out", workers=2)


def test_workers_end_with_the_one_who_asks(model: Path, tmp_path: Path) -> None:
    """Killed, it cannot stop them itself, and they are in the middle of a long recording."""
    psutil = pytest.importorskip("psutil")
    archive = write_steps(tmp_path / "archive", 2, halves=1000)
    slow = SLOW.replace("hop_seconds=0.5", "hop_seconds=0.001")  # a minute's work each
    process = subprocess.Popen(
        [sys.executable, "-c", slow, str(model), str(archive), str(tmp_path / "out")]
    )
    ours = psutil.Process(process.pid)
    try:
        while len(workers := ours.children()) < 2:
            time.sleep(0.02)
        while not (tmp_path / "out" / "_sweep" / "journal-00000.jsonl").is_file():
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    for worker in alive:
        worker.kill()
    assert len(gone) == 2


def test_another_model_or_other_settings_are_refused(
    model: Path, steps: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        sweep(model, steps, out, TIMELINE, workers=1, on_progress=stop_after(3))
    kept = tree(out)
    other = tmp_path / "other.onnx"
    other.write_bytes(toy_model(header={"card": {"licence": "MIT"}}))
    with pytest.raises(StapesError, match=r"begun with another model \(model\.onnx, SHA-256 "):
        sweep(other, steps, out, TIMELINE)
    with pytest.raises(StapesError, match=r"other settings \(threshold 0\.3, not 0\.5\); give"):
        sweep(model, steps, out, Settings(timeline=True, hop_seconds=0.5, threshold=0.5))
    with pytest.raises(StapesError, match="format 'parquet', not 'csv'"):
        sweep(model, steps, out, TIMELINE, format="csv")
    with pytest.raises(StapesError, match=f"begun with the archive {steps}; give"):
        sweep(model, tmp_path, out, TIMELINE)
    assert tree(out) == kept
    (out / "sweep.json").write_text("{")
    with pytest.raises(StapesError, match=r"sweep\.json: damaged"):
        sweep(model, steps, out, TIMELINE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(StapesError, match="not empty and holds no sweep"):
        sweep(model, steps, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_later_version_goes_on_and_is_noted(model: Path, steps: Path, tmp_path: Path) -> None:
    sweep(model, steps, tmp_path / "out", workers=1)
    path = tmp_path / "out" / "sweep.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({**plan, "stapes": ["0.0.9"]}))
    notes: list[str] = []
    sweep(model, steps, tmp_path / "out", workers=1, on_note=notes.append)
    assert "begun with stapes 0.0.9" in notes[0]
    assert json.loads(path.read_text())["stapes"] == ["0.0.9", *plan["stapes"]]


def test_added_recordings_become_further_parts(model: Path, tmp_path: Path) -> None:
    archive, out, notes = write_steps(tmp_path / "archive", 10), tmp_path / "out", list[str]()
    sweep(model, archive, out, part_files=4, workers=1)
    before = {name: data for name, data in tree(out).items() if name.startswith("rows/")}
    assert sorted(before) == [f"rows/part-0000{n}.parquet" for n in range(3)]
    first = sorted(archive.rglob("*.wav"))[0]
    shutil.copy(first, first.with_name("!before all others.wav"))
    shutil.copy(first, archive / "zuletzt.wav")
    first.unlink()
    changed = sorted(archive.rglob("*.wav"))[4]
    os.utime(changed, ns=(1, 1))
    result = sweep(model, archive, out, part_files=4, workers=1, on_note=notes.append)
    after = tree(out)
    assert {name: after[name] for name in before} == before
    assert polars.read_parquet(out / "rows" / "part-00003.parquet")["path"].to_list() == [
        "day 0/!before all others.wav", "zuletzt.wav",
    ]  # fmt: skip
    assert (result.recordings, result.changes.added) == (12, 2)
    assert (result.changes.vanished, result.changes.changed) == (1, 1)
    assert [note.split(" (")[0] for note in notes] == [
        "2 recordings were added to the archive and are done as well.",
        "1 recordings have changed since they were listed",
        "1 recordings are no longer there",
    ]
    assert changed.relative_to(archive).as_posix() in notes[1]
    notes.clear()
    sweep(model, archive, out, part_files=4, workers=1)
    assert tree(out) == after


def test_added_while_it_was_stopped(model: Path, tmp_path: Path) -> None:
    """The first list keeps its parts, done or not."""
    archive, out = write_steps(tmp_path / "archive", 10), tmp_path / "out"
    sweep(model, archive, tmp_path / "whole", part_files=4, workers=1)
    with pytest.raises(Stop):
        sweep(model, archive, out, part_files=4, workers=1, on_progress=stop_after(5))
    shutil.copy(sorted(archive.rglob("*.wav"))[0], archive / "!first.wav")
    sweep(model, archive, out, part_files=4, workers=1)
    ours, whole = tree(out), tree(tmp_path / "whole")
    assert {n: d for n, d in whole.items() if n.startswith("rows/")}.items() <= ours.items()
    last = polars.read_parquet(out / "rows" / "part-00003.parquet")
    assert last["path"].to_list() == ["!first.wav"]


def test_a_folder_in_use_is_refused(model: Path, steps: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []

    def second(_: Progress) -> None:
        if not said:
            with pytest.raises(StapesError) as caught:
                sweep(model, steps, out, workers=1)
            said.append(str(caught.value))

    sweep(model, steps, out, workers=1, on_progress=second)
    assert said == [
        f"{out}: another process is writing into this folder; wait for it or choose another --out."
    ]


class FullDisk:
    """A file on a disk with room for so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: memoryview) -> int:
        if self._room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._file.write(data[: self._room])
        self._room -= count
        return int(count)


def test_a_full_disk_stops_it_and_loses_nothing(
    model: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(model, steps, tmp_path / "whole", workers=1)
    out, real = tmp_path / "out", Journal.__init__

    def begin(self: Journal, path: Path) -> None:
        real(self, path)
        self._file = FullDisk(self._file, 1000)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "__init__", begin)
        with pytest.raises(StapesError, match=r"journal-00000\.jsonl: the disk is full; free"):
            sweep(model, steps, out, workers=2)
    torn = (out / "_sweep" / "journal-00000.jsonl").read_bytes()
    assert len(torn) == 1000
    assert torn[-1:] != b"\n"
    seen: list[int] = []

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("stapes.archive.parts.Path.write_bytes", full)
        with pytest.raises(StapesError, match=r"part-00000\.parquet: the disk is full; free"):
            sweep(model, steps, out, workers=2, on_progress=lambda p: seen.append(p.done))
    assert len(seen) == 60 - torn.count(b",null]\n")
    sweep(model, steps, out, workers=1, on_progress=lambda _: pytest.fail("all is answered"))
    assert tree(out) == tree(tmp_path / "whole")


def test_an_archive_that_goes_away_is_no_archive_of_bad_recordings(
    model: Path, tmp_path: Path
) -> None:
    archive = write_steps(tmp_path / "archive", 30)
    sweep(model, archive, tmp_path / "whole", workers=1)

    def pulled(progress: Progress) -> None:
        if progress.done == 5:
            archive.rename(tmp_path / "elsewhere")
            archive.mkdir()  # the mount point stays

    with pytest.raises(StapesError, match="the archive is no longer there; connect it again"):
        sweep(model, archive, tmp_path / "out", workers=1, on_progress=pulled)
    archive.rmdir()
    (tmp_path / "elsewhere").rename(archive)
    assert sweep(model, archive, tmp_path / "out", workers=1).failed == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_mistakes_are_one_sentence(
    model: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StapesError, match="there is no such folder"):
        sweep(model, tmp_path / "absent", tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(StapesError, match="none: no recordings found"):
        sweep(model, tmp_path / "none", tmp_path / "empty")
    with pytest.raises(ValueError, match="hop must be above 0"):
        sweep(model, steps, tmp_path / "out", Settings(timeline=True, hop_seconds=9.0))
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingPackageError, match=r'pip install "stapes\[archive\]"'):
        sweep(model, steps, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_knows_how_long_it_will_take() -> None:
    progress = Progress(recordings=100, bytes=1000, done=40, bytes_done=400)
    assert progress.seconds_left is None
    assert progress.speed == 0
    progress.elapsed, progress.audio_now, progress.bytes_now = 10.0, 5000.0, 300
    assert progress.speed == 500
    assert progress.seconds_left == pytest.approx(20.0)  # 600 bytes at 30 a second
