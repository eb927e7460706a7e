"""The study of transfer on made-up tones: tiny networks, seconds."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from stapes.bundle import Bundle, load_bundle
from stapes.config import LogMelConfig, load_recipe, recipe_source
from stapes.data import Dataset, load_dataset
from stapes.errors import ConfigError, ModelFileError, StapesError, UnknownNameError
from stapes.evaluation.bootstrap import Interval
from stapes.evaluation.evaluate import evaluate
from stapes.features import create_frontend
from stapes.models.blocks import block_plan
from stapes.models.imagenet import image_network
from stapes.studies import load_study, palanisamy2020, study_names
from stapes.studies.palanisamy2020 import reproduce
from stapes.studies.points import Bench, Point
from stapes.studies.study import StudyResult
from stapes.studies.transfer_points import Way, block_names
from stapes.training import members
from stapes.training.initialization import initialize

NETWORK = "test_resnet"
N_BLOCKS = 5
# On top of --quick: seconds instead of minutes.
TINY = (
    "features.n_mels=32", "features.hop_length=400", "training.batch_size=8", "training.epochs=2",
)  # fmt: skip

Study = Callable[..., StudyResult]


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen recordings of two classes, two folds."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(1)
    time = np.arange(8000) / 16_000
    lines = ["path,label,fold,group"]
    for i in range(16):
        tone = 0.1 * np.sin(2 * np.pi * 400 * (1 + 3 * (i % 2)) * time)
        soundfile.write(folder / f"{i}.wav", tone + 0.05 * rng.standard_normal(8000), 16_000)
        lines.append(f"{i}.wav,{'ab'[i % 2]},{1 + i // 8},{i}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for ImageNet weights, as timm names them."""
    generator = torch.Generator().manual_seed(7)
    body = image_network(
        n_classes=10, in_channels=3, architecture=NETWORK, generator=generator
    ).body
    state = body.state_dict()
    for name, tensor in state.items():
        if name.endswith("weight") and tensor.ndim == 1:
            # Scales of zero, as the network is drawn with, would keep its branches from learning.
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def tiny(tones: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study at its smallest, in one folder for all tests of this file."""
    out, cache = tmp_path_factory.mktemp("study") / "out", tmp_path_factory.mktemp("cache")

    def run(item: str, **changes: Any) -> StudyResult:
        given: dict[str, Any] = {
            "networks": [NETWORK], "weights": [weights], "overrides": TINY, "out": out,
            "cache": cache, "seeds": 1, **changes,
        }  # fmt: skip
        return reproduce(item, tones, quick=True, **given)

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recipes that were really trained meanwhile."""
    names: list[str] = []
    fit = members.fit

    def counted(*args: Any, **kwargs: Any) -> Any:
        names.append(args[3].name.removeprefix(f"palanisamy2020-{NETWORK}-"))
        return fit(*args, **kwargs)

    monkeypatch.setattr(members, "fit", counted)
    return names


class _Stopped(Exception):
    def __init__(self, bench: Bench, points: Sequence[Point]) -> None:
        self.bench, self.points = bench, list(points)


@pytest.fixture
def planned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path
) -> Callable[..., _Stopped]:
    """What would be trained, without training it."""

    def stop(self: Bench, points: Sequence[Point]) -> None:
        raise _Stopped(self, points)

    def run(item: str, data: Path | Dataset, **options: Any) -> _Stopped:
        monkeypatch.setattr(Bench, "measure", stop)
        given = {"out": tmp_path / "out", "cache": tmp_path, "networks": [NETWORK],
                 "weights": [weights], **options}  # fmt: skip
        with pytest.raises(_Stopped) as caught:
            reproduce(item, data, **given)
        return caught.value

    return run


def network_of(stopped: _Stopped, point: Point) -> Any:
    """The network of a point before its training, seed 0."""
    run = stopped.bench.variant(point.key, point.recipe)
    network = run.new_network(0)
    initialize(network, point.recipe)
    return network


def model(result: StudyResult, key: str, seed: int = 0) -> Bundle:
    return load_bundle(result.folder / f"{NETWORK}-{key}" / "1" / f"seed-{seed}")


# The recipes as published


