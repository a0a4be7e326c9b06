"""Orbax checkpoints, read by orbax itself: the one module here that imports jax."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spectral_jax.checkpoints._base import (
    CheckpointError,
    Source,
    Tensor,
    any_failure,
    declare,
    to_dtype,
)


def open_orbax(path: Path, resources: ExitStack) -> Source:
    """The leaves of the pytree in a checkpoint directory, named by their keys with slashes."""
    try:
        import jax
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise CheckpointError(
            path, "is an Orbax checkpoint: pip install orbax-checkpoint"
        ) from error
    with any_failure(path), _quiet():
        reader = resources.enter_context(ocp.PyTreeCheckpointer())
        tree = reader.metadata(path.absolute()).item_metadata.tree
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_leaf)[0]
    tensors: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    keys = {}
    for key, leaf in leaves:
        name = jax.tree_util.keystr(key, simple=True, separator="/")
        if getattr(leaf, "shape", None) is None or getattr(leaf, "dtype", None) is None:
            skipped[name] = f"a {type(leaf).__name__}, not an array"
            continue
        declare(path, tensors, name, leaf.shape, np.dtype(leaf.dtype).name)
        keys[name] = key

    def read(name: str) -> np.ndarray:
        def only(key: Any, leaf: Any) -> Any:
            return leaf if key == keys[name] else ocp.PLACEHOLDER

        with any_failure(path), _quiet():
            item = jax.tree_util.tree_map_with_path(only, tree, is_leaf=_is_leaf)
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            restored = reader.restore(
                path.absolute(), args=ocp.args.PyTreeRestore(item=item, restore_args=args)
            )
            found = jax.tree_util.tree_flatten_with_path(restored, is_leaf=_is_leaf)[0]
            value = dict((k, v) for k, v in found)[keys[name]]
        return np.asarray(value, to_dtype(tensors[name].dtype))

    return Source(tensors, read, skipped)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what orbax logs of a broken checkpoint from the terminal; the error says it all."""
    logger = logging.getLogger("absl")
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


def _is_leaf(node: Any) -> bool:
    return hasattr(node, "shape")
