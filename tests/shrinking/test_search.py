"""Whole searches on a toy run: limits, parts, resuming."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stapes
from stapes.errors import StapesError
from stapes.evaluation.describe import describe_model
from stapes.shrinking import ShrinkResult, search, shrink
from stapes.shrinking.candidates import fit_recipe
from stapes.training.members import Run
from stapes.training.reporter import Silent

SIZE, TRIALS = "7kB", 3


class Notes(Silent):
    """Keeps what it is told; may call something at every step."""

    def __init__(self, at: Callable[[str, float], None] = lambda stage, done: None) -> None:
        self.lines: list[str] = []
        self.at = at

    def progress(self, stage: str, done: float, total: float) -> None:
        self.at(stage, done)

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def found(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ShrinkResult:
    out = tmp_path_factory.mktemp("shrink") / "out"
    return shrink(toy_run, size=SIZE, trials=TRIALS, out=out, command="stapes shrink toy")


def test_the_file_obeys_the_limit_and_works(found: ShrinkResult) -> None:
    size = found.model.stat().st_size
    assert size <= 7000
    assert size == found.cost.file_bytes
    bundle = stapes.load_bundle(found.model)
    assert bundle.precision == found.recipe.quantization.precision
    told = bundle.metadata["shrink"]
    assert told["file_bytes"] == 7000
    assert told["trials"] == TRIALS
    assert bundle.metadata["command"] == "stapes shrink toy"


def test_the_score_can_be_repeated_from_the_file(found: ShrinkResult) -> None:
    again = stapes.evaluate(found.model, found.folder / "test.csv")
    assert found.score is not None
    assert again.score.accuracy == found.score.accuracy
    assert again.score.n_clips == found.score.n_clips


def test_the_best_trial_on_the_validation_part_was_chosen(found: ShrinkResult) -> None:
    inside = [t for t in found.trials if t.state == "inside" and t.number]
    assert len([t for t in found.trials if t.trained]) == TRIALS + 1
    best = max(inside, key=lambda t: (t.accuracy.value, -t.log_loss))  # type: ignore[union-attr]
    assert found.winner == best
    assert found.recipe == best.recipe
    assert found.trials[0].choice is None
    assert found.trials[0].recipe is not None
    assert found.trials[0].recipe.model.width == 8
    recipes = [t.recipe for t in found.trials if t.recipe is not None]
    assert len({r.model_dump_json() for r in recipes}) == len(recipes)
    assert {path.name for path in found.folder.iterdir()} >= {
        "model.safetensors", "trials.csv", "trials.json", "tradeoff.svg", "tradeoff.png",
        "test.csv", "result.json",
    }  # fmt: skip


def test_parts_share_no_source_and_the_test_part_is_met_once(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[tuple[str, np.ndarray]] = []
    real = search.store_probabilities

    def watched(bundle: Any, store: Any, indices: Any, **options: Any) -> Any:
        met.append(("scored", np.asarray(indices)))
        return real(bundle, store, indices, **options)

    train_member = Run.member

    def member(self: Run, split: Any, *arguments: Any) -> Any:
        assert not split.test.size
        met.append(("trained", np.union1d(split.train, split.validation)))
        groups.update({int(i): int(self.groups[i]) for i in range(len(self.groups))})
        return train_member(self, split, *arguments)

    groups: dict[int, int] = {}
    monkeypatch.setattr(search, "store_probabilities", watched)
    monkeypatch.setattr(Run, "member", member)
    result = shrink(toy_run, size=SIZE, trials=2, out=tmp_path / "out")
    kinds = [kind for kind, _ in met]
    # Reference and two trials, each trained and scored; the best trained again, then tested.
    assert kinds == ["trained", "scored"] * 4
    validation, test = met[1][1], met[-1][1]
    assert all(np.array_equal(part, validation) for _, part in met[1:-2:2])
    assert result.score is not None
    assert len(test) == result.score.n_clips
    everything = met[-2][1]
    assert {groups[int(i)] for i in everything} & {groups[int(i)] for i in test} == set()
    assert set(validation) < set(everything)
    fold = 1 - len(validation) / len(everything)
    assert 0.5 < fold < 0.9


@pytest.mark.parametrize(
    ("stage", "occurrence"),
    [("Reference", 2), ("Trial 2 of 3", 2), ("Best, on all", 1), ("Testing", 2)],
)
def test_a_search_that_was_stopped_ends_as_if_it_had_not(
    found: ShrinkResult, toy_run: Path, tmp_path: Path, stage: str, occurrence: int
) -> None:
    seen = 0

    def stop(name: str, done: float) -> None:
        nonlocal seen
        seen += name == stage
        if seen == occurrence:
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {
        "size": SIZE, "trials": TRIALS, "out": tmp_path / "out", "command": "stapes shrink toy",
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        shrink(toy_run, reporter=Notes(stop), **arguments)
    again = shrink(toy_run, **arguments)
    assert again.model.read_bytes() == found.model.read_bytes()
    assert [t.recipe for t in again.trials] == [t.recipe for t in found.trials]
    assert [t.accuracy for t in again.trials] == [t.accuracy for t in found.trials]
    assert again.score == found.score


def test_a_finished_search_returns_at_once_and_cannot_go_on(
    found: ShrinkResult, toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "member", lambda *_: pytest.fail("trained again"))
    for path in found.figures:
        path.unlink()  # as if killed while drawing
    again = shrink(toy_run, size=SIZE, trials=TRIALS, out=found.folder)
    assert again == found
    assert all(path.is_file() for path in found.figures)
    with pytest.raises(StapesError, match=r"--trials 4: .*has met the test part.*--out"):
        shrink(toy_run, size=SIZE, trials=4, out=found.folder)


def test_another_budget_or_folder_is_refused(
    found: ShrinkResult, toy_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(StapesError, match=r"holds the search for 7kB.*--out"):
        shrink(toy_run, size="6kB", trials=TRIALS, out=found.folder)
    with pytest.raises(StapesError, match=r"holds a search with another run"):
        shrink(toy_run, size=SIZE, seed=1, trials=TRIALS, out=found.folder)
    with pytest.raises(StapesError, match=r"holds something else"):
        shrink(toy_run, size=SIZE, trials=TRIALS, out=toy_run)
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(StapesError, match=r"not empty and holds no search"):
        shrink(toy_run, size=SIZE, out=tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_what_cannot_be_reached_is_said_before_any_training(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "member", lambda *_: pytest.fail("trained"))
    with pytest.raises(StapesError, match=r"fits into 1kB: the least found is [\d,]+ bytes; raise"):
        shrink(toy_run, size="1kB", out=tmp_path / "a")
    with pytest.raises(StapesError, match=r"least found is [\d,]+ multiply-.* raise --macs"):
        shrink(toy_run, macs="1k", out=tmp_path / "b")
    with pytest.raises(StapesError, match=r"--size .* --macs .* or both"):
        shrink(toy_run, out=tmp_path / "c")
    with pytest.raises(StapesError, match="--trials 0"):
        shrink(toy_run, size="7kB", trials=0, out=tmp_path / "d")
    with pytest.raises(StapesError, match="no run folder"):
        shrink(tmp_path, size="7kB")


def test_both_limits_hold(toy_run: Path, tmp_path: Path) -> None:
    result = shrink(toy_run, size="9kB", macs="0.6M", trials=2, out=tmp_path / "out", refit=False)
    assert result.model.stat().st_size <= 9000
    bundle = stapes.load_bundle(result.model)
    assert describe_model(bundle).macs_per_second <= 600_000
    assert result.cost.macs_per_second <= 600_000
    # Without training again, the model is the trial's.
    (folder,) = (result.folder / "trials" / f"{result.winner.number:03d}").glob("*/seed-0")
    trial = stapes.load_bundle(folder).network.state_dict()
    assert all(
        (tensor == trial[name]).all() for name, tensor in bundle.network.state_dict().items()
    )


def test_a_model_that_comes_out_too_large_is_trained_smaller(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pruned channels can: here every refit pretends to have a kilobyte more at first."""
    real = search.Gauge.measure
    asked: list[int] = []

    def measure(self: Any, bundle: Any) -> Any:
        cost = real(self, bundle)
        if bundle.metadata["data"]["train_clips"] == asked_clips(self):
            asked.append(bundle.recipe.model.width)
            if len(asked) == 1:
                return replace(cost, file_bytes=8000)
        return cost

    def asked_clips(gauge: Any) -> int:
        return len(gauge._split.train)

    monkeypatch.setattr(search.Gauge, "measure", measure)
    result = shrink(toy_run, size=SIZE, trials=1, out=tmp_path / "out")
    assert result.winner.recipe is not None
    assert result.recipe != result.winner.recipe
    assert result.recipe.model.width == result.winner.recipe.model.width - 1
    assert result.model.stat().st_size <= 7000


