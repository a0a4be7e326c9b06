"""Groups of trials against a baseline: chosen on validation data, compared on fresh seeds.

    found = compare([read("runs/a/sweeps/0123456789ab")], by="penalty.name", baseline="l2")
    print(found.table.text())
    found.page("comparison")

A group is a value of a key, a task the data it was trained on. Every group is held to the setting
that is best on validation data over the tuning seeds; those scores flatter it, so the settings are
trained again on seeds that nobody has looked at, and only these numbers are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.config import parse_yaml
from experiments.errors import UserError
from experiments.names import offered
from experiments.report.selection import VALIDATION, fresh_seed, require_validation
from experiments.sweep.comparison import Comparison
from experiments.sweep.groups import (
    NAME,
    Group,
    Tasks,
    budgets,
    differing,
    grouped,
    refuse_incomparable,
    refuse_unequal,
    refuse_unfinished,
    settled,
)
from experiments.sweep.outcome import Sweep, TrialRow, higher_is_better
from experiments.sweep.space import OF_TEST, OF_VALIDATION, shown

if TYPE_CHECKING:
    from experiments.sweep.executors import Executor

FINALS = 8
Trials = Mapping[str, Sequence[TrialRow]]  # by group


def compare(
    sweeps: Sequence[Sweep],
    *,
    by: str,
    baseline: str,
    objective: str | None = None,
    finals: int = FINALS,
    unequal: bool = False,
    executor: str | Executor = "local",
    root: str | Path = "runs",
) -> Comparison:
    """Compare the values of a key, each in the setting that validation data choose for it.

    Args:
        sweeps: finished ones (`read`); those on different data are different tasks.
        by: the key, or ``name``: every sweep is a group, called by the last part of its name.
        baseline: the value that the others are compared with.
        objective: what is compared; None takes the test metric that corresponds to the validation
            metric of the sweeps. What chooses the settings is the latter in any case.
        finals: fresh seeds on which the chosen settings are trained again; 0 trains nothing, shows
            the scores of the tuning seeds, and claims nothing.
        unequal: compare groups although they had different numbers of trials.
        executor, root: where the finals are trained, and the folder of all runs.

    Raises:
        UserError: (2) a sweep has not ended, no key, baseline or metric is called so, groups were
            not tuned alike, or they share no seed; and what `run_settings` raises.
    """
    if not sweeps:
        raise UserError("there is no sweep to compare: give one or more")
    refuse_few(finals)
    refuse_unfinished(sweeps)
    chosen_by, higher = _chosen_by(sweeps)
    metric = objective or (chosen_by.replace(VALIDATION, "test/", 1) if finals else chosen_by)
    _refuse_other_examples(by, metric)
    tasks = grouped(sweeps, by=by)
    if by != NAME:  # a value, of which 1e-3 is called 0.001; names are texts
        baseline = shown(settled(parse_yaml(baseline, where="baseline")))
    refuse_incomparable(tasks, by=by, baseline=baseline)
    if not unequal:
        refuse_unequal(tasks)
    _refuse_unrecorded(sweeps, metric)
    if metric.partition("/")[2] != chosen_by.partition("/")[2]:
        higher = higher_is_better(metric)
    if finals:
        first = fresh_seed([seed for sweep in sweeps for seed in sweep.plan.seeds])
        seeds = range(first, first + finals)
        again = partial(_again, seeds=seeds, executor=executor, root=root)
        runs = {task: again(groups) for task, groups in tasks.items()}
    else:
        runs = {task: _tuned(groups) for task, groups in tasks.items()}
    pairs = {task: _common_seeds(one.trials, task) for task, one in runs.items()}
    if not finals:
        _refuse_other_draws(tasks)
    scores = {
        task: {group: _scores(rows, pairs[task], metric) for group, rows in one.trials.items()}
        for task, one in runs.items()
    }
    directories = {task: one.directories for task, one in runs.items() if one.directories}
    notes = tuple(_notes(tasks, by=by))
    return Comparison(by, baseline, metric, higher, tasks, scores, pairs, directories, notes)


def refuse_few(finals: int) -> None:
    """`UserError` (2) for a number of fresh seeds of which there is no interval."""
    if finals == 1 or finals < 0:
        raise UserError(f"finals = {finals}: of one pair nothing can be said; give 0, or 2 or more")


def _chosen_by(sweeps: Sequence[Sweep]) -> tuple[str, bool]:
    """The validation metric by which all of the sweeps choose, and whether more is better."""
    rules = {(sweep.plan.objective, sweep.plan.higher): sweep.directory for sweep in sweeps}
    if len(rules) > 1:
        told = "; ".join(f"{directory}: {name}" for (name, _), directory in rules.items())
        raise UserError(f"the sweeps choose by different metrics: {told}: compare those that agree")
    ((metric, higher),) = rules
    require_validation(metric)
    return metric, higher


def _refuse_unrecorded(sweeps: Sequence[Sweep], metric: str) -> None:
    recorded = set.intersection(*({*trial.metrics} for one in sweeps for trial in one.trials[:1]))
    if metric not in recorded:
        hint = offered(metric, sorted(recorded))
        raise UserError(f"objective = {metric!r} was not recorded by every sweep{hint}")


def _refuse_other_examples(by: str, metric: str) -> None:
    """`UserError` (2) where the groups would be scored on different examples."""
    validation = metric.startswith(VALIDATION)
    if by in (OF_VALIDATION if validation else OF_TEST):
        raise UserError(
            f"by = {by}: groups would be scored by {metric} on different examples, so a difference "
            "would be one of the data: compare by a method, with each data set a task of its own"
        )


def _refuse_other_draws(tasks: Tasks) -> None:
    """`UserError` (2) where the tuning scores of a task are of several validation sets."""
    for task, groups in tasks.items():
        configs = [group.sweep.plan.config for group in groups.values()]
        drawn = {config.train.seed for config in configs if config.data.subsets == "shared"}
        if len(drawn) > 1:
            told = ", ".join(map(str, sorted(drawn)))
            raise UserError(
                f"the sweeps on {task} begin with different seeds ({told}), each of which drew "
                "a validation set of its own: train the winners again, with --finals 8"
            )


class _Runs(NamedTuple):
    """What is compared on a task: trials by group, and where finals were trained."""

    trials: Trials
    directories: tuple[Path, ...] = ()


def _again(
    groups: Mapping[str, Group], *, seeds: range, executor: str | Executor, root: str | Path
) -> _Runs:
    """Train what is best of each group on these seeds, or find it trained.

    All by the code of today, whatever code has tuned them. Those of one sweep together, and apart
    from those of another: where a penalty of a file has changed, the others are still found.
    """
    from experiments.sweep.sweep import run_settings  # imports jax: a table of scores does without

    together: dict[Path, dict[str, Group]] = defaultdict(dict)
    for name, group in groups.items():
        if group.best:
            together[group.sweep.directory][name] = group
    trials: dict[str, Sequence[TrialRow]] = {}
    directories = []
    for winners in together.values():
        plan = next(iter(winners.values())).sweep.plan
        settings = [group.best.setting for group in winners.values() if group.best]
        found = run_settings(
            plan.config, settings, seeds=len(seeds), seed=seeds.start, executor=executor,
            objective=plan.objective, higher=plan.higher, root=root,
        )  # fmt: skip
        trials |= zip(winners, found.configurations.values(), strict=True)
        directories.append(found.directory)
    return _Runs({name: trials[name] for name in groups if name in trials}, tuple(directories))


def _tuned(groups: Mapping[str, Group]) -> _Runs:
    """The trials that have chosen each group's setting."""
    chosen = {name: group.best.number for name, group in groups.items() if group.best}
    trials = {
        name: [trial for trial in groups[name].trials if trial.number == number]
        for name, number in chosen.items()
    }
    return _Runs(trials)


