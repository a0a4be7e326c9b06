"""A block of a sweep: trials of one structure, trained in one program, committed once.

    for block in blocks_of(config, settings, seeds, width=64, axis="map", end=10):
        run_block(directory, write_block(directory, block))
        result_of(directory, block.id)

Any number of processes may try a block at once, and each may die at any instant. An attempt works
in its own directory, from the newest sound checkpoint of any attempt; the first one to end links
its result to the block's name, which a file system lets nobody do twice.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import ExperimentConfig, from_mapping, to_mapping
from experiments.errors import MISSING, UserError
from experiments.runs import Run
from experiments.runs.files import (
    make_directory,
    plain,
    read_json,
    replacing,
    sync_directory,
    write_json,
)
from experiments.runs.interruption import Interruption, interruption
from experiments.runs.memory import make_room
from experiments.runs.provenance import now
from experiments.runs.watchdog import watchdog
from experiments.sweep.space import configure
from experiments.training import blocks
from experiments.training.blocks import Trial
from experiments.training.loading import task_of
from experiments.training.optimisers import hyper_of, structure_of
from experiments.training.program import Axis, TrainState
from experiments.training.session import Session
from experiments.training.trainer import Metrics


class BlockTrial(NamedTuple):
    """A configuration's number in the sweep, a seed, and what is set in the base configuration."""

    number: int
    seed: int
    setting: Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """Trials of one structure, from the end of epoch ``start`` to that of epoch ``end``.

    config: the sweep's; its seeds are all of the sweep's, so that blocks share data and programs.
    width: for how many trials the program is compiled; the same for all blocks of a sweep.
    parents: ids of committed blocks in which the trials stood at ``start``; of no matter at 0.
    """

    config: ExperimentConfig
    trials: tuple[BlockTrial, ...]
    width: int
    axis: Axis
    start: int
    end: int
    parents: tuple[str, ...] = ()

    @cached_property
    def id(self) -> str:
        """Of all that decides the block's numbers but code and data."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back."""
        fields = {name: getattr(self, name) for name in ("width", "axis", "start", "end")}
        trials = [[trial.number, trial.seed, dict(trial.setting)] for trial in self.trials]
        config, parents = to_mapping(_checked(self.config)), list(self.parents)
        return plain({"config": config, "trials": trials, **fields, "parents": parents})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Block:
        """What `to_json` made."""
        return cls(
            **{
                **stored,
                "config": from_mapping(stored["config"], where="the configuration of a sweep"),
                "trials": tuple(BlockTrial(*trial) for trial in stored["trials"]),
                "parents": tuple(stored["parents"]),
            }
        )


class BlockResult(NamedTuple):
    """What a committed block measured, one entry per trial in the order of the block.

    trials: ``(number, seed)``.
    metrics: by name, what a run's summary has; NaN for a trial that diverged.
    collapsed: the trial is no better than the majority class.
    steps: at which step they stand.
    attempt: the name of the directory that the numbers come from.
    """

    trials: list[tuple[int, int]]
    metrics: dict[str, list[float]]
    diverged: list[bool]
    collapsed: list[bool]
    steps: int
    seconds: float
    attempt: str


