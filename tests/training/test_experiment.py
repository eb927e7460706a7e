"""The main job on real recordings: a few drum hits, tiny network, seconds."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hits import LABELS, write_few_hits
from safetensors.torch import load_file

import stapes
from stapes.errors import ConfigError, DataError, StapesError
from stapes.evaluation.metrics import Score
from stapes.training.experiment import open_run
from stapes.training.finished import read_run

TINY = (
    "training.epochs=3", "model.width=4", "model.blocks=[2, 1, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5", "training.batch_size=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Up to four hits of three classes from every kit that has them, as a manifest of its own."""
    return write_few_hits(tmp_path_factory.mktemp("hits"))


@pytest.fixture(scope="module")
def trained(hits: Path, tmp_path_factory: pytest.TempPathFactory) -> stapes.training.TrainResult:
    out = tmp_path_factory.mktemp("run") / "run"
    cache = tmp_path_factory.mktemp("cache")
    return stapes.train(hits, overrides=TINY, out=out, cache=cache)


def test_a_run_leaves_model_score_report_and_recipe(
    trained: stapes.training.TrainResult,
) -> None:
    names = {path.name for path in trained.folder.iterdir()}
    assert {"model.safetensors", "report.html", "metrics.json", "recipe.toml"} <= names
    metrics = json.loads((trained.folder / "metrics.json").read_text())
    assert Score.from_json(metrics["pooled"]) == trained.score
    bundle = stapes.load_bundle(trained.folder)
    assert bundle.labels == tuple(sorted(LABELS))
    assert bundle.metadata["score"]["accuracy"]["value"] == trained.score.accuracy.value
    member = trained.members[0]
    sides = [
        {int(g) for g in trained.groups[part]} for part in (member.split.train, member.split.test)
    ]
    assert sides[0] & sides[1] == set(), "a kit on both sides"
    assert not list(trained.folder.rglob("checkpoint*")), "the optimiser's state is not kept"
    assert not list(trained.folder.rglob("*.partial"))


def test_statistics_come_from_the_training_part_only(
    trained: stapes.training.TrainResult, tmp_path: Path
) -> None:
    from stapes.data.loader import FeatureStore

    member = trained.members[0]
    frontend = member.bundle.frontend
    store = FeatureStore(
        trained.dataset.clips, trained.scans, frontend, trained.recipe.audio, tmp_path
    )
    store.prepare(range(len(trained.dataset)))
    rows = np.stack(
        [w.astype(np.float64) for i in member.split.train for w in store.windows(int(i))]
    )
    normalizer = member.bundle.normalizer
    np.testing.assert_allclose(normalizer.mean[0, :, 0], rows.mean((0, 1, 3)), rtol=1e-4)
    np.testing.assert_allclose(normalizer.std[0, :, 0], rows.std((0, 1, 3)), rtol=1e-3)


def test_evaluate_repeats_the_score(trained: stapes.training.TrainResult, tmp_path: Path) -> None:
    member = trained.members[0]
    result = stapes.evaluate(trained.model, member.folder / "test.csv", cache=tmp_path)
    assert result.score.accuracy == trained.score.accuracy
    np.testing.assert_allclose(result.probabilities, member.probabilities, atol=1e-5)


def test_a_run_folder_gives_its_recordings_and_parts_back(
    hits: Path, trained: stapes.training.TrainResult, tmp_path: Path
) -> None:
    dataset, recipe = read_run(trained.folder)
    assert recipe == trained.recipe
    assert [c.path.resolve() for c in dataset.clips] == [
        c.path.resolve() for c in trained.dataset.clips
    ]
    run, splits, _ = open_run(dataset, recipe, out=tmp_path / "again", cache=tmp_path)
    assert [split.name for split in splits] == ["official"]
    np.testing.assert_array_equal(splits[0].test, trained.members[0].split.test)
    np.testing.assert_array_equal(splits[0].train, trained.members[0].split.train)
    np.testing.assert_array_equal(run.groups, trained.groups)
    with pytest.raises(StapesError, match="no run folder"):
        read_run(hits.parent)
    (trained.folder / "clips.csv").rename(trained.folder / "gone")
    try:
        with pytest.raises(StapesError, match=r"no clips\.csv.*train nothing twice"):
            read_run(trained.folder)
    finally:
        (trained.folder / "gone").rename(trained.folder / "clips.csv")


