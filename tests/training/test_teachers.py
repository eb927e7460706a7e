"""Which models may teach, which of a run teach what, and what is owed to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noises import write_noises
from toy_run import LABELS, toy_bundle

import stapes
from stapes.bundle import load_bundle, save_bundle
from stapes.compression import quantize
from stapes.config import DistillationConfig, Recipe, load_recipe, parse_recipe, to_toml
from stapes.data import load_dataset
from stapes.errors import ConfigError, DataError, ModelFileError, StapesError
from stapes.evaluation.ensemble import ensemble
from stapes.models.weights import file_sha256
from stapes.training.teachers import (
    check_teachers,
    describe_teachers,
    pin_teachers,
    taught_by,
    teacher_files,
)

TINY = (
    "training.epochs=1", "model.width=4", "model.blocks=[2, 0, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5", "audio.sample_rate=8000", "training.batch_size=8",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _no_report() -> Any:
    """Drawing takes longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stapes.evaluation.report.write_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module")
def noises(folder: Path) -> Path:
    (folder / "data").mkdir()
    return write_noises(folder / "data", 24)


@pytest.fixture(scope="module")
def train(noises: Path, folder: Path) -> Callable[..., Any]:
    def train(out: str | Path, *overrides: str, data: Path = noises, **more: Any) -> Any:
        return stapes.train(
            data, overrides=[*TINY, *overrides], out=folder / out, cache=folder / "cache",
            device="cpu", **more,
        )  # fmt: skip

    return train


@pytest.fixture(scope="module")
def single(train: Callable[..., Any]) -> Path:
    """A run with one split, of seed 0."""
    folder: Path = train("single").folder
    return folder


@pytest.fixture(scope="module")
def crossed(train: Callable[..., Any]) -> Path:
    """Three folds, two seeds, no final model."""
    folder: Path = train("crossed", folds=3, n_seeds=2, final=False).folder
    return folder


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Path:
    """A model of other recordings, of which no run is left."""
    bundle = toy_bundle()
    data = {"name": "elsewhere", "licence": "CC-BY-4.0", "citation": "Nobody 1999"}
    metadata = {
        "data": data, "seed": 0, "score": {"accuracy": {"value": 0.5}, "classes": [1, 2]},
        "origin": {"weights": "imagenet", "sha256": "0" * 64, "architecture": "test_resnet"},
    }  # fmt: skip
    save_bundle(replace(bundle, metadata=metadata), folder / "stranger.safetensors")
    return folder / "stranger.safetensors"


def _config(*teachers: Path) -> DistillationConfig:
    return DistillationConfig(teachers=tuple(map(str, teachers)))


def _recipe(*teachers: Path, **distillation: Any) -> Recipe:
    recipe = taught_by(load_recipe("small"), teachers)
    return recipe.model_copy(
        update={"distillation": recipe.distillation.model_copy(update=distillation)}
    )


def _short(run: Path, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(run).parent) for path in paths]


# --- which of a run teach what ----------------------------------------------------------------


def _doubts(result: stapes.training.TrainResult) -> list[str]:
    """Notes of a taught run but for the one that names its teachers."""
    named = [note for note in result.notes if note.startswith("Taught by ")]
    assert len(named) == 1
    return [note for note in result.notes if note not in named]


def test_each_folds_models_teach_that_fold(crossed: Path, stranger: Path) -> None:
    for fold in ("1", "2", "3"):
        found = teacher_files(_config(crossed), fold)
        assert _short(crossed, found) == [f"{fold}/seed-0", f"{fold}/seed-1"]
        assert [load_bundle(path).metadata["split"] for path in found] == [fold, fold]
    assert teacher_files(_config(stranger, crossed), "2")[0] == stranger, "every split"
    everything = teacher_files(_config(crossed), "all")
    assert len(everything) == 6


