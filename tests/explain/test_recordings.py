"""Which recordings are taken: a member's own test part, a run's, files and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapes.data import Clip, write_manifest
from stapes.errors import DataError, StapesError
from stapes.explain import find_recordings, recordings_of_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of two folds with shared clips, and a final model without a test part."""
    folder, audio = tmp_path / "run", tmp_path / "audio"
    audio.mkdir()
    for name in "abcdefgh":
        (audio / f"{name}.wav").touch()
    for fold, names in (("1", "abcd"), ("2", "defgh")):
        member = folder / fold / "seed-0"
        member.mkdir(parents=True)
        write_manifest(member / "test.csv", [Clip(audio / f"{n}.wav", "x") for n in names])
    (folder / "all" / "seed-0").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    return folder


def names(clips: list[Clip]) -> str:
    return "".join(clip.path.stem for clip in clips)


def test_a_member_has_its_own_test_part(run: Path) -> None:
    assert names(recordings_of_run(run / "1" / "seed-0" / "model.safetensors")) == "abcd"
    assert names(recordings_of_run(run / "2" / "seed-0")) == "defgh"


def test_a_run_and_its_final_model_have_all_of_them_once(run: Path) -> None:
    for model in (run, run / "model.safetensors", run / "all" / "seed-0" / "model.safetensors"):
        assert names(recordings_of_run(model)) == "abcdefgh"


def test_from_inside_the_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "all" / "seed-0")
    assert names(recordings_of_run("model.safetensors")) == "abcdefgh"


def test_segments_of_one_file_are_different_clips(run: Path) -> None:
    table = run / "1" / "seed-0" / "test.csv"
    audio = run.parent / "audio" / "a.wav"
    write_manifest(table, [Clip(audio, "x", 0.0, 1.0), Clip(audio, "x", 1.0, 2.0)])
    assert [clip.start for clip in recordings_of_run(table.parent)] == [0.0, 1.0]


def test_at_most_so_many_spread_over_the_list(run: Path) -> None:
    assert names(recordings_of_run(run, 3)) == "aeh"
    assert names(recordings_of_run(run, 8)) == names(recordings_of_run(run, 99)) == "abcdefgh"
    assert names(find_recordings([run.parent / "audio"], 2)) == "ah"


def test_files_and_folders(run: Path) -> None:
    audio = run.parent / "audio"
    assert names(find_recordings([audio / "c.wav", audio])) == "cabcdefgh"
    with pytest.raises(DataError, match=r"seed-0: no recordings"):
        find_recordings([run / "all" / "seed-0"])
    with pytest.raises(DataError, match="at least one"):
        find_recordings([])


def test_a_lone_model_file_has_none(tmp_path: Path) -> None:
    with pytest.raises(StapesError, match=r"alone\.safetensors.*name some recordings"):
        recordings_of_run(tmp_path / "alone.safetensors")
