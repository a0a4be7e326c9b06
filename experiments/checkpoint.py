"""Checkpoints of a pytree of arrays: atomic, the last two kept. All that knows Orbax is here."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.errors import FAILED, MISSING, UserError
from experiments.files import out_of_space

KEEP = 2

# Orbax logs whole tracebacks of what it also raises; a person gets the one line of the exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def save(directory: Path, step: int, tree: Any) -> None:
    """Write `tree` as the checkpoint of `step`; the two newest steps stay.

    Leaves are arrays, typed PRNG keys or Python numbers. A checkpoint takes its name when it is
    whole, so a process killed here leaves the earlier steps as they were; the same step is
    replaced, for it may be a damaged one. Raises `UserError` (1) when the disk is full.
    """
    _remove_unfinished(directory)
    named = {name: _to_numpy(leaf) for name, leaf in _named_leaves(tree).items()}
    stored = {name: array for name, array in named.items() if array.size}  # Orbax refuses empties
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            path = directory.absolute() / str(step)
            checkpointer.save(path, args=ocp.args.PyTreeSave(stored), force=True)
    except Exception as error:
        _remove_unfinished(directory)
        if out_of_space(error):
            raise UserError(_disk_full(directory, step), FAILED) from error
        raise
    for old in steps(directory)[:-KEEP]:
        shutil.rmtree(directory / str(old), ignore_errors=True)


def restore(directory: Path, like: Any) -> tuple[int, Any] | None:
    """Read the newest checkpoint that is whole into the structure of `like`, or return None.

    Leaves come back with the dtype, PRNG implementation and sharding of `like`. Raises `UserError`:
    2 when the checkpoint holds another tree, 4 when there are checkpoints and none can be read.
    """
    _remove_unfinished(directory)
    found = steps(directory)
    for step in reversed(found):
        path = directory / str(step)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                stored = checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore())
        except Exception:  # whatever a damaged file makes Orbax say: the one before is tried
            continue
        return step, _fill(like, stored, path)
    if found:
        raise UserError(
            f"no checkpoint in {directory} can be read; remove {directory.parent} to start again",
            MISSING,
        )
    return None


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, oldest first."""
    if not directory.exists():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())


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


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path) or "leaf": leaf for path, leaf in leaves}
    if not named:
        raise ValueError("tree = no arrays: nothing to save; pass the training state")
    return named


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _fill(like: Any, stored: dict[str, np.ndarray], path: Path) -> Any:
    """Put the stored arrays where `like` has leaves of the same name, shape and dtype."""
    named = _named_leaves(like)
    wanted = {name: _to_numpy(leaf) for name, leaf in named.items()}
    for name in [*wanted, *stored]:
        there, here = _describe(stored.get(name)), _describe(wanted.get(name))
        if there != here and not (name in wanted and wanted[name].size == 0):
            raise UserError(
                f"{path} belongs to another configuration: {name} is {there} there and {here} "
                f"here; remove {path.parent.parent} to start again"
            )
    filled = [_like(stored.get(name, wanted[name]), leaf) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(like), filled)


def _describe(array: np.ndarray | None) -> str:
    return "absent" if array is None else f"{array.dtype}{list(array.shape)}"


def _like(array: np.ndarray, leaf: Any) -> Any:
    if _is_key(leaf):
        keys = jax.random.wrap_key_data(jax.numpy.asarray(array), impl=jax.random.key_impl(leaf))
        return jax.device_put(keys, leaf.sharding if leaf.committed else None)
    if isinstance(leaf, jax.Array):
        # Bound to its devices only if `leaf` is: programs compiled for the one fit the other.
        return jax.device_put(array, leaf.sharding if leaf.committed else None)
    return array if isinstance(leaf, np.ndarray) else array.item()