def test_the_final_model_alone_teaches_the_final_model(crossed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(crossed, run)
    shutil.copytree(run / "1", run / "all")
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    plan |= {"all/seed-0": "x"}
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert _short(run, teacher_files(_config(run), "all")) == ["all/seed-0"]
    assert len(teacher_files(_config(run), "1")) == 2


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_that_has_nothing_for_a_split_is_refused(
    crossed: Path, stranger: Path, beside: bool
) -> None:
    """Also beside another one that has: nobody would notice that it is silent."""
    others = (stranger,) if beside else ()
    with pytest.raises(ConfigError, match=r"crossed: no teacher for split held-out, .*1, 2, 3 on"):
        teacher_files(_config(*others, crossed), "held-out")


def test_the_only_split_of_a_run_teaches_any(single: Path, train: Callable[..., Any]) -> None:
    """It is called "held-out" where it was made, and "official" where its tables are read."""
    for split in ("held-out", "official", "3", "all"):
        assert _short(single, teacher_files(_config(single), split)) == ["held-out/seed-0"]
    again = train("read-again", data=single / "clips.csv", teachers=[single])
    assert again.members[0].split.name == "official"
    with pytest.raises(DataError, match=r"split [123] is tested on"):
        train("nothing", folds=3, teachers=[single])


def test_members_of_the_students_fold_are_asked_in_a_whole_run(
    crossed: Path, train: Callable[..., Any]
) -> None:
    result = train("taught-crossed", folds=3, teachers=[crossed], final=True)
    for member in result.members:
        teachers = member.bundle.metadata["teachers"]
        assert [one["split"] for one in teachers] == [member.split.name] * 2
        assert [one["seed"] for one in teachers] == [0, 1]
        files = [crossed / member.split.name / f"seed-{seed}" for seed in (0, 1)]
        assert [one["sha256"] for one in teachers] == [
            file_sha256(path / "model.safetensors") for path in files
        ]
    final = load_bundle(result.model).metadata
    assert final["split"] == "all"
    assert sorted(one["split"] for one in final["teachers"]) == ["1", "1", "2", "2", "3", "3"]
    assert _doubts(result) == _doubts(train("taught-crossed", folds=3, teachers=[crossed])) == []


# --- leaks ------------------------------------------------------------------------------------


def test_a_teacher_of_another_split_is_refused_or_noted(
    single: Path, train: Callable[..., Any]
) -> None:
    with pytest.raises(DataError, match=r"may have learnt \d+ of the \d+ clips .*--seed"):
        train("leak", seed=1, teachers=[single])
    forced = train("leak", seed=1, teachers=[single], force=True)
    (note,) = [note for note in forced.notes if "may have learnt" in note]
    assert note.endswith("(forced).")
    # How many, counted here: by the tables of the runs.
    heard = {c.path for c in load_dataset(single / "clips.csv").clips if c.split != "test"}
    tested = [forced.dataset.clips[i].path for i in forced.members[0].split.test]
    leaked = sum(path.resolve() in {h.resolve() for h in heard} for path in tested)
    assert f"{leaked} of the {len(tested)} clips" in note
    metrics = json.loads((forced.folder / "metrics.json").read_text(encoding="utf-8"))
    assert note in metrics["notes"]


def test_a_teacher_of_the_same_split_is_nothing_to_speak_of(
    single: Path, train: Callable[..., Any]
) -> None:
    for teacher in (single, single / "model.safetensors", single / "held-out" / "seed-0"):
        if teacher.name == "seed-0":
            teacher = teacher / "model.safetensors"
        result = train(f"fair-{teacher.parent.name}-{teacher.name}", teachers=[teacher])
        assert _doubts(result) == []


def test_the_final_model_of_a_run_has_heard_everything(
    crossed: Path, tmp_path: Path, train: Callable[..., Any], single: Path
) -> None:
    """Whatever its data are called: it is the recordings that count."""
    data = tmp_path / "other-name.csv"
    rows = load_dataset(single / "clips.csv").clips
    lines = [f"{clip.path.resolve()},{clip.label}" for clip in rows]
    data.write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="may have learnt"):
        train("leak-all", data=data, teachers=[crossed / "2" / "seed-0" / "model.safetensors"])
    (crossed / "all" / "seed-0").mkdir(parents=True)
    final = crossed / "all" / "seed-0" / "model.safetensors"
    bundle = load_bundle(crossed / "1" / "seed-0" / "model.safetensors")
    save_bundle(replace(bundle, metadata={**bundle.metadata, "split": "all"}), final)
    try:
        with pytest.raises(DataError, match=r"learnt (\d+) of the \1 clips"):
            train("leak-all", data=data, teachers=[final])
    finally:
        shutil.rmtree(crossed / "all")


def test_of_a_model_alone_only_the_name_of_its_data_is_known(
    single: Path, stranger: Path, tmp_path: Path, train: Callable[..., Any]
) -> None:
    bare = tmp_path / "bare.safetensors"
    shutil.copy(single / "model.safetensors", bare)
    result = train("bare", seed=1, teachers=[bare, stranger])
    (note,) = _doubts(result)
    assert "bare.safetensors was trained on recordings called 'noises', too" in note