@pytest.mark.parametrize(
    ("corpus", "rate", "n_fft", "seconds", "frames"),
    [
        ("esc50", 44_100, 4410, 5.0, 250),
        ("urbansound8k", 22_050, 2205, 4.0, 250),
        ("gtzan", 22_050, 2205, 30.0, 1500),
    ],
)
def test_recipes_are_the_papers(
    corpus: str, rate: int, n_fft: int, seconds: float, frames: int
) -> None:
    recipe = load_recipe(f"palanisamy2020-{corpus}")
    frontend = create_frontend(sample_rate=recipe.audio.sample_rate, **recipe.features.model_dump())
    assert (recipe.audio.sample_rate, recipe.audio.window_seconds) == (rate, seconds)
    assert frontend.settings() == {
        "name": "three_window_log_mel", "sample_rate": rate, "n_fft": n_fft, "n_mels": 128,
        "n_frames": frames,
    }  # fmt: skip
    assert recipe.normalization.method == "none"
    assert (recipe.model.architecture, recipe.model.blocks) == ("densenet201", None)
    assert recipe.initialization.weights == "imagenet"
    augment, training = recipe.augment, recipe.training
    assert (augment.pitch_semitones, augment.time_stretch) == (2.0, (0.9, 1.2))
    assert (augment.waveform_variants, augment.variants_per_epoch) == (1, "all")
    assert augment.mixup_alpha == augment.time_roll_seconds == 0
    assert (training.optimizer, training.learning_rate) == ("adam", 1e-4)
    assert (training.weight_decay, training.batch_size, training.epochs) == (1e-3, 32, 70)
    assert (training.schedule, training.step_epochs, training.step_factor) == ("step", 30, 0.1)


