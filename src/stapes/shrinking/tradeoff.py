"""What a search has found: a table, and accuracy against bytes and against arithmetic."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stapes.files import write_bytes
from stapes.shrinking.limits import Limits
from stapes.shrinking.trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_tradeoff", "pareto_front", "trials_table"]

_INK, _MUTED, _GRID, _LIMIT = "#222222", "#666666", "#dddddd", "#bb3322"
# Told apart by people with any colour vision, and by shape where the print is grey.
_METHODS = {
    "width": ("#4477aa", "o", "narrower"),
    "magnitude": ("#ee6677", "s", "weights pruned"),
    "channels": ("#228833", "^", "channels pruned"),
    "decomposition": ("#aa3377", "D", "decomposed"),
}


def trials_table(trials: Sequence[Trial], winner: Trial) -> str:
    """The trials as CSV, one row each, in their order; what a trial has not is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "trial", "state", "chosen", "method", "precision", "width", "blocks", "rho",
            "decomposition", "keep_parameters", "parameters", "nonzero_parameters", "file_bytes",
            "macs_per_second", "validation_accuracy", "low", "high", "validation_log_loss",
            "seconds", "reason",
        ]
    )  # fmt: skip
    for trial in trials:
        choice, recipe, cost, accuracy = trial.choice, trial.recipe, trial.cost, trial.accuracy
        row: list[Any] = [
            trial.number,
            trial.state,
            "yes" if trial.number == winner.number else "",
            choice.method if choice else "the run's recipe",
        ]
        if recipe:
            model = recipe.cp_resnet("stapes shrink")
            row += [
                recipe.quantization.precision,
                model.width,
                " ".join(map(str, model.blocks)),
                model.rho,
                model.decomposition,
                recipe.pruning.keep_parameters,
            ]
        elif choice:
            blocks = " ".join(map(str, choice.blocks))
            row += [choice.precision, None, blocks, choice.rho, choice.decomposition, None]
        row += (
            [cost.parameters, cost.nonzero_parameters, cost.file_bytes, round(cost.macs_per_second)]
            if cost
            else [None] * 4
        )
        row += [accuracy.value, accuracy.low, accuracy.high] if accuracy else [None] * 3
        row += [trial.log_loss, round(trial.seconds, 1), trial.reason]
        writer.writerow(row)
    return text.getvalue()


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, accuracy) that no other one equals or beats in both, by rising cost.

    >>> pareto_front([(3, 0.9), (1, 0.7), (2, 0.6), (4, 0.9)])
    [(1, 0.7), (3, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def draw_tradeoff(
    trials: Sequence[Trial],
    winner: Trial,
    limits: Limits,
    n_clips: int,
    paths: Sequence[Path],
) -> None:
    """Draw accuracy on the validation part, with intervals, against both costs of all trials.

    Args:
        trials: those that were trained are drawn.
        winner: marked.
        limits: drawn as lines.
        n_clips: of the validation part.
        paths: files to write; the ending says whether SVG or PNG.
    """
    import matplotlib
    from matplotlib.figure import Figure  # the object API: no pyplot, no state of its own

    figure = Figure(figsize=(11, 5), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    drawn = [trial for trial in trials if trial.trained]
    _panel(left, drawn, winner, lambda t: _cost(t).file_bytes / 1e3, limits.file_bytes, 1e3)
    _panel(
        right, drawn, winner, lambda t: _cost(t).macs_per_second / 1e6, limits.macs_per_second, 1e6
    )
    left.set_xlabel("model file, kB of 1000 bytes", color=_MUTED)
    right.set_xlabel(
        "multiply-accumulates per second of audio, million (zeros counted)", color=_MUTED
    )
    left.set_ylabel(f"accuracy on {n_clips} validation clips", color=_MUTED)
    left.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    _legend(figure, drawn, limits)
    for path in paths:
        content = io.BytesIO()
        kind = path.suffix[1:]
        # Text as text, no date and no random names: the same search draws the same file.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stapes"}):
            figure.savefig(
                content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
            )
        write_bytes(path, content.getvalue())


def _cost(trial: Trial) -> Any:
    return trial.cost


def _panel(
    axes: Axes,
    trials: Sequence[Trial],
    winner: Trial,
    cost_of: Callable[[Trial], float],
    limit: float | None,
    unit: float,
) -> None:
    """One cost. The reference, far to the right as a rule, is a level across the panel."""
    axes.set_xscale("log")
    for trial in trials:
        assert trial.accuracy is not None
        y, low, high = trial.accuracy.value, trial.accuracy.low, trial.accuracy.high
        if trial.choice is None:
            axes.axhspan(low, high, color=_MUTED, alpha=0.1, linewidth=0, zorder=0)
            axes.axhline(y, color=_MUTED, linewidth=1.2, zorder=1)
            continue
        x = cost_of(trial)
        colour, marker, _ = _METHODS[trial.choice.method]
        shade = 1.0 if trial.state == "inside" else 0.4
        axes.errorbar(
            x, y, yerr=[[y - low], [high - y]], fmt="none", ecolor=colour, elinewidth=1,
            alpha=0.4 * shade,
        )  # fmt: skip
        axes.plot(
            x, y, marker=marker, markersize=7, color=colour, markeredgewidth=1.3, zorder=3,
            markerfacecolor=colour if trial.choice.precision == "int8" else "white", alpha=shade,
        )  # fmt: skip
        if trial.number == winner.number:
            axes.plot(
                x, y, marker="o", markersize=16, color=_INK, markerfacecolor="none", zorder=4,
                markeredgewidth=1.5,
            )  # fmt: skip
    points = [(cost_of(t), t.accuracy.value) for t in trials if t.choice and t.accuracy]
    front = pareto_front(points)
    axes.step(
        [x for x, _ in front], [y for _, y in front], where="post", color=_INK, linewidth=1,
        alpha=0.6, zorder=2,
    )  # fmt: skip
    ends = [x for x, _ in points] + ([limit / unit] if limit is not None else [])
    spread = max((max(ends) / min(ends)) ** 0.06, 1.02)
    axes.set_xlim(min(ends) / spread, max(ends) * spread)
    if limit is not None:
        axes.axvline(limit / unit, color=_LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.axvspan(limit / unit, max(ends) * spread, color=_LIMIT, alpha=0.06, linewidth=0)
    _ticks(axes)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.tick_params(colors=_GRID, labelcolor=_MUTED, which="both")


def _ticks(axes: Axes) -> None:
    """Round numbers, enough of them on a scale of any length, none on top of another."""
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_xlim()
    if high / low < 4:
        ticks = [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)]
    else:
        dense, sparse = (1, 1.5, 2, 3, 5, 7), (1, 2, 5)
        steps: tuple[float, ...] = dense if high / low < 15 else sparse
        ticks = [step * 10.0**e for e in range(-4, 9) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _legend(figure: Figure, trials: Sequence[Trial], limits: Limits) -> None:
    from matplotlib.lines import Line2D

    def key(label: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, **{"linestyle": "none", **look})

    handles = []
    for trial in trials:
        if trial.choice is None:
            whole = f"{_cost(trial).file_bytes / 1e3:.0f} kB"
            macs = f"{_cost(trial).macs_per_second / 1e6:.1f}M"
            handles.append(
                key(f"the run's own recipe ({whole}, {macs} MACs/s)", color=_MUTED, linestyle="-")
            )
    used = {trial.choice.method for trial in trials if trial.choice is not None}
    for method, (colour, marker, label) in _METHODS.items():
        if method in used:
            handles.append(key(label, marker=marker, color=colour, markersize=7))
    half = any(t.choice is not None and t.choice.precision == "float16" for t in trials)
    if half:
        handles.append(
            key("hollow: float16", marker="o", color=_MUTED, markerfacecolor="white", markersize=7)
        )
    handles += [
        key("chosen", marker="o", color=_INK, markerfacecolor="none", markersize=14),
        key("best for its cost", color=_INK, linestyle="-", linewidth=1, alpha=0.6),
        key(f"limit: {limits}", color=_LIMIT, linestyle=(0, (4, 3)), linewidth=1.2),
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=5, frameon=False, fontsize=9,
        labelcolor=_INK,
    )  # fmt: skip