def test_a_trial_without_a_finite_loss_ends_alone(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Run.member
    trained: list[int] = []

    def member(self: Run, *arguments: Any) -> Any:
        trained.append(self.recipe.model.width)
        if len(trained) == 2:
            raise StapesError("The training loss is no longer a finite number in epoch 1.")
        return real(self, *arguments)

    monkeypatch.setattr(Run, "member", member)
    result = shrink(toy_run, size=SIZE, trials=2, out=tmp_path / "out")
    states = [t.state for t in result.trials if t.state != "unfit"]
    assert states == ["over", "failed", "inside"]
    assert "finite" in result.table.read_text()


def test_a_best_trial_that_cannot_be_trained_on_all_gives_way_to_the_next(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Run.member
    tried: list[str] = []

    def member(self: Run, *arguments: Any) -> Any:
        if self.folder.parent.name == "final":
            tried.append(self.folder.name)
            if len(tried) == 1:
                raise StapesError("The training loss is no longer a finite number in epoch 1.")
        return real(self, *arguments)

    monkeypatch.setattr(Run, "member", member)
    result = shrink(toy_run, size=SIZE, trials=2, out=tmp_path / "out")
    assert f"{result.winner.number:03d}" == tried[1] != tried[0]


def test_a_search_without_any_finite_loss_says_so(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Run.member
    trained: list[int] = []

    def member(self: Run, *arguments: Any) -> Any:
        trained.append(self.recipe.model.width)
        if len(trained) > 1:
            raise StapesError("The training loss is no longer a finite number in epoch 1.")
        return real(self, *arguments)

    monkeypatch.setattr(Run, "member", member)
    with pytest.raises(StapesError, match="No candidate could be trained"):
        shrink(toy_run, size=SIZE, trials=1, out=tmp_path / "out")


def test_nothing_is_tried_twice(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit above everything: only int8, float16, fewer blocks and lower rho are left."""
    monkeypatch.setattr(search, "_MOST_IN_VAIN", 4)

    def only_widths(choice: Any, *arguments: Any) -> Any:
        plain = replace(choice, method="width", start=None, decomposition=None)
        plain = replace(plain, blocks=(2, 1, 0), rho=4)
        return fit_recipe(plain, *arguments)

    monkeypatch.setattr(search, "fit_recipe", only_widths)
    notes = Notes()
    result = shrink(toy_run, size="1MB", trials=9, out=tmp_path / "out", reporter=notes)
    trained = [t for t in result.trials if t.number and t.trained]
    assert len(trained) <= 2
    assert any("nothing else fits" in line for line in notes.lines)
    # The search is over although it wanted nine: asked again it returns.
    assert shrink(toy_run, size="1MB", trials=9, out=tmp_path / "out") == result


def test_folds_of_a_cross_validated_run(toy_run: Path, tmp_path: Path) -> None:
    manifest = toy_run.parent / "manifest.csv"

    run = stapes.train(
        manifest,
        recipe=stapes.load_recipe(toy_run / "recipe.toml"),
        folds=2,
        out=tmp_path / "run",
        final=False,
    ).folder
    result = shrink(run, size=SIZE, trials=1, fold="2", out=tmp_path / "out", refit=False)
    tested = (tmp_path / "out" / "test.csv").read_text().splitlines()
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert set(plan) == {"1/seed-0", "2/seed-0"}
    own = (tmp_path / "run" / "2" / "seed-0" / "test.csv").read_text().splitlines()
    assert len(tested) == len(own)
    with pytest.raises(StapesError, match="fold '7'"):
        shrink(run, size=SIZE, trials=1, fold="7", out=tmp_path / "other")
    assert result.score is not None


def test_two_searches_never_share_a_folder(toy_run: Path, tmp_path: Path) -> None:
    def second(stage: str, done: float) -> None:
        if stage == "Reference":
            with pytest.raises(StapesError, match="another process"):
                shrink(toy_run, size=SIZE, trials=1, out=tmp_path / "out")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(toy_run, size=SIZE, trials=1, out=tmp_path / "out", reporter=Notes(second))
    shutil.rmtree(tmp_path / "out")
