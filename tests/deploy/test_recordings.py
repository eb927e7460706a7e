"""Recordings that an export is tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from stapes.deploy.recordings import (
    calibration_windows,
    clip_windows,
    clips_of_run,
    made_up_windows,
    recording_windows,
)
from stapes.errors import AudioError, StapesError
from stapes.inference.settings import AudioSettings

AUDIO = AudioSettings(
    sample_rate=8000, channels=1, window_seconds=0.5, hop_seconds=None, shorter="pad",
    longer="window",
)  # fmt: skip


def _wav(path: Path, level: float, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(int(8000 * seconds), level, np.float32), 8000, subtype="FLOAT")
    return path


def _table(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("path,label\n" + "".join(f"{n},a\n" for n in names), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for i in range(4):
        _wav(tmp_path / f"{i}.wav", i / 10)
    folder = tmp_path / "run"
    _table(folder / "clips.csv", [f"../{i}.wav" for i in range(4)])
    _table(folder / "1" / "seed-0" / "test.csv", [f"../../../{i}.wav" for i in range(2)])
    for place in (folder / "1" / "seed-0", folder, tmp_path):  # a model is where it is asked for
        (place / "model.safetensors").touch()
    return folder


def test_a_member_knows_what_it_is_tested_on(run: Path) -> None:
    found = clips_of_run(run / "1" / "seed-0" / "model.safetensors")
    assert [clip.path.name for clip in found.test] == ["0.wav", "1.wav"]
    assert [clip.path.name for clip in found.train] == ["2.wav", "3.wav"]
    assert clips_of_run(run / "1" / "seed-0") == found


def test_a_run_was_trained_on_all_and_a_lone_file_on_nothing_known(run: Path) -> None:
    assert len(clips_of_run(run).train) == 4
    assert clips_of_run(run).test == ()
    alone = clips_of_run(run.parent / "model.safetensors")
    assert alone.train == alone.test == ()


def test_a_shipped_models_name_has_no_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert clips_of_run("esc50-128kB").train == (), "not what lies in the working folder"


def test_recordings_that_have_gone_are_none(run: Path) -> None:
    for i in range(4):
        (run.parent / f"{i}.wav").unlink()
    assert clips_of_run(run).train == ()


def test_windows_of_clips_leave_the_unreadable_out(run: Path) -> None:
    clips = clips_of_run(run).train
    (run.parent / "1.wav").write_bytes(b"no audio")
    windows = clip_windows(clips, AUDIO, 10)
    assert windows is not None
    assert windows.shape == (3, 1, 4000)
    np.testing.assert_allclose(windows[:, 0, 0], [0, 0.2, 0.3], atol=1e-7)
    assert clip_windows(clips, AUDIO, 2).shape[0] == 2  # type: ignore[union-attr]
    assert clip_windows((), AUDIO, 2) is None


def test_windows_of_named_recordings(run: Path) -> None:
    folder = run.parent
    assert recording_windows([folder / "2.wav"], AUDIO, 5).shape == (2, 1, 4000)
    found = recording_windows([folder], AUDIO, 5)
    assert len(found) == 5
    assert {round(float(w[0, 0]), 1) for w in found} == {0.0, 0.1, 0.2, 0.3}
    with pytest.raises(AudioError):
        recording_windows([folder / "none.wav"], AUDIO, 5)
    (folder / "empty").mkdir()
    with pytest.raises(StapesError, match="no recordings found"):
        recording_windows([folder / "empty"], AUDIO, 5)


def test_windows_for_calibration_are_given_ones_or_those_of_training(run: Path) -> None:
    found = calibration_windows(run / "1" / "seed-0", AUDIO)
    assert found is not None
    np.testing.assert_allclose(found[:, 0, 0], [0.2, 0.3], atol=1e-7)
    given = calibration_windows(run / "1" / "seed-0", AUDIO, [run.parent / "1.wav"])
    assert given is not None
    np.testing.assert_allclose(given[:, 0, 0], [0.1, 0.1], atol=1e-7)
    assert calibration_windows(run.parent / "model.safetensors", AUDIO) is None


def test_made_up_windows_are_finite_and_their_channels_differ() -> None:
    stereo = AudioSettings(
        sample_rate=8000, channels=2, window_seconds=0.5, hop_seconds=None, shorter="pad",
        longer="window",
    )  # fmt: skip
    windows = made_up_windows(stereo)
    assert windows.shape == (8, 2, 4000)
    assert windows.dtype == np.float32
    assert np.abs(windows).max() <= 1.01
    np.testing.assert_allclose(windows[:, 1], windows[:, 0] / 2, rtol=1e-6)
    assert not windows[0].any()
    assert len({w.tobytes() for w in windows}) == 8
