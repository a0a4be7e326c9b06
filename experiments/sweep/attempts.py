"""Training a block of a sweep, as often as it takes, and committing it once.

Any number of processes may try a block at once, and each may die at any instant. An attempt works
in its own directory, from the newest sound checkpoint of any attempt; the first one to end links
its result to the block's name, which a file system lets nobody do twice.
"""

from __future__ import annotations

import errno
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import ExperimentConfig, TrainConfig
from experiments.errors import MISSING, UserError
from experiments.runs import Run
from experiments.runs.files import (
    cannot_write_is_one_line,
    make_directory,
    plain,
    replacing,
    sync_directory,
    write_json,
)
from experiments.runs.interruption import Interruption, interruption
from experiments.runs.memory import make_room, ran_out
from experiments.runs.provenance import machine, now, stamp
from experiments.runs.watchdog import watchdog
from experiments.sweep.block import (
    Block,
    BlockTrial,
    equal_parts,
    folder_of,
    read_block,
    stored_result,
    write_block,
)
from experiments.sweep.committed import committed
from experiments.sweep.machine import settle
from experiments.sweep.space import configure
from experiments.training import blocks
from experiments.training.blocks import Trial
from experiments.training.loading import task_of
from experiments.training.optimisers import hyper_of
from experiments.training.program import TrainState
from experiments.training.session import Session
from experiments.training.task import Task
from experiments.training.trainer import Metrics


def run_block(directory: Path, block_id: str, *, stop: Interruption | None = None) -> bool:
    """Train a block to its end from the newest sound checkpoint of any attempt, and commit it.

    Returns whether this call did: False if another was first. Without ``stop``, a flag that is
    polled, SIGTERM and Ctrl-C are taken for the time.

    Raises ``UserError``: 75 or 130 when asked to stop, the state saved; 2 where the sweep was begun
    on a machine that computes other digits; 2, 4 and 1 as ``train``.
    """
    directory = Path(directory)
    block = read_block(directory, block_id)
    if committed(directory, block_id):
        clear(directory, block)
        return False
    settle(directory)
    make_room()
    with (
        cannot_write_is_one_line(folder_of(directory, block_id)),
        nullcontext(stop) if stop is not None else interruption() as stop,
        watchdog(),
    ):
        halves = _halves(block)
        ours = None if _begun(directory, halves) else _attempt(directory, block, stop)
        if ours is None:  # it did not fit into memory: what the attempt held is free by now
            ours = _joined(directory, block, halves, stop)
        clear(directory, block)
    if stop:  # asked while the last numbers were written: nobody is to start the next block
        raise stop.error(stored_result(directory, block_id)["steps"])
    return ours


def clear(directory: Path, block: Block) -> None:
    """Leave of the attempts at a committed block what its result came from, and the end state.

    Whoever commits a block does so, and may die before; others may still be at work in theirs.
    """
    winner = stored_result(directory, block.id)["attempt"]
    for attempt in folder_of(directory, block.id).glob("attempts/*"):
        if attempt.name != winner:
            shutil.rmtree(attempt, ignore_errors=True)
        elif not _goes_on(block):
            shutil.rmtree(attempt / "checkpoints", ignore_errors=True)


def clear_all(directory: Path) -> None:
    """`clear` every committed block, also those that were logged before somebody died at them.

    As long as a block has no result nothing of it is touched; and who is still at work on one that
    has will give way.
    """
    for result in directory.glob("blocks/*/result.json"):
        attempts = result.parent / "attempts"
        if len([*attempts.glob("*")]) > 1 or any(attempts.glob("*/checkpoints")):
            with suppress(UserError):  # a damaged file is told where it is needed
                clear(directory, read_block(directory, result.parent.name))


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
    session = session_of(block.config, block.trials, start=block.start, end=block.end)
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
        "parts": [],
    }


def session_of(
    config: ExperimentConfig,
    trials: Sequence[BlockTrial],
    *,
    start: int = 0,
    end: int | None = None,
) -> Session:
    """Trials of one structure, ready to begin."""
    configs = [configure(config, trial.setting) for trial in trials]
    hypers = map(hyper_of, configs)
    numbered = [Trial(trial.seed, hyper) for trial, hyper in zip(trials, hypers, strict=True)]
    return Session(configs[0], _shared_task(configs[0]), numbered, start=start, end=end)


