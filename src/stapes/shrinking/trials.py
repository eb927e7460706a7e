"""What a search has tried, on disk, and what it tries next.

The table of trials is one file, replaced as a whole after every change, and the only memory of a
search: Optuna's study is rebuilt from it before every question. So a search that was killed asks
the next question that it would have asked, and a trial that was being trained is trained on.
(Optuna's own journal is appended to: a process killed while it writes leaves half a line, which
cannot be read again.)
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stapes.config import Recipe, parse_recipe
from stapes.errors import StapesError
from stapes.evaluation.metrics import Interval
from stapes.files import write_text
from stapes.shrinking.candidates import (
    LARGEST_START,
    SMALLEST_START,
    START_STEP,
    Choice,
    Space,
)
from stapes.shrinking.costs import Cost

if TYPE_CHECKING:
    import optuna

__all__ = ["Trial", "in_vain", "next_choice", "read_trials", "write_trials"]

# Questions in vain before anything goes.
_PATIENCE = 4

State = Literal["training", "inside", "over", "failed", "unfit"]


@dataclass(frozen=True)
class Trial:
    """One attempt.

    Attributes:
        number: from 1; 0 is the run's own recipe, the reference.
        state: ``"training"``: begun; ``"inside"`` the limits or ``"over"`` them once trained;
            ``"failed"``: its loss was no number; ``"unfit"``: could not be inside, not trained.
        asked: number of the question that it answers, from 0; questions whose answer was known
            already have no trial. -1 for the reference.
        choice: none for the reference.
        recipe: none if unfit.
        cost: of the trained model; for an unfit one the least it could be, if that was why.
        accuracy: on the validation part.
        log_loss: on the validation part, nats.
        seconds: that it took.
        reason: why it failed or is unfit.
    """

    number: int
    state: State
    asked: int = -1
    choice: Choice | None = None
    recipe: Recipe | None = None
    cost: Cost | None = None
    accuracy: Interval | None = None
    log_loss: float | None = None
    seconds: float = 0.0
    reason: str = ""

    @property
    def trained(self) -> bool:
        """Whether it has a score."""
        return self.state in ("inside", "over")

    @property
    def rank(self) -> tuple[float, float, float]:
        """Better trials have larger ones: accuracy, then log loss, then bytes decide."""
        assert self.accuracy is not None
        assert self.log_loss is not None
        assert self.cost is not None
        return self.accuracy.value, -self.log_loss, -self.cost.file_bytes


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Replace the table."""
    rows = []
    for trial in trials:
        row = asdict(replace(trial, recipe=None, choice=None))
        row["recipe"] = trial.recipe.model_dump(mode="json") if trial.recipe else None
        row["choice"] = trial.choice.parameters() if trial.choice else None
        rows.append(row)
    write_text(path, json.dumps(rows, indent=1))


def read_trials(path: Path) -> list[Trial]:
    """The table, empty if there is none.

    Raises:
        StapesError: damaged.
    """
    if not path.is_file():
        return []
    try:
        return [_read(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError, StapesError) as error:
        raise StapesError(
            f"{path}: this table of trials cannot be read ({error}); delete its folder to begin "
            "the search anew."
        ) from None


def _read(row: dict[str, Any]) -> Trial:
    return Trial(
        **{
            **row,
            "choice": Choice.from_parameters(row["choice"]) if row["choice"] else None,
            "recipe": parse_recipe(row["recipe"]) if row["recipe"] else None,
            "cost": Cost(**row["cost"]) if row["cost"] else None,
            "accuracy": Interval(**row["accuracy"]) if row["accuracy"] else None,
        }
    )


def in_vain(trials: Sequence[Trial], asked: int) -> int:
    """Questions since the last one whose answer was trained.

    Args:
        trials: all so far.
        asked: number of the next question.
    """
    return asked - 1 - max(trial.asked for trial in trials if trial.state != "unfit")


def next_choice(
    trials: Sequence[Trial], space: Space, *, asked: int, seed: int, n_clips: int
) -> Choice:
    """What to try next: the first guesses in their order, then what Optuna's TPE suggests; where
    it keeps to what was tried already, anything.

    Args:
        trials: all so far.
        space: to choose from.
        asked: number of the question, from 0.
        seed: the choice is a function of this, ``asked`` and ``trials``.
        n_clips: of the validation part.
    """
    guesses = space.first_guesses()
    if asked < len(guesses):
        return guesses[asked]
    draws = int(np.random.SeedSequence([seed, asked]).generate_state(1)[0])
    with _quiet_optuna():
        sampler = (_anything if in_vain(trials, asked) >= _PATIENCE else _better_third)(draws)
        return _ask(_study(trials, space, sampler, n_clips), space)


def _better_third(seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=4,
        # What counts as good; Optuna's own rule is a tenth. With one good trial of ten, whatever
        # was tried once looks as likely to be good as what was tried often.
        gamma=lambda n: math.ceil(n / 3),
        multivariate=True,
        group=True,
    )


def _anything(seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    return optuna.samplers.RandomSampler(seed=seed)


def _study(
    trials: Sequence[Trial], space: Space, sampler: optuna.samplers.BaseSampler, n_clips: int
) -> optuna.Study:
    import optuna

    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        if trial.choice is None or trial.state == "training":
            continue
        inside = trial.state == "inside"
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.choice.parameters(),
                distributions=_distributions(trial.choice, space),
                # TPE counts pruned ones without a value among the worst.
                state=optuna.trial.TrialState.COMPLETE
                if inside
                else optuna.trial.TrialState.PRUNED,
                value=_value(trial, n_clips) if inside else None,
            )
        )
    return study


def _value(trial: Trial, n_clips: int) -> float:
    """Accuracy; the log loss decides between equals, and never weighs as much as half a clip."""
    assert trial.accuracy is not None
    assert trial.log_loss is not None
    return trial.accuracy.value - trial.log_loss / (80 * n_clips)  # a log loss is 36 at most


def _distributions(
    choice: Choice, space: Space
) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    every = {
        "method": CategoricalDistribution(space.methods),
        "precision": CategoricalDistribution(space.precisions),
        "blocks": CategoricalDistribution([" ".join(map(str, b)) for b in space.blocks]),
        "rho": CategoricalDistribution(space.rhos),
        "start": FloatDistribution(SMALLEST_START, LARGEST_START, step=START_STEP),
        "decomposition": CategoricalDistribution(space.decompositions),
    }
    return {name: every[name] for name in choice.parameters()}


def _ask(study: optuna.Study, space: Space) -> Choice:
    trial = study.ask()
    found: dict[str, Any] = {
        "method": trial.suggest_categorical("method", space.methods),
        "precision": trial.suggest_categorical("precision", space.precisions),
        "blocks": trial.suggest_categorical(
            "blocks", [" ".join(map(str, b)) for b in space.blocks]
        ),
        "rho": trial.suggest_categorical("rho", space.rhos),
    }
    if found["method"] in ("magnitude", "channels"):
        start = trial.suggest_float("start", SMALLEST_START, LARGEST_START, step=START_STEP)
        found["start"] = round(start, 6)
    if found["method"] == "decomposition":
        found["decomposition"] = trial.suggest_categorical("decomposition", space.decompositions)
    return Choice.from_parameters(found)


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna's log lines and its warnings about new features are not for our users."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