def test_where_recordings_have_moved_only_their_name_is_known(
    single: Path, noises: Path, tmp_path: Path, train: Callable[..., Any]
) -> None:
    """A copy of a run and of its data elsewhere: the tables name places that are no more."""
    run = tmp_path / "far" / "away" / "run"
    shutil.copytree(single, run)
    result = train("moved", seed=1, teachers=[run])
    assert len(_doubts(result)) == 1
    assert "called 'noises', too" in _doubts(result)[0]
    # The data in two places, all of them still there.
    copy = tmp_path / "copy"
    shutil.copytree(noises.parent, copy)
    result = train("copied", seed=1, teachers=[single], data=copy / "noises.csv")
    assert "called 'noises', too" in _doubts(result)[0]


def test_a_model_of_other_recordings_of_the_same_name_is_only_noted(
    single: Path, tmp_path: Path, train: Callable[..., Any]
) -> None:
    """Many tables are called manifest.csv."""
    (tmp_path / "data").mkdir()
    table = write_noises(tmp_path / "data", 12, seconds=0.45)
    result = train("namesake", teachers=[single], data=table)
    assert len(_doubts(result)) == 1


# --- mistakes ---------------------------------------------------------------------------------


def _unfinished(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "2" / "seed-1" / "model.safetensors").unlink()
    return tmp_path / "unfinished"


def test_what_cannot_teach_is_a_clear_sentence(
    crossed: Path, noises: Path, stranger: Path, tmp_path: Path
) -> None:
    def refused(teacher: Path, error: type[StapesError], words: str) -> None:
        with pytest.raises(error, match=words) as caught:
            pin_teachers(_recipe(stranger, teacher))
        assert "\n" not in str(caught.value)

    refused(tmp_path / "gone", ModelFileError, "gone: cannot read")
    refused(_unfinished(crossed, tmp_path), StapesError, "unfinished: .*not finished.*continues")
    refused(noises.parent, StapesError, "data: cannot teach, it is no run folder")
    shutil.copytree(crossed, tmp_path / "damaged")
    (tmp_path / "damaged" / "plan.json").write_text("{", encoding="utf-8")
    refused(tmp_path / "damaged", StapesError, "plan.json: damaged")


def test_a_file_that_is_no_model_is_a_clear_sentence(
    noises: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=r"noises\.csv: not a stapes model file"):
        train("nothing", teachers=[noises])
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelFileError, match="is an exported model"):
        train("nothing", teachers=[tmp_path / "model.onnx"])


