"""``stapes explain`` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from typer.testing import CliRunner

import stapes
from stapes.cli.app import app
from stapes.errors import StapesError

HITS = Path(__file__).resolve().parents[2] / "examples" / "drum-hits"


def run(*arguments: str | Path, status: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickly trained, damped model of drum hits, in its run folder."""
    result = stapes.train(
        HITS,
        overrides=["training.epochs=1", "model.width=4", "model.blocks=[2, 0, 0]", "model.rho=3",
                   "model.damping=0.1", "features.n_mels=48", "audio.window_seconds=0.5"],
        out=tmp_path_factory.mktemp("run") / "run",
        cache=tmp_path_factory.mktemp("cache"),
    )  # fmt: skip
    return result.model


def test_a_run_is_measured_on_its_test_recordings(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "field.svg"
    text, _ = run("explain", "--receptive-field", model.parent, "--most", 6, "-o", out)
    assert out.read_bytes().startswith(b"<?xml")
    for word in ("6 recordings", "before damping", "with damping 0.1", "theoretical", str(out)):
        assert word in text, text
    data, _ = run("explain", "--receptive-field", model, "--most", 6, "-o", out,
                  "--format", "json")  # fmt: skip
    tree = json.loads(data)
    field = stapes.receptive_field(stapes.load_bundle(model).network)
    assert tree["theoretical"]["bins"] == field.frequency.size
    assert tree["n_clips"] == 6
    assert tree["picture"] == str(out)
    after, before = tree["effective"], tree["before_damping"]
    assert after["deviation"]["bins"] < before["deviation"]["bins"]
    assert after["share_50"]["bins"] <= after["share_95"]["bins"] <= field.frequency.size


def test_the_same_clips_and_seed_give_the_same_picture(model: Path, tmp_path: Path) -> None:
    hits = sorted((HITS / "audio").rglob("*.ogg"))[:3]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        run("explain", "--receptive-field", model, *hits, "-o", path, "--seed", seed)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes() != paths[2].read_bytes()


def test_the_picture_has_a_name_of_its_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("explain", "--receptive-field", model, "--most", 2)
    assert (tmp_path / "receptive-field.png").is_file()


def test_a_bad_recording_is_named_and_the_rest_used(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    shutil.copy(sorted((HITS / "audio").rglob("*.ogg"))[0], tmp_path / "good.ogg")
    text, errors = run("explain", "--receptive-field", model, tmp_path,
                       "-o", tmp_path / "a.png", status=1)  # fmt: skip
    assert "on 1 recording;" in text
    assert "bad.wav" in errors
    assert (tmp_path / "a.png").is_file()


def test_a_longer_recording_counts_once_by_its_middle(model: Path, tmp_path: Path) -> None:
    waveform = torch.randn(22050 * 3, generator=torch.Generator().manual_seed(0)) * 0.1
    middle = waveform[22050 * 5 // 4 : 22050 * 7 // 4]  # the window has half a second
    for name, sound in (("long", waveform), ("middle", middle)):
        soundfile.write(tmp_path / f"{name}.wav", sound.numpy(), 22050, subtype="FLOAT")
    found = [
        run("explain", "--receptive-field", model, tmp_path / f"{name}.wav",
            "-o", tmp_path / "a.png", "--format", "json")[0]
        for name in ("long", "middle")
    ]  # fmt: skip
    assert found[0] == found[1]
    assert json.loads(found[0])["n_clips"] == 1


def test_wrong_use_is_a_clear_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StapesError, match="--receptive-field"):
        run("explain", model)
    with pytest.raises(StapesError, match=r"field\.jpg"):
        run("explain", "--receptive-field", model, "-o", tmp_path / "field.jpg")
    with pytest.raises(StapesError, match="no recordings"):
        run("explain", "--receptive-field", model, tmp_path)
    alone = shutil.copy(model, tmp_path / "alone.safetensors")
    with pytest.raises(StapesError, match="name some recordings"):
        run("explain", "--receptive-field", alone)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(StapesError, match="No recording could be read"):
        run("explain", "--receptive-field", alone, tmp_path / "bad.wav")
    with pytest.raises(StapesError, match="missing"):
        run("explain", "--receptive-field", tmp_path / "missing.safetensors")
    assert not (tmp_path / "receptive-field.png").exists()


def test_what_in_a_recording_decided(model: Path, tmp_path: Path) -> None:
    hit = sorted((HITS / "audio").rglob("*.ogg"))[0]
    picture, sound = tmp_path / "deep" / "a.png", tmp_path / "deep" / "a.wav"
    text, _ = run("explain", "--integrated-gradients", model.parent, hit, "-o", picture,
                  "--audio", sound)  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")
    for word in (str(hit), "probability", "Integrated Gradients", "deletion", "insertion",
                 "moved elsewhere", str(picture), str(sound)):  # fmt: skip
        assert word in text, text
    data, _ = run("explain", "--integrated-gradients", model, hit, "-o", picture,
                  "--audio", sound, "--share", "1", "--format", "json")  # fmt: skip
    (tree,) = json.loads(data)["explanations"]
    prediction = stapes.load(model).classify(hit)
    assert tree["predicted"] == tree["label"] == prediction.label
    assert tree["probability"] == pytest.approx(prediction.score, abs=1e-4)
    assert tree["completeness_error"] < 0.01
    assert tree["audible"]["share_of_attribution"] == 1
    for kind in ("deletion", "insertion"):
        assert set(tree[kind]) == {"area", "moved", "random"}
    heard, rate = soundfile.read(sound)
    assert len(heard) == round(0.5 * rate)
    assert heard.any()


def test_grad_cam_of_a_label_at_a_block(model: Path, tmp_path: Path) -> None:
    hit = sorted((HITS / "audio").rglob("*.ogg"))[0]
    bundle = stapes.load_bundle(model)
    data, _ = run("explain", "--grad-cam", model, hit, "--label", bundle.labels[1], "--block",
                  "stage1.block1", "-o", tmp_path / "a.svg", "--format", "json")  # fmt: skip
    (tree,) = json.loads(data)["explanations"]
    assert (tree["label"], tree["block"]) == (bundle.labels[1], "stage1.block1")
    assert "Grad-CAM at stage1.block1" in (tmp_path / "a.svg").read_text()
    assert "steps" not in tree


def test_several_windows_and_recordings_are_numbered(model: Path, tmp_path: Path) -> None:
    noise = torch.randn(22050 * 3, generator=torch.Generator().manual_seed(0)) * 0.1
    soundfile.write(tmp_path / "b.wav", noise[: 22050 * 6 // 5].numpy(), 22050)
    (tmp_path / "c.wav").write_bytes(b"no sound")
    shutil.copy(sorted((HITS / "audio").rglob("*.ogg"))[0], tmp_path / "a.ogg")
    out = tmp_path / "pictures" / "cam.png"
    data, errors = run("explain", "--grad-cam", model, tmp_path, "--all-windows", "-o", out,
                       "--format", "json", status=1)  # fmt: skip
    trees = json.loads(data)["explanations"]
    at = [(Path(tree["recording"]).name, tree["start"]) for tree in trees]
    first = at.index(("b.wav", 0.0))
    assert all(name == "a.ogg" for name, _ in at[:first])
    hop = stapes.load_bundle(model).recipe.audio.hop_seconds or 0.5
    assert at[first + 1] == ("b.wav", pytest.approx(hop))
    assert at[-1] == ("b.wav", pytest.approx(0.7))
    assert sorted(out.parent.iterdir()) == sorted(
        out.with_name(f"cam-{i + 1}.png") for i in range(len(trees))
    )
    assert [tree["picture"] for tree in trees] == [
        str(out.with_name(f"cam-{i + 1}.png")) for i in range(len(trees))
    ]
    assert "c.wav" in errors


def test_wrong_use_of_attributions(model: Path, tmp_path: Path) -> None:
    hit = sorted((HITS / "audio").rglob("*.ogg"))[0]
    for options, problem in (
        (["--integrated-gradients", "--grad-cam"], "one at a time"),
        (["--integrated-gradients", "--block", "stem"], "--block does not go"),
        (["--receptive-field", "--label", "snare"], "--label does not go"),
        (["--grad-cam", "--against", "random"], "--against does not go"),
        (["--grad-cam", "--share", "0.5"], "--share goes with --audio"),
        (["--grad-cam", "--audio", "a.wav", "--share", "2"], "--share 2"),
        (["--grad-cam", "--audio", "a.mp3"], r"a\.mp3"),
        (["--grad-cam", "-o", "a.jpg"], r"a\.jpg"),
        (["--grad-cam", "--label", "no such"], "Unknown label 'no such'"),
        (["--grad-cam", "--block", "stage9"], "Unknown block 'stage9'"),
    ):
        with pytest.raises(StapesError, match=problem):
            run("explain", *options[:1], model, hit, *options[1:])
    with pytest.raises(StapesError, match="Name the recording"):
        run("explain", "--grad-cam", model)
    assert not list(tmp_path.iterdir())
