"""The study on made-up scenes: tiny networks, seconds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scene_tree import write_scenes

from stapes.bundle import load_bundle
from stapes.config import load_recipe, recipe_source
from stapes.errors import ConfigError, DataError, StapesError, UnknownNameError
from stapes.models import create_model
from stapes.studies import load_study, study_names
from stapes.studies.koutini2020 import reproduce
from stapes.studies.points import Bench, Point
from stapes.studies.study import StudyResult
from stapes.training import members

# On top of --quick: seconds instead of minutes.
TINY = (
    "model.width=8", "training.epochs=2", "training.batch_size=8", "audio.window_seconds=0.5",
    "features.hop_length=200",
)  # fmt: skip

Study = Callable[..., StudyResult]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "tree", "dcase2020b")


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen mono recordings of two classes, two folds, as a manifest."""
    folder = tmp_path_factory.mktemp("folds")
    rng = np.random.default_rng(1)
    lines = ["path,label,fold,group"]
    for i in range(16):
        soundfile.write(folder / f"{i}.wav", 0.1 * (1 + i % 2) * rng.standard_normal(8000), 16_000)
        lines.append(f"{i}.wav,{'ab'[i % 2]},{1 + i // 8},{i}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def tiny(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study at its smallest, in one folder for all tests of this file."""
    out, cache = tmp_path_factory.mktemp("study") / "out", tmp_path_factory.mktemp("cache")

    def run(item: str, **changes: Any) -> StudyResult:
        given: dict[str, Any] = {"overrides": TINY, "out": out, "cache": cache, **changes}
        return reproduce(item, scenes, corpus="dcase2020b", quick=True, **given)

    return run


@pytest.fixture(scope="module")
def table(tiny: Study) -> StudyResult:
    return tiny("table1")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recipes that were really trained meanwhile."""
    names: list[str] = []
    fit = members.fit

    def counted(*args: Any, **kwargs: Any) -> Any:
        names.append(args[3].name)
        return fit(*args, **kwargs)

    monkeypatch.setattr(members, "fit", counted)
    return names


class _Stopped(Exception):
    def __init__(self, bench: Bench, points: Sequence[Point]) -> None:
        self.bench, self.points = bench, list(points)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., _Stopped]:
    """What would be trained, without training it."""

    def stop(self: Bench, points: Sequence[Point]) -> None:
        raise _Stopped(self, points)

    def run(item: str, data: Path, **options: Any) -> _Stopped:
        monkeypatch.setattr(Bench, "measure", stop)
        with pytest.raises(_Stopped) as caught:
            reproduce(item, data, **{"out": tmp_path / "out", "cache": tmp_path, **options})
        return caught.value

    return run


def parameters(bench: Bench, point: Point) -> int:
    network = bench.variant(point.key, point.recipe).new_network(0)
    return sum(parameter.numel() for parameter in network.parameters())


# What is trained


def test_the_table_at_full_size_is_the_papers(
    scenes: Path, planned: Callable[..., _Stopped], shared: Path
) -> None:
    stopped = planned("table1", scenes, corpus="dcase2020b")
    plain, damped, half, pruned, decomposed = stopped.points
    golden = json.loads((shared / "golden" / "cp_resnet_counts.json").read_text())["counts"]
    counts = {row["paper"]: row["parameters"] for row in golden}
    assert parameters(stopped.bench, plain) == counts["CP-ResNet DCASE'20 1061.6K"]
    assert parameters(stopped.bench, damped) == counts["CP-ResNet DCASE'20 1061.6K"]
    assert parameters(stopped.bench, half) == counts["DampRestricted DCASE'20 268.6K"]
    assert parameters(stopped.bench, decomposed) == counts["DampDecomp DCASE'20 361K"]
    assert pruned.recipe.pruning.method == "magnitude"
    assert pruned.recipe.pruning.keep_parameters == 250_000
    assert pruned.recipe.pruning.ramp == "exponential"
    assert (pruned.recipe.pruning.start_epoch, pruned.recipe.pruning.ramp_epochs) == (0, 100)
    for point in stopped.points:
        found = point.published
        assert found is not None
        size = 250_000 if point is pruned else parameters(stopped.bench, point)
        assert abs(found.parameters - size) < 300  # printed with three or four digits
        assert (point.recipe.model.damping is None) == (point is plain)
        assert point.recipe.model.rho == 3
        assert point.recipe.training == load_recipe("koutini2020").training
        assert point.recipe.features == load_recipe("koutini2020").features
    accuracies = [point.published.accuracy for point in stopped.points if point.published]
    assert accuracies == [0.9726, 0.9745, 0.9722, 0.9745, 0.97]


def test_the_other_column_is_mono_with_a_larger_field(
    tmp_path: Path, planned: Callable[..., _Stopped], shared: Path
) -> None:
    tree = write_scenes(tmp_path / "tree", "dcase2018", locations=3, clips=1)
    stopped = planned("table1", tree)
    assert [p.recipe.model.rho for p in stopped.points] == [7] * 5
    assert stopped.points[0].recipe.audio.channels == 1
    assert stopped.points[0].recipe.audio.window_seconds == 10.0
    assert stopped.points[3].recipe.pruning.keep_parameters == 400_000
    published = [
        (p.published.parameters, p.published.accuracy) for p in stopped.points if p.published
    ]
    assert published == [
        (1_715_600, 0.7852), (1_715_600, 0.7915), (431_800, 0.7701), (400_000, 0.7854),
        (417_000, 0.7696),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "n_lines", "described"),
    [
        ("figure1", 2, [(None, 128, None, None), (0.1, 128, None, None)]),
        ("figure2", 3, [(0.1, 128, None, None), (0.1, 64, None, None), (0.1, 32, None, None)]),
        (
            "figure3",
            5,
            [
                (0.1, 128, None, None),
                *((0.1, 128, None, n) for n in (250_000, 300_000, 400_000, 500_000)),
            ],
        ),
        ("figure4", 2, [(0.1, 128, None, None), (0.1, 128, 4, None)]),
    ],
)
def test_figures_go_over_rho(
    scenes: Path,
    planned: Callable[..., _Stopped],
    item: str,
    n_lines: int,
    described: list[tuple[Any, ...]],
) -> None:
    points = planned(item, scenes).points
    assert [p.recipe.model.rho for p in points] == [r for r in range(3, 13) for _ in range(n_lines)]
    for point, wanted in zip(points, described * 10, strict=True):
        model, pruning = point.recipe.model, point.recipe.pruning
        found = (model.damping, model.width, model.decomposition, pruning.keep_parameters)
        assert found == wanted
    assert len({p.key for p in points}) == len(points)
    chosen = planned(item, scenes, rhos=[12, 3, 12]).points
    assert [p.key for p in chosen] == [p.key for p in points if p.recipe.model.rho in (3, 12)]


def test_another_width_prunes_to_the_same_part(
    scenes: Path, planned: Callable[..., _Stopped]
) -> None:
    whole = planned("figure3", scenes, rhos=[3, 9])
    ours = planned("figure3", scenes, rhos=[3, 9], overrides=["model.width=24"])
    for theirs, point in zip(whole.points, ours.points, strict=True):
        assert point.recipe.model.width == 24
        if point.recipe.pruning.keep_parameters is None:
            continue
        part = theirs.recipe.pruning.keep_parameters / parameters(whole.bench, theirs)
        mine = point.recipe.pruning.keep_parameters / parameters(ours.bench, point)
        assert mine == pytest.approx(part, abs=1e-4)
    table = planned("table1", scenes, overrides=["model.width=24"])
    assert [p.recipe.model.width for p in table.points] == [24, 24, 12, 24, 24]


def test_a_shorter_schedule_keeps_its_proportions(
    scenes: Path, planned: Callable[..., _Stopped]
) -> None:
    points = planned("table1", scenes, epochs=35).points
    training = points[0].recipe.training
    assert (training.epochs, training.constant_epochs, training.decay_end_epoch) == (35, 5, 25)
    assert (training.averaging_start_epoch, training.averaging_every_epochs) == (25, 1)
    assert points[3].recipe.pruning.ramp_epochs == pytest.approx(10)
    assert planned("table1", scenes, epochs=1).points[0].recipe.training.epochs == 1
    full = planned("table1", scenes, epochs=350).points[3]
    assert full.recipe == planned("table1", scenes).points[3].recipe


def test_recordings_that_are_not_the_papers_keep_their_length_and_folds(
    folds: Path, planned: Callable[..., _Stopped]
) -> None:
    stopped = planned("table1", folds)
    recipe = stopped.points[0].recipe
    assert recipe.audio.window_seconds == 0.5
    assert (recipe.audio.channels, recipe.model.rho) == (1, 7)
    assert [split.name for split in stopped.bench.splits] == ["1", "2"]
    assert len(stopped.bench.tested) == 16
    quick = planned("table1", folds, quick=True)
    assert [split.name for split in quick.bench.splits] == ["1"]
    assert quick.points[0].recipe.model.width == 32
    assert quick.points[0].recipe.features.name == "log_mel"
    (split,) = planned("table1", folds, quick=True, fold="2").bench.splits
    assert split.name == "2"
    assert [p.recipe.model.rho for p in planned("figure3", folds, quick=True).points[::5]] == [
        3, 7, 12,
    ]  # fmt: skip


# What comes out


def test_the_table_says_what_was_published_and_what_was_found(table: StudyResult) -> None:
    assert [row[0] for row in table.rows] == [
        "CP-ResNet", "damped", "damped, width 4", "damped, pruned as 250K of width 128",
        "damped, decomposed Z = 4",
    ]  # fmt: skip
    assert [row[1] for row in table.rows] == ["1061.6K", "1061.6K", "268.6K", "250.0K", "361.0K"]
    assert table.rows[0][3] == "97.26 %"
    for row, record in zip(table.rows, table.records, strict=True):
        assert row[2] == f"{record['nonzero_parameters'] / 1000:.1f}K"
        assert f"{100 * record['accuracy']:.1f} %" in row[4]
        assert record["accuracy_low"] <= record["accuracy"] <= record["accuracy_high"]
        assert (record["clips"], record["folds"], record["seeds"]) == (6, 1, 1)
    assert table.rows[0][5] == ""
    assert table.rows[1][5] != ""
    network = create_model(
        "cp_resnet", n_classes=3, in_channels=2, rho=3, width=8, damping=0.1, blocks=(4, 3, 0)
    )
    whole = sum(parameter.numel() for parameter in network.parameters())
    assert table.records[1]["nonzero_parameters"] == whole
    kept = table.records[3]["nonzero_parameters"]
    assert kept == round(250_000 * whole / 1_061_638)
    assert table.records[3]["parameters"] == whole


def test_the_notes_say_exactly_what_was_changed(table: StudyResult) -> None:
    text = "\n".join(table.notes)
    for change in (
        "width 128 -> 8", "epochs 350 -> 2", "batch_size 10 -> 8", "window_seconds 10 -> 0.5",
        "name perceptual_mel -> log_mel", "hop_length 512 -> 200", "optimizer adam -> adamw",
        "schedule linear -> one_cycle", "averaging equal -> ema", "n_mels 256 -> 64",
    ):  # fmt: skip
        assert change in text
    assert "damping 0.1" not in text
    assert "mixup" not in text
    assert "other data" not in text
    assert "6 clips" in text
    assert "last ten epochs" in text


def test_the_files_hold_the_same(table: StudyResult) -> None:
    page, sheet = table.files
    assert (page.name, sheet.name) == ("table1.md", "table1.csv")
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, table.records, strict=True):
        assert row["network"] == record["network"]
        assert float(row["accuracy"]) == record["accuracy"]
        assert (row["difference"] == "") == (record["difference"] is None)
    text = page.read_text(encoding="utf-8")
    for cells in table.rows:
        assert "| " + " | ".join(cells) + " |" in text
    for sentence in (*table.statements, *table.notes):
        assert f"- {sentence}\n" in text


def test_accuracy_is_that_of_the_stored_models(table: StudyResult) -> None:
    for record in table.records:
        folder = table.folder / record["run"]
        bundle = load_bundle(folder / "official" / "seed-0")
        stored = bundle.metadata["score"]["accuracy"]
        assert record["accuracy"] == stored["value"]
        assert record["accuracy_low"] == pytest.approx(stored["low"])
        assert record["accuracy_high"] == pytest.approx(stored["high"])


def test_a_figure_shares_the_tables_networks(
    table: StudyResult, tiny: Study, trained: list[str]
) -> None:
    figure = tiny("figure4", rhos=[3])
    assert trained == []
    by_run = {record["run"]: record for record in table.records}
    for record in figure.records:
        assert record["accuracy"] == by_run[record["run"]]["accuracy"]
    names = [file.name for file in figure.files]
    assert names == ["figure4.md", "figure4.csv", "figure4.svg", "figure4.png"]
    assert all(file.stat().st_size for file in figure.files)
    assert "figure4.svg" in figure.files[0].read_text(encoding="utf-8")
    assert figure.statements[0].startswith("damped, decomposed Z = 4 against damped, at rho 3: ")
    wider = tiny("figure4", rhos=[3, 4])
    assert "mean over 2 values of rho: " in wider.statements[0]
    assert len(trained) == 2
    assert all("rho-04" in name for name in trained)
    assert [row[:2] for row in wider.rows] == [("3", "49"), ("3", "49"), ("4", "65"), ("4", "65")]
    assert wider.rows[0][2] == "55"
    # The paper's numbers are of one rho only.
    assert [row[5] for row in wider.rows] == ["97.45 %", "97.00 %", "", ""]


def test_a_finished_study_opens_no_model(
    table: StudyResult, tiny: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a finished point was opened")

    monkeypatch.setattr(members.Run, "member", opened)
    assert tiny("table1").records == table.records
    # Unless a model is gone: then it is trained again.
    model = table.folder / table.records[0]["run"] / "official" / "seed-0" / "model.safetensors"
    model.rename(model.with_suffix(".away"))
    with pytest.raises(AssertionError, match="opened"):
        tiny("table1")
    model.with_suffix(".away").rename(model)


def test_a_stopped_study_goes_on(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: StudyResult
) -> None:
    def run() -> StudyResult:
        return reproduce(
            "table1", scenes, quick=True, overrides=TINY, out=tmp_path / "out", cache=tmp_path
        )

    fit, calls = members.fit, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[3].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(members, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run().records == table.records
    assert calls[3] == calls[2]
    assert len(calls) == 6, "the two finished networks are not trained again"


def test_seeds_and_folds_can_be_added(folds: Path, tmp_path: Path, trained: list[str]) -> None:
    def run(hop: int = 160, **changes: Any) -> StudyResult:
        overrides = (*TINY[:3], f"features.hop_length={hop}")
        given = {"quick": True, "rhos": [3], "out": tmp_path / "out", "cache": tmp_path}
        return reproduce("figure4", folds, overrides=overrides, **given | changes)

    one = run()
    assert len(trained) == 2
    two = run(seeds=2)
    assert len(trained) == 4
    assert (two.records[0]["clips"], two.records[0]["seeds"]) == (8, 2)
    other = run(fold="2")
    assert len(trained) == 6
    assert other.records[0]["clips"] == 8
    assert run(seeds=1).records == one.records
    assert len(trained) == 6, "fewer seeds than there are: nothing to train"
    with pytest.raises(StapesError, match="choose another --out"):
        run(hop=150)
    with pytest.raises(StapesError, match="choose another --out"):
        run(hop=150, fold="2")  # no model in common: the recipe tells them apart


# Mistakes


@pytest.mark.parametrize(
    ("item", "options", "error", "words"),
    [
        ("table2", {}, UnknownNameError, "Unknown item of koutini2020 'table2'. Did you mean"),
        ("table1", {"rhos": [3]}, ConfigError, "--set model.rho"),
        ("figure1", {"rhos": [3, 22]}, ConfigError, "--rho 3,22: give whole numbers from 0 to 21"),
        ("figure1", {"rhos": []}, ConfigError, "such as 3,7,12"),
        ("figure1", {"overrides": ["model.rho=5"]}, ConfigError, "choose values with --rho"),
        ("table1", {"overrides": ["model.damping=none"]}, ConfigError, "--set model.damping"),
        ("table1", {"overrides": ["pruning.keep=0.5"]}, ConfigError, "sets pruning.keep itself"),
        ("table1", {"overrides": ["model.decomposition=2"]}, ConfigError, "model.decomposition"),
        ("table1", {"overrides": ["model.depth=2"]}, ConfigError, "unknown field 'model.depth'"),
        ("table1", {"overrides": ["model.width=1"]}, ConfigError, "the network needs"),
        ("table1", {"fold": "7"}, UnknownNameError, "Unknown fold '7'"),
        ("table1", {"corpus": "dcase2021"}, UnknownNameError, "Unknown corpus 'dcase2021'"),
        ("table1", {"corpus": "esc50"}, DataError, "not ESC-50 as published"),
        ("table1", {"seeds": 0}, StapesError, "--seeds 0"),
        ("table1", {"epochs": 0}, StapesError, "--epochs 0"),
    ],
)
def test_mistakes_are_one_sentence_before_any_training(
    scenes: Path,
    tmp_path: Path,
    trained: list[str],
    item: str,
    options: dict[str, Any],
    error: type[StapesError],
    words: str,
) -> None:
    given = {"quick": True, "overrides": (), "out": tmp_path / "out", "cache": tmp_path, **options}
    given["overrides"] = (*TINY, *given["overrides"])
    with pytest.raises(error) as caught:
        reproduce(item, scenes, **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert trained == []


def test_missing_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        reproduce("table1", tmp_path / "nothing", out=tmp_path / "out")


def test_two_commands_never_share_a_folder(table: StudyResult, tiny: Study) -> None:
    from filelock import FileLock

    with FileLock(table.folder / ".lock"), pytest.raises(StapesError, match="another process"):
        tiny("table1")


def test_the_study_is_found_by_name() -> None:
    assert "koutini2020" in study_names()
    study = load_study("koutini2020")
    assert list(study.items) == ["table1", "figure1", "figure2", "figure3", "figure4"]
    assert study.reproduce is reproduce
    assert "koutini2020" in recipe_source("koutini2020")
    with pytest.raises(UnknownNameError, match=r"Unknown paper 'koutini20'. Did you mean"):
        load_study("koutini20")
