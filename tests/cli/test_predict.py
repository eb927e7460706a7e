"""``stapes predict`` with an exported model, and what the light install can and cannot do."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from light_install import BLOCKED, COMMAND, without
from toy_onnx import RATE, positive

from stapes.errors import TRAINING_PACKAGES

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a Python that has none of the training packages."""
    return python(without(BLOCKED) + COMMAND, *arguments, stdin=stdin)


def python(
    code: str, *arguments: str | Path, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, input=stdin, env=dict(os.environ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(toy_onnx_file: Path) -> Path:
    return toy_onnx_file


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of 0.5, then half a second of -0.25."""
    path = tmp_path_factory.mktemp("clip") / "steps.wav"
    levels = np.repeat(np.array([0.5, -0.25], np.float32), RATE // 2)
    soundfile.write(path, levels, RATE, subtype="FLOAT")
    return path


HIGH, LOW = positive(0.5), positive(-0.25)  # of the two halves


def test_an_exported_model_answers_in_every_format(model: Path, clip: Path) -> None:
    score = round((HIGH + LOW) / 2, 4)
    csv_run = run("predict", model, clip, "--format", "csv")
    assert csv_run.stderr == ""
    assert list(csv.DictReader(csv_run.stdout.splitlines())) == [
        {"path": str(clip), "label": "positive", "score": str(score)}
    ]
    line = json.loads(run("predict", model.parent, clip, "--format", "jsonl").stdout)
    assert line == {"path": str(clip), "label": "positive", "score": score}
    table = run("predict", model, "-", "--top", "2", stdin=f"{clip}\n").stdout.splitlines()
    assert [row.split()[1:] for row in table] == [
        ["rank", "label", "score"], ["1", "positive", f"{score:.4f}"],
        ["2", "negative", f"{1 - score:.4f}"],
    ]  # fmt: skip


def test_a_timeline_with_two_thresholds_and_smoothing(model: Path, clip: Path) -> None:
    command = ("predict", model, clip, "--timeline", "--hop", "0.5", "--threshold", "0.9",
               "--format", "csv")  # fmt: skip
    (row,) = csv.DictReader(run(*command, "--release", "0.1").stdout.splitlines())
    assert (row["start"], row["end"], row["label"]) == ("0.0", "1.0", "positive")
    assert float(row["score"]) == pytest.approx((HIGH + LOW) / 2, abs=1e-4)
    # The mean of both windows leads with too little.
    assert len(run(*command, "--smoothing", "3").stdout.splitlines()) == 1
    wrong = run(*command, "--release", "0.95")
    assert wrong.stderr == "Error: --release 0.95: must be at most --threshold, which is 0.9.\n"
    wrong = run("predict", model, clip, "--smoothing", "2")
    assert wrong.stderr == "Error: --smoothing goes with --timeline.\n"


def test_a_timeline_of_an_exported_model(model: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "events.jsonl"
    done = run("predict", model, clip, "--timeline", "--hop", "0.5", "--format", "jsonl",
               "--out", out)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"path": str(clip), "start": 0, "end": 0.5, "label": "positive", "score": round(HIGH, 4)},
        {"path": str(clip), "start": 0.5, "end": 1, "label": "negative",
         "score": round(1 - LOW, 4)},
    ]  # fmt: skip


def test_mistakes_with_an_exported_model_are_one_sentence(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes().replace(b"positive", b"negative"))
    for arguments, words in (
        ((model, clip, "--device", "cuda"), "--device cuda"),
        ((model, clip, "--timeline", "--hop", "9"), "--hop 9"),
        ((damaged, clip), "does not match its digest"),
        ((tmp_path / "absent.onnx", clip), "absent.onnx: cannot read"),
    ):
        done = run("predict", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("Error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    done = run("predict", model, tmp_path / "absent.wav", clip, "--format", "csv")
    assert done.returncode == 1
    assert "absent.wav" in done.stderr
    assert "positive" in done.stdout


def test_predicting_imports_nothing_heavy(model: Path, clip: Path) -> None:
    """What is installed is not what is imported: here all of it could be."""
    code = (
        "import sys\nfrom stapes.cli import main\nsys.argv[0] = 'stapes'\n"
        "try:\n    main()\nfinally:\n    sys.stderr.write(' '.join(sys.modules))\n"
    )
    done = python(code, "predict", model, clip, "--format", "csv")
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "positive" in done.stdout
    assert "onnxruntime" in loaded
    assert not BLOCKED & loaded


def test_the_library_needs_no_typer_either(model: Path, clip: Path) -> None:
    code = (
        without([*TRAINING_PACKAGES, "typer", "click"])
        + "import stapes\nprint(stapes.load(sys.argv[1]).classify(sys.argv[2]).label)\n"
        "import stapes.runtime\nprint(*stapes.runtime.load(sys.argv[1]).labels)\n"
        "print(stapes.Prediction, stapes.Event, stapes.StapesError)"
    )
    done = python(code, model, clip)
    assert done.stderr == ""
    assert done.stdout.splitlines()[:2] == ["positive", "negative positive"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "recordings"),
        ("evaluate", "model.safetensors", "recordings"),
        ("inspect", "model.safetensors"),
        ("shrink", "run", "--size", "128kB"),
        ("data", "check", "recordings"),
    ],
)
def test_a_verb_that_needs_more_says_what_to_install(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f'Error: stapes {arguments[0]} needs the training packages: pip install "stapes[train]"\n'
    )


def test_a_trained_model_says_what_to_install(clip: Path) -> None:
    done = run("predict", "model.safetensors", clip)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: model.safetensors: a model that was not exported to ONNX needs the training "
        'packages: pip install "stapes[train]"\n'
    )


def test_the_library_says_what_to_install() -> None:
    code = without(TRAINING_PACKAGES) + (
        "import stapes\n"
        "for name in ('train', 'Classifier', 'load_bundle'):\n"
        "    try:\n        getattr(stapes, name)\n"
        "    except stapes.StapesError as error:\n        print(error)\n"
    )
    assert python(code).stdout.splitlines() == [
        f'stapes.{name} needs the training packages: pip install "stapes[train]"'
        for name in ("train", "Classifier", "load_bundle")
    ]


def test_a_fault_of_ours_is_no_missing_package() -> None:
    code = (
        "from stapes.errors import training_packages\n"
        "with training_packages('x'):\n    import stapes.not_there\n"
    )
    assert "ModuleNotFoundError: No module named 'stapes.not_there'" in python(code).stderr


def test_help_needs_no_training_packages() -> None:
    assert "predict" in run("--help").stdout
    assert "--size" in run("shrink", "--help").stdout


def test_the_training_packages_are_those_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        requirement.partition(">")[0].replace("-", "_")
        for requirement in project["optional-dependencies"]["train"]
    }
    assert names == TRAINING_PACKAGES