def test_a_teacher_that_lacks_a_class_is_refused_before_any_work(
    folder: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = replace(toy_bundle(), labels=("low", "other", "middle"))
    save_bundle(bundle, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"other\.safetensors: cannot teach high, it knows only"):
        train("nothing", teachers=[tmp_path / "other.safetensors"])
    assert not (folder / "nothing").exists()


def test_a_changed_teacher_is_refused(stranger: Path, single: Path, tmp_path: Path) -> None:
    pinned = pin_teachers(_recipe(stranger, single))
    assert pinned.distillation.sha256[0] == file_sha256(stranger)
    assert len(set(pinned.distillation.sha256)) == 2
    assert pin_teachers(pinned) == pinned
    (tmp_path / "recipe.toml").write_text(to_toml(pinned), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.toml").distillation == pinned.distillation
    swapped = _recipe(single, stranger, sha256=pinned.distillation.sha256)
    with pytest.raises(ModelFileError, match=r"single: not the teacher that distillation\.sha256"):
        pin_teachers(swapped)
    copy = tmp_path / "copy"
    shutil.copytree(single, copy)
    moved = _recipe(stranger, copy, sha256=pinned.distillation.sha256)
    assert pin_teachers(moved).distillation.sha256 == pinned.distillation.sha256
    save_bundle(toy_bundle(), copy / "held-out" / "seed-0" / "model.safetensors")
    with pytest.raises(ModelFileError, match="copy: not the teacher"):
        pin_teachers(moved)
    # Given anew on the command line, a teacher is whatever lies there now.
    assert taught_by(pinned, [copy]).distillation.sha256 == ()
    assert taught_by(pinned, []) is pinned


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"weight": 0}, "distillation.weight"),
        ({"weight": 1.5}, "distillation.weight"),
        ({"temperature": 0}, "distillation.temperature"),
        ({"temperature": float("inf")}, "distillation.temperature"),
        ({"live": "sometimes"}, "distillation.live"),
        ({"teachers": [""]}, "distillation.teachers"),
        ({"teachers": ["a"], "sha256": ["x"]}, "distillation.sha256"),
        ({"teachers": ["a", "b"], "sha256": ["0" * 64]}, "one digest for each"),
        ({"teacher": ["a"]}, "distillation.teacher"),
    ],
)
def test_wrong_values_in_the_recipe_are_clear(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_recipe({"name": "x", "distillation": wrong})
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_when_its_teacher_has_moved(
    stranger: Path, tmp_path: Path, train: Callable[..., Any]
) -> None:
    first = tmp_path / "first.safetensors"
    shutil.copy(stranger, first)
    before = train("stay", teachers=[first])
    (before.members[0].folder / "model.safetensors").rename(tmp_path / "kept")
    first.rename(tmp_path / "second.safetensors")
    again = train("stay", teachers=[tmp_path / "second.safetensors"])
    for name, tensor in before.members[0].bundle.network.state_dict().items():
        assert torch.equal(tensor, again.members[0].bundle.network.state_dict()[name])
    with pytest.raises(StapesError, match="holds a run with other data, recipe"):
        train("stay")
    with pytest.raises(StapesError, match="holds a run with other data, recipe"):
        train("stay", "distillation.weight=0.5", teachers=[tmp_path / "second.safetensors"])


# --- any model teaches ------------------------------------------------------------------------


def test_int8_models_ensembles_and_folders_with_a_model_teach(
    stranger: Path, crossed: Path, tmp_path: Path, train: Callable[..., Any]
) -> None:
    bundle = toy_bundle()
    x = torch.randn(8, 1, bundle.frontend.n_bins, 40, generator=torch.Generator().manual_seed(0))
    eight = replace(bundle, network=quantize(bundle.network, [x]), precision="int8")
    save_bundle(eight, tmp_path / "int8.safetensors")
    members = [crossed / "1" / f"seed-{seed}" / "model.safetensors" for seed in (0, 1)]
    save_bundle(ensemble(members), tmp_path / "both.safetensors")
    # As a search leaves it: a model, and a plan that is none of members.
    search = tmp_path / "search"
    search.mkdir()
    shutil.copy(stranger, search / "model.safetensors")
    (search / "plan.json").write_text('{"size": 1, "macs": null}', encoding="utf-8")
    result = train(
        "any", teachers=[tmp_path / "int8.safetensors", tmp_path / "both.safetensors", search]
    )
    told = result.members[0].bundle.metadata["teachers"]
    assert [one["network"] for one in told] == ["cp_resnet", "ensemble", "cp_resnet"]
    assert [one["split"] for one in told[1]["members"]] == ["1", "1"]
    assert told[2]["sha256"] == file_sha256(stranger)


# --- what is owed -----------------------------------------------------------------------------


def test_a_model_says_who_taught_it(
    stranger: Path, noises: Path, folder: Path, train: Callable[..., Any]
) -> None:
    result = train("owing", teachers=[stranger])
    (told,) = load_bundle(result.model).metadata["teachers"]
    assert told["data"] == {
        "name": "elsewhere", "licence": "CC-BY-4.0", "citation": "Nobody 1999"
    }  # fmt: skip
    assert told["origin"]["architecture"] == "test_resnet"
    assert told["score"] == {"value": 0.5}
    assert told["sha256"] == file_sha256(stranger)
    # Those who learn from it owe the same, whether they are taught or start from it.
    (grandchild,) = describe_teachers(_recipe(result.model), "x")
    assert grandchild["teachers"] == [told]
    started = stapes.train(
        noises, init=result.model, overrides=["training.epochs=1"], out=folder / "started"
    )
    assert started.members[0].bundle.metadata["origin"]["teachers"] == [told]
    assert "teachers" not in started.members[0].bundle.metadata
    assert describe_teachers(load_recipe("small"), "x") == []


def test_a_model_of_everything_is_worth_what_its_folds_are(tmp_path: Path) -> None:
    metadata = {"score": None, "cross_validated_score": {"accuracy": {"value": 0.7}, "x": 1}}
    save_bundle(replace(toy_bundle(), metadata=metadata), tmp_path / "final.safetensors")
    (told,) = describe_teachers(_recipe(tmp_path / "final.safetensors"), "x")
    assert told["score"] == {"value": 0.7}


def test_without_teachers_nothing_is_checked_and_nothing_is_said(
    noises: Path, single: Path
) -> None:
    assert check_teachers(load_recipe("small"), load_dataset(noises), [], force=False) == []
    assert "teachers" not in load_bundle(single).metadata
    assert pin_teachers(load_recipe("small")) == load_recipe("small")
    assert load_bundle(single).labels == tuple(sorted(LABELS))
    assert np.isfinite(load_bundle(single).metadata["score"]["accuracy"]["value"])
