"""The commands as a user types them, on real recordings."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from damage import damaged_files

import stapes
from stapes.config import Recipe

ROOT = Path(__file__).resolve().parents[2]
HITS = ROOT / "examples" / "drum-hits"


def run(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stapes", *map(str, arguments)],
        capture_output=True, text=True, input=stdin, env=dict(os.environ),
    )  # fmt: skip


def assert_clear(done: subprocess.CompletedProcess[str], *words: str, status: int = 2) -> None:
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickly trained model of drum hits."""
    result = stapes.train(
        HITS,
        overrides=["training.epochs=1", "model.width=4", "model.blocks=[2, 0, 0]",
                   "features.n_mels=32", "audio.window_seconds=0.5"],
        out=tmp_path_factory.mktemp("run") / "run",
        cache=tmp_path_factory.mktemp("cache"),
    )  # fmt: skip
    return result.model


@pytest.fixture(scope="module")
def hit() -> Path:
    return sorted((HITS / "audio").rglob("*.ogg"))[0]


def test_help_names_every_verb_and_costs_no_torch() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb in (
        "train", "predict", "evaluate", "inspect", "data", "recipes", "cache", "compare",
        "quantize", "shrink", "explain", "reproduce", "ensemble",
    ):  # fmt: skip
        assert verb in done.stdout
    code = "import sys, stapes.cli.app; assert not {'torch', 'numpy', 'polars'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version() -> None:
    assert run("--version").stdout == f"stapes {stapes.__version__}\n"


def test_unknown_options_are_one_sentence() -> None:
    assert_clear(run("train", "--folsd", "5", "x"), "--folsd")
    assert_clear(run("predict"), "Missing argument")


def test_predict_csv_jsonl_and_table_say_the_same(model: Path, hit: Path) -> None:
    table = run("predict", model, hit)
    assert table.returncode == 0, table.stderr
    row = next(csv.DictReader(run("predict", model, hit, "--format", "csv").stdout.splitlines()))
    line = json.loads(run("predict", model, hit, "--format", "jsonl").stdout)
    expected = stapes.load(model).classify(hit)
    assert row["label"] == line["label"] == expected.label
    assert float(row["score"]) == line["score"] == pytest.approx(expected.score, abs=1e-4)
    assert expected.label in table.stdout


def test_predict_top_lists_labels_best_first(model: Path, hit: Path) -> None:
    lines = run("predict", model, hit, "--top", "3", "--format", "jsonl").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0]["score"] >= rows[1]["score"] >= rows[2]["score"]


def test_predict_reads_names_from_standard_input(model: Path, hit: Path) -> None:
    done = run("predict", model, "-", "--format", "csv", stdin=f"{hit}\n\n{hit}\n")
    assert len(done.stdout.splitlines()) == 3


