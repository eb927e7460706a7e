"""What teachers say, and what students make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from noises import write_noises
from numpy.typing import NDArray
from planted import CLASSES, Planted, fit_planted
from torch import Tensor
from toy_run import LABELS, noise_of, toy_bundle

import stapes
from stapes.audio import read, split_windows
from stapes.augment import Mixup, apply_mixup, draw_mixup
from stapes.bundle import Bundle, save_bundle
from stapes.config import load_recipe
from stapes.data import load_dataset
from stapes.data.loader import FeatureStore, WithVariants
from stapes.errors import ModelFileError
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model
from stapes.models.cp_resnet import CpResNet
from stapes.training.distillation import Lessons, overlaps
from stapes.training.experiment import open_run
from stapes.training.finished import quantize_run
from stapes.training.members import Run
from stapes.training.teachers import taught_by

CPU = torch.device("cpu")
TINY = (
    "training.epochs=2", "model.width=4", "model.blocks=[2, 0, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5", "audio.sample_rate=8000", "training.batch_size=8",
)  # fmt: skip
VARIED = (
    "augment.pitch_semitones=2", "augment.time_stretch=[0.9, 1.2]", "augment.waveform_variants=2",
)  # fmt: skip


# --- the loop, with a made-up teacher ---------------------------------------------------------


class Permuted:
    """Says of every clip the class after its own, and is sure."""

    temperature = 2.0

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.devices: list[torch.device] = []
        self.said = np.roll(np.eye(CLASSES, dtype=np.float32), 1, axis=1)

    def prepare(self, device: torch.device) -> None:
        self.devices.append(device)

    def take(
        self, indices: NDArray[np.int64], windows: NDArray[np.int64], mixup: Mixup | None
    ) -> Tensor:
        assert self.devices, "asked before it was told to prepare"
        said = torch.from_numpy(self.said[Planted().targets[indices]])
        return said if mixup is None else apply_mixup(said, mixup)


@pytest.mark.parametrize(("weight", "step", "mixup"), [(1.0, 1, 0), (0.9, 1, 0.3), (0.01, 0, 0.3)])
def test_the_weight_decides_whom_the_student_believes(
    weight: float, step: int, mixup: float, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = create_model(
        "cp_resnet", n_classes=CLASSES, in_channels=1, rho=2, width=4, blocks=(2, 0, 0),
        damping=0.1,
    )  # fmt: skip
    recipe = load_recipe(
        "small",
        ["training.epochs=20", "training.batch_size=8", "training.learning_rate=0.03",
         f"augment.mixup_alpha={mixup}"],
    )  # fmt: skip
    teacher = Permuted(weight)
    fit_planted(network, tmp_path, recipe, teacher=teacher)
    with torch.inference_mode():
        answers = network(torch.from_numpy(Planted().x[:, 0])).argmax(1).numpy()
    right = (answers == (Planted().targets + step) % CLASSES).mean()
    assert right > 0.9
    assert teacher.devices == [CPU]


# --- what is said of which stretch of time ----------------------------------------------------


def test_overlaps_are_what_counting_moments_gives() -> None:
    rng = np.random.default_rng(0)
    students, teachers = (np.sort(rng.uniform(0, 5, (n, 2)), axis=1) for n in (20, 7))
    moments = np.linspace(0, 5, 200_001)
    inside = [
        [(moments >= a) & (moments < b) for a, b in stretches] for stretches in (students, teachers)
    ]
    counts = np.array([[(s & t).sum() for t in inside[1]] for s in inside[0]], dtype=float)
    met = counts.sum(1) > 0
    assert met.sum() > 0
    found = overlaps(students, teachers)
    np.testing.assert_allclose(
        found[met], counts[met] / counts[met].sum(1, keepdims=True), atol=2e-3
    )
    np.testing.assert_allclose(found.sum(1), 1)


def test_a_stretch_outside_of_all_others_takes_them_alike() -> None:
    found = overlaps(np.array([[0.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 4.0]]))
    np.testing.assert_array_equal(found, [[0.5, 0.5]])


# --- lessons ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noises(tmp_path_factory.mktemp("noises"), 12)


def _lower() -> Bundle:
    """A model of another rate and front end."""
    bundle = toy_bundle(sample_rate="6000")
    features = bundle.recipe.features.model_copy(update={"n_mels": 40, "n_fft": 1024})
    frontend = create_frontend(sample_rate=6000, **features.model_dump()).eval()
    heard = frontend(torch.from_numpy(np.stack([noise_of(i) for i in range(8)])))
    return replace(
        bundle,
        frontend=frontend,
        normalizer=BandNormalizer(1, 40).fit(heard.numpy()).eval(),
        recipe=bundle.recipe.model_copy(update={"features": features}),
    )


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that hear otherwise than the student and than each other."""
    folder = tmp_path_factory.mktemp("teachers")
    paths = (folder / "low.safetensors", folder / "short.safetensors")
    save_bundle(_lower(), paths[0])
    save_bundle(toy_bundle(window_seconds="0.4", longer="crop"), paths[1])
    return paths