@pytest.mark.parametrize("corpus", ["esc50", "urbansound8k", "gtzan"])
def test_what_a_recipe_says_can_be_typed(corpus: str) -> None:
    name = f"palanisamy2020-{corpus}"
    comment = "".join(
        line.removeprefix("#").replace("\\", "")
        for line in recipe_source(name).splitlines()
        if line.startswith("#")
    )
    assert f"--recipe {name}" in comment
    settings = re.findall(r"--set ([\w.]+=[\w.]+)", comment)
    networks = [one.partition("=")[2] for one in settings if one.startswith("model.architecture")]
    assert networks == ["resnet50", "inception_v3"]
    features = load_recipe(name, [s for s in settings if s.startswith("features.")]).features
    assert isinstance(features, LogMelConfig)
    rate = 44_100 if corpus == "esc50" else 22_050
    frontend = create_frontend(sample_rate=rate, **features.model_dump())
    assert frontend.out_channels(1) == 1, "copied to three colours by the network"
    # The same as the first of the three windows, before that is resized.
    three = create_frontend(
        "three_window_log_mel", sample_rate=rate, n_frames=frontend.n_frames(rate)
    )
    waveform = torch.randn(1, 1, rate, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(frontend(waveform)[:, 0], three(waveform)[:, 0], atol=1e-4, rtol=0)


def test_published_numbers() -> None:
    found = {
        column.corpus: [(n.name, n.accuracy, n.spread, n.ensemble) for n in column.published]
        for column in palanisamy2020._COLUMNS
    }
    assert found["esc50"] == [
        ("DenseNet-201", 91.16, 0.36, 92.89), ("ResNet-50", 90.65, 0.28, 92.64),
        ("Inception-v3", 87.34, 0.74, 89.70),
    ]  # fmt: skip
    assert found["urbansound8k"] == [
        ("DenseNet-201", 85.14, 0.17, 87.42), ("ResNet-50", 84.76, 0.33, 87.35),
        ("Inception-v3", 84.37, 0.50, 86.34),
    ]  # fmt: skip
    assert found["gtzan"] == [
        ("DenseNet-201", 91.39, 0.37, None), ("ResNet-50", 91.09, 0.86, None),
        ("Inception-v3", 90.00, 0.70, None),
    ]  # fmt: skip
    assert [column.random_costs for column in palanisamy2020._COLUMNS] == [20, 10, 3]


# What is trained


def test_ends_that_meet_are_one_way() -> None:
    assert Way(pretrained=5).plain(5) == Way(kept=5).plain(5) == Way(frozen=0).plain(5) == Way()
    assert Way(pretrained=4).plain(5) == Way(pretrained=4)
    ways = [Way(), Way(0), Way(3), Way(frozen=3), Way(kept=3), Way(0, frozen=3), Way(3, kept=4)]
    assert len({way.key() for way in ways}) == len({way.label() for way in ways}) == len(ways)


def test_weights_up_to_a_block(
    tones: Path, weights: Path, planned: Callable[..., _Stopped]
) -> None:
    stopped = planned("fusing", tones)
    assert [p.recipe.initialization.blocks for p in stopped.points] == [None, 1, 2, 3, 4, None]
    given = {f"body.{name}": tensor for name, tensor in load_file(weights).items()}
    drawn = network_of(stopped, stopped.points[0]).state_dict()
    for k, point in enumerate(stopped.points):
        assert point.recipe.initialization.weights == ("random" if k == 0 else "imagenet")
        network = network_of(stopped, point)
        block_of = block_plan(network).block_of
        for name, tensor in network.state_dict().items():
            source = given if block_of[name] < k else drawn
            assert torch.equal(tensor, source[name]), (k, name)


def test_the_paper_in_full_keeps_its_recipe(tones: Path, planned: Callable[..., _Stopped]) -> None:
    dataset = load_dataset(tones)
    theirs = Dataset(**{**_fields(dataset), "name": "esc50"})
    stopped = planned("pretrained", theirs)
    paper = load_recipe("palanisamy2020-esc50")
    for point in stopped.points:
        assert point.recipe.training == paper.training
        assert point.recipe.augment == paper.augment
        assert point.recipe.features == paper.features
        assert point.recipe.audio == paper.audio
        assert point.recipe.normalization == paper.normalization
    assert [split.name for split in stopped.bench.splits] == ["1", "2"]
    other = planned("pretrained", tones).points[0].recipe
    assert other.audio.window_seconds == 0.5
    assert other.features == paper.features
    third = planned("pretrained", Dataset(**{**_fields(dataset), "name": "gtzan"}))
    assert third.points[0].recipe.features.n_frames == 1500


def _fields(dataset: Dataset) -> dict[str, Any]:
    return {name: getattr(dataset, name) for name in dataset.__dataclass_fields__}


def test_a_shorter_schedule_keeps_its_proportions(
    tones: Path, planned: Callable[..., _Stopped]
) -> None:
    training = planned("pretrained", tones, epochs=14).points[0].recipe.training
    assert (training.epochs, training.step_epochs) == (14, 6)
    quick = planned("pretrained", tones, epochs=14, quick=True)
    assert quick.points[0].recipe.training.epochs == 14
    assert quick.points[0].recipe.training.schedule == load_recipe("transfer").training.schedule
    assert quick.points[0].recipe.training.layer_decay == 1, "random blocks are not held back"
    assert [split.name for split in quick.bench.splits] == ["1"]


@pytest.mark.parametrize(
    ("item", "options", "networks", "seeds"),
    [
        ("table1", {}, ["densenet201", "resnet50", "inception_v3"], 5),
        ("pretrained", {"seeds": 2}, ["densenet201", "resnet50", "inception_v3"], 2),
        ("similarity", {}, ["densenet201"], 1),
        ("table1", {"quick": True}, ["tf_efficientnet_lite0"], 3),
        ("table1", {"networks": ["resnet18", "resnet34"]}, ["resnet18", "resnet34"], 5),
    ],
)
def test_networks_and_seeds_where_none_are_given(
    tones: Path,
    monkeypatch: pytest.MonkeyPatch,
    item: str,
    options: dict[str, Any],
    networks: list[str],
    seeds: int,
) -> None:
    chosen: list[str] = []
    choose = palanisamy2020._networks

    def networks_of(*args: Any) -> Any:
        found = choose(*args)
        chosen.extend(one.architecture for one in found)
        return found

    def opened(dataset: Dataset, recipe: Any, **given: Any) -> None:
        assert recipe.model.architecture == chosen[0]
        assert given["seeds"] == seeds
        raise KeyboardInterrupt

    monkeypatch.setattr(palanisamy2020, "_networks", networks_of)
    monkeypatch.setattr(palanisamy2020, "open_bench", opened)
    with pytest.raises(KeyboardInterrupt):
        reproduce(item, tones, **options)
    assert chosen == networks


# What comes out


@pytest.fixture(scope="module")
def table(tiny: Study) -> StudyResult:
    """Two seeds of one network."""
    return tiny("table1", seeds=2)


def test_the_ensemble_is_the_mean_of_its_members(table: StudyResult) -> None:
    folder = table.folder / f"{NETWORK}-pretrained" / "1"
    ours = [evaluate(folder / f"seed-{seed}", folder / "seed-0" / "test.csv") for seed in (0, 1)]
    targets = ours[0].targets
    mean = np.mean([one.probabilities for one in ours], axis=0)
    singles = [float((one.probabilities.argmax(1) == targets).mean()) for one in ours]
    alike = float(np.mean(np.equal(*(one.probabilities.argmax(1) for one in ours))))
    (record,) = table.records
    assert record["agreement"] == alike
    assert table.rows[0][7] == f"{100 * alike:.1f} %"
    assert record["ensemble"] == float((mean.argmax(1) == targets).mean())
    assert record["accuracy"] == pytest.approx(np.mean(singles))
    assert record["accuracy_sd_over_seeds"] == pytest.approx(np.std(singles, ddof=1))
    assert (record["clips"], record["folds"], record["seeds"]) == (8, 1, 2)
    assert table.header[4:6] == ("ensemble of 5 published", "ours of 2")


def test_ensemble_is_scored_by_probabilities_and_not_by_votes(
    tiny: Study, table: StudyResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two seeds, one unsure and right, one sure and wrong: together they are wrong."""
    from dataclasses import replace

    member = members.Run.member

    def made_up(self: Any, split: Any, seed: int, *rest: Any) -> Any:
        found = member(self, split, seed, *rest)
        sure = np.eye(2)[self.dataset.targets[split.test]]
        sure = 0.6 * sure + 0.4 * (1 - sure) if seed == 0 else 0.1 * sure + 0.9 * (1 - sure)
        return replace(found, probabilities=sure)

    monkeypatch.setattr(members.Run, "member", made_up)
    (record,) = tiny("table1", seeds=2, out=tmp_path / "out").records
    assert record["accuracy"] == 0.5
    assert record["ensemble"] == 0.0
    assert record["agreement"] == 0.0
    assert record["accuracy_sd_over_seeds"] == pytest.approx(np.sqrt(0.5))


def test_items_share_their_networks(tiny: Study, table: StudyResult, trained: list[str]) -> None:
    pretrained = tiny("pretrained")
    assert trained == ["random"], "the other one is the table's"
    fusing = tiny("fusing")
    assert trained[1:] == ["fused-1", "fused-2", "fused-3", "fused-4"]
    freezing = tiny("freezing")
    assert trained[5:] == [f"pretrained-frozen-{k}" for k in range(1, 6)]
    truncation = tiny("truncation")
    assert trained[10:] == [f"pretrained-cut-{k}" for k in range(1, 5)]
    whole, drawn = pretrained.records
    for result, k in ((fusing, 5), (freezing, 0), (truncation, 5)):
        shared = next(r for r in result.records if r["blocks"] == k)
        for key in ("run", "accuracy", "accuracy_low", "accuracy_high", "parameters"):
            assert shared[key] == whole[key]
    assert fusing.records[0]["run"] == drawn["run"]
    before = len(trained)
    for item in ("weights", "similarity"):
        tiny(item)
    assert len(trained) == before
    assert [r["blocks"] for r in tiny("freezing", blocks=[2, 0]).records] == [0, 2]
    assert len(trained) == before


def test_frozen_blocks_stay_as_they_were(tiny: Study, weights: Path) -> None:
    result = tiny("freezing")
    given = {f"body.{name}": tensor for name, tensor in load_file(weights).items()}
    for k in (0, 2, N_BLOCKS):
        network = model(result, f"pretrained-frozen-{k}" if k else "pretrained").network
        block_of = block_plan(network).block_of
        for name, tensor in network.state_dict().items():
            counts = not name.endswith("num_batches_tracked")
            if block_of[name] < k and counts:
                assert torch.equal(tensor, given[name]), (k, name)
            elif counts and block_of[name] < N_BLOCKS:
                assert not torch.equal(tensor, given[name]), (k, name)


def test_cut_networks_end_early(tiny: Study) -> None:
    result = tiny("truncation")
    counts = [record["parameters"] for record in result.records]
    assert counts == sorted(set(counts))
    for k, record in enumerate(result.records, 1):
        network = model(result, record["run"].removeprefix(f"{NETWORK}-")).network
        assert network.blocks() == tuple(f"body.{n}" for n in block_names(NETWORK)[:k])
        assert record["parameters"] == sum(p.numel() for p in network.parameters())
        assert record["up_to"] == block_names(NETWORK)[k - 1]


def test_accuracy_is_that_of_the_stored_models(tiny: Study) -> None:
    result = tiny("fusing")
    for record in result.records:
        bundle = model(result, record["run"].removeprefix(f"{NETWORK}-"))
        stored = bundle.metadata["score"]["accuracy"]
        assert record["accuracy"] == stored["value"]
        assert record["accuracy_low"] == pytest.approx(stored["low"])
        assert record["accuracy_high"] == pytest.approx(stored["high"])


def test_differences_are_to_the_whole_network(tiny: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up answers: k of eight clips right with k blocks pretrained."""
    from stapes.studies import points

    stored = Bench._stored

    def made_up(self: Bench, point: Point) -> Any:
        found = stored(self, point)
        assert found is not None
        start = point.recipe.initialization
        k = 0 if start.weights == "random" else N_BLOCKS if start.blocks is None else start.blocks
        right = np.arange(8) < (k if k < 3 else k + 1)
        return points.replace(found, right=right.astype(float), accuracy=Interval(k / 8, 0, 1))

    monkeypatch.setattr(Bench, "_stored", made_up)
    fusing = tiny("fusing")
    gaps = [record["difference"] for record in fusing.records]
    assert gaps[:5] == pytest.approx([-6 / 8, -5 / 8, -4 / 8, -2 / 8, -1 / 8])
    assert gaps[5] is None
    (statement,) = fusing.statements
    assert "from 0 to 5 blocks +75.0" in statement
    assert "the largest step is from 2 to 3 blocks +25.0" in statement
    costs = tiny("pretrained")
    assert costs.records[0]["difference"] == pytest.approx(6 / 8)
    assert costs.rows[1][4:6] == ("about 20", costs.rows[1][5])
    assert costs.rows[1][5].startswith("+75.0 (")


def test_weights_are_compared_with_those_before_training(tiny: Study, weights: Path) -> None:
    result = tiny("weights")
    after = model(result, "pretrained").network.state_dict()
    before = {f"body.{name}": tensor for name, tensor in load_file(weights).items()}
    rows = [r for r in result.records if r["weights"] == "imagenet"]
    assert len(rows) > 10
    assert {row["block"] for row in rows} == {1, 2, 3, 4, 5}, "the head is new"
    for row in rows:
        name = f"{row['layer']}.weight"
        moved = (after[name] - before[name]).norm() / before[name].norm()
        assert row["relative"] == pytest.approx(float(moved), rel=1e-4)
        assert row["relative_lowest"] == row["relative_highest"] == row["relative"]
    for k, row in enumerate(result.rows, 1):
        mine = [r["relative"] for r in rows if r["block"] == k]
        assert row[3:5] == (str(len(mine)), f"{100 * np.sqrt(np.mean(np.square(mine))):.1f} %")


def test_similarity_of_what_did_not_change_is_one(
    tiny: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "untrained", Bench.trained)
    rows = [r for r in tiny("similarity").records if r["compared"].endswith("and before")]
    assert len(rows) == 2 * N_BLOCKS
    assert [r["linear_cka"] for r in rows] == pytest.approx([1] * len(rows))
    assert [r["svcca"] for r in rows] == pytest.approx([1] * len(rows))


def test_similarity_compares_before_and_after_and_seeds(tiny: Study, table: StudyResult) -> None:
    result = tiny("similarity", seeds=2)
    compared = list(dict.fromkeys(row[1] for row in result.rows))
    assert compared == [
        "fine-tuned and before", "from random weights and before",
        "fine-tuned and from random weights", "ImageNet and random weights, untrained",
        "fine-tuned from two seeds",
    ]  # fmt: skip
    for name in ("svcca", "linear_cka"):
        assert (result.folder / f"similarity-{NETWORK}-{name}.svg").stat().st_size
    by_pair = {
        text: np.mean([r["linear_cka"] for r in result.records if r["compared"] == text])
        for text in compared
    }
    assert by_pair["fine-tuned and before"] < 1
    assert by_pair["fine-tuned and before"] > by_pair["fine-tuned and from random weights"]


def test_the_files_hold_the_same(tiny: Study) -> None:
    for item in ("pretrained", "fusing", "truncation"):
        result = tiny(item)
        page, sheet, svg, png = result.files
        assert [f.name for f in result.files] == [
            f"{item}{s}" for s in (".md", ".csv", ".svg", ".png")
        ]
        assert svg.stat().st_size
        assert png.stat().st_size
        with sheet.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["run"] for row in rows] == [record["run"] for record in result.records]
        assert [float(row["accuracy"]) for row in rows] == [r["accuracy"] for r in result.records]
        text = page.read_text(encoding="utf-8")
        assert f"({item}.svg)" in text
        for cells in result.rows:
            assert "| " + " | ".join(cells) + " |" in text
        for sentence in (*result.statements, *result.notes):
            assert f"- {sentence}\n" in text


def test_the_notes_say_what_is_not_the_papers(
    tiny: Study, table: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(table.notes)
    for words in (
        "Published numbers are of other data, ESC-50", f"{NETWORK} is not one of the paper's",
        "w.safetensors, SHA-256", "name three_window_log_mel -> log_mel", "n_mels 128 -> 32",
        "epochs 70 -> 2", "optimizer adam -> adamw", "Only fold 1 is tested",
        "best epoch on the test part", "8 clips from 8 sources, 2 seeds",
    ):  # fmt: skip
        assert words in text
    assert "sha256" not in text
    assert "architecture" not in text
    assert table.rows[0][2] == table.rows[0][4] == ""
    monkeypatch.setattr(palanisamy2020, "_STAND_INS", {NETWORK: "DenseNet-201"})
    beside = tiny("table1", seeds=2)
    assert beside.rows[0][2] == "91.16 ± 0.36 % (DenseNet-201)"
    assert beside.rows[0][4] == "92.89 %"
    assert f"{NETWORK} stands in for DenseNet-201 and is not it." in beside.notes
    monkeypatch.setattr(palanisamy2020, "_PAPERS", {NETWORK: "ResNet-50"})
    exact = tiny("table1", seeds=2)
    assert exact.rows[0][2] == "90.65 ± 0.28 %"
    assert exact.records[0]["published_accuracy"] == pytest.approx(0.9065)
    assert not any(NETWORK in note and "paper's networks" in note for note in exact.notes)


# Mistakes


@pytest.mark.parametrize(
    ("item", "options", "error", "words"),
    [
        ("table2", {}, UnknownNameError, "Unknown item of palanisamy2020 'table2'. Did you mean"),
        ("table1", {"seeds": 0}, StapesError, "--seeds 0"),
        ("table1", {"epochs": 0}, StapesError, "--epochs 0"),
        ("table1", {"blocks": [1]}, ConfigError, "table1 does not go over the blocks"),
        ("fusing", {"blocks": [0, 6]}, ConfigError, "--blocks 0,6: fusing of 'test_resnet'"),
        ("fusing", {"blocks": []}, ConfigError, "from 0 to 5; give whole numbers"),
        ("truncation", {"blocks": [0]}, ConfigError, "from 1 to 5"),
        ("fusing", {"networks": []}, ConfigError, "--network: give one or more"),
        ("fusing", {"networks": ["resnet18", "resnet18"]}, ConfigError, "each name once"),
        ("fusing", {"networks": ["a", "b"]}, ConfigError, "1 file(s) for 2 network(s) (a, b)"),
        ("fusing", {"networks": ["resnet8000"]}, UnknownNameError, "'resnet8000'"),
        ("fusing", {"weights": ["nowhere.safetensors"]}, ModelFileError, "nowhere.safetensors"),
        ("fusing", {"networks": ["resnet18"]}, ModelFileError, "not the weights of 'resnet18'"),
        (
            "fusing",
            {"overrides": ["model.name=cp_resnet"]},
            ConfigError,
            "choose one with --network",
        ),
        ("fusing", {"overrides": ["model.architecture=a"]}, ConfigError, "give it with --network"),
        ("fusing", {"overrides": ["initialization.file=a"]}, ConfigError, "give it with --weights"),
        ("fusing", {"overrides": ["model.blocks=2"]}, ConfigError, "sets model.blocks itself"),
        ("fusing", {"overrides": ["initialization.frozen_blocks=2"]}, ConfigError, "leave it out"),
        ("fusing", {"overrides": ["model.depth=2"]}, ConfigError, "unknown field 'model.depth'"),
    ],
)
def test_mistakes_are_one_sentence_before_any_training(
    tones: Path,
    weights: Path,
    tmp_path: Path,
    trained: list[str],
    item: str,
    options: dict[str, Any],
    error: type[StapesError],
    words: str,
) -> None:
    given = {"networks": [NETWORK], "weights": [weights], "overrides": (), "quick": True,
             "out": tmp_path / "out", "cache": tmp_path, **options}  # fmt: skip
    given["overrides"] = (*TINY, *given["overrides"])
    with pytest.raises(error) as caught:
        reproduce(item, tones, **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert trained == []


def test_the_study_is_found_by_name() -> None:
    assert study_names() == ["koutini2020", "palanisamy2020"]
    study = load_study("palanisamy2020")
    assert list(study.items) == [
        "table1", "pretrained", "fusing", "freezing", "truncation", "weights", "similarity",
    ]  # fmt: skip
    assert study.reproduce is reproduce
    assert study.options == {"networks", "weights", "blocks"}
