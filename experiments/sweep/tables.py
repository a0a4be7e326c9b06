"""The tables of a sweep: configurations for a person, the same in numbers, and every trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.report.selection import VALIDATION
from experiments.report.statistics import estimate, interval
from experiments.report.tables import Table, cell
from experiments.sweep.space import short, shown

if TYPE_CHECKING:
    from experiments.sweep.outcome import TrialRow
    from experiments.sweep.plan import Plan

LEVEL = 0.95  # of all intervals


def of_configurations(plan: Plan, ranked: Iterable[Sequence[TrialRow]]) -> Table:
    """A row for each configuration: its values, and the validation metrics over its seeds."""
    caption = (
        f"Best first by {plan.objective}; mean ± half width of the 95 % interval "
        "(Student's t) over seeds"
    )
    return Table(caption, [_row(plan, trials, short, _interval) for trials in ranked])


def in_numbers(plan: Plan, ranked: Iterable[Sequence[TrialRow]]) -> Table:
    """The same for a program: all digits, and a column of its own for each half width."""
    rows = [
        _row(plan, trials, shown, _numbers)
        | {"seeds": str(len(trials)), "diverged": str(_lost(trials))}
        for trials in ranked
    ]
    return Table("Configurations", rows)


def of_trials(trials: Iterable[TrialRow]) -> Table:
    """A row per trial, with every metric that was taken."""
    rows = [
        {
            "number": str(trial.number),
            "seed": str(trial.seed),
            **{key: shown(value) for key, value in trial.setting.items()},
            "epochs": str(trial.epochs),
            "state": trial.state,
            **{name: _number(value) for name, value in trial.metrics.items()},
        }
        for trial in trials
    ]
    return Table("Trials", rows)


def _row(
    plan: Plan,
    trials: Sequence[TrialRow],
    value: Callable[..., str],
    told: Callable[[str, np.ndarray], dict[str, str]],
) -> dict[str, str]:
    first = trials[0]
    names = [name for name in first.metrics if name.startswith(VALIDATION)]
    lost = _lost(trials)
    row = {"number": str(first.number)}
    row |= {key: value(first.setting[key]) for key in plan.keys if key in first.setting}
    for name in sorted(names, key=lambda name: name != plan.objective):
        row |= told(name, np.array([trial.metrics[name] for trial in trials]))
    return {
        **row,
        "seeds": f"{len(trials) - lost} of {len(trials)}" if lost else str(len(trials)),
        "epochs": str(first.epochs),
        "state": next((t.state for t in trials if t.state != "diverged"), "diverged"),
    }


def _lost(trials: Sequence[TrialRow]) -> int:
    return sum(trial.state == "diverged" for trial in trials)


def _interval(name: str, values: np.ndarray) -> dict[str, str]:
    return {name: cell(values)}


def _numbers(name: str, values: np.ndarray) -> dict[str, str]:
    found = estimate(values)
    low, high = interval(found, LEVEL)
    return {name: _number(found.mean), f"{name} half width": _number((high - low) / 2)}


def _number(value: float) -> str:
    """All digits; empty for none, which every reader of CSV takes for a missing number."""
    return repr(float(value)) if math.isfinite(value) else ""