def _run(
    table: Path, teachers: Sequence[Path], cache: Path, *overrides: str, out: str = "run"
) -> Run:
    recipe = taught_by(load_recipe("small", [*TINY, *overrides]), teachers)
    run, _, _ = open_run(load_dataset(table), recipe, out=cache / out, cache=cache)
    return run


def _lessons(
    table: Path, teachers: Sequence[Path], cache: Path, *overrides: str
) -> tuple[Lessons, Run]:
    """Of all clips without variants, prepared."""
    run = _run(table, teachers, cache, *overrides)
    assert run.teaching is not None
    lessons = run.teaching.lessons("official", np.arange(len(run.dataset)), run.store)
    lessons.prepare(CPU)
    return lessons, run


def _take(lessons: Lessons, mixup: Mixup | None = None, n: int = 12) -> NDArray[np.float32]:
    taken = lessons.take(np.arange(n), np.zeros(n, np.int64), mixup)
    assert taken.dtype == torch.float32
    return taken.numpy()


def _classified(model: Path, table: Path) -> NDArray[np.float64]:
    """By another way: from the waveform, without caches and windows of the student."""
    classifier = stapes.load(model)
    order = [classifier.labels.index(label) for label in sorted(LABELS)]
    clips = load_dataset(table).clips
    return np.stack([classifier.classify(clip.path).probabilities for clip in clips])[:, order]


