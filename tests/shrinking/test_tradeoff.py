"""Table and picture of a search."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from stapes.config import Recipe
from stapes.evaluation.metrics import Interval
from stapes.shrinking.candidates import Choice
from stapes.shrinking.costs import Cost
from stapes.shrinking.limits import Limits
from stapes.shrinking.tradeoff import draw_tradeoff, pareto_front, trials_table
from stapes.shrinking.trials import Trial

BLOCKS = (4, 3, 0)
CHOICES = (
    Choice("width", "int8", BLOCKS, 7),
    Choice("magnitude", "float16", BLOCKS, 7, start=1.5),
    Choice("channels", "int8", BLOCKS, 5, start=2.0),
    Choice("decomposition", "int8", BLOCKS, 7, decomposition=4),
)
TRIALS = [
    Trial(
        number=i,
        state="inside" if i else "over",
        choice=choice,
        recipe=Recipe(name="toy"),
        cost=Cost(462_000 if not i else 25_000 + 1000 * i, 1e6 * (30 - 5 * i), 100, 90),
        accuracy=Interval(0.5 + 0.1 * i, 0.4 + 0.1 * i, 0.55 + 0.1 * i),
        log_loss=1.0 / (i + 1),
    )
    for i, choice in enumerate((None, *CHOICES))
] + [Trial(5, "unfit", 4, CHOICES[0], cost=Cost(99_000, 1e6, 1, 1), reason="too large, at width 1")]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_front_holds_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beaten(point: tuple[int, int]) -> bool:
        return any(q != point and q[0] <= point[0] and q[1] >= point[1] for q in points)

    slow = sorted({point for point in points if not beaten(point)})
    assert pareto_front(points) == slow


def test_the_table_has_a_row_for_every_trial() -> None:
    rows = list(csv.DictReader(io.StringIO(trials_table(TRIALS, TRIALS[2]))))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row["chosen"] for row in rows] == ["", "", "yes", "", "", ""]
    assert rows[2]["method"] == "magnitude"
    assert float(rows[2]["validation_accuracy"]) == 0.7
    assert rows[5]["reason"] == "too large, at width 1"
    assert rows[5]["validation_accuracy"] == ""
    assert {None} & set(rows[5]) == set(), "more cells than columns"


def test_the_plot_shows_methods_limits_and_the_reference(tmp_path: Path) -> None:
    paths = (tmp_path / "t.svg", tmp_path / "t.png")
    draw_tradeoff(TRIALS, TRIALS[2], Limits(32_000, 20_000_000), 79, paths)
    svg = paths[0].read_text()
    for words in (
        "narrower", "weights pruned", "channels pruned", "decomposed", "hollow: float16", "chosen",
        "limit: 32kB and 20M MACs/s", "(462 kB, 30.0M MACs/s)", "79 validation clips",
    ):  # fmt: skip
        assert words in svg, words
    assert imread(paths[1]).shape[1] > 1000
    again = tmp_path / "again.svg"
    draw_tradeoff(TRIALS, TRIALS[2], Limits(32_000, 20_000_000), 79, [again])
    assert again.read_bytes() == paths[0].read_bytes()


def test_one_candidate_and_one_limit_can_be_drawn(tmp_path: Path) -> None:
    only = replace(TRIALS[1], accuracy=Interval(1.0, 0.9, 1.0))
    draw_tradeoff([TRIALS[0], only], only, Limits(26_000), 4, [tmp_path / "t.svg"])
    svg = (tmp_path / "t.svg").read_text()
    assert "narrower" in svg
    assert "decomposed" not in svg