def test_a_model_trained_in_low_precision_is_scored_as_it_will_be_used(
    hits: Path, trained: stapes.training.TrainResult, tmp_path: Path
) -> None:
    low = stapes.train(
        hits,
        overrides=[*TINY, "training.precision=bfloat16", "training.validation_fraction=0.2"],
        out=tmp_path / "run",
        cache=tmp_path,
    )
    member = low.members[0]
    result = stapes.evaluate(low.model, member.folder / "test.csv", cache=tmp_path)
    # A forward pass in bfloat16 would be off by some thousandths.
    np.testing.assert_allclose(result.probabilities, member.probabilities, atol=1e-6)
    plain = trained.members[0].bundle.network.state_dict()
    assert any(
        not torch.equal(tensor, plain[name])
        for name, tensor in member.bundle.network.state_dict().items()
    ), "it was trained in another precision"


def test_classify_agrees_with_evaluate(trained: stapes.training.TrainResult) -> None:
    classifier, member = stapes.load(trained.model), trained.members[0]
    for row, index in enumerate(member.split.test[:10]):
        prediction = classifier.classify(trained.dataset.clips[index].path)
        # Cached features are half precision: small differences are theirs.
        np.testing.assert_allclose(prediction.probabilities, member.probabilities[row], atol=0.02)


def test_the_same_command_again_changes_nothing(
    hits: Path, trained: stapes.training.TrainResult
) -> None:
    before = trained.model.read_bytes()
    again = stapes.train(hits, overrides=TINY, out=trained.folder)
    assert trained.model.read_bytes() == before
    assert again.score == trained.score


def test_another_run_in_the_same_folder_is_refused(
    hits: Path, trained: stapes.training.TrainResult, tmp_path: Path
) -> None:
    with pytest.raises(StapesError, match="holds a run with other data"):
        stapes.train(hits, overrides=TINY, out=trained.folder, seed=5)
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(StapesError, match="not empty"):
        stapes.train(hits, overrides=TINY, out=tmp_path)


def test_folds_seeds_and_a_final_model(hits: Path, tmp_path: Path) -> None:
    result = stapes.train(
        hits, overrides=[*TINY, "training.epochs=1"], out=tmp_path / "run", folds=3, n_seeds=2
    )
    assert len(result.members) == 6
    assert result.seeds is not None
    assert result.seeds.n_seeds == 2
    tested = np.concatenate([m.split.test for m in result.members if m.seed == 0])
    assert sorted(tested.tolist()) == list(range(len(result.dataset)))
    final = stapes.load_bundle(result.model)
    assert final.metadata["split"] == "all"
    assert final.metadata["data"]["train_clips"] == len(result.dataset)
    assert final.metadata["cross_validated_score"]["n_clips"] == result.score.n_clips
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_a_bad_recording_is_named_and_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, rate in (("low", 200.0), ("high", 2000.0)):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for i in range(6):
            tone = np.sin(2 * np.pi * rate * np.arange(4000) / 8000 + i) * 0.3
            noise = rng.standard_normal(4000) * 0.01
            soundfile.write(folder / f"{i}.wav", tone + noise, 8000)
    (tmp_path / "data" / "low" / "broken.wav").write_bytes(b"RIFF not audio at all")
    (tmp_path / "data" / "low" / "empty.flac").touch()

    class Notes:
        lines: list[str] = []  # noqa: RUF012

        def progress(self, *_: object) -> None: ...
        def status(self, *_: object) -> None: ...
        def note(self, text: str) -> None:
            self.lines.append(text)

    notes = Notes()
    result = stapes.train(tmp_path / "data", overrides=TINY, out=tmp_path / "run", reporter=notes)
    assert len(result.dataset) == 12
    assert any("broken.wav" in line for line in notes.lines)
    assert any("empty.flac" in line for line in notes.lines)
    assert any("2 recordings" in note for note in result.notes)


