"""The course of a sweep: what the search proposes, rung by rung, as blocks that are trained.

Which blocks there are follows from the plan and from the results of earlier blocks. So it does not
matter which process began them, or how often: what is committed is not trained again, and what is
in the log is not even looked at.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.files import make_directory, plain, read_json, write_json_once
from experiments.sweep.attempts import clear
from experiments.sweep.block import Block, BlockResult, blocks_of, result_of, write_block
from experiments.sweep.committed import committed
from experiments.sweep.executors import Executor
from experiments.sweep.halving import survivors
from experiments.sweep.log import Entry, TrialLog
from experiments.sweep.plan import Plan
from experiments.sweep.search import Search, Told
from experiments.sweep.search import search as search_of

Settings = Mapping[int, Mapping[str, Any]]  # by number


def search_for(plan: Plan) -> Search:
    """The search of a plan."""
    return search_of(plan.search, plan.space, seed=plan.config.train.seed, settings=plan.settings)


def train(directory: Path, plan: Plan, log: TrialLog, executor: Executor) -> None:
    """Train all rounds, and log each configuration as soon as it is complete."""
    told: list[Told] = []
    for place in range(plan.count):  # at most: a round has one setting or more
        proposed = _proposed(directory, plan, place, told)
        if not proposed:
            return
        this = Round(place, dict(enumerate(proposed, len(told))), directory, plan, log)
        this.train(executor)
        told += [Told(setting, this.score(number)) for number, setting in this.alive[0].items()]


def _proposed(
    directory: Path, plan: Plan, place: int, told: Sequence[Told]
) -> list[Mapping[str, Any]]:
    """The settings of a round, kept: another version of a search's library may propose others."""
    path = directory / "rounds" / f"{place:06d}.json"
    if not path.exists() and (settings := search_for(plan).propose(told)):
        make_directory(path.parent)
        write_json_once(path, {"settings": settings})
    remedy = f"remove it and run python -m experiments sweep resume {directory}"
    return read_json(path, remedy=remedy).get("settings", [])


class Round:
    """Settings that are proposed together, and compete where there is halving."""

    def __init__(
        self, place: int, settings: Settings, directory: Path, plan: Plan, log: TrialLog
    ) -> None:
        self.place, self.directory, self.plan, self.log = place, directory, plan, log
        self.alive = [settings]  # those that are trained in each rung

    def train(self, executor: Executor) -> None:
        """Train what the log does not hold, rung by rung."""
        for rung in range(len(self.plan.rungs)):
            missing = {n for n in self.alive[rung] if (rung, n) not in self.log.entries}
            if missing:
                self._train(rung, missing, executor)
            if rung + 1 < len(self.plan.rungs):
                self.alive.append(self._survivors(rung))

    def score(self, number: int) -> float:
        """What the search is told: higher is better, NaN where a seed has no number."""
        last = max(rung for rung, alive in enumerate(self.alive) if number in alive)
        mean = float(np.mean(self._scores(last, number)))
        return mean if self.plan.higher else -mean

    def _train(self, rung: int, missing: set[int], executor: Executor) -> None:
        if rung:
            self._replace_lost(rung - 1, executor)
        blocks = {
            block.id: block
            for block in self._blocks(rung)
            if any(trial.number in missing for trial in block.trials)
        }
        ended = [name for name in blocks if committed(self.directory, name)]
        others = [name for name in blocks if name not in ended]
        for name in others:
            write_block(self.directory, blocks[name])
        trained = executor.run(self.directory, others) if others else ()
        gathered = Gathered(self.place, rung, self.plan, self.alive[rung])
        for name in chain(ended, trained):
            found = result_of(self.directory, name)
            assert found is not None, f"{name} is said to be committed"
            clear(self.directory, blocks[name])
            self.log.add(gathered.add(blocks[name], found))

    def _replace_lost(self, rung: int, executor: Executor) -> None:
        """Train again what was removed, as one is told to where a file is damaged.

        The log has its numbers, but only the blocks have the states that are trained on.
        """
        blocks = self._blocks(rung)
        for block in blocks:
            write_block(self.directory, block)
        lost = [block for block in blocks if not committed(self.directory, block.id)]
        if lost:
            self._train(rung, {trial.number for one in lost for trial in one.trials}, executor)

    def _blocks(self, rung: int) -> list[Block]:
        """The blocks of a rung; those of the rung before hold the states that they begin with."""
        start, _ = self.plan.rungs[rung]
        parents = tuple(block.id for block in self._blocks(rung - 1)) if rung else ()
        by_end: dict[int, dict[int, Mapping[str, Any]]] = defaultdict(dict)
        for number, setting in self.alive[rung].items():
            by_end[self.end(rung, setting)][number] = setting
        plan = self.plan
        return [
            block
            for end, settings in by_end.items()
            for block in blocks_of(
                plan.config, settings, plan.seeds, width=plan.width, axis=plan.axis,
                start=start, end=end, parents=parents,
            )
        ]  # fmt: skip

    def end(self, rung: int, setting: Mapping[str, Any]) -> int:
        """The epoch at which the rung ends; without halving, the setting may have its own."""
        return setting.get("train.epochs", self.plan.rungs[rung][1])

    def _survivors(self, rung: int) -> Settings:
        assert self.plan.halving is not None, "without halving there is one rung"
        scores = {number: self._scores(rung, number) for number in self.alive[rung]}
        kept = survivors(scores, self.plan.halving.factor, higher=self.plan.higher)
        return {number: self.alive[rung][number] for number in kept}

    def _scores(self, rung: int, number: int) -> list[float]:
        values = self.log.entries[rung, number].metrics[self.plan.objective]
        return [math.nan if value is None else value for value in values]


class Gathered:
    """Results of blocks, put together by configuration: a block may hold some of its seeds."""

    def __init__(self, place: int, rung: int, plan: Plan, settings: Settings) -> None:
        self.place, self.rung, self.plan, self.settings = place, rung, plan, settings
        self.found: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)

    def add(self, block: Block, result: BlockResult) -> list[Entry]:
        """The entries of the configurations that this block's result completes."""
        told: dict[str, Sequence[float]] = {**result.metrics, "diverged": result.diverged}
        told["collapsed"] = result.collapsed
        complete = []
        for place, (number, seed) in enumerate(result.trials):
            metrics = {name: float(values[place]) for name, values in sorted(told.items())}
            self.found[number][seed] = plain(metrics)
            if len(self.found[number]) == len(self.plan.seeds):
                complete.append(self._entry(number, block.end))
        return complete

    def _entry(self, number: int, epochs: int) -> Entry:
        trials = [self.found[number][seed] for seed in self.plan.seeds]
        names = dict.fromkeys(name for trial in trials for name in trial)
        return Entry(
            round=self.place,
            rung=self.rung,
            number=number,
            setting=dict(self.settings[number]),
            epochs=epochs,
            seeds=list(self.plan.seeds),
            metrics={name: [trial.get(name) for trial in trials] for name in names},
        )
