"""For how many trials a sweep's programs are compiled, and whether those run side by side.

Both are chosen once per sweep, since the last digits of numbers depend on them (jax#26795).
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params

from experiments.config import ExperimentConfig
from experiments.runs.memory import granted
from experiments.sweep.attempts import Attempt, session_of
from experiments.sweep.block import BlockTrial, grouped
from experiments.training import blocks
from experiments.training.program import Axis, evaluate
from experiments.training.session import Session
from experiments.training.trainer import PROBE_STEPS

# One after the other, more trials win nothing, and a signal waits longer to be heard.
WIDEST: Mapping[Axis, int] = {"map": 64, "vmap": 1024}
# What a block may fill of the memory: data are copied, and the system and others want some too.
SHARE = 0.5

Settings = Mapping[int, Mapping[str, Any]]


class Layout(NamedTuple):
    """How blocks of a sweep are trained."""

    axis: Axis
    width: int


def layout(
    config: ExperimentConfig, settings: Settings, seeds: Sequence[int], *, workers: int = 1
) -> Layout:
    """The axis that is configured, or else the faster one, and as many trials as memory holds.

    settings: by number, those that are trained first. Where they are of several structures, the one
      with most trials decides on the axis, and the hungriest on the width.
    workers: processes that share this machine's memory, and want a block each.
    """
    groups = _largest_first(config, settings, seeds)
    memory, configured = SHARE * available_memory() / workers, config.train.seed_axis
    # What is to run side by side may have to run in turn, or it could hang.
    axes: Sequence[Axis] = ("map",) if configured == "map" else ("map", "vmap")
    fitting = [
        _fitting(session_of(config, group[:1]), len(group), axes, memory) for group in groups
    ]
    trials, each = groups[0], math.ceil(workers / len(groups))

    def width(axis: Axis) -> int:
        parts = math.ceil(len(trials) / min(most[axis] for most in fitting))
        lanes = blocks.width(math.ceil(len(trials) / max(parts, each)), axis)
        return max(lanes, blocks.FEWEST[axis])

    session = session_of(config, trials[: min(map(width, axes))])
    axis = session.choose_axis(lambda line: print(line, file=sys.stderr))
    return Layout(axis, width(axis))


def pace(config: ExperimentConfig, trials: Sequence[BlockTrial], axis: Axis) -> float:
    """Seconds that one of these trials of one structure takes, from a few steps of some.

    From its beginning to its end. Nothing is kept; evaluations and measures count, compilation
    does not.
    """
    session = session_of(config, trials[: blocks.width(1, axis)])
    with tempfile.TemporaryDirectory() as folder:
        run = Attempt(Path(folder, "attempts", "timed"))
        session.begin(run, axis=axis)
        count = min(PROBE_STEPS, session.task.steps_per_epoch)
        record = _seconds(lambda: session.record(run, {}))
        final = _seconds(lambda: session.final(run))
        steps = _seconds(lambda: session.trainer.train(session.state, steps=count).step)
    records = len({*session.evaluated, *session.measured})
    whole = session.total / count * steps + records * record + final
    return whole / len(session.trials)


def available_memory() -> int:
    """Bytes of memory where programs run: of the device, or what this process may have."""
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return granted()


def _largest_first(
    config: ExperimentConfig, settings: Settings, seeds: Sequence[int]
) -> list[list[BlockTrial]]:
    return sorted(grouped(config, settings, seeds).values(), key=len, reverse=True)


def _fitting(session: Session, trials: int, axes: Sequence[Axis], memory: float) -> dict[Axis, int]:
    """By axis, how many of so many trials fit into so much memory in one program.

    What a program needs is linear in their number. It is asked of the compiler at two widths, but
    only if all that is ever computed, as if nothing were forgotten, would not fit anyway.
    """
    found = {}
    for axis in axes:
        count, few = min(trials, WIDEST[axis]), blocks.width(1, axis)
        traced = _traced(session, axis, blocks.width(count, axis))
        if max(map(_all_values, traced)) < memory:
            found[axis] = count
            continue
        once, twice = (
            max(_held(program.lower().compile()) for program in _traced(session, axis, width))
            for width in (few, 2 * few)
        )
        each = max(1.0, (twice - once) / few)
        most = int((memory - once) / each) // few * few + few
        found[axis] = min(count, max(few, most))
    return found


def _traced(session: Session, axis: Axis, width: int) -> Iterator[jax.stages.Traced]:
    """The programs that train and evaluate so many trials, of shapes alone, as they will be."""
    trials, seeds = session.trials * width, min(width, session.config.train.seeds)
    # As if on one device: with several, widths that are not multiples of their number are rounded.
    trainer = replace(session.trainer, axis=axis, seeds=seeds, devices=None)
    yield trainer.traced(trials)
    state = jax.eval_shape(lambda: trainer.start(trials))
    seen = state._replace(opt_state=None)
    yield evaluate.trace(seen, session.task.data["train"], task=session.task.structure, axis=axis)


def _all_values(traced: jax.stages.Traced) -> int:
    """Bytes of everything that a program computes or is given, what is in loops once."""

    def of(jaxpr: Any) -> int:
        total = sum(_bytes(value.aval) for value in jaxpr.invars)
        for equation in jaxpr.eqns:
            total += sum(_bytes(value.aval) for value in equation.outvars)
            total += sum(map(of, jaxprs_in_params(equation.params)))
        return total

    return of(traced.jaxpr.jaxpr)


def _held(compiled: Any) -> int:
    """Bytes that a compiled program holds at once."""
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def _bytes(value: Any) -> int:
    return math.prod(value.shape) * value.dtype.itemsize if hasattr(value, "shape") else 0


def _seconds(work: Callable[[], Any]) -> float:
    """Of the second time; the first one compiles."""
    work()
    begun = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begun