def test_a_shared_source_is_refused_unless_forced(hits: Path, tmp_path: Path) -> None:
    with hits.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    manifest = tmp_path / "leaky.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        for i, row in enumerate(rows):
            writer.writerow([*row.values(), "test" if i % 4 == 0 else "train"])
    with pytest.raises(DataError, match="both sides of a split"):
        stapes.train(manifest, overrides=TINY, out=tmp_path / "run")
    result = stapes.train(manifest, overrides=TINY, out=tmp_path / "run", force=True)
    assert any("both sides" in note for note in result.notes)


def _command(hits: Path, out: Path, *more: str) -> list[str]:
    settings = [part for setting in TINY for part in ("--set", setting)]
    return [sys.executable, "-m", "stapes", "train", str(hits), "--out", str(out), *settings, *more]


def test_killed_at_any_moment_the_same_command_ends_with_the_same_weights(
    hits: Path, trained: stapes.training.TrainResult, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    rng = random.Random(0)
    environment = {**os.environ, "STAPES_CACHE": str(tmp_path / "cache")}
    for _ in range(3):
        process = subprocess.Popen(
            _command(hits, out),
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:  # until the training itself has begun
            if line.startswith("Training"):
                break
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run(_command(hits, out), check=True, capture_output=True, env=environment)
    ours, whole = (load_file(f / "model.safetensors") for f in (out, trained.folder))
    assert ours.keys() == whole.keys()
    assert all(bool((ours[name] == whole[name]).all()) for name in ours)


def test_two_processes_train_together(hits: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [*launcher, *_command(hits, tmp_path / "run")[1:], "--device", "cpu"]
    environment = {**os.environ, "STAPES_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy") == 1, "only one process speaks"
    assert stapes.load(tmp_path / "run").labels == tuple(sorted(LABELS))
    shutil.rmtree(tmp_path / "run")


def test_curves_for_tensorboard_hold_the_log(hits: Path, tmp_path: Path) -> None:
    result = stapes.train(hits, overrides=TINY, out=tmp_path / "run", tensorboard=True)
    # In a process of its own: TensorBoard's reader warns about its own dependencies.
    code = (
        "import sys; from tensorboard.backend.event_processing.event_accumulator import "
        "EventAccumulator as E; e = E(sys.argv[1]); e.Reload(); "
        "print([s.value for s in e.Scalars('train_loss')])"
    )
    folder = result.members[0].folder / "tensorboard"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    losses = [row["train_loss"] for row in result.members[0].history]
    assert json.loads(done.stdout) == pytest.approx(losses, rel=1e-6)


def test_without_tensorboard_the_option_says_what_to_install(
    hits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stapes.training.tensorboard.find_spec", lambda _: None)
    with pytest.raises(StapesError, match=r"stapes\[tensorboard\]"):
        stapes.train(hits, overrides=TINY, out=tmp_path / "run", tensorboard=True)


def test_the_final_model_stops_early_by_clips_of_its_own(hits: Path, tmp_path: Path) -> None:
    overrides = [*TINY, "training.early_stopping_epochs=1", "training.validation_fraction=0.2"]
    result = stapes.train(hits, overrides=overrides, out=tmp_path / "run", folds=2)
    log = (tmp_path / "run" / "all" / "seed-0" / "log.jsonl").read_text().splitlines()
    assert all("validation_loss" in json.loads(line) for line in log)
    trained_on = stapes.load_bundle(result.model).metadata["data"]["train_clips"]
    assert 0.6 * len(result.dataset) < trained_on < len(result.dataset)


def test_fold_names_lead_nowhere_else(hits: Path, tmp_path: Path) -> None:
    names = [str(tmp_path / "elsewhere"), "..", "a/b:c?", "2%"]
    with hits.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kits = {
        row["group"]: names[i % 4] for i, row in enumerate({r["group"]: r for r in rows}.values())
    }
    manifest = tmp_path / "data" / "folds.csv"
    manifest.parent.mkdir()
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "fold"])
        writer.writerows([*row.values(), kits[row["group"]]] for row in rows)
    out = tmp_path / "runs" / "run"
    stapes.train(manifest, overrides=[*TINY, "training.epochs=1"], out=out, final=False)
    assert len(list(out.glob("*/seed-0/model.safetensors"))) == 4
    assert {p.name for p in tmp_path.iterdir()} == {"data", "runs"}
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["run"]


def test_what_a_killed_run_leaves_does_not_stop_the_next(hits: Path, tmp_path: Path) -> None:
    rest = tmp_path / "run" / ".plan.json.0a1b2c3d.partial"
    rest.parent.mkdir()
    rest.write_text("{")
    stapes.train(hits, overrides=TINY, out=tmp_path / "run")
    assert not rest.exists()


def test_another_test_part_is_another_run(hits: Path, tmp_path: Path) -> None:
    with hits.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tested = rows[0]["group"]
    manifest = tmp_path / "data.csv"

    def write(skipped: int) -> None:
        with manifest.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "group", "split"])
            for row in rows[skipped:]:
                writer.writerow([*row.values(), "test" if row["group"] == tested else "train"])

    write(0)
    stapes.train(manifest, overrides=TINY, out=tmp_path / "run")
    write(1)
    with pytest.raises(StapesError, match="holds a run with other data"):
        stapes.train(manifest, overrides=TINY, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"test_fraction": 5}, "--test-fraction 5"),
        ({"test_fraction": 0.0}, "--test-fraction 0"),
        ({"test_fraction": float("nan")}, "--test-fraction nan"),
        ({"seed": -1}, "--seed -1"),
        ({"n_seeds": 0}, "--seeds 0"),
    ],
)
def test_numbers_out_of_range_are_clear_errors(
    hits: Path, tmp_path: Path, wrong: dict[str, float], message: str
) -> None:
    with pytest.raises(StapesError, match=message):
        stapes.train(hits, overrides=TINY, out=tmp_path / "run", **wrong)  # type: ignore[arg-type]