class Attempt(Run):
    """One process's try at a block: a run that goes on from whichever attempt came furthest.

    path: ``BLOCK/attempts/NAME``, or beside ``attempts``: all that is in ``BLOCK`` is gone on from.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for name in ("checkpoints", "arrays"):
            make_directory(path / name)

    def restore_checkpoint(self, like: Any) -> tuple[int, Any] | None:
        """The newest sound checkpoint of any attempt, its metrics and arrays; None without one."""
        from experiments.runs import checkpoint  # imports Orbax

        # Beside those that want to commit the block there may be some that make its end again.
        found = checkpoint.newest(self.path.parents[1].glob("*/*/checkpoints"), like)
        if found is None:
            return None
        theirs = found.directory.parent
        self.log(f"going on from step {found.step} of {theirs.name}")
        for path in theirs.glob("arrays/*.npz"):
            os.link(path, self.path / "arrays" / path.name)
        with replacing(self.path / "metrics.jsonl") as temporary:
            temporary.write_bytes(found.note)
        return found.step, found.tree


def _attempt(directory: Path, block: Block, stop: Interruption) -> bool | None:
    """Train the block in a directory of its own; whether it was the first to end.

    None if memory ran out and the block can be halved.
    """

    def give_way(_: Metrics) -> None:
        if committed(directory, block.id):
            raise UserError(f"another process was faster with block {block.id}")

    try:
        with Attempt(_new_attempt(directory, block)) as attempt:
            attempt.annotate(started=stamp(), **machine())
            inherited = _inheriting(directory, block, stop)
            found = train_block(block, attempt, stop, inherited=inherited, on_chunk=give_way)
        return _commit(directory, block, attempt, found)
    except (UserError, OSError) as error:
        # The one who was faster removes what others had written so far, and they stumble over it.
        if committed(directory, block.id):
            return False
        if ran_out(error.__cause__) and _halves(block):
            return None
        raise


def _halves(block: Block) -> list[Block]:
    """The block in parts of half its width; none if it cannot be narrower."""
    fewest = blocks.FEWEST[block.axis]
    narrower = block.width // 2 // fewest * fewest
    if not narrower:
        return []
    parts = equal_parts(block.trials, most=narrower)
    return [replace(block, trials=part, width=narrower) for part in parts]


def _begun(directory: Path, halves: Sequence[Block]) -> bool:
    return any((folder_of(directory, half.id) / "block.json").exists() for half in halves)


def _joined(directory: Path, block: Block, halves: Sequence[Block], stop: Interruption) -> bool:
    """Train the halves, each a block of its own, and commit what they measured together."""
    ids = [write_block(directory, half) for half in halves]
    for half in ids:
        run_block(directory, half, stop=stop)
    results = [stored_result(directory, half) for half in ids]
    lists = ("trials", "diverged", "collapsed")
    found = {
        **{name: sum((result[name] for result in results), []) for name in lists},
        "metrics": {
            name: sum((result["metrics"][name] for result in results), [])
            for name in results[0]["metrics"]
        },
        "steps": results[0]["steps"],
        "seconds": sum(result["seconds"] for result in results),
        "parts": ids,
    }
    return _commit(directory, block, Attempt(_new_attempt(directory, block)), found)


def _new_attempt(directory: Path, block: Block) -> Path:
    return folder_of(directory, block.id) / "attempts" / _new_name()


def _new_name() -> str:
    return f"{now():%Y%m%dT%H%M%SZ}-{platform.node()}-{os.getpid()}-{secrets.token_hex(2)}"


def _commit(directory: Path, block: Block, attempt: Run, found: Mapping[str, Any]) -> bool:
    """Give the result of an attempt the block's name, unless another has it."""
    ours, place = attempt.path / "result.json", folder_of(directory, block.id) / "result.json"
    write_json(ours, {**found, "attempt": attempt.path.name})
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


def _goes_on(block: Block) -> bool:
    """Whether trials may be trained further from where the block ends."""
    return block.end < block.config.train.epochs


def _inheriting(
    directory: Path, block: Block, stop: Interruption
) -> Callable[[TrainState], TrainState] | None:
    """What gives the block the state that it starts from; None if its seeds draw that."""
    return partial(_inherited, directory, block, stop) if block.start else None


