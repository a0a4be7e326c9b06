"""From what is asked for to a plan; what cannot be swept is refused before anything is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from experiments.config import ExperimentConfig
from experiments.errors import UserError
from experiments.names import offered
from experiments.report.selection import VALIDATION
from experiments.sweep import halving
from experiments.sweep.block import grouped
from experiments.sweep.outcome import higher_is_better
from experiments.sweep.plan import Plan, code_of, data_of, taken
from experiments.sweep.search import Setting
from experiments.sweep.search import search as search_of
from experiments.sweep.space import Space, check, configure, require_searchable, settled
from experiments.training.task import OBJECTIVES

# What a loss is measured in; the least of several units would win.
LOSS_SCALES = ("train.objective", "train.label_scale")


def plan_of(
    config: ExperimentConfig,
    *,
    over: Space,
    search: str,
    settings: Sequence[Mapping[str, Any]] = (),
    seeds: int | None = None,
    halve: str | None = None,
    objective: str,
    higher: bool | None = None,
) -> Plan:
    """The plan of `sweep.sweep`'s arguments, or of ``settings`` that are written out."""
    if not over and not settings:
        raise UserError(
            "there is nothing to sweep: give a key a range or a list, as in "
            "penalty.strength=log(1e-5,1e-1,8) or penalty.name=[l1,l2]"
        )
    config = _with_seeds(config, seeds)
    check(over, config)
    settings = [_settled(config, setting) for setting in settings]
    values = partial(taken, config=config, space=over, settings=settings)
    _refuse_no_validation(config)
    _refuse_unknown_objective(values, objective)
    if halve:
        halving.check(config, over, objective)
        halving.parse(halve, epochs=config.train.epochs)
    found = search_of(search, over, seed=config.train.seed, settings=settings)
    proposed = found.propose([])
    grouped(config, dict(enumerate(proposed)), [])  # refuses what no block can train
    if over:
        _refuse_what_changes_nothing(config, proposed)
    return Plan(
        config,
        space=dict(over),
        search=search,
        count=found.count,
        objective=objective,
        higher=higher_is_better(objective) if higher is None else higher,
        data=data_of(config),
        code=code_of(config, over, settings),
        settings=tuple(settings),
        halve=halve or "",
    )


def _with_seeds(config: ExperimentConfig, seeds: int | None) -> ExperimentConfig:
    if seeds is None:
        return config
    try:
        return replace(config, train=replace(config.train, seeds=seeds))
    except ValueError as error:
        raise UserError(str(error)) from None


def _settled(config: ExperimentConfig, setting: Setting) -> dict[str, Any]:
    """A setting that is written out, as it is read back, if it can be applied."""
    require_searchable(setting)
    try:
        found = {key: settled(value) for key, value in setting.items()}
    except ValueError as error:
        raise UserError(f"setting {error}") from None
    configure(config, found)
    return found


def _refuse_no_validation(config: ExperimentConfig) -> None:
    if config.data.validation < 1:
        raise UserError(
            "a sweep compares settings on validation data, and data.validation is 0: hold some of "
            "the training examples out, as in data.validation=200"
        )


def _refuse_unknown_objective(values: Callable[[str], list[Any]], objective: str) -> None:
    trained = [name for name in values("train.objective") if name in OBJECTIVES]
    recorded = [f"{VALIDATION}{name}" for name in _measured(trained)]
    scales = [key for key in LOSS_SCALES if len(values(key)) > 1]
    if scales and objective == f"{VALIDATION}loss":
        raise UserError(
            f"objective = {objective!r}: {scales[0]} is searched, and losses of several have no "
            f"scale in common; choose {VALIDATION}accuracy, or search something else"
        )
    if objective in recorded:
        return
    if objective.startswith("test/"):
        raise UserError(
            f"objective = {objective!r}: what is chosen by the test set says nothing about other "
            f"data; there are: {', '.join(recorded)}"
        )
    hint = offered(objective, recorded)
    raise UserError(f"objective = {objective!r} is not recorded on validation data{hint}")


def _measured(objectives: Sequence[str]) -> list[str]:
    """The names that all of these objectives report."""
    found = [["loss", *(name for name, _ in OBJECTIVES[one].metrics)] for one in objectives]
    return [name for name in found[0] if all(name in others for others in found)] if found else []


def _refuse_what_changes_nothing(config: ExperimentConfig, settings: Sequence[Setting]) -> None:
    """A penalty without a strength, and the strength of no penalty: all trials are the same."""
    strengths: dict[str, set[float]] = defaultdict(set)
    for setting in settings:
        name = setting.get("penalty.name", config.penalty.name)
        strengths[name].add(setting.get("penalty.strength", config.penalty.strength))
    if {*strengths} == {"none"} and "penalty.strength" in settings[0]:
        raise UserError(
            "penalty.strength is searched, and penalty.name = none has none: set or search "
            "penalty.name, as in penalty.name=l2"
        )
    idle = [name for name, known in strengths.items() if name != "none" and known == {0.0}]
    if idle and "penalty.name" in settings[0]:
        raise UserError(
            f"penalty.name is searched, and the strength of {', '.join(idle)} is 0: set or search "
            "penalty.strength, as in penalty.strength=log(1e-5,1e-1,8)"
        )
