"""Searches whose candidates learn from other models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stapes
from stapes.bundle import load_bundle, save_bundle
from stapes.config import InitializationConfig, load_recipe
from stapes.errors import DataError, StapesError
from stapes.models.weights import file_sha256
from stapes.shrinking import ShrinkResult, shrink
from stapes.shrinking.candidates import Choice, fit_recipe
from stapes.shrinking.costs import Gauge
from stapes.shrinking.limits import Limits
from stapes.training.experiment import open_run
from stapes.training.finished import read_run
from stapes.training.reporter import Silent
from stapes.training.teachers import taught_by

SIZE = "9kB"


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def _members(folder: Path) -> list[Path]:
    return sorted(folder.rglob("seed-0/model.safetensors"))


def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr("stapes.evaluation.report.write_report", lambda *_: None)
    monkeypatch.setattr("stapes.shrinking.search.draw_tradeoff", lambda *_: None)


@pytest.fixture(scope="module")
def found(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ShrinkResult:
    out = tmp_path_factory.mktemp("taught") / "out"
    with pytest.MonkeyPatch.context() as patch:
        _without_figures(patch)
        return shrink(toy_run, size=SIZE, trials=1, out=out, teachers=[toy_run])


def test_every_candidate_and_the_model_are_taught(found: ShrinkResult, toy_run: Path) -> None:
    taught = [*_members(found.folder), found.model]
    assert len(taught) == 4, "the reference, a trial, the best one on all, and what is delivered"
    digest = file_sha256(toy_run / "held-out" / "seed-0" / "model.safetensors")
    for path in taught:
        (teacher,) = load_bundle(path).metadata["teachers"]
        assert teacher["sha256"] == digest
        assert teacher["split"] == "held-out"
    for trial in found.trials:
        assert trial.recipe is not None
        assert trial.recipe.distillation.teachers == (str(toy_run),)
    assert found.notes == ()
    assert found.model.stat().st_size <= 9000


def test_another_teacher_is_another_search(
    found: ShrinkResult, toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StapesError, match=r"another run, .*--teacher"):
        shrink(toy_run, size=SIZE, trials=1, out=found.folder)
    # The same one at another place is the same search: nothing is trained again.
    _without_figures(monkeypatch)
    monkeypatch.setattr("stapes.training.members.fit", lambda *_: pytest.fail("trained again"))
    copy = toy_run.with_name("copy-of-run")
    shutil.copytree(toy_run, copy)
    again = shrink(toy_run, size=SIZE, trials=1, out=found.folder, teachers=[copy])
    assert again.score == found.score


def test_a_trial_goes_on_when_its_teacher_has_moved(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial's recipe, kept in a table, names the old place."""
    _without_figures(monkeypatch)
    first, second = toy_run.with_name("first"), toy_run.with_name("second")
    shutil.copytree(toy_run, first)

    class Stopped(Silent):
        def progress(self, stage: str, done: float, total: float) -> None:
            if stage == "Trial 1 of 1":
                raise KeyboardInterrupt

    arguments: dict[str, Any] = {
        "size": SIZE, "trials": 1, "out": tmp_path / "out", "refit": False,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        shrink(toy_run, teachers=[first], reporter=Stopped(), **arguments)
    first.rename(second)
    result = shrink(toy_run, teachers=[second], **arguments)
    assert len(load_bundle(result.model).metadata["teachers"]) == 1
    assert len(result.trials) == 2


def test_a_teacher_that_has_heard_the_test_part_is_refused(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the run itself has been accepted, with whatever taught it."""
    other = toy_run.with_name("other-test-part")
    shutil.copytree(toy_run, other)
    table = other / "held-out" / "seed-0" / "test.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join(lines[:-3]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"may have learnt 3 of the \d+ clips"):
        shrink(toy_run, size=SIZE, trials=1, out=tmp_path / "out", teachers=[other])
    # A run that was trained with it, and --force, is shrunk with it.
    recipe = (other / "recipe.toml").read_text(encoding="utf-8")
    assert "teachers = []" in recipe
    teachers = f"teachers = {json.dumps([str(other)])}"
    (other / "recipe.toml").write_text(recipe.replace("teachers = []", teachers), encoding="utf-8")
    monkeypatch.setattr("stapes.shrinking.search._Search.carry_out", lambda self, **_: self)
    notes = Notes()
    search: Any = shrink(other, size=SIZE, trials=1, out=tmp_path / "out", reporter=notes)
    assert search.run.recipe.distillation.teachers == (str(other),)
    assert any(line.endswith("(forced).") for line in notes.lines)


def test_only_the_fold_that_is_shrunk_needs_a_teacher(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossed = toy_run.with_name("crossed")
    _without_figures(monkeypatch)
    lines = (toy_run / "clips.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.rpartition(",") for line in lines]
    groups = {row[0].split(",")[4] for row in rows[1:]}
    fold = {group: "AB"[i % 2] for i, group in enumerate(sorted(groups))}
    table = [f"{rows[0][0]},fold"]
    table += [f"{row[0]},{fold[row[0].split(',')[4]]}" for row in rows[1:]]
    manifest = toy_run / "folds.csv"
    manifest.write_text("\n".join(table) + "\n", encoding="utf-8")
    overrides = [
        "training.epochs=1", "model.width=8", "model.blocks=[2, 1, 0]", "features.n_mels=32",
        "audio.window_seconds=0.5",
    ]  # fmt: skip
    stapes.train(manifest, overrides=overrides, out=crossed, final=False)
    manifest.unlink()
    monkeypatch.setattr("stapes.shrinking.search._Search.carry_out", lambda self, **_: self)
    fold_b = crossed / "B" / "seed-0" / "model.safetensors"
    search: Any = shrink(
        crossed, size=SIZE, fold="B", trials=1, out=tmp_path / "out", teachers=[fold_b]
    )
    assert search.split.name == "B"
    with pytest.raises(DataError, match="split A is tested on"):
        shrink(crossed, size=SIZE, trials=1, out=tmp_path / "out", teachers=[fold_b])
    fold_a = crossed / "A" / "seed-0" / "model.safetensors"
    search = shrink(crossed, size=SIZE, trials=1, out=tmp_path / "out", teachers=[fold_a])
    assert search.split.name == "A", "the first one, and nobody asks for the others"


def test_what_the_teachers_are_owed_is_part_of_the_budget(toy_run: Path, tmp_path: Path) -> None:
    """Else candidates sized to a limit come out beyond it, and are trained in vain."""
    bundle = load_bundle(toy_run)
    teachers = []
    for i in range(3):
        citation = np.random.default_rng(i).bytes(200).hex()  # as short as it gets
        data = {**bundle.metadata["data"], "citation": citation}
        teachers.append(tmp_path / f"{i}.safetensors")
        save_bundle(replace(bundle, metadata={**bundle.metadata, "data": data}), teachers[-1])
    dataset, recipe = read_run(toy_run)
    run, (split,), _ = open_run(
        dataset, taught_by(recipe, teachers), out=tmp_path / "out", force=True,
        cache=toy_run.parent / "cache",
    )  # fmt: skip
    limits = Limits(file_bytes=9000)
    gauge = Gauge(run, split, limits, "")
    recipe_found: Any = fit_recipe(Choice("width", "int8", (2, 1, 0), 4), run.recipe, gauge, limits)
    trained = replace(run, recipe=recipe_found, folder=tmp_path / "out")
    run.store.prepare(range(len(dataset)))
    trained.claim([(split, 0)])
    measured = gauge.measure(trained.member(split, 0).bundle).file_bytes
    expected = gauge.expect(recipe_found).file_bytes
    assert expected - 500 < measured <= expected, "nothing is given away either"


def test_a_run_that_started_from_a_model_is_searched_from_random_weights(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_figures(monkeypatch)
    started = stapes.train(
        toy_run / "clips.csv", init=toy_run, overrides=["training.epochs=1"],
        out=tmp_path / "started",
    )  # fmt: skip
    monkeypatch.setattr("stapes.shrinking.search._Search.carry_out", lambda self, **_: self)
    notes = Notes()
    search: Any = shrink(started.folder, size=SIZE, trials=1, out=tmp_path / "out", reporter=notes)
    assert any("started from trained weights" in line for line in notes.lines)
    assert search.run.recipe.initialization == InitializationConfig()
    assert search.run.parent is None
    small = load_recipe("small")
    assert search.run.recipe.augment == small.augment
    assert search.run.recipe.training == small.training.model_copy(update={"epochs": 100})
