"""Checkpoints of a pytree of arrays: atomic, verified, the last two kept.

All that knows Orbax is here. Orbax finds few damaged bytes by itself (of 300 flipped bits, 26), so
a digest of every array is stored with them, and a checkpoint that does not match is not used.

Of several processes that train as one the first writes and reads, and tells the others. So what is
stored does not depend on how many processes or devices there were.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.errors import FAILED, MISSING, UserError
from experiments.runs.files import out_of_space, sync_directory, sync_tree
from experiments.runs.processes import by_first, gathered, is_key, put

KEEP = 2
# Names beside those of the leaves, which begin with a dot or a bracket.
NOTE, DIGESTS = "note", "sha256"

# Orbax logs whole tracebacks of what it also raises; a person gets the one line of the exception.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def _quiet_about_a_closed_loop(unraisable: Any, *, tell: Any = sys.unraisablehook) -> None:
    """Leave out what Orbax's readers and writers say when the first of them has failed.

    The others end later, each with a traceback, for the event loop they report to is closed.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        tell(unraisable)


sys.unraisablehook = _quiet_about_a_closed_loop


class Restored(NamedTuple):
    """A checkpoint's step, its tree, the note that was saved with it, and where it was found."""

    step: int
    tree: Any
    note: bytes
    directory: Path


class _Found(NamedTuple):
    """What is stored, before anyone has said what it should look like."""

    step: int
    directory: Path
    arrays: dict[str, Any]
    note: bytes


def save(directory: Path, step: int, tree: Any, *, note: bytes = b"") -> None:
    """Write `tree` as the checkpoint of `step`; it and the newest step before it stay.

    Leaves are arrays, typed PRNG keys or Python numbers. A checkpoint takes its name when it is
    whole, so a process killed here leaves the earlier steps as they were; the same step is
    replaced, for it may be a damaged one. Raises `UserError` (1) when the disk is full.
    """
    stored = _sealed(tree, note)
    by_first(lambda: _write(directory, step, stored))


def restore(directory: Path, like: Any) -> Restored | None:
    """Read the newest checkpoint that is as it was saved into the structure of `like`, or None.

    Leaves come back with the dtype, PRNG implementation and sharding of `like`. Raises `UserError`:
    2 when the checkpoint holds another tree, 4 when there are checkpoints and none can be read.
    """
    return _filled(like, lambda: _kept(directory))


def newest(directories: Iterable[Path], like: Any) -> Restored | None:
    """The newest sound checkpoint of several directories, in which others may be at work.

    So nothing is removed there, and what vanishes meanwhile is passed over. As `restore` otherwise.
    """
    return _filled(like, lambda: _newest(directories))


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, oldest first."""
    if not directory.exists():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())


def _write(directory: Path, step: int, stored: dict[str, np.ndarray]) -> None:
    _remove_unfinished(directory)
    path = directory.absolute() / str(step)
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(stored), force=True)
        sync_tree(path)
        sync_directory(directory)
    except Exception as error:
        _remove_unfinished(directory)
        if out_of_space(error):
            raise UserError(_disk_full(directory, step), FAILED) from error
        raise
    found = steps(directory)
    kept = [other for other in found if other <= step][-KEEP:]
    for other in set(found) - set(kept):  # a later one is damaged: this run started before it
        shutil.rmtree(directory / str(other), ignore_errors=True)


def _kept(directory: Path) -> _Found | None:
    """The newest of a directory of one's own; `UserError` (4) if it has some, and none is sound."""
    _remove_unfinished(directory)
    found = _newest([directory])
    if found is None and steps(directory):
        raise UserError(
            f"no checkpoint in {directory} can be read; remove {directory.parent} to start again",
            MISSING,
        )
    return found


def _newest(directories: Iterable[Path]) -> _Found | None:
    directories = list(directories)
    tried: set[tuple[int, Path]] = set()
    # Looked for anew each time: while one is read, whoever is at work may save two and remove it.
    while places := {(n, home) for home in directories for n in steps(home)} - tried:
        step, directory = place = max(places)
        tried.add(place)
        try:
            with _checkpointer() as checkpointer:
                path = directory.absolute() / str(step)
                stored = checkpointer.restore(path, args=ocp.args.PyTreeRestore())
            return _Found(step, directory, *_unsealed(stored))
        except Exception:  # whatever a damaged file makes Orbax say: the one before is tried
            continue
    return None