def test_too_little_for_the_network_is_said_before_any_work(hits: Path, tmp_path: Path) -> None:
    overrides = [*TINY, "features.hop_length=9000"]
    with pytest.raises(ConfigError, match=r"32 bands and 2 frames, and the network needs"):
        stapes.train(hits, overrides=overrides, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_that_is_only_tested_is_noted(hits: Path, tmp_path: Path) -> None:
    with hits.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kits = sorted({row["group"] for row in rows})
    manifest = tmp_path / "data.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        for row in rows:
            split = "test" if row["group"] in kits[:2] else "train"
            if split == "test" or row["label"] != "kick":
                writer.writerow([*row.values(), split])
    result = stapes.train(manifest, overrides=TINY, out=tmp_path / "run")
    assert any("'kick' is tested but never trained" in note for note in result.notes)


def test_a_folder_that_another_process_trains_into_is_refused(hits: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(StapesError, match="another process is training"),
    ):
        stapes.train(hits, overrides=TINY, out=tmp_path / "run")


def test_one_class_can_be_scored_but_not_trained_on(
    trained: stapes.training.TrainResult, tmp_path: Path
) -> None:
    kicks = [clip for clip in trained.dataset.clips if clip.label == "kick"][:4]
    manifest = tmp_path / "kicks.csv"
    lines = [f"{clip.path},kick" for clip in kicks]
    manifest.write_text("\n".join(["path,label", *lines]) + "\n")
    assert stapes.evaluate(trained.model, manifest, cache=tmp_path).score.n_clips == 4
    with pytest.raises(DataError, match="only one class"):
        stapes.train(manifest, overrides=TINY, out=tmp_path / "run")
