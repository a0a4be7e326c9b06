"""What a sweep has come to so far: read from its plan and its log alone, in a moment.

sweep = read("runs/fiedler/digits/fiedler/sweeps/0123456789ab")
print(sweep.table.text())
sweep.best().setting            # {"penalty.strength": 0.001}
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from experiments.config import ExperimentConfig, values_of
from experiments.report import selection
from experiments.report.results import Results, Row
from experiments.report.tables import Table
from experiments.sweep import tables
from experiments.sweep.halving import kept
from experiments.sweep.log import Entry, TrialLog
from experiments.sweep.plan import Plan, read_plan
from experiments.sweep.space import as_text, configure

if TYPE_CHECKING:
    from experiments.sweep.comparison import Comparison

State = Literal["finished", "halved", "diverged", "waiting"]


class TrialRow(NamedTuple):
    """One configuration with one seed, as far as it was trained.

    epochs: where ``metrics`` were taken.
    state: ``halved`` was left behind at a rung, ``waiting`` is to be trained on.
    """

    number: int
    seed: int
    setting: Mapping[str, Any]
    epochs: int
    state: State
    metrics: Mapping[str, float]


class Best(NamedTuple):
    """The configuration that validation data choose.

    Attributes:
        score: the mean of the objective over seeds.
        at_edge: the keys whose value is the least or the greatest that was tried: a better one may
            lie outside. Not those that change nothing, as the strength of no penalty.
        tied: numbers of the others that are within a standard error of the best, paired by seed.
    """

    number: int
    setting: Mapping[str, Any]
    config: ExperimentConfig
    score: float
    at_edge: tuple[str, ...]
    tied: tuple[int, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep's directory, its plan, and its trials in order of number and seed.

    finished: whether every trial has ended.
    """

    directory: Path
    plan: Plan
    trials: tuple[TrialRow, ...]
    finished: bool

    @cached_property
    def configurations(self) -> dict[int, tuple[TrialRow, ...]]:
        """The trials of each configuration, by its number."""
        found: dict[int, list[TrialRow]] = defaultdict(list)
        for trial in self.trials:
            found[trial.number].append(trial)
        return {number: tuple(rows) for number, rows in found.items()}

    @property
    def ended(self) -> int:
        """How many trials are trained as far as they will be."""
        return sum(trial.state != "waiting" for trial in self.trials)

    @cached_property
    def ranking(self) -> list[int]:
        """Numbers of the configurations, best first; what was left behind earlier comes later."""
        plan = self.plan

        def place(number: int) -> tuple:
            rows = self.configurations[number]
            scores = [row.metrics[plan.objective] for row in rows]
            left = -rows[0].epochs if plan.halve else 0
            return left, *selection.badness(scores, higher=plan.higher), number

        return sorted(self.configurations, key=place)

    @property
    def table(self) -> Table:
        """A row per configuration, best first: its values, and validation metrics over seeds."""
        return self.top(len(self.ranking))

    def top(self, count: int) -> Table:
        """The first rows of the table."""
        return tables.of_configurations(self.plan, self.ranked[:count])

    @property
    def ranked(self) -> list[tuple[TrialRow, ...]]:
        """The trials of each configuration, best first."""
        return [self.configurations[number] for number in self.ranking]

    @property
    def results(self) -> Results:
        """The numbers of all trials: an arm for each configuration, named by its number."""
        name = self.plan.config.name
        return Results(
            tuple(Row(name, str(trial.number), trial.seed, trial.metrics) for trial in self.trials)
        )

    def best(self) -> Best | None:
        """The best configuration; None if no trial has a number."""
        return best_of(self.trials, self.plan)

    def compare(self, *, by: str, baseline: str, **options: Any) -> Comparison:
        """Groups of its trials against a baseline; what else there is to say: `compare.compare`."""
        from experiments.sweep.compare import compare

        return compare([self], by=by, baseline=baseline, **options)


def read(directory: str | Path) -> Sweep:
    """A sweep's trials so far, finished or not; `UserError` (2) where there is no sweep."""
    plan = read_plan(directory)
    return sweep_of(plan, TrialLog(Path(directory)))


def sweep_of(plan: Plan, log: TrialLog) -> Sweep:
    """The trials of a log."""
    latest = {entry.number: entry for _, entry in sorted(log.entries.items())}
    states = _states(plan, log)
    trials = (row for n, entry in sorted(latest.items()) for row in _trials(entry, states[n]))
    finished = len(states) == plan.count and "waiting" not in states.values()
    return Sweep(log.path.parent, plan, tuple(trials), finished)