def blocks_of(
    config: ExperimentConfig,
    settings: Mapping[int, Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    width: int,
    axis: Axis,
    start: int = 0,
    end: int,
    parents: Sequence[str] = (),
) -> list[Block]:
    """The trials of all ``settings`` (by number) and ``seeds``, by structure, in equal parts.

    Raises ``UserError`` (2) where ``config.train.stop`` ends trials by what others measure.
    """
    if config.train.stop is not None:
        raise UserError(
            f"train.stop = {config.train.stop!r} ends all trials of a program together: leave it "
            "out in a sweep, and set train.epochs, or stop bad trials with --halve"
        )
    groups: dict[ExperimentConfig, list[BlockTrial]] = {}
    for number in sorted(settings):
        shape = shape_of(configure(config, settings[number]))
        trials = [BlockTrial(number, seed, settings[number]) for seed in seeds]
        groups.setdefault(shape, []).extend(trials)
    return [
        Block(config, part, width, axis, start, end, tuple(parents))
        for trials in groups.values()
        for part in _equal_parts(trials, most=width)
    ]


def shape_of(config: ExperimentConfig) -> ExperimentConfig:
    """What trials of one block have in common: all but the numbers that are traced."""
    train = replace(config.train, label_scale=1.0)
    return replace(structure_of(config), name=config.name, data=config.data, train=train)


def write_block(directory: Path, block: Block) -> str:
    """Put a block into a sweep's directory, if it is not there, and return its id."""
    path = _folder(directory, block.id) / "block.json"
    if not path.exists():
        make_directory(path.parent)
        write_json(path, block.to_json())
    return block.id


def read_block(directory: Path, block_id: str) -> Block:
    """What `write_block` wrote; `UserError` (2) if it is damaged, (4) if it is not there."""
    path = _folder(directory, block_id) / "block.json"
    remedy = f"remove {path} and run the same sweep again"
    stored = read_json(path, remedy=remedy)
    if not stored:
        raise UserError(f"{path} is not there; run the same sweep again", MISSING)
    block = Block.from_json(stored)
    if block.id != block_id:
        raise UserError(f"{path} is another block's; {remedy}")
    return block


def result_of(directory: Path, block_id: str) -> BlockResult | None:
    """What the block measured; None if it is not committed."""
    stored = _result(directory, block_id)
    if not stored:
        return None
    metrics = {
        name: [math.nan if value is None else value for value in values]
        for name, values in stored["metrics"].items()
    }
    trials = [(number, seed) for number, seed in stored["trials"]]
    return BlockResult(**{**stored, "trials": trials, "metrics": metrics})


def run_block(directory: Path, block_id: str, *, stop: Interruption | None = None) -> bool:
    """Train a block to its end from the newest sound checkpoint of any attempt, and commit it.

    Returns whether this call did: False if another was first. Without ``stop``, a flag that is
    polled, SIGTERM and Ctrl-C are taken for the time.

    Raises ``UserError``: 75 or 130 when asked to stop, the state saved; 2, 4 and 1 as ``train``.
    """
    directory = Path(directory)
    if committed(directory, block_id):
        return False
    block = read_block(directory, block_id)
    make_room()
    with nullcontext(stop) if stop is not None else interruption() as stop, watchdog():
        try:
            ours = _attempt(directory, block, stop)
        except (UserError, OSError):
            # The one who was faster removes what others had written so far.
            if stop or not committed(directory, block_id):
                raise
            ours = False
        _clear(directory, block)
    if stop:  # asked while the last numbers were written: nobody is to start the next block
        raise stop.error(_result(directory, block_id)["steps"])
    return ours


def train_block(
    block: Block,
    run: Run,
    stop: Interruption,
    *,
    inherited: Callable[[TrainState], TrainState] | None = None,
    on_chunk: Callable[[Metrics], Any] = lambda metrics: None,
) -> dict[str, Any]:
    """The numbers of a block, as JSON will have them; all that decides them is reached from here.

    ``inherited`` and ``on_chunk`` are those of `Session`; a block is given the former if it does
    not start at 0. If all trials diverge, that is a result like any other.
    """
    configs = [configure(block.config, trial.setting) for trial in block.trials]
    trials = [
        Trial(trial.seed, hyper_of(config))
        for trial, config in zip(block.trials, configs, strict=True)
    ]
    task = _task_of(shape_of(configs[0]))
    session = Session(configs[0], task, trials, start=block.start, end=block.end)
    session.begin(run, axis=block.axis, width=block.width, inherited=inherited)
    session.train(run, stop, on_chunk=on_chunk, show=False)
    if _goes_on(block):
        session.save(run)
    numbers, diverged, collapsed = session.final(run)
    return {
        "trials": [[trial.number, trial.seed] for trial in block.trials],
        "metrics": numbers,
        "diverged": diverged,
        "collapsed": collapsed,
        "steps": session.step,
        "seconds": round(time.monotonic() - session.started, 2),
        "attempt": run.path.name,
    }


def committed(directory: Path, block_id: str) -> bool:
    """Whether the block has its result."""
    return (_folder(directory, block_id) / "result.json").exists()


class Attempt(Run):
    """One process's try at a block: a run that goes on from whichever attempt came furthest."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for name in ("checkpoints", "arrays"):
            make_directory(path / name)

    def restore_checkpoint(self, like: Any) -> tuple[int, Any] | None:
        """The newest sound checkpoint of any attempt, its metrics and arrays; None without one."""
        from experiments.runs import checkpoint  # imports Orbax

        found = checkpoint.newest(self.path.parent.glob("*/checkpoints"), like)
        if found is None:
            return None
        theirs = found.directory.parent
        self.log(f"going on from step {found.step} of {theirs.name}")
        for path in theirs.glob("arrays/*.npz"):
            os.link(path, self.path / "arrays" / path.name)
        with replacing(self.path / "metrics.jsonl") as temporary:
            temporary.write_bytes(found.note)
        return found.step, found.tree


def _attempt(directory: Path, block: Block, stop: Interruption) -> bool:
    """Train the block in a directory of its own; whether it was the first to end."""
    attempts = _folder(directory, block.id) / "attempts"
    name = f"{now():%Y%m%dT%H%M%SZ}-{platform.node()}-{os.getpid()}-{secrets.token_hex(2)}"

    def give_way(_: Metrics) -> None:
        if committed(directory, block.id):
            raise UserError(f"another process was faster with block {block.id}")

    with Attempt(attempts / name) as attempt:
        inherited = partial(_inherited, directory, block) if block.start else None
        found = train_block(block, attempt, stop, inherited=inherited, on_chunk=give_way)
        write_json(attempt.path / "result.json", found)
    return _commit(attempt.path / "result.json", attempts.parent / "result.json")


def _commit(ours: Path, place: Path) -> bool:
    """Give the result the block's name, unless another has it."""
    try:
        os.link(ours, place)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise UserError(
            f"{place.parent} is on a file system without hard links ({error.strerror}), by which "
            "a block is committed once; give --runs a folder on another disk"
        ) from None
    sync_directory(place.parent)
    return True


def _clear(directory: Path, block: Block) -> None:
    """Leave of the attempts at a committed block what its result came from, and the end state."""
    winner = _result(directory, block.id)["attempt"]
    for attempt in (_folder(directory, block.id) / "attempts").iterdir():
        if attempt.name != winner:
            shutil.rmtree(attempt, ignore_errors=True)
        elif not _goes_on(block):
            shutil.rmtree(attempt / "checkpoints", ignore_errors=True)


def _goes_on(block: Block) -> bool:
    """Whether trials may be trained further from where the block ends."""
    return block.end < block.config.train.epochs


def _inherited(directory: Path, block: Block, like: TrainState) -> TrainState:
    """The state of the block's trials at the end of their parents, in whichever they stood."""
    states, found = [], []
    for parent in block.parents:
        theirs = read_block(directory, parent)
        lanes = {trial[:2]: lane for lane, trial in enumerate(theirs.trials)}
        here = [trial[:2] for trial in block.trials if trial[:2] in lanes]
        if here:
            state = _end_state(directory, theirs, blocks.padded(like, len(lanes)))
            states.append(_taken(state, [lanes[trial] for trial in here]))
            found += here
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)
    return _taken(joined, [found.index(trial[:2]) for trial in block.trials])