def _inherited(directory: Path, block: Block, stop: Interruption, like: TrainState) -> TrainState:
    """The state of the block's trials at the end of their parents, in whichever they stood."""
    states, found = [], []
    for parent in _undivided(directory, block.parents):
        theirs = read_block(directory, parent)
        lanes = {trial[:2]: lane for lane, trial in enumerate(theirs.trials)}
        here = [trial[:2] for trial in block.trials if trial[:2] in lanes]
        if here:
            state = _end_state(directory, theirs, stop, blocks.padded(like, len(lanes)))
            states.append(_taken(state, [lanes[trial] for trial in here]))
            found += here
    if len(found) < len(block.trials):
        raise ValueError(f"block {block.id}: its parents do not hold all of its trials")
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)
    return _taken(joined, [found.index(trial[:2]) for trial in block.trials])


def _undivided(directory: Path, ids: Sequence[str]) -> Iterator[str]:
    """The blocks that hold a state: those that were halved are told by their halves."""
    for block_id in ids:
        parts = stored_result(directory, block_id).get("parts")
        yield from _undivided(directory, parts) if parts else [block_id]


def _end_state(directory: Path, block: Block, stop: Interruption, like: TrainState) -> TrainState:
    """The state that a committed block ended with; where it cannot be read, it is made again."""
    found = _kept_state(directory, block, like)
    if found is not None:
        return found
    failed = None
    try:
        _train_again(directory, block, stop, like)
    except (UserError, OSError) as error:
        # Whoever was faster removes what others had written so far, and they stumble over it.
        failed = error
    found = _kept_state(directory, block, like)
    if found is None:
        raise failed or UserError(
            f"the state at the end of {folder_of(directory, block.id)} cannot be read: remove that "
            "directory and run the same sweep again",
            MISSING,
        )
    return found


def _kept_state(directory: Path, block: Block, like: TrainState) -> TrainState | None:
    from experiments.runs import checkpoint  # imports Orbax

    kept = _kept_at(directory, block)
    found = checkpoint.newest([kept.parent], like)
    return found.tree if found is not None and found.step == int(kept.name) else None


def _kept_at(directory: Path, block: Block) -> Path:
    """Where the state is that a committed block ended with."""
    result = stored_result(directory, block.id)
    attempt = folder_of(directory, block.id) / "attempts" / result["attempt"]
    return attempt / "checkpoints" / str(result["steps"])


def _train_again(directory: Path, block: Block, stop: Interruption, like: TrainState) -> None:
    """Put the state in place that a committed block ended with, from the newest that is sound.

    `UserError` (2) if training ends with other numbers now: others have been told those.
    """
    folder, kept = folder_of(directory, block.id), _kept_at(directory, block)
    with Attempt(folder / "again" / _new_name()) as again:
        again.log(f"the state at the end of {folder} cannot be read, and is made again")
        found = train_block(block, again, stop, inherited=_inheriting(directory, block, stop))
    if plain(found["metrics"]) != stored_result(directory, block.id)["metrics"]:
        raise UserError(
            f"the state at the end of {folder} cannot be read, and trained again it ends with "
            f"other numbers ({again.path}): go on with the code and on the machine that the sweep "
            "was begun with, or run it anew in another folder, by --runs"
        )
    if _kept_state(directory, block, like) is None:  # else another process has made it meanwhile
        make_directory(kept.parent)
        with suppress(FileNotFoundError):
            os.rename(kept, again.path / "damaged")
        os.rename(again.path / "checkpoints" / kept.name, kept)
        sync_directory(kept.parent)
    shutil.rmtree(folder / "again", ignore_errors=True)


def _taken(state: TrainState, lanes: Sequence[int]) -> TrainState:
    return jax.tree.map(lambda leaf: leaf[np.array(lanes)], state)


def _shared_task(config: ExperimentConfig) -> Task:
    """The task of a configuration; configurations that differ in other things share it."""
    names = ("seeds", "seed", "objective", "features_decay")
    train = TrainConfig(**{name: getattr(config.train, name) for name in names})
    return _task_of(ExperimentConfig("sweep", data=config.data, model=config.model, train=train))


_task_of = lru_cache(maxsize=1)(task_of)
