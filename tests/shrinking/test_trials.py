"""The table of trials, and what is tried next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stapes.config import CpResNetConfig, Recipe
from stapes.errors import StapesError
from stapes.evaluation.metrics import Interval
from stapes.shrinking.candidates import Choice, Space
from stapes.shrinking.costs import Cost
from stapes.shrinking.limits import Limits
from stapes.shrinking.trials import Trial, in_vain, next_choice, read_trials, write_trials

SPACE = Space(CpResNetConfig(), Limits(32_000))


def ended(number: int, choice: Choice | None, accuracy: float, state: str = "inside") -> Trial:
    return Trial(
        number=number,
        state=state,  # type: ignore[arg-type]
        asked=number - 1,
        choice=choice,
        recipe=Recipe(name="toy"),
        cost=Cost(30_000 + number, 1.5e6, 20_000, 10_000),
        accuracy=Interval(accuracy, accuracy - 0.1, accuracy + 0.1),
        log_loss=1.0,
        seconds=2.5,
    )


def search(n: int, seed: int, favour: str) -> list[Choice]:
    """Choices of a search in which one method is far better."""
    trials = [ended(0, None, 0.9)]
    for asked in range(n):
        choice = next_choice(trials, SPACE, asked=asked, seed=seed, n_clips=80)
        value = 0.8 if choice.method == favour else 0.2
        trials.append(ended(asked + 1, choice, value))
    return [trial.choice for trial in trials if trial.choice is not None]


def test_the_table_survives_the_disk(tmp_path: Path) -> None:
    trials = [
        ended(0, None, 0.9),
        ended(1, SPACE.first_guesses()[1], 0.5),
        Trial(2, "unfit", 1, SPACE.first_guesses()[6], cost=Cost(1, 2.5, 3, 3), reason="too large"),
        Trial(3, "training", 2, SPACE.first_guesses()[0], Recipe(name="toy")),
    ]
    path = tmp_path / "trials.json"
    assert read_trials(path) == []
    write_trials(path, trials)
    assert read_trials(path) == trials


@pytest.mark.parametrize("content", ["", "[{}]", "{}x", '[{"choice": null}]', "[1]", "\0"])
def test_a_damaged_table_gets_a_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trials.json"
    path.write_text(content)
    with pytest.raises(StapesError, match=r"trials\.json: this table"):
        read_trials(path)


def test_guesses_come_first_and_then_what_was_good(capsys: pytest.CaptureFixture[str]) -> None:
    n = len(SPACE.first_guesses())
    choices = search(n + 12, seed=0, favour="magnitude")
    assert choices[:n] == SPACE.first_guesses()
    by_model = [choice.method for choice in choices[n:]]
    assert by_model.count("magnitude") >= 6, by_model  # three of twelve by chance
    assert capsys.readouterr() == ("", ""), "optuna talks to users"


def test_the_next_choice_follows_from_the_table_alone() -> None:
    assert search(12, seed=1, favour="width") == search(12, seed=1, favour="width")
    assert search(12, seed=1, favour="width") != search(12, seed=2, favour="width")


@pytest.mark.parametrize("state", ["inside", "over", "failed", "unfit"])
def test_what_was_bad_or_impossible_is_avoided(state: str) -> None:
    """The one guess with two bytes a weight: far worse than the others, or useless.

    The others are equal, as on few clips: Optuna's own rule would go for the odd one.
    """
    guesses = SPACE.first_guesses()
    trials = [ended(0, None, 0.9)]
    for asked, choice in enumerate(guesses):
        if choice.precision == "int8":
            trials.append(ended(asked + 1, choice, 0.5))
            continue
        trials.append(ended(asked + 1, choice, 0.1, state))
        if state in ("failed", "unfit"):
            trials[-1] = replace(trials[-1], cost=None, accuracy=None, log_loss=None)
    found = [
        next_choice(trials, SPACE, asked=asked, seed=seed, n_clips=80).precision
        for asked in range(len(guesses), len(guesses) + 4)
        for seed in range(8)
    ]
    assert found.count("float16") < 10, found


def test_who_asks_in_vain_gets_something_else() -> None:
    """Two methods would do, but what they give is known: the others must be tried as well."""
    trials = [ended(0, None, 0.9)]
    for asked, choice in enumerate(SPACE.first_guesses()):
        trials.append(ended(asked + 1, choice, 0.8 if choice.method == "width" else 0.1))
    n = len(trials) - 1
    later = [
        next_choice(trials, SPACE, asked=asked, seed=0, n_clips=80) for asked in range(n, n + 40)
    ]
    assert in_vain(trials, n) == 0
    assert in_vain(trials, n + 5) == 5
    assert {choice.method for choice in later[8:]} == set(SPACE.methods)
    assert len(set(later)) > 20
    unfit = Trial(n + 1, "unfit", n, SPACE.first_guesses()[0])
    assert in_vain([*trials, unfit], n + 1) == 1, "what is not trained is in vain"


def test_accuracy_decides_then_log_loss_then_bytes() -> None:
    best = ended(1, None, 0.8)
    assert best.rank > ended(2, None, 0.7).rank
    assert replace(best, log_loss=0.9).rank > best.rank
    assert best.rank > ended(2, None, 0.8).rank  # one byte more
    # Nor may the log loss outweigh a clip where Optuna sees one number.
    from stapes.shrinking.trials import _value

    worse = replace(ended(2, None, 0.8 - 1 / 80), log_loss=0.0)
    assert _value(replace(best, log_loss=36.0), 80) > _value(worse, 80)
    assert _value(replace(best, log_loss=0.9), 80) > _value(best, 80)
