"""Sweeps: many trials of one experiment, proposed by a search and trained in blocks.

found = sweep(config, over={"penalty.strength": Log(1e-5, 1e-1, 8)}, seeds=8)
print(found.table.text())
found.best().config

Whatever stopped a sweep, the same call goes on with it; `resume` does, too, by its directory. Two
processes that carry out the same sweep at once do the same, and neither spoils what the other does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.config import ExperimentConfig
from experiments.errors import UserError
from experiments.runs.code import changed_files, listed
from experiments.runs.interruption import WORDS, meaning
from experiments.sweep.attempts import clear_all
from experiments.sweep.executors import Executor
from experiments.sweep.executors import parse as executor_of
from experiments.sweep.log import TrialLog
from experiments.sweep.meter import metered
from experiments.sweep.outcome import Best, Sweep, TrialRow, best_of, read, sweep_of
from experiments.sweep.plan import (
    FILE,
    Plan,
    accept,
    accept_machines,
    read_plan,
    refuse_other_code,
    same_question,
    write_plan,
)
from experiments.sweep.planning import plan_of
from experiments.sweep.rounds import search_for, train
from experiments.sweep.space import Space
from experiments.sweep.width import layout
from experiments.sweep.writing import write_tables

__all__ = ["Best", "Sweep", "TrialRow", "best_of", "read", "resume", "run_settings", "sweep"]

OBJECTIVE = "validation/accuracy"


def sweep(
    config: ExperimentConfig,
    *,
    over: Space,
    search: str = "grid",
    seeds: int | None = None,
    halve: str | None = None,
    objective: str = OBJECTIVE,
    higher: bool | None = None,
    executor: str | Executor = "local",
    root: str | Path = "runs",
    accept_code: bool = False,
    accept_machine: bool = False,
) -> Sweep:
    """Train every configuration that the search proposes, or go on with it, or return it if done.

    Args:
        config: what the values are applied to; its ``data.validation`` must be above 0.
        over: the values of each dotted key, as in ``{"penalty.strength": Log(1e-5, 1e-1, 8)}``.
        search: ``grid``, ``random:64`` or ``tpe:64``.
        seeds: of every configuration; None takes ``config.train.seeds``.
        halve: ``2@5`` keeps the better half of the configurations after 5, 10, 20, ... epochs.
        objective: the validation metric by which they are compared.
        higher: whether more of it is better; None asks its name (of a loss or an error, less is).
        executor: where blocks are trained: ``local``, ``processes:2``, ``slurm``, ``ray``.
        root: the folder of all runs.
        accept_code: go on with the newest sweep of this question that other code has begun.
        accept_machine: go on although the sweep was begun on a machine that computes other last
            digits: another kind of device or number of threads, another version of JAX.

    Raises:
        UserError: 2 for what cannot be swept, 4 for missing data, 75 or 130 when stopped from
            outside: what is trained is kept.
    """
    plan = plan_of(
        config, over=over, search=search, seeds=seeds, halve=halve, objective=objective,
        higher=higher,
    )  # fmt: skip
    plan = replace(plan, mixed=accept_machine)
    return _carry_out(plan, executor, root=Path(root), accepting=accept_code)


def run_settings(
    config: ExperimentConfig,
    settings: Sequence[Mapping[str, Any]],
    *,
    seeds: int | None = None,
    seed: int | None = None,
    objective: str = OBJECTIVE,
    higher: bool | None = None,
    executor: str | Executor = "local",
    root: str | Path = "runs",
) -> Sweep:
    """Train these settings, numbered as they stand, in place of those of a search.

    ``seed`` is the first of the seeds. The rest, and what is raised, as for `sweep`.
    """
    if seed is not None:
        config = replace(config, train=replace(config.train, seed=seed))
    plan = plan_of(
        config, over={}, search="list", settings=settings, seeds=seeds, halve=None,
        objective=objective, higher=higher,
    )  # fmt: skip
    return _carry_out(plan, executor, root=Path(root), accepting=False)


def resume(
    directory: str | Path,
    *,
    executor: str | Executor = "local",
    accept_code: bool = False,
    accept_machine: bool = False,
) -> Sweep:
    """Go on with the sweep of a directory; `UserError` (2) where other code has begun it.

    Or another machine (`sweep`), unless nothing is left to train.
    """
    directory, placed = Path(directory), _executor(executor)
    plan = read_plan(directory)
    if accept_code:
        plan = accept(plan, directory)
    else:
        refuse_other_code(plan, directory)
    if accept_machine:
        plan = accept_machines(plan, directory)
    return _train(directory, plan, placed)


def folder_of(plan: Plan, root: str | Path) -> Path:
    """The directory of a sweep."""
    return Path(root) / plan.config.name / "sweeps" / plan.key


def _carry_out(plan: Plan, executor: str | Executor, *, root: str | Path, accepting: bool) -> Sweep:
    directory, placed = folder_of(plan, root), _executor(executor)
    if (directory / FILE).exists():
        known = read_plan(directory)
        return _train(directory, accept_machines(known, directory) if plan.mixed else known, placed)
    other = same_question(plan, directory.parent)
    if other is not None and accepting:
        return resume(other, executor=placed, accept_code=True, accept_machine=plan.mixed)
    if other is not None:
        files = changed_files(read_plan(other).code, plan.code)
        print(f"code changed since {other}, which is kept: {listed(files)}", file=sys.stderr)
    first = dict(enumerate(search_for(plan).propose([])))
    found = layout(plan.config, first, plan.seeds, workers=placed.workers)
    plan = write_plan(directory, replace(plan, axis=found.axis, width=found.width))
    return _train(directory, plan, placed)


def _executor(executor: str | Executor) -> Executor:
    return executor_of(executor) if isinstance(executor, str) else executor


def _train(directory: Path, plan: Plan, executor: Executor) -> Sweep:
    """Train what is missing, then write the tables of all."""
    log = TrialLog(directory)
    log.settle()
    if not sweep_of(plan, log).finished:
        clear_all(directory)
        with (
            _saying_how_to_go_on(directory, plan, log),
            executor as placed,
            metered(directory, plan, log),
        ):
            train(directory, plan, log, placed)
    clear_all(directory)  # what workers left that were stopped just now, or have died before
    log.settle()
    found = sweep_of(plan, log)
    write_tables(found)
    return found


@contextmanager
def _saying_how_to_go_on(directory: Path, plan: Plan, log: TrialLog) -> Iterator[None]:
    """What stops a sweep from outside is told with the command that goes on with it."""
    try:
        yield
    except (KeyboardInterrupt, UserError) as error:
        if isinstance(error, UserError) and error.exit_code not in WORDS:
            raise
        code = error.exit_code if isinstance(error, UserError) else meaning(error)[1]
        raise UserError(
            f"{WORDS[code]}; {sweep_of(plan, log).ended} of {plan.trials} trials have ended, the "
            f"others are saved: go on with python -m experiments sweep resume {directory}",
            code,
        ) from None
