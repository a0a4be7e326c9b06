"""Sweeps whose truth is known: their trials are made up, all else is what a real one has."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from experiments.config import DataConfig, ExperimentConfig, TrainConfig
from experiments.sweep.outcome import Sweep, TrialRow
from experiments.sweep.plan import Plan
from experiments.sweep.space import Choice, configure

BASE = ExperimentConfig("toy/all", DataConfig("digits", validation=200), train=TrainConfig(seeds=4))


class Truth(NamedTuple):
    """What a penalty does, in points on top of 70 %; ``lost``: the seeds that it diverges on."""

    validation: float = 0.0
    test: float = 0.0
    noise: float = 0.1
    lost: tuple[int, ...] = ()


def swept(truth, space, *, config=BASE, directory="sweep", finished=True, **plan):
    """A grid sweep; ``truth`` maps a configuration to its `Truth`."""
    settings = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    return _sweep(truth, config, settings, Path(directory), finished, space, "grid", **plan)


def training(truth):
    """A module in place of `sweep.sweep`; its list ``asked`` is told what was to be trained."""
    module = ModuleType("experiments.sweep.sweep")
    module.asked = []

    def run_settings(config, settings, *, seeds, seed, objective, higher, executor, root):
        module.asked.append((config.name, [*settings], range(seed, seed + seeds)))
        config = replace(config, train=replace(config.train, seed=seed, seeds=seeds))
        plan = {"objective": objective, "higher": higher}
        return _sweep(truth, config, settings, Path(root, "finals"), True, {}, "list", **plan)

    module.run_settings = run_settings
    return module


def _sweep(truth, config, settings, directory, finished, space, search, **plan):
    made = Plan(
        config,
        space={key: Choice(list(values)) for key, values in space.items()},
        search=search,
        count=len(settings),
        **{"objective": "validation/accuracy", "higher": True, "data": "", "code": {}, **plan},
        settings=tuple(settings) if search == "list" else (),
    )
    trials = (
        _trial(truth(configure(config, setting)), number, seed, setting, config.train.epochs)
        for number, setting in enumerate(settings)
        for seed in made.seeds
    )
    return Sweep(directory, made, tuple(trials), finished)


def _trial(truth, number, seed, setting, epochs):
    lost = seed in truth.lost
    common = np.random.default_rng(seed).normal()  # what a seed does to every trial
    own = np.random.default_rng([seed, number, round(1e6 * truth.noise)]).normal(size=2)
    points = 70 + common + np.array([truth.validation, truth.test]) + truth.noise * own
    shares = np.full(2, np.nan) if lost else points / 100
    metrics = {"validation/accuracy": shares[0], "test/accuracy": shares[1]}
    metrics |= {"validation/loss": 1 - shares[0], "test/loss": 1 - shares[1]}
    numbers = {name: float(value) for name, value in metrics.items()}
    return TrialRow(number, seed, setting, epochs, "diverged" if lost else "finished", numbers)
