"""The report: what it says, that it stands alone, that no name can break it."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import soundfile

from stapes.errors import StapesError
from stapes.evaluation.crossval import FoldPredictions, pool, summarise_seeds
from stapes.evaluation.figures import (
    EpochRecord,
    TrainingRun,
    audio_uri,
    draw_curves,
    draw_reliability,
    draw_spectrogram,
)
from stapes.evaluation.metrics import reliability, score
from stapes.evaluation.report import (
    DataSummary,
    FoldScore,
    Mistake,
    ModelSummary,
    ReportData,
    render_report,
    worst_mistakes,
    write_report,
)

EVIL = '<script>alert("1")</script>&{{ 7*7 }}'


def probabilities(n_clips: int, n_classes: int, seed: int = 0, skill: float = 2.0):
    rng = np.random.default_rng(seed)
    t = np.arange(n_clips) % n_classes
    logits = rng.normal(size=(n_clips, n_classes))
    logits[np.arange(n_clips), t] += skill
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True), t


def mistake(seconds: float = 0.5, rate: int = 16_000, **changes) -> Mistake:
    rng = np.random.default_rng(0)
    values = {
        "name": "clip-1.wav",
        "label": "dog",
        "predicted": "cat",
        "probability": 0.9,
        "spectrogram": rng.normal(size=(64, 80)),
        "frequencies": np.linspace(50, 7800, 64),
        "seconds": seconds,
        "audio": rng.normal(size=int(seconds * rate)) * 0.1,
        "sample_rate": rate,
    }
    return Mistake(**{**values, **changes})


def run(name: str, n_epochs: int = 4) -> TrainingRun:
    rows = [
        {
            "epoch": e + 1,
            "train_loss": 2.0 / (e + 1),
            "train_accuracy": 0.5,
            "validation_loss": 2.5 / (e + 1),
            "validation_accuracy": 0.4,
            "learning_rate": 1e-3,
            "seconds": 3.0,
        }
        for e in range(n_epochs)
    ]
    return TrainingRun(name, tuple(EpochRecord.from_log(row) for row in rows))


def report_data(labels=("cat", "dog", "owl"), n_clips: int = 60, **changes) -> ReportData:
    p, t = probabilities(n_clips, len(labels))
    counts = {label: int((t == k).sum()) for k, label in enumerate(labels)}
    values = {
        "title": "Animals",
        "created": "3 March 2026",
        "command": "stapes train animals/ --seed 1",
        "recipe": 'name = "small"\n\n[training]\nepochs = 4\n',
        "data": DataSummary(
            "animals", n_clips, n_clips // 2, counts, 0.12, {44_100: 50, 16_000: 10}, "CC0"
        ),
        "split": "five made folds, groups kept whole",
        "score": score(p, t, np.arange(n_clips) // 2, labels, n_resamples=100),
        "model": ModelSummary(
            name="CP-ResNet",
            precision="float32",
            parameters=268_600,
            nonzero_parameters=150_000,
            bytes_float32=1_074_000,
            bytes_float32_sparse=633_000,
            bytes_float16=537_000,
            bytes_float16_sparse=333_000,
            bytes_int8=273_000,
            bytes_int8_sparse=187_000,
            macs_per_second=48.7e6,
            nonzero_macs_per_second=23.1e6,
            peak_activation_bytes=2_345_678,
            receptive_field_bins=87,
            receptive_field_frames=91,
            receptive_field_seconds=0.91,
            receptive_field_hz=(312.0, 5890.0),
            sample_rate=22_050,
            window_seconds=5.0,
            front_end="log-mel, 128 bands",
        ),
        "runs": (run("fold 1"), run("fold 2", 3)),
        "mistakes": (mistake(),),
        "versions": {"stapes": "0.1.0"},
    }
    return ReportData(**{**values, **changes})


class Page(html.parser.HTMLParser):
    """Tags with their attributes, text, and whether what was opened was closed."""

    VOID = {"meta", "link", "br", "img", "wbr", "input", "hr"}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def data() -> ReportData:
    return report_data()


@pytest.fixture(scope="module")
def page(data: ReportData) -> Page:
    return Page(render_report(data))


def test_every_part_is_there(page: Page, data: ReportData):
    s = data.score
    for words in [
        f"{100 * s.accuracy.value:.1f}",
        f"{100 * s.accuracy.low:.1f} to {100 * s.accuracy.high:.1f} %",
        "60 test clips right",
        "30 groups",
        "1 split",
        "1 seed",
        f"{s.log_loss.value:.3f}",
        data.command,
        "epochs = 4",
        "268,600 , 150,000 not zero".replace(" ,", ","),
        "1.07 MB in float32, 537 kB in float16, 273 kB in int8",
        "with zeros as bits 633 kB, 333 kB, 187 kB",
        "48.7 million multiply-accumulates per second of audio, 23.1 million of them not with "
        "zeros",
        "2.35 MB of activations at the peak",
        "87 frequency bins × 91 frames",
        "312 Hz to 5.89 kHz",
        "910 ms of sound",
        "5 s at 22,050 Hz",
        "44,100 Hz (50 clips), 16,000 Hz (10 clips)",
        "five made folds, groups kept whole",
        "CC0",
        "cat it said, 90 % sure. It was dog",
        "stapes 0.1.0",
    ]:
        assert re.sub(r"\s+", "", words) in re.sub(r"\s+", "", page.text), words


def test_html_is_well_formed_and_ids_are_unique(page: Page):
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in page.all("a"):
        assert attrs["href"].removeprefix("#") in ids
    refs = [a["href"] for t, a in page.tags if t == "use"]
    assert refs
    assert {r.removeprefix("#") for r in refs} <= set(ids)


def test_nothing_is_fetched_and_nothing_runs(page: Page, data: ReportData):
    text = render_report(data)
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"@import|url\((?!#)", text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {t for t, _ in page.tags}
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        if tag in {"img", "image", "audio", "source"}:
            address = attrs.get("src") or attrs.get("href")
            assert address.startswith("data:")
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_readable_without_seeing_it(page: Page):
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert len(page.all("main")) == 1
    for tag, attrs in page.tags:
        if attrs.get("role") == "img" or tag == "audio":
            assert attrs.get("aria-label"), tag
        if tag == "svg":
            assert attrs["aria-hidden"] == "true"  # its figure carries the words
        if tag == "th":
            assert attrs.get("scope") in {"row", "col"}
        if attrs.get("role") == "region":  # scrolled by keyboard
            assert attrs["tabindex"] == "0"


def test_light_and_dark(data: ReportData):
    text = render_report(data)
    assert "prefers-color-scheme: dark" in text
    root, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)[:2]

    def luminance(hexes: str) -> float:
        rgb = np.array([int(hexes[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for block in (root, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for ground in ("page", "raised", "soft"):
            for ink in ("ink", "muted", "accent", "warm"):
                a, b = sorted((luminance(colours[ground]), luminance(colours[ink])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (ground, ink)  # WCAG AA
    # Figures take their colours from the page: no marker colour is left over.
    assert "var(--accent)" in draw_reliability(data.score.reliability)
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", text)


def test_a_receptive_field_may_be_unknown_or_gated(data: ReportData):
    unknown = dataclasses.replace(
        data.model,
        receptive_field_bins=None,
        receptive_field_frames=None,
        receptive_field_seconds=None,
        receptive_field_hz=None,
    )
    text = render_report(dataclasses.replace(data, model=unknown))
    assert "unknown: not that of convolutions and pooling alone" in text
    gated = dataclasses.replace(data.model, global_context=True)
    told = "of sound, and the whole window by its gates"
    assert told in render_report(dataclasses.replace(data, model=gated))
    assert told not in render_report(data)


def test_names_cannot_break_out():
    labels = (EVIL, "a & b", "ü'\"></td>")
    nasty = report_data(
        labels,
        title=EVIL,
        command=EVIL,
        recipe=EVIL,
        split=EVIL,
        created=EVIL,
        mistakes=(mistake(name=EVIL, label=EVIL, predicted=EVIL),),
        runs=(TrainingRun(EVIL, run("x").epochs),),
        versions={EVIL: EVIL},
        data=DataSummary(EVIL, 1, 1, dict.fromkeys(labels, 1), 1, {8000: 1}, EVIL, EVIL, (EVIL,)),
    )
    text = render_report(nasty)
    page = Page(text)
    assert page.open == []
    assert not page.all("script")
    assert "<script" not in text
    assert "{{ 7*7 }}" in page.text  # shown as it is, not evaluated
    assert page.text.count(EVIL) > 10
    assert any(a.get("title") == EVIL for _, a in page.tags)


def test_text_that_is_no_unicode_is_written(tmp_path: Path):
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    write_report(tmp_path / "report.html", report_data(mistakes=(mistake(name=name),)))
    assert "caf?.wav" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_folds_and_seeds_are_shown():
    labels = ("cat", "dog", "owl")
    folds = [
        FoldPredictions(f"fold {i}", *probabilities(30, 3, seed=i), np.arange(30) + 30 * i)
        for i in range(3)
    ]
    result = pool(folds, labels, n_resamples=50)
    page = Page(
        render_report(
            report_data(
                folds=tuple(map(FoldScore, result.names, result.folds)),
                score=result.pooled,
                n_seeds=2,
                seeds=summarise_seeds(result.folds[:2]),
            )
        )
    )
    assert "3 folds" in page.text
    assert "2 seeds" in page.text
    assert f"Mean of the folds {100 * result.accuracy.mean:.1f} %" in page.text
    assert f"standard deviation {100 * result.accuracy.sd:.1f} %" in page.text
    assert "The same training from 2 seeds" in page.text


def test_the_smallest_report():
    """One class, one clip, one group; nothing else known."""
    p, t = np.ones((1, 1)), np.zeros(1, dtype=int)
    page = Page(
        render_report(
            report_data(
                ("hum",),
                n_clips=1,
                score=score(p, t, [0], ["hum"]),
                runs=(),
                mistakes=(),
                versions={},
            )
        )
    )
    assert page.open == []
    assert "1 group" in page.text
    assert "None: every clip was named right." in page.text
    assert not page.all("audio")
    assert not any("over the epochs" in (a.get("aria-label") or "") for _, a in page.tags)


def test_absent_classes_show_a_dash():
    p, _ = probabilities(12, 3)
    s = score(p, np.zeros(12, dtype=int), np.arange(12), ["here", "gone", "away"])
    assert "–" in Page(render_report(report_data(score=s, labels=("here", "gone", "away")))).text


def test_fifty_classes_and_twelve_mistakes_stay_small(tmp_path: Path):
    labels = tuple(f"class_{i}" for i in range(50))
    rng = np.random.default_rng(0)
    noise = mistake(
        seconds=12.0,
        rate=44_100,
        spectrogram=rng.normal(size=(256, 1200)),
        frequencies=np.geomspace(40, 22_050, 256),
        audio=rng.normal(size=12 * 44_100) * 0.1,
    )
    path = tmp_path / "deep" / "report.html"
    write_report(path, report_data(labels, 2000, mistakes=()))
    without = path.stat().st_size
    write_report(path, report_data(labels, 2000, mistakes=(noise,)))
    assert without + 12 * (path.stat().st_size - without) < 5_000_000
    assert "The first 10 s of the recording." in path.read_text(encoding="utf-8")


def test_equal_data_gives_equal_bytes_and_no_global_state(data: ReportData):
    before = dict(matplotlib.rcParams)
    assert render_report(data) == render_report(data)
    assert dict(matplotlib.rcParams) == before


def test_written_whole_or_not_at_all(tmp_path: Path, data: ReportData, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = dataclasses.replace(data, mistakes=(mistake(sample_rate=0),))
    with pytest.raises(ZeroDivisionError):
        write_report(path, broken)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    folder = tmp_path / "taken"
    folder.write_text("a file where a folder should be")
    with pytest.raises(StapesError, match="taken"):
        write_report(folder / "report.html", data)


# Parts


def embedded_audio(uri: str) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


@pytest.mark.parametrize("rate", [6000, 8000, 22_050, 44_100, 96_000])
def test_audio_is_what_was_heard(rate: int):
    t = np.arange(rate) / rate
    uri, seconds = audio_uri(0.5 * np.sin(2 * np.pi * 440 * t), rate)
    assert seconds == pytest.approx(1.0, abs=0.01)
    heard, heard_rate = embedded_audio(uri)
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum.argmax() * heard_rate / len(heard) == pytest.approx(440, abs=3)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.1)


def test_audio_is_cut_clipped_and_cleaned():
    loud = 3.0 * np.sin(0.3 * np.arange(30 * 8000))
    loud[100] = np.nan
    uri, seconds = audio_uri(loud, 8000, longest=2.0)
    assert seconds == 2.0
    heard = embedded_audio(uri)[0]
    assert np.isfinite(heard).all()
    assert np.abs(heard).max() < 1.3
    assert audio_uri(np.zeros(0), 8000)[1] == 0


def test_spectrogram_axes_are_hertz_and_seconds():
    svg = draw_spectrogram(np.ones((40, 30)), np.linspace(100, 8000, 40), 3.0)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"4k", "8k", "Hz", "seconds", "0.0", "3.0"} <= set(texts)
    assert "data:image/png;base64," in svg
    # A band narrower than an octave is named by its ends.
    narrow = draw_spectrogram(np.ones((4, 3)), np.linspace(5000, 6000, 4), 1.0)
    assert {"5k", "6k"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", narrow))


def test_low_frequencies_are_at_the_bottom():
    values = np.zeros((8, 4))
    values[0] = 1.0  # the lowest band is loud: the bright magma end is drawn at the bottom
    svg = draw_spectrogram(values, np.linspace(100, 800, 8), 1.0)
    image = re.search(r"<image[^>]*base64,\s*([^\"]+)\"[^>]*transform=\"matrix\(([^)]*)\)", svg)
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(base64.b64decode(image[1])), format="png")
    flipped = float(image[2].split()[3]) < 0  # SVG's y axis points down
    bottom = pixels[0] if flipped else pixels[-1]
    assert bottom[..., :3].mean() > 0.6
    assert pixels[4, ..., :3].mean() < 0.1


def test_spectrograms_with_holes_are_drawn():
    values = np.full((4, 5), np.nan)
    assert "<svg" in draw_spectrogram(values, np.arange(4.0) + 1, 1.0)
    values[0, 0] = -np.inf
    values[1, 1] = 1.0
    assert "<svg" in draw_spectrogram(values, np.arange(4.0) + 1, 1.0)


def test_curves_only_of_what_was_measured():
    bare = TrainingRun("x", (EpochRecord(1, 2.0), EpochRecord(2, float("inf"))))
    assert draw_curves([bare], "accuracy") is None
    assert draw_curves([bare], "learning_rate") is None
    assert draw_curves([], "loss") is None
    svg = draw_curves([bare], "loss")
    assert "validation" not in svg
    both = draw_curves([run("a"), run("b")], "loss")
    assert "validation" in both
    assert "training" in both


def test_reliability_has_a_dot_per_filled_bin():
    p, t = probabilities(200, 3)
    bins = reliability(p, t, n_bins=10)
    svg = draw_reliability(bins)
    dots = svg.count("fill: var(--accent); stroke: var(--page)")
    assert dots >= sum(1 for b in bins if b.n_clips)


def test_worst_mistakes_are_the_surest_wrong_ones():
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.05, 0.95]])
    assert worst_mistakes(p, [1, 1, 1, 0]) == [3, 0, 2]
    assert worst_mistakes(p, [1, 1, 1, 0], n=1) == [3]
    assert worst_mistakes(p, [0, 1, 0, 1]) == []