def _filled(like: Any, find: Callable[[], _Found | None]) -> Restored | None:
    """What the first process finds, told to the others by the array: all at once would be large."""
    mine: dict[str, np.ndarray] = {}

    def outline() -> _Found | None:
        found = find()
        if found is None:
            return None
        mine.update(found.arrays)
        return found._replace(arrays=dict.fromkeys(mine))

    found = by_first(outline)
    if found is None:
        return None
    arrays = {name: by_first(partial(mine.__getitem__, name)) for name in found.arrays}
    path = found.directory / str(found.step)
    return Restored(found.step, _fill(like, arrays, path), found.note, found.directory)


def _checkpointer() -> ocp.Checkpointer:
    """Orbax, told not to wait for other processes: the first one writes, by itself."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
    )
    # Weights are noise to a compressor, which takes longer than the disk and saves a tenth.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _remove_unfinished(directory: Path) -> None:
    for path in directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def _disk_full(directory: Path, step: int) -> str:
    kept = steps(directory)
    state = f"the state of step {kept[-1]} is kept" if kept else "no earlier state exists"
    return (
        f"no space left on the disk of {directory} for the checkpoint of step {step}; {state}: "
        "free some space and run the same command again"
    )


def _sealed(tree: Any, note: bytes) -> dict[str, np.ndarray]:
    """The leaves that are not empty (Orbax refuses those), the note, and the digests of it all."""
    arrays = gathered(_named_leaves(tree))
    arrays[NOTE] = np.frombuffer(note, np.uint8)
    stored = {name: array for name, array in arrays.items() if array.size}
    digests = {name: _digest(array) for name, array in stored.items()}
    return {**stored, DIGESTS: np.frombuffer(json.dumps(digests).encode(), np.uint8)}


def _unsealed(stored: dict[str, Any]) -> tuple[dict[str, np.ndarray], bytes]:
    """The leaves and the note of what `_sealed` gave; ValueError if anything was changed."""
    arrays = {name: np.asarray(array) for name, array in stored.items()}
    digests = json.loads(arrays.pop(DIGESTS).tobytes())
    if digests != {name: _digest(array) for name, array in arrays.items()}:
        raise ValueError("the arrays are not the ones that were saved")
    return arrays, arrays.pop(NOTE, np.zeros(0, np.uint8)).tobytes()


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(_describe(array).encode() + array.tobytes()).hexdigest()


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path) or "leaf": leaf for path, leaf in leaves}
    if not named:
        raise ValueError("tree = no arrays: nothing to save; pass the training state")
    return named


def _shape(leaf: Any) -> Any:
    """Shape and dtype as they are stored; a leaf that other processes hold need not be gathered."""
    if is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf)


def _fill(like: Any, stored: dict[str, np.ndarray], path: Path) -> Any:
    """Put the stored arrays where `like` has leaves of the same name, shape and dtype."""
    named = _named_leaves(like)
    wanted = {name: _shape(leaf) for name, leaf in named.items()}
    for name in [*wanted, *stored]:
        there, here = _describe(stored.get(name)), _describe(wanted.get(name))
        if there != here and not (name in wanted and wanted[name].size == 0):
            raise UserError(
                f"{path} belongs to another configuration: {name} is {there} there and {here} "
                f"here; remove {path.parent.parent} to start again"
            )
    empty = {name: np.zeros(w.shape, w.dtype) for name, w in wanted.items() if w.size == 0}
    filled = [_like({**empty, **stored}[name], leaf) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(like), filled)


def _describe(array: np.ndarray | None) -> str:
    return "absent" if array is None else f"{array.dtype}{list(array.shape)}"


def _like(array: np.ndarray, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return array if isinstance(leaf, np.ndarray) else array.item()
    # Bound to its devices only if `leaf` is: programs compiled for the one fit the other.
    sharding = leaf.sharding if leaf.committed else None
    if is_key(leaf):
        keys = jax.random.wrap_key_data(jax.numpy.asarray(array), impl=jax.random.key_impl(leaf))
        return put(keys, sharding)
    return put(array, sharding)
