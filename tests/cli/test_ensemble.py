"""``stapes ensemble`` and ``stapes train --ensemble`` as a user types them, on real recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hits import write_few_hits
from typer.testing import CliRunner

import stapes
from stapes.bundle import save_bundle
from stapes.cli.app import app
from stapes.errors import ConfigError, StapesError
from stapes.evaluation.metrics import Score, score

TINY = [
    part
    for setting in (
        "training.epochs=2", "model.width=4", "model.blocks=[2, 0, 0]", "features.n_mels=32",
        "audio.window_seconds=0.5", "training.batch_size=16",
    )
    for part in ("--set", setting)
]  # fmt: skip


def run(*arguments: str | Path | int, status: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few_hits(tmp_path_factory.mktemp("hits"))


@pytest.fixture(scope="module")
def folder(hits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One split, two seeds, averaged."""
    out = tmp_path_factory.mktemp("run") / "run"
    run("train", hits, "--seeds", 2, "--ensemble", "-o", out, *TINY)
    return out


@pytest.fixture(scope="module")
def folds(hits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds, two seeds, averaged."""
    out = tmp_path_factory.mktemp("run") / "run"
    run("train", hits, "--folds", 2, "--seeds", 2, "--ensemble", "-o", out, *TINY)
    return out


def only(paths: list[Path]) -> Path:
    (path,) = paths
    return path


def test_the_runs_model_is_the_mean_of_its_seeds(folder: Path) -> None:
    table = only(list(folder.glob("*/seed-0/test.csv")))
    members = [stapes.evaluate(m, table) for m in sorted(folder.glob("*/seed-*"))]
    assert len(members) == 2
    found = stapes.evaluate(folder, table)
    mean = np.mean([member.probabilities for member in members], axis=0)
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-6)
    assert np.abs(members[0].probabilities - members[1].probabilities).max() > 0.01
    tree = json.loads((folder / "metrics.json").read_text())
    averaged = Score.from_json(tree["ensemble"]["score"])
    assert averaged.accuracy == found.score.accuracy
    assert averaged.n_clips == len(found.targets), "each clip once"
    assert tree["pooled"]["n_clips"] == 2 * averaged.n_clips, "the single models beside it"
    facts = stapes.load_bundle(folder).metadata
    assert facts["score"] == tree["ensemble"]["score"]
    assert [member["seed"] for member in facts["members"]] == [0, 1]


def test_what_is_told_is_what_is_stored(folder: Path, hits: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob("*/seed-*/model.*")}
    model = (folder / "model.safetensors").read_bytes()
    text, log = run("train", hits, "--seeds", 2, "--ensemble", "-o", folder, *TINY)
    assert "epoch" not in log, "nothing is trained twice"
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before}
    # The command is that of the process, which runs the tests: the same one.
    assert (folder / "model.safetensors").read_bytes() == model
    tree = json.loads((folder / "metrics.json").read_text())["ensemble"]
    accuracy, together = tree["score"]["accuracy"], tree["agreement"]
    page = (folder / "report.html").read_text()
    for where in (text, page):
        assert f"{100 * accuracy['value']:.1f} %" in where
        assert f"{100 * together['pairs']:.1f} %" in where
        assert f"{100 * tree['gain']['value']:+.1f}" in where
    assert "Ensemble of 2" in page
    assert "Member 2" in page


def test_seeds_trained_before_are_averaged_and_a_lost_one_is_trained_again(
    folder: Path, hits: Path, tmp_path: Path
) -> None:
    arguments = ("train", hits, "--seeds", 2, "-o", tmp_path / "run", *TINY)
    run(*arguments)
    assert stapes.load_bundle(tmp_path / "run").network.settings()["name"] == "cp_resnet"
    assert "ensemble" not in json.loads((tmp_path / "run" / "metrics.json").read_text())
    only(list(tmp_path.glob("run/*/seed-1/model.safetensors"))).unlink()
    _, log = run(*arguments, "--ensemble")
    assert "(2 of 2): epoch 2/2" in log
    assert "(1 of 2)" not in log
    again = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert again == (folder / "model.safetensors").read_bytes()


def test_folds_are_averaged_over_seeds_and_the_model_is_that_of_all_clips(folds: Path) -> None:
    tree = json.loads((folds / "metrics.json").read_text())
    averaged = Score.from_json(tree["ensemble"]["score"])
    assert averaged.n_clips == 108
    assert sorted(tree["ensemble"]["folds"]) == ["1", "2"]
    # By hand, from the files: each clip was tested by two models of its fold.
    parts = []
    for fold in ("1", "2"):
        each = [stapes.evaluate(p, p / "test.csv") for p in sorted((folds / fold).glob("seed-*"))]
        assert len(each) == 2
        mean = np.mean([one.probabilities for one in each], axis=0)
        own = score(mean, each[0].targets, each[0].groups, each[0].labels)
        stored = Score.from_json(tree["ensemble"]["folds"][fold])
        assert stored.confusion == own.confusion
        assert stored.log_loss.value == pytest.approx(own.log_loss.value, abs=1e-4)
        parts.append(own)
    assert averaged.confusion == np.sum([p.confusion for p in parts], axis=0).tolist()
    facts = stapes.load_bundle(folds).metadata
    assert [(m["split"], m["seed"]) for m in facts["members"]] == [("all", 0), ("all", 1)]
    assert facts["cross_validated_score"] == tree["ensemble"]["score"]
    assert facts["cross_validated_seeds"] == 1
    text, _ = run("inspect", folds)
    assert f"{100 * averaged.accuracy.value:.1f} %" in text
    assert "108 clips" in text


def test_models_are_joined_and_scored(folder: Path, tmp_path: Path) -> None:
    table = only(list(folder.glob("*/seed-0/test.csv")))
    out = tmp_path / "new" / "joint.safetensors"
    arguments = ("ensemble", *sorted(folder.glob("*/seed-*")), "-o", out, "--data", table)
    tree = json.loads(run(*arguments, "--format", "json")[0])
    stored = json.loads((folder / "metrics.json").read_text())["ensemble"]
    assert tree["members"] == stored["members"], "accuracies, with their intervals"
    assert tree["origins"] == stapes.load_bundle(folder).metadata["members"]
    for key in ("gain", "agreement"):
        assert tree[key] == pytest.approx(stored[key])
    assert tree["score"]["accuracy"] == stored["score"]["accuracy"]
    found, whole = stapes.evaluate(out, table), stapes.evaluate(folder, table)
    np.testing.assert_allclose(found.probabilities, whole.probabilities, atol=1e-6)
    text, _ = run(*arguments)
    for member in folder.glob("*/seed-*"):
        assert str(member) in text
    accuracy = stored["score"]["accuracy"]
    assert f"ensemble   {100 * accuracy['value']:.1f} % ({100 * accuracy['low']:.1f} to" in text
    assert f"two members name {100 * stored['agreement']['pairs']:.1f} %" in text
    assert str(out) in text


def test_a_run_stands_for_its_model_or_for_all_of_them(folds: Path, tmp_path: Path) -> None:
    out = tmp_path / "joint.safetensors"
    text, _ = run("ensemble", folds, "--members", "-o", out)
    assert len(stapes.load_bundle(out).network.members) == 6
    assert "accuracy" not in text
    run("ensemble", folds, folds / "1" / "seed-0", "-o", out)
    kinds = [m["network"] for m in stapes.load_bundle(out).metadata["members"]]
    assert kinds == ["ensemble", "cp_resnet"]
    with pytest.raises(StapesError, match=r"two models or more.*--members"):
        run("ensemble", folds, "-o", out)


def test_wrong_use_is_a_clear_sentence(folder: Path, hits: Path, tmp_path: Path) -> None:
    one, two = sorted(folder.glob("*/seed-*"))
    other = tmp_path / "other.safetensors"
    bundle = stapes.load_bundle(two)
    save_bundle(type(bundle)(**{**vars(bundle), "labels": bundle.labels[::-1]}), other)
    out = tmp_path / "joint.safetensors"
    with pytest.raises(StapesError, match=r"other\.safetensors: has its labels in another order"):
        run("ensemble", one, other, "-o", out)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((two / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(StapesError, match=r"broken\.safetensors: .*truncated"):
        run("ensemble", one, broken, "-o", out)
    assert not out.exists()
    before = (one / "model.safetensors").read_bytes()
    with pytest.raises(StapesError, match="is one of the members"):
        run("ensemble", one, two, "-o", one / "model.safetensors")
    assert (one / "model.safetensors").read_bytes() == before
    with pytest.raises(StapesError, match="--data, which is not given"):
        run("ensemble", one, two, "-o", out, "--corpus", "esc10")
    with pytest.raises(StapesError, match="--seeds 2 or more"):
        run("train", hits, "--ensemble", "-o", tmp_path / "run", *TINY)
    with pytest.raises(ConfigError, match="int8 networks cannot be members"):
        run("train", hits, "--ensemble", "--seeds", 2, "-o", tmp_path / "run", *TINY,
            "--set", "quantization.precision=int8")  # fmt: skip
    assert not (tmp_path / "run").exists()