def _common_seeds(trials: Trials, task: str) -> list[int]:
    """The seeds that every group has: runs with the same one are a pair."""
    common = set.intersection(*({trial.seed for trial in rows} for rows in trials.values()))
    if not common:
        told = "; ".join(f"{group}: {_range(rows)}" for group, rows in trials.items())
        raise UserError(
            f"the groups on {task} have no seed in common ({told}), so there are no pairs: train "
            "the winners again on the same seeds, with --finals 8"
        )
    return sorted(common)


def _range(rows: Sequence[TrialRow]) -> str:
    seeds = [trial.seed for trial in rows]
    return f"{min(seeds)} to {max(seeds)}"


def _scores(rows: Sequence[TrialRow], seeds: Sequence[int], metric: str) -> np.ndarray:
    by_seed = {trial.seed: trial.metrics.get(metric, np.nan) for trial in rows}
    return np.array([by_seed[seed] for seed in seeds], float)


def _notes(tasks: Tasks, *, by: str) -> Iterator[str]:
    """What makes a comparison less fair than it looks."""
    for task, groups in tasks.items():
        if len({group.budget for group in groups.values()}) > 1:
            yield f"on {task} the groups were not tuned alike: {budgets(groups)}"
        mixed = {g.sweep.directory for g in groups.values() if g.sweep.plan.accepted}
        if mixed:
            told = ", ".join(sorted(map(str, mixed)))
            yield f"other code has gone on with {told} (--accept-code), so trials may differ in it"
        machines = {g.sweep.directory for g in groups.values() if g.sweep.plan.mixed}
        if machines:
            told = ", ".join(sorted(map(str, machines)))
            yield f"other machines may have gone on with {told} (--accept-machine)"
        if keys := differing(groups, by=by):
            yield f"on {task} the sweeps differ in {', '.join(keys)} as well, which nothing chose"
        edges = [f"{g.name} ({', '.join(g.best.at_edge)})" for g in groups.values()
                 if g.best and g.best.at_edge]  # fmt: skip
        if edges:
            yield f"on {task} the best is at the edge of what was tried for {', '.join(edges)}"