def test_timeline_writes_events_that_do_not_overlap(model: Path, hit: Path, tmp_path: Path) -> None:
    hits = sorted((HITS / "audio").rglob("*.ogg"))[:300:10]
    waveform = np.concatenate([soundfile.read(p, dtype="float32")[0] for p in hits])
    soundfile.write(tmp_path / "long.flac", waveform, 22050)
    out = tmp_path / "events.csv"
    done = run("predict", model, tmp_path / "long.flac", "--timeline", "--hop", "0.1",
               "--format", "csv", "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert float(rows[0]["start"]) == 0
    assert float(rows[-1]["end"]) == pytest.approx(len(waveform) / 22050, abs=0.01)
    for before, after in itertools.pairwise(rows):
        assert float(before["end"]) == float(after["start"])
        assert before["label"] != after["label"]


def test_damaged_files_are_named_and_the_good_ones_done(
    model: Path, hit: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    bad = damaged_files(folder, [hit], 200, seed=0)
    good = folder / "zz-good.ogg"
    shutil.copy(hit, good)
    out = tmp_path / "out.csv"
    done = run("predict", model, folder, "--format", "csv", "--out", out)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    answered = {row["path"] for row in csv.DictReader(out.read_text().splitlines())}
    assert str(good) in answered
    for path in bad:
        # Some damage leaves sound that can be decoded; each file is answered or named.
        assert (str(path) in answered) != (f"Error: {path}: " in done.stderr), path


def test_wrong_use_is_a_clear_sentence(model: Path, hit: Path, tmp_path: Path) -> None:
    assert_clear(run("predict", tmp_path / "no.safetensors", hit), "no.safetensors")
    assert_clear(run("predict", model, tmp_path), "no recordings found")
    assert_clear(run("predict", model, hit, "--hop", "1"), "--timeline")
    assert_clear(run("predict", model, hit, "--timeline", "--hop", "9"), "--hop 9")
    assert_clear(run("predict", model, hit, "--timeline", "--hop", "1e-9"), "--hop 1e-09")
    assert_clear(run("predict", model, hit, "--device", "cuda:77x"), "--device cuda:77x")
    assert_clear(run("predict", model, "x" * 300), "too long")
    assert_clear(run("evaluate", model, HITS, "--device", "toaster"), "--device toaster")
    assert_clear(run("train", HITS, "--test-fraction", "5"), "--test-fraction 5")
    assert_clear(run("train", HITS, "--seed", "-1"), "--seed")
    assert_clear(run("predict", model, hit, "--out", hit / "below.csv"), "cannot write here")
    assert_clear(run("predict", hit, hit), "not a stapes model file")
    assert_clear(run("train", tmp_path / "nowhere"), "nowhere")
    assert_clear(run("train", HITS, "--recipe", "smal"), "Did you mean 'small'")
    assert_clear(run("train", HITS, "--set", "training.epoch=3"), "Did you mean 'epochs'")
    assert_clear(run("evaluate", model, HITS, "--fold", "7"), "--fold 7")
    assert_clear(run("recipes", "nothing"), "Unknown recipe")


def test_a_missing_recording_is_reported_and_the_rest_done(model: Path, hit: Path) -> None:
    done = run("predict", model, "missing.wav", hit, "--format", "csv")
    assert_clear(done, "missing.wav", "1 of 2", status=1)
    assert len(done.stdout.splitlines()) == 2


def test_inspect_gives_the_facts(model: Path) -> None:
    text = run("inspect", model).stdout
    for word in ("kick", "22050 Hz", "cp_resnet", "receptive field", "accuracy", "drum-hits"):
        assert word in text, text
    tree = json.loads(run("inspect", model, "--format", "json").stdout)
    network = stapes.load_bundle(model).network
    assert tree["model"]["parameters"] == sum(p.numel() for p in network.parameters())


def test_evaluate_repeats_the_run(model: Path) -> None:
    test = model.parent / "held-out" / "seed-0" / "test.csv"
    tree = json.loads(run("evaluate", model, test, "--format", "json").stdout)
    metrics = json.loads((model.parent / "metrics.json").read_text())
    assert tree["accuracy"] == metrics["pooled"]["accuracy"]


def test_compare_says_that_a_run_equals_itself(model: Path, tmp_path: Path) -> None:
    done = run("compare", model.parent, model.parent, "--format", "json")
    first, second = json.loads(done.stdout)
    metrics = json.loads((model.parent / "metrics.json").read_text())
    assert first["accuracy"] == metrics["pooled"]["accuracy"]
    assert second["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    # As a search leaves it: one model and its test part.
    (tmp_path / "shrunk").mkdir()
    member = next(model.parent.glob("*/seed-*"))
    (tmp_path / "shrunk" / "model.safetensors").write_bytes(model.read_bytes())
    tested = stapes.data.load_dataset(member / "test.csv", min_classes=1)
    stapes.data.write_manifest(tmp_path / "shrunk" / "test.csv", tested.clips)
    done = run("compare", model.parent, tmp_path / "shrunk", "--format", "json")
    assert json.loads(done.stdout)[1]["difference"]["value"] == 0.0
    assert_clear(run("compare", model.parent, tmp_path), str(tmp_path), "no finished model")


def test_quantize_takes_a_run_that_was_stopped_after_its_last_network(
    model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model.parent, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    done = run("quantize", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run-int8" / "model.safetensors").is_file()
    assert_clear(run("quantize", tmp_path / "run-int8"), "int8 already")


def test_data_check_lists_what_is_wrong(hit: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
    shutil.copy(hit, tmp_path / "a" / "one.ogg")
    shutil.copy(hit, tmp_path / "b" / "two.ogg")
    soundfile.write(tmp_path / "a" / "silent.wav", np.zeros(8000), 8000)
    (tmp_path / "b" / "empty.wav").touch()
    done = run("data", "check", tmp_path)
    assert done.returncode == 1
    for word in ("silent.wav", "empty.wav", "one.ogg", "two.ogg", "label-conflict"):
        assert word in done.stdout, done.stdout


def test_recipes_and_cache_print() -> None:
    assert "small" in run("recipes").stdout
    assert run("recipes", "small").stdout.startswith("#")
    fields = run("recipes", "--fields").stdout
    for section in set(Recipe.model_fields) - {"name", "description"}:
        assert f"[{section}]" in fields
    assert "MB" in run("cache").stdout
    assert "freed" in run("cache", "--clear").stdout
    assert "esc50" in run("data", "corpora").stdout


@pytest.mark.skipif(os.name != "posix", reason="file names are text elsewhere")
def test_names_that_are_not_utf8_come_back_as_they_are(
    model: Path, hit: Path, tmp_path: Path
) -> None:
    name = os.fsencode(tmp_path) + b"/h\xfcnd.ogg"
    shutil.copy(hit, name)
    stapes_predict = [sys.executable, "-m", "stapes", "predict", str(model), "--format", "csv"]
    out = tmp_path / "out.csv"
    done = subprocess.run([*stapes_predict, name], capture_output=True, check=True)
    listed = subprocess.run([*stapes_predict, "-"], input=name, capture_output=True, check=True)
    subprocess.run([*stapes_predict, name, "--out", str(out)], check=True)
    assert name in done.stdout
    assert done.stdout == listed.stdout == out.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_output_that_goes_nowhere_is_no_traceback() -> None:
    # Buffered, as for a user, so that the end of the output is written at the very end.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, env=environment
        )

    command = f"{sys.executable} -m stapes recipes small"
    assert shell(f"{command} | true").stderr == ""
    if Path("/dev/full").exists():
        full = shell(f"{command} > /dev/full")
        assert full.stderr.startswith("Error: No space left on device")
        assert len(full.stderr.splitlines()) == 1
        assert full.returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="signals differ elsewhere")
def test_stopped_from_the_keyboard(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "stapes", "train", str(HITS), "--out", str(tmp_path / "run"),
         "--set", "training.epochs=500", "--set", "model.width=4"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Reading"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Stopped." in errors
    assert "Traceback" not in errors
