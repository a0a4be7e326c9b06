"""What a sweep would take, before it is begun: from its plan and a few steps of a few trials."""

from __future__ import annotations

import math
import time
from statistics import fmean
from typing import NamedTuple

from experiments.sweep.attempts import session_of
from experiments.sweep.block import grouped
from experiments.sweep.plan import Plan
from experiments.sweep.rounds import search_for
from experiments.sweep.width import layout, pace

CHECKPOINTS = 2  # that are kept of a block


class Estimate(NamedTuple):
    """Of a whole sweep.

    Attributes:
        compilations: programs that train; every worker compiles those that it meets.
        memory: bytes that a worker holds: the state of a block's trials, and the data.
        disk: bytes of checkpoints at the end, when they are most.
        hours: until the end, with all workers side by side, and what each of them compiles.
    """

    configurations: int
    trials: int
    blocks: int
    width: int
    axis: str
    compilations: int
    memory: int
    disk: int
    hours: float


def estimate(plan: Plan, *, workers: int) -> Estimate:
    """Lay a sweep out as `sweep` does, and time a few steps; nothing is written or kept.

    What TPE will propose is not known: its first proposals stand for all.
    """
    first = dict(enumerate(search_for(plan).propose([])))
    laid = layout(plan.config, first, plan.seeds, workers=workers)
    groups = grouped(plan.config, first, plan.seeds)
    timed = max(groups, key=lambda shape: len(groups[shape]))
    state, _ = session_of(plan.config, groups[timed][:1]).sizes()
    total = sum(map(len, groups.values()))
    *earlier, _ = plan.sizes  # the states at the end of a rung stay, for the next one
    begun = time.perf_counter()
    seconds = pace(plan.config, first, plan.seeds, laid)
    compiling = len(groups) * (time.perf_counter() - begun)  # next to that, its few steps are none
    known = plan.config.train.epochs
    epochs = fmean(setting.get("train.epochs", known) for setting in first.values())
    training = plan.work * seconds * epochs / timed.train.epochs
    return Estimate(
        configurations=plan.count,
        trials=plan.trials,
        blocks=sum(
            math.ceil(size * len(group) / (total * laid.width))
            for size in plan.sizes
            for group in groups.values()
        ),
        width=laid.width,
        axis=laid.axis,
        compilations=len(groups),
        memory=laid.bytes,
        disk=CHECKPOINTS * state * (laid.width * workers + sum(earlier)),
        hours=(training / workers + compiling) / 3600,
    )