def best_of(trials: Sequence[TrialRow], plan: Plan) -> Best | None:
    """The best of these configurations by the rules of a tuned protocol (`report.selection`).

    Where some were left behind at a rung, those that were trained longest compete. Where the
    plan's own values are among those within a standard error of the best, they are chosen.
    """
    longest = max((trial.epochs for trial in trials), default=0)
    rivals = [trial for trial in trials if not plan.halve or trial.epochs == longest]
    settings = {trial.number: trial.setting for trial in rivals}
    rows = (Row("sweep", f"setting@{t.number}", t.seed, t.metrics) for t in rivals)
    choice = selection.choose(
        Results(tuple(rows)), "sweep", method="setting", by=plan.objective, higher=plan.higher
    )
    if choice is None:
        return None
    first, *tied = (int(arm.partition("@")[2]) for arm in (choice.arm, *choice.tied))
    number = next((n for n in tied if _is_default(plan.config, settings[n])), first)
    return Best(
        number,
        settings[number],
        configure(plan.config, settings[number]),
        _mean(trial.metrics[plan.objective] for trial in rivals if trial.number == number),
        at_edge=_at_edge(
            settings[number], [trial.setting for trial in trials], _alike(rivals, number)
        ),
        tied=tuple(other for other in (first, *tied) if other != number),
    )


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better, by its name.

    >>> higher_is_better("validation/accuracy"), higher_is_better("validation/loss")
    (True, False)
    """
    return not any(word in metric for word in ("loss", "error"))


def _states(plan: Plan, log: TrialLog) -> dict[int, State]:
    """How far each configuration has come, whatever its seeds."""
    reached = Counter((entry.round, entry.rung) for entry in log.entries.values())
    states: dict[int, State] = {}
    for _, entry in sorted(log.entries.items()):
        if plan.halving is None or entry.epochs == plan.config.train.epochs:
            states[entry.number] = "finished"
            continue
        rivals, ahead = (reached[entry.round, rung] for rung in (entry.rung, entry.rung + 1))
        # While nobody, or not everybody, is there, who was left behind is not known.
        complete = ahead >= kept(rivals, plan.halving.factor)
        states[entry.number] = "halved" if complete else "waiting"
    return states


def _trials(entry: Entry, state: State) -> Iterator[TrialRow]:
    for place, seed in enumerate(entry.seeds):
        numbers = {name: values[place] for name, values in entry.metrics.items()}
        metrics = {n: math.nan if value is None else value for n, value in numbers.items()}
        fate: State = "diverged" if metrics["diverged"] else state
        yield TrialRow(entry.number, seed, entry.setting, entry.epochs, fate, metrics)


def _is_default(config: ExperimentConfig, setting: Mapping[str, Any]) -> bool:
    """Whether the configuration has these values already."""
    values = values_of(config)
    return all(as_text(value) == as_text(values[key]) for key, value in setting.items())


def _alike(trials: Sequence[TrialRow], number: int) -> list[Mapping[str, Any]]:
    """The settings that measured the same on validation data as that one, in every digit."""
    settings = {trial.number: trial.setting for trial in trials}
    measured: dict[int, dict[tuple[int, str], float]] = defaultdict(dict)
    for trial in trials:
        for name, value in trial.metrics.items():
            if name.startswith(selection.VALIDATION):
                measured[trial.number][trial.seed, name] = value
    return [settings[other] for other in measured if measured[other] == measured[number]]


def _at_edge(
    setting: Mapping[str, Any],
    tried: Iterable[Mapping[str, Any]],
    alike: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    """The keys whose number is the least or the greatest of those that were tried.

    Where others are ``alike``, they agree on it: else another value does the same.
    """
    numbers: dict[str, set[float]] = defaultdict(set)
    for other in tried:
        for key, value in other.items():
            if is_number(value):
                numbers[key].add(value)
    return tuple(
        key
        for key, value in setting.items()
        if len(numbers[key]) > 1
        and value in (min(numbers[key]), max(numbers[key]))
        and all(other.get(key) == value for other in alike)
    )


def is_number(value: Any) -> bool:
    """Whether a value of a setting has a place on an axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mean(scores: Iterable[float]) -> float:
    return float(np.nanmean(list(scores)))