def _end_state(directory: Path, block: Block, like: TrainState) -> TrainState:
    """The state that a committed block ended with; ``UserError`` (4) if it cannot be read."""
    from experiments.runs import checkpoint  # imports Orbax

    folder, result = _folder(directory, block.id), _result(directory, block.id)
    attempt = folder / "attempts" / result.get("attempt", "")
    found = checkpoint.newest([attempt / "checkpoints"], like) if result else None
    if found is None or found.step != result["steps"]:
        raise UserError(
            f"the state at the end of {folder} cannot be read: remove that directory and run the "
            "same sweep again",
            MISSING,
        )
    return found.tree


def _taken(state: TrainState, lanes: Sequence[int]) -> TrainState:
    return jax.tree.map(lambda leaf: leaf[np.array(lanes)], state)


def _checked(config: ExperimentConfig) -> ExperimentConfig:
    """As it comes back from JSON: 1.0 where 1 was written for a number that is no count."""
    return from_mapping(to_mapping(config), where="the configuration of a sweep")


def _folder(directory: Path, block_id: str) -> Path:
    return Path(directory) / "blocks" / block_id


def _result(directory: Path, block_id: str) -> dict[str, Any]:
    folder = _folder(directory, block_id)
    return read_json(folder / "result.json", remedy=f"remove {folder} and run the same sweep again")


def _equal_parts(trials: Sequence[BlockTrial], *, most: int) -> Iterator[tuple[BlockTrial, ...]]:
    size = math.ceil(len(trials) / math.ceil(len(trials) / most))
    for first in range(0, len(trials), size):
        yield tuple(trials[first : first + size])


# Blocks of one structure come one after the other: they share their data.
_task_of = lru_cache(maxsize=1)(task_of)
