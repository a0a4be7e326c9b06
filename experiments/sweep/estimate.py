"""What a sweep would take, before it is begun: from its plan and a few steps of a few trials."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from experiments.config import ExperimentConfig
from experiments.sweep.attempts import session_of
from experiments.sweep.block import BlockTrial, grouped
from experiments.sweep.plan import Plan
from experiments.sweep.rounds import search_for
from experiments.sweep.width import layout, pace
from experiments.training.program import Axis

CHECKPOINTS = 2  # that are kept of a block
MOST_TIMED = 8  # structures: each has to be compiled for that


class Estimate(NamedTuple):
    """Of a whole sweep.

    Attributes:
        compilations: programs that train; every worker compiles those that it meets.
        timed: how many of these were timed; the others count as the mean of them.
        memory: bytes that a worker holds at most: the state of a block's trials, and the data.
        disk: bytes of checkpoints at the end, when they are most.
        hours: until the end, with all workers side by side, and what each of them compiles.
    """

    configurations: int
    trials: int
    blocks: int
    width: int
    axis: str
    compilations: int
    timed: int
    memory: int
    disk: int
    hours: float


class Timed(NamedTuple):
    """Of one structure: seconds of a trial from its beginning to its end, and of compilation."""

    trial: float
    compiling: float


def estimate(plan: Plan, *, workers: int) -> Estimate:
    """Lay a sweep out as `sweep` does, and time a few steps; nothing is written or kept.

    What else it takes for granted: `assumptions`.
    """
    first = dict(enumerate(search_for(plan).propose([])))
    laid = layout(plan.config, first, plan.seeds, workers=workers)
    groups = [*grouped(plan.config, first, plan.seeds).values()]
    sizes = [len(group) for group in groups]
    took = [session_of(plan.config, group[:1]).sizes() for group in groups]  # by one trial
    states = [each.state for each in took]
    timed = _timed(plan.config, groups, laid.axis)
    usual = Timed(*map(fmean, zip(*timed.values(), strict=True)))
    known = [timed.get(place, usual) for place in range(len(groups))]
    training = plan.work * fmean([each.trial for each in known], weights=sizes)
    compiling = sum(each.compiling for each in known)
    *earlier, _ = plan.sizes  # the states at the end of a rung stay, for the next one
    begun, kept = max(states) * laid.width * workers, fmean(states, weights=sizes) * sum(earlier)
    return Estimate(
        configurations=plan.count,
        trials=plan.trials,
        blocks=sum(
            math.ceil(size * own / (sum(sizes) * laid.width))
            for size in plan.sizes
            for own in sizes
        ),
        width=laid.width,
        axis=laid.axis,
        compilations=len(groups),
        timed=len(timed),
        memory=max(state * laid.width + data for state, data in took),
        disk=round(CHECKPOINTS * (begun + kept)),
        hours=(training / workers + compiling) / 3600,
    )


def assumptions(plan: Plan, found: Estimate, *, workers: int) -> Iterator[str]:
    """What an estimate takes for granted, in sentences; where it is wrong, so is the estimate."""
    if found.timed < found.compilations:
        yield (
            f"{found.timed} of {found.compilations} programs were timed: the others are taken to "
            "be as fast as these on average"
        )
    if plan.search.startswith("tpe"):
        yield "what is proposed later is taken to be like the first proposals"
    if plan.halving:
        yield "at every rung each program is taken to keep the same share of its trials"
    if workers > 1:
        yield (
            f"{workers} workers are taken to be {workers} times as fast as this process, which "
            "holds if each has a device or cores of its own, as many as this process has"
        )
    yield "a trial is taken to last to its end; one that diverges takes less"


def _timed(
    config: ExperimentConfig, groups: Sequence[Sequence[BlockTrial]], axis: Axis
) -> dict[int, Timed]:
    """Structures by their place, all or some from the first to the last one."""
    places = np.linspace(0, len(groups) - 1, min(len(groups), MOST_TIMED))
    found = {}
    for place in map(round, places.tolist()):
        begun = time.perf_counter()
        trial = pace(config, groups[place], axis)
        # Next to the compilation, its few steps are none.
        found[place] = Timed(trial, time.perf_counter() - begun)
    return found