def test_lessons_are_what_the_teacher_says_of_the_recording(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    lessons, run = _lessons(noises, teachers[:1], tmp_path, "distillation.temperature=1")
    assert run.dataset.labels != LABELS, "the order of classes is another one"
    expected = _classified(teachers[0], noises)
    assert expected.std(0).max() > 0.1, "the teacher tells the recordings apart"
    np.testing.assert_allclose(_take(lessons), expected, atol=0.01)
    again = lessons.take(np.array([7, 2]), np.zeros(2, np.int64), None)
    np.testing.assert_array_equal(again, _take(lessons)[[7, 2]])


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_two_teachers_are_averaged_then_softened_then_mixed(
    temperature: float, noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    lessons, _ = _lessons(noises, teachers, tmp_path, f"distillation.temperature={temperature}")
    assert lessons.temperature == temperature
    mean = np.mean([_classified(teacher, noises) for teacher in teachers], axis=0)
    softened = mean ** (1 / temperature)
    softened /= softened.sum(1, keepdims=True)
    np.testing.assert_allclose(_take(lessons), softened, atol=0.01)
    mixup = draw_mixup(12, 0.3, np.random.default_rng(0))
    weight = mixup.weight.numpy()[:, None]
    mixed = weight * softened + (1 - weight) * softened[mixup.partner.numpy()]
    np.testing.assert_allclose(_take(lessons, mixup), mixed, atol=0.01)
    assert np.abs(mixed - softened).max() > 0.05


def test_certainty_does_not_become_infinite(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    sure = toy_bundle()
    with torch.no_grad():
        sure.network.head.norm.weight.fill_(3000.0)  # logits of hundreds
    save_bundle(sure, tmp_path / "sure.safetensors")
    lessons, _ = _lessons(noises, [tmp_path / "sure.safetensors"], tmp_path)
    said = _take(lessons)
    assert np.isfinite(said).all()
    np.testing.assert_allclose(said.sum(1), 1, rtol=1e-6)
    assert said.max() > 0.999


def test_large_logits_lose_nothing_in_the_cache(noises: Path, tmp_path: Path) -> None:
    """Half precision has steps of a quarter at 500: only differences may be kept in it."""
    bundle = toy_bundle()
    with torch.no_grad():
        bundle.network.head.norm.bias.fill_(500.0)  # of every class: the same answers
    save_bundle(bundle, tmp_path / "far.safetensors")
    lessons, _ = _lessons(
        noises, [tmp_path / "far.safetensors"], tmp_path, "distillation.temperature=1"
    )
    np.testing.assert_allclose(
        _take(lessons), _classified(tmp_path / "far.safetensors", noises), atol=0.01
    )


def test_classes_that_the_student_has_not_are_left_out(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    lines = noises.read_text(encoding="utf-8").splitlines()
    table = noises.with_name("two.csv")
    table.write_text("\n".join(x for x in lines if ",other," not in x) + "\n", encoding="utf-8")
    lessons, run = _lessons(table, teachers[:1], tmp_path, "distillation.temperature=1")
    assert run.dataset.labels == ("high", "low")
    classifier = stapes.load(teachers[0])
    order = [classifier.labels.index(label) for label in ("high", "low")]
    expected = np.stack([classifier.classify(c.path).probabilities for c in run.dataset.clips])
    expected = expected[:, order] / expected[:, order].sum(1, keepdims=True)
    np.testing.assert_allclose(_take(lessons, n=8), expected, atol=0.01)


# --- variants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["one", "all"])
def test_what_is_said_of_a_variant_is_said_of_its_sound(
    mode: str, noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    run = _run(noises, teachers[:1], tmp_path, *VARIED, f"augment.variants_per_epoch={mode}",
               "distillation.temperature=1")  # fmt: skip
    source = WithVariants(run.store, run.recipe.augment)
    assert run.teaching is not None
    lessons = run.teaching.lessons("official", np.arange(12), source)
    lessons.prepare(CPU)
    clips, variants = np.array([3, 5, 5, 0, 11]), np.array([1, 2, 0, 0, 2])
    if mode == "one":
        indices, windows = clips, variants
    else:
        indices, windows = variants * 12 + clips, np.zeros(5, np.int64)
    said = lessons.take(indices, windows, None).numpy()
    bundle = stapes.load_bundle(teachers[0])
    store = FeatureStore(
        run.dataset.clips, run.scans, bundle.frontend, bundle.recipe.audio, tmp_path / "other"
    )
    order = [bundle.labels.index(label) for label in run.dataset.labels]
    for row, clip, variant in zip(said, clips.tolist(), variants.tolist(), strict=True):
        features = store.windows(clip)
        if variant:
            features = store.variant(clip, variant, run.recipe.augment)
        with torch.inference_mode():
            x = bundle.normalizer(torch.from_numpy(features.astype(np.float32)))
            expected = bundle.network(x).softmax(1).numpy()[0, order]
        np.testing.assert_allclose(row, expected, atol=0.001)
    assert np.abs(said[1] - said[2]).max() > 0.01, "a variant sounds otherwise"


# --- computed once ----------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Windows that any network was asked about, call by call."""
    calls: list[int] = []
    forward = CpResNet.forward

    def counted(self: CpResNet, x: Tensor) -> Tensor:
        calls.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(CpResNet, "forward", counted)
    return calls


def _no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureStore, "_compute", lambda *_: pytest.fail("features again"))


def test_a_teacher_is_asked_once_and_never_again(
    noises: Path,
    teachers: tuple[Path, Path],
    tmp_path: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = _run(noises, teachers, tmp_path, *VARIED, "augment.variants_per_epoch=all")
    source = WithVariants(run.store, run.recipe.augment)
    run.store.prepare(range(12), variants=run.recipe.augment)
    assert run.teaching is not None
    some = np.arange(8)  # of a training part
    asked.clear()
    run.teaching.lessons("official", some, source).prepare(CPU)
    assert sum(asked) == 2 * 3 * 8, "two teachers, each clip and two variants of it"
    asked.clear()
    again = run.teaching.lessons("official", np.arange(10), source)
    again.prepare(CPU)
    assert sum(asked) == 2 * 3 * 2, "what is new only"
    asked.clear()
    first = again.take(np.arange(24) % 10, np.zeros(24, np.int64), None)
    # Another process; features of the teachers are needed no more, only those of the student.
    for folder in (tmp_path / "features").iterdir():
        if '"sample_rate": 6000' in (folder / "settings.json").read_text(encoding="utf-8"):
            for file in folder.iterdir():
                file.unlink()
    _no_features(monkeypatch)
    run = _run(noises, teachers, tmp_path, *VARIED, "augment.variants_per_epoch=all")
    assert run.teaching is not None
    source = WithVariants(run.store, run.recipe.augment)
    asked.clear()
    later = run.teaching.lessons("official", np.arange(10), source)
    later.prepare(CPU)
    assert torch.equal(later.take(np.arange(24) % 10, np.zeros(24, np.int64), None), first)
    assert asked == []


def test_another_teacher_is_asked_for_itself(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    """Also one that hears the same: the answers belong to the model, not to its front end."""
    _lessons(noises, teachers[:1], tmp_path)
    other = _lower()
    with torch.no_grad():
        other.network.head.norm.weight.fill_(0.0)
    save_bundle(other, tmp_path / "other.safetensors")
    lessons, _ = _lessons(noises, [tmp_path / "other.safetensors"], tmp_path)
    np.testing.assert_allclose(_take(lessons), 1 / 3, atol=1e-3)


def test_answers_that_were_cleared_meanwhile_are_asked_for_again(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    lessons, _ = _lessons(noises, teachers[:1], tmp_path)
    expected = _take(lessons)
    lessons, _ = _lessons(noises, teachers[:1], tmp_path)
    for segment in (tmp_path / "features").rglob("*.segment"):
        segment.unlink()
    np.testing.assert_array_equal(_take(lessons), expected)


def test_what_was_said_before_an_interrupt_stays(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path, asked: list[int]
) -> None:
    class Interrupted(stapes.training.reporter.Silent):
        def progress(self, stage: str, done: float, total: float) -> None:
            if stage == "Asking a teacher" and done == 5:
                raise KeyboardInterrupt

    run = _run(noises, teachers[:1], tmp_path)
    assert run.teaching is not None
    teaching = replace(run.teaching, reporter=Interrupted())
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        teaching.lessons("official", np.arange(12), run.store).prepare(CPU)
    assert sum(asked) == 5
    run.teaching.lessons("official", np.arange(12), run.store).prepare(CPU)
    assert sum(asked) == 12


# --- live -------------------------------------------------------------------------------------


def test_live_teachers_hear_the_mixtures_themselves(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = _lessons(noises, teachers, tmp_path, "distillation.temperature=1")
    live, run = _lessons(
        noises, teachers, tmp_path, "distillation.temperature=1", "distillation.live=true"
    )
    run.store.prepare(range(12))
    _no_features(monkeypatch)
    np.testing.assert_allclose(_take(live), _take(kept), atol=0.005)
    mixup = draw_mixup(12, 0.5, np.random.default_rng(1))
    expected = []
    for teacher in teachers:
        bundle = stapes.load_bundle(teacher)
        audio = bundle.recipe.audio
        window = round(audio.window_seconds * audio.sample_rate)
        waves = [
            split_windows(
                read(clip.path, sample_rate=audio.sample_rate, channels=1), window, window,
                longer=audio.longer,
            )[0]
            for clip in run.dataset.clips
        ]  # fmt: skip
        order = [bundle.labels.index(label) for label in run.dataset.labels]
        with torch.inference_mode():
            x = bundle.normalizer(bundle.frontend(torch.from_numpy(np.stack(waves))))
            weight = mixup.weight.view(-1, 1, 1, 1)
            mixed = weight * x + (1 - weight) * x[mixup.partner]
            expected.append(bundle.network(mixed).softmax(1)[:, order].numpy())
    found = _take(live, mixup)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=0.01)
    assert np.abs(found - _take(kept, mixup)).max() > 0.02, "not the mixture of the answers"


def test_live_teachers_have_their_features_in_advance(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, run = _lessons(noises, teachers, tmp_path, "distillation.live=true")
    run.store.prepare(range(12))
    segments = list((tmp_path / "features").rglob("*.segment"))
    assert len(segments) <= 3, "one for each of the fronts, not one for each clip"
    _no_features(monkeypatch)
    assert np.isfinite(_take(live)).all()


# --- longer recordings ------------------------------------------------------------------------


# The student's windows begin at 0, 0.5, 1, 1.5, 1.7 s, or the only one at 0.85 s; the teacher's at
# 0, 0.8, 1.4 s and are 0.8 s long.
SHARES = {
    "window": [[1, 0, 0], [3 / 5, 2 / 5, 0], [0, 5 / 6, 1 / 6], [0, 1 / 6, 5 / 6], [0, 0, 1]],
    "crop": [[0, 1, 0]],
}


@pytest.mark.parametrize("longer", SHARES)
def test_what_meets_are_the_seconds_of_a_recording(longer: str, tmp_path: Path) -> None:
    shares = np.array(SHARES[longer])
    table = write_noises(tmp_path, 6, seconds=2.2)
    for i in range(6):  # windows of one recording sound unlike each other
        parts = [noise_of(10 * i + j) for j in range(4)] + [noise_of(10 * i + 9, seconds=0.2)]
        wave = np.concatenate(parts, axis=1)
        soundfile.write(tmp_path / f"{i}.wav", wave.T, 8000, subtype="FLOAT")
    model = tmp_path / "teacher.safetensors"
    save_bundle(toy_bundle(window_seconds="0.8", hop_seconds="0.8"), model)
    lessons, run = _lessons(
        table, [model], tmp_path, "distillation.temperature=1", f"audio.longer={longer}"
    )
    assert [run.store.n_windows(i) for i in range(6)] == [len(shares)] * 6
    bundle = stapes.load_bundle(model)
    order = [bundle.labels.index(label) for label in run.dataset.labels]
    differ = 0.0
    for i, clip in enumerate(run.dataset.clips):
        wave = read(clip.path, sample_rate=8000, channels=1)
        windows = split_windows(wave, 6400, 6400)
        with torch.inference_mode():
            said = bundle.module()(torch.from_numpy(windows)).softmax(1).numpy()[:, order]
        found = lessons.take(np.full(len(shares), i), np.arange(len(shares)), None)
        np.testing.assert_allclose(found, shares @ said, atol=0.01)
        differ = max(differ, float(np.ptp(said, axis=0).max()))
    assert differ > 0.05


# --- whole runs -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr("stapes.evaluation.report.write_report", lambda *_: None)


def _weights(result: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = result.members[0].bundle.network.state_dict()
    return state


def _same(a: Any, b: Any) -> bool:
    left, right = _weights(a), _weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("more", [("distillation.live=false",), ("distillation.live=true",)])
def test_a_stopped_run_ends_with_the_same_weights_to_the_bit(
    more: tuple[str, ...],
    noises: Path,
    teachers: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(name: str, *, taught: bool = True) -> Any:
        return stapes.train(
            noises, overrides=[*TINY, *VARIED, *more], out=tmp_path / name, cache=tmp_path,
            teachers=teachers if taught else (), device="cpu",
        )  # fmt: skip

    whole = train("whole")
    assert not _same(whole, train("alone", taught=False))
    monkeypatch.setattr("stapes.training.loop._SAVE_SECONDS", 0.0)
    monkeypatch.setattr("stapes.training.loop._SAVE_STEPS", 1)
    take: Callable[..., Tensor] = Lessons.take
    calls = 0

    def killed(self: Lessons, *arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls in (2, 4):
            raise KeyboardInterrupt
        return take(self, *arguments)

    monkeypatch.setattr(Lessons, "take", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train("stopped")
    assert _same(train("stopped"), whole)
    assert calls > 4


def test_only_training_clips_are_asked_about(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[int] = set()
    take = Lessons.take

    def watched(self: Lessons, indices: Any, *rest: Any) -> Tensor:
        asked.update(indices.tolist())
        return take(self, indices, *rest)

    monkeypatch.setattr(Lessons, "take", watched)
    told: list[NDArray[np.int64]] = []
    make = stapes.training.distillation.Teaching.lessons

    def made(self: Any, split: str, clips: Any, source: Any) -> Lessons:
        told.append(clips)
        return make(self, split, clips, source)

    monkeypatch.setattr(stapes.training.distillation.Teaching, "lessons", made)
    result = stapes.train(
        noises, overrides=[*TINY, "training.validation_fraction=0.2"], out=tmp_path / "run",
        teachers=teachers, cache=tmp_path,
    )  # fmt: skip
    split = result.members[0].split
    assert split.validation.size
    assert asked == set(split.train.tolist())
    for clips in told:
        assert set(clips.tolist()) == set(split.train.tolist())


def test_fine_tuning_for_int8_is_taught_too(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path, asked: list[int]
) -> None:
    """And 'stapes quantize' of a taught run needs its teachers for nothing else."""
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(teachers[0].read_bytes())
    run = stapes.train(
        noises, overrides=TINY, out=tmp_path / "run", teachers=[moved], cache=tmp_path
    )
    said = run.members[0].bundle.metadata["teachers"]
    moved.rename(tmp_path / "gone.safetensors")

    def quantize(out: str, *overrides: str) -> Any:
        return quantize_run(
            run.folder, "int8", out=tmp_path / out, overrides=overrides, cache=tmp_path
        )

    plain = quantize("plain", "quantization.aware=never")
    assert plain.members[0].bundle.metadata["teachers"] == said
    aware = ("quantization.aware=always", "quantization.aware_epochs=1")
    with pytest.raises(ModelFileError, match=r"moved\.safetensors: cannot read"):
        quantize("aware", *aware)
    save_bundle(toy_bundle(), moved)
    with pytest.raises(ModelFileError, match="not the teacher that"):
        quantize("aware", *aware)
    (tmp_path / "gone.safetensors").rename(moved)
    tuned = quantize("aware", *aware)
    assert tuned.members[0].bundle.metadata["teachers"] == said
    assert not _same(tuned, plain)


def test_nobody_knows_the_teachers_recipe_but_by_its_digest(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where a teacher lies is no part of a run, what it is, how it teaches and how much are."""
    run = _run(noises, teachers[:1], tmp_path)
    split = stapes.data.Split("official", *(np.arange(i, i + 2) for i in (0, 2, 4)))
    found = run.fingerprint(split, 0)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(teachers[0].read_bytes())
    assert _run(noises, [copy], tmp_path).fingerprint(split, 0) == found
    others = [
        _run(noises, teachers[1:], tmp_path),
        _run(noises, teachers, tmp_path),
        _run(noises, (), tmp_path),
        _run(noises, teachers[:1], tmp_path, "distillation.weight=0.5"),
        _run(noises, teachers[:1], tmp_path, "distillation.temperature=5"),
        _run(noises, teachers[:1], tmp_path, "distillation.live=true"),
    ]
    assert found not in {other.fingerprint(split, 0) for other in others}


def test_a_network_that_teaches_is_left_as_it_was(
    noises: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    """Asking draws nothing at random and changes no statistics."""
    before = torch.get_rng_state()
    lessons, _ = _lessons(noises, teachers, tmp_path, "distillation.live=true")
    _take(lessons, draw_mixup(12, 0.3, np.random.default_rng(0)))
    assert torch.equal(torch.get_rng_state(), before)
    for teacher, path in zip(lessons._teachers, teachers, strict=True):
        fresh = stapes.load_bundle(path).network.state_dict()
        for name, tensor in teacher.bundle.network.state_dict().items():
            assert torch.equal(tensor, fresh[name]), name
