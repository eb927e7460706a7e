"""What all studies share: texts, differences and figures, against known answers."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from stapes.config import load_recipe
from stapes.evaluation.bootstrap import Interval
from stapes.evaluation.compare import paired_accuracy
from stapes.studies.figures import Series, draw_series, save_figure
from stapes.studies.points import differences
from stapes.studies.study import (
    changes,
    thousands,
    verdict,
    write_tables,
)


def test_changes_between_recipes_are_named_field_by_field() -> None:
    paper = load_recipe("koutini2020")
    assert changes(paper, paper) == []
    ours = load_recipe(
        "koutini2020",
        ["name=other", "model.width=64", "model.damping=none", "training.learning_rate=0.001"],
    )
    assert changes(paper, ours) == [
        "model: width 128 -> 64, damping 0.1 -> none",
        "training: learning_rate 0.0001 -> 0.001",
    ]
    # Fields that the paper leaves to the data are filled in, not changed.
    assert paper.pruning.ramp_epochs == "auto"
    assert changes(paper, load_recipe("koutini2020", ["pruning.ramp_epochs=7"])) == []
    # Another front end: what both have, and no more.
    plain = load_recipe("koutini2020", ["features.name=log_mel", "features.n_mels=64"])
    assert changes(paper, plain) == ["features: name perceptual_mel -> log_mel, n_mels 256 -> 64"]


def test_numbers_are_written_as_papers_do() -> None:
    assert Interval(0.875, 0.841, 0.903).percent() == "87.5 % (84.1 to 90.3)"
    assert Interval(0.008, -0.012, 0.029).points() == "+0.8 (-1.2 to +2.9)"
    assert thousands(1_061_638) == "1061.6K"
    assert verdict(Interval(0.02, 0.001, 0.04)) == "better"
    assert verdict(Interval(-0.02, -0.04, -0.001)) == "worse"
    assert verdict(Interval(0.02, 0.0, 0.04)) == "no sure difference"


def test_the_difference_of_two_lines_is_that_of_their_means() -> None:
    rng = np.random.default_rng(0)
    groups = [str(i // 2) for i in range(80)]
    first = [SimpleNamespace(right=(rng.random(80) < 0.6).astype(float)) for _ in range(3)]
    other = [SimpleNamespace(right=(rng.random(80) < 0.7).astype(float)) for _ in range(3)]
    gap = differences(first, other, groups)
    single = [float(b.right.mean() - a.right.mean()) for a, b in zip(first, other, strict=True)]
    assert gap.value == pytest.approx(np.mean(single))
    # Three networks that hear the same clips say more than one.
    alone = differences(first[:1], other[:1], groups)
    assert gap.high - gap.low < alone.high - alone.low
    expected = paired_accuracy([first[0].right, other[0].right], groups)[1][1]
    assert alone == expected


def series() -> list[Series]:
    return [
        Series("plain", (49.0, 145.0), (Interval(0.5, 0.4, 0.65), Interval(0.7, 0.6, 0.75))),
        Series("damped", (49.0, 145.0), (Interval(0.6, 0.5, 0.7), Interval(0.8, 0.7, 0.9))),
    ]


def draw():
    return draw_series(
        series(),
        title="With and without",
        caption="12 clips",
        x_label="field",
        ticks={49.0: "49", 145.0: "145"},
        top_label="rho",
        top_ticks={49.0: "3", 145.0: "7"},
    )


def test_the_figure_shows_every_value_with_its_interval() -> None:
    figure = draw()
    axes = figure.axes[0]
    lines = {
        line.get_label(): line for line in axes.lines if line.get_label() in ("plain", "damped")
    }
    np.testing.assert_allclose(lines["plain"].get_ydata(), [50, 70])
    np.testing.assert_allclose(lines["damped"].get_ydata(), [60, 80])
    # Side by side around the place that both belong to.
    x = np.array([lines["plain"].get_xdata(), lines["damped"].get_xdata()])
    np.testing.assert_allclose(x.mean(0), [49, 145])
    assert (np.diff(x, axis=0) > 0).all()
    bars = [c for c in axes.collections if isinstance(c, LineCollection)]
    ends = [sorted(segment[:, 1]) for bar in bars for segment in bar.get_segments()]
    np.testing.assert_allclose(ends, [[40, 65], [60, 75], [50, 70], [70, 90]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "damped"]


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    svg, png = save_figure(draw(), tmp_path / "one" / "figure1")
    again = save_figure(draw(), tmp_path / "two" / "figure1")
    assert (svg.name, png.name) == ("figure1.svg", "figure1.png")
    assert svg.read_bytes() == again[0].read_bytes()
    assert png.read_bytes() == again[1].read_bytes()
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = "".join(ElementTree.parse(svg).getroot().itertext())
    for word in ("With and without", "12 clips", "plain", "damped", "145", "rho"):
        assert word in text


def test_one_place_and_one_line_can_be_drawn(tmp_path: Path) -> None:
    one = [Series("only", (7.0,), (Interval(0.5, 0.4, 0.6),))]
    figure = draw_series(one, title="t", caption="c", x_label="x", ticks={7.0: "7"})
    assert figure.axes[0].get_xlim()[0] < 7 < figure.axes[0].get_xlim()[1]
    save_figure(figure, tmp_path / "figure")


def test_tables_are_a_page_and_a_sheet(tmp_path: Path) -> None:
    page, sheet = write_tables(
        tmp_path,
        "table9",
        "Numbers",
        ("what", "how many"),
        [("a", "1"), ("b", "2")],
        frozenset({1}),
        [{"what": "a", "n": 1, "more": None}, {"what": "b", "n": 2, "more": 0.5}],
        below=["All is well."],
        command="stapes reproduce x",
    )
    assert page.read_text(encoding="utf-8") == (
        "# Numbers\n\n    stapes reproduce x\n\n| what | how many |\n| --- | ---: |\n"
        "| a | 1 |\n| b | 2 |\n\n- All is well.\n"
    )
    with sheet.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"what": "a", "n": "1", "more": ""},
            {"what": "b", "n": "2", "more": "0.5"},
        ]
