"""Trials in groups that can be compared: one value of a key each, all on the same data.

    tasks = grouped([read("runs/a/sweeps/0123456789ab")], by="penalty.name")
    tasks["mnist"]["l2"].best.setting         # chosen on validation data

A *task* is a data set as it is configured; a group's trials on one task are of one sweep.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from experiments.config import require_key, values_of
from experiments.errors import UserError
from experiments.names import offered
from experiments.sweep.outcome import Best, Sweep, TrialRow, best_of
from experiments.sweep.space import NOT_SEARCHED, shown

NAME = "name"  # the key that is not searched: arms that are sweeps of their own are called by it
EXACT = 2.0**53  # from there on floats are integers that do not say which

Tasks = Mapping[str, Mapping[str, "Group"]]


class Budget(NamedTuple):
    """What was spent on choosing a group's setting.

    halve: what of the trials was left out on the way, "" where nothing was.
    """

    settings: int
    seeds: int
    epochs: int
    halve: str

    def __str__(self) -> str:
        halved = f", halved {self.halve}" if self.halve else ""
        return f"{self.settings} settings x {self.seeds} seeds x {self.epochs} epochs{halved}"


@dataclass(frozen=True)
class Group:
    """The trials of a sweep that share a value of the key and the data."""

    name: str
    sweep: Sweep
    trials: tuple[TrialRow, ...]

    @cached_property
    def best(self) -> Best | None:
        """The setting that validation data choose; None where every trial was lost."""
        return best_of(self.trials, self.sweep.plan)

    @cached_property
    def budget(self) -> Budget:
        """How many settings were tried, with how many seeds, for how long at most."""
        plan = self.sweep.plan
        settings = {trial.number for trial in self.trials}
        # Not what was planned: all of a group may have been left behind at an early rung.
        epochs = max(trial.epochs for trial in self.trials)
        seeds = {trial.seed for trial in self.trials}
        return Budget(len(settings), len(seeds), epochs, plan.halve)


def grouped(sweeps: Sequence[Sweep], *, by: str) -> dict[str, dict[str, Group]]:
    """All groups by task and name, in the order in which they come up.

    by: a dotted key, or ``name``: the last part of each sweep's name, whatever it differs in.

    Raises:
        UserError: (2) no key is called so, or a group of a task stands in two sweeps.
    """
    require_key(by, where="by")
    found: dict[tuple[str, str], Group] = {}
    for sweep in sweeps:
        for (task, name), trials in _parts(sweep, by).items():
            if (task, name) in found:
                other = found[task, name].sweep.directory
                raise UserError(
                    f"{by}={name} stands in {other} and in {sweep.directory}, on the same data: "
                    "compare one of the two"
                )
            found[task, name] = Group(name, sweep, tuple(trials))
    names = _task_names(list(dict.fromkeys(task for task, _ in found)))
    tasks: dict[str, dict[str, Group]] = defaultdict(dict)
    for (task, name), group in found.items():
        tasks[names[task]][name] = group
    return dict(tasks)


def _parts(sweep: Sweep, by: str) -> dict[tuple[str, str], list[TrialRow]]:
    """Trials by the data, as JSON, and by the value of the key."""
    values = {key: settled(value) for key, value in values_of(sweep.plan.config).items()}
    data = {key: value for key, value in values.items() if key.startswith("data.") and key != by}
    parts: dict[tuple[str, str], list[TrialRow]] = defaultdict(list)
    for rows in sweep.configurations.values():
        setting = {key: settled(value) for key, value in rows[0].setting.items()}
        task = json.dumps({**data, **{k: v for k, v in setting.items() if k in data}})
        value = shown(setting.get(by, values[by]))
        parts[task, value.rpartition("/")[2] if by == NAME else value] += rows
    return parts


def settled(value: Any) -> Any:
    """An integer for a float that is one: 0 and 0.0 are the same value of a key."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < EXACT
    return int(value) if whole else value


def _task_names(tasks: Sequence[str]) -> dict[str, str]:
    """What each task is called: its data set, and what tells it from others on the same one."""
    told = {task: json.loads(task) for task in tasks}
    names = {}
    for task, data in told.items():
        same = [other for other in told.values() if _data_set(other) == _data_set(data)]
        differing = [key for key in data if any(other[key] != data[key] for other in same)]
        more = (f"{key.removeprefix('data.')}={shown(data[key])}" for key in differing)
        names[task] = " ".join([_data_set(data), *more])
    return names


def _data_set(data: Mapping[str, Any]) -> str:
    return str(data.get("data.name", "data"))


def refuse_unfinished(sweeps: Sequence[Sweep]) -> None:
    """`UserError` (2) that says how to go on with a sweep that has not ended."""
    for sweep in sweeps:
        if not sweep.finished:
            raise UserError(
                f"{sweep.directory} has not ended: go on with it by `python -m experiments sweep "
                f"resume {sweep.directory}`"
            )


def refuse_incomparable(tasks: Tasks, *, by: str, baseline: str) -> None:
    """`UserError` (2) where a task has no baseline, or nothing beside it."""
    for task, groups in tasks.items():
        if baseline not in groups:
            hint = offered(baseline, groups)
            raise UserError(f"no trial on {task} has {by}={baseline}{hint}")
        if len(groups) < 2:
            raise UserError(
                f"every trial on {task} has {by}={baseline}: there is nothing to compare it with; "
                "give the directory of another sweep, too"
            )
        if groups[baseline].best is None:
            raise UserError(f"every trial of {by}={baseline} on {task} was lost: choose another")


def refuse_unequal(tasks: Tasks) -> None:
    """`UserError` (2) with the numbers, where groups of a task were not tuned alike."""
    for task, groups in tasks.items():
        if len({group.budget for group in groups.values()}) > 1:
            raise UserError(
                f"groups on {task} were not tuned alike: {budgets(groups)}: give each the same "
                "number of trials, or compare them all the same with --unequal"
            )


def budgets(groups: Mapping[str, Group]) -> str:
    """Who had how much, those with the same together."""
    alike: dict[Budget, list[str]] = defaultdict(list)
    for name, group in groups.items():
        alike[group.budget].append(name)
    return "; ".join(f"{', '.join(names)}: {budget}" for budget, names in alike.items())


def differing(groups: Mapping[str, Group], *, by: str) -> list[str]:
    """Keys in which the sweeps of a task differ although no search chose their values.

    Sweeps that are compared by their names differ in the penalty by declaration.
    """
    plans = [group.sweep.plan for group in groups.values()]
    searched = {by, *NOT_SEARCHED}.union(*(plan.keys for plan in plans))
    first, *others = (values_of(plan.config) for plan in plans)
    return [
        key
        for key, value in first.items()
        if key not in searched
        and not (by == NAME and key.startswith("penalty."))
        and any(other[key] != value for other in others)
    ]
