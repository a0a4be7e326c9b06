"""Orbax checkpoints, read by orbax itself: the one module here that imports jax."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spectral_jax.checkpoints._base import (
    CheckpointError,
    LeftOut,
    Source,
    Tensor,
    any_failure,
    check_total,
    declare,
    is_dtype,
    stays_inside,
    to_dtype,
)
from spectral_jax.checkpoints._safetensors import MAX_HEADER, parse_json


def open_orbax(path: Path, resources: ExitStack) -> Source:
    """The leaves of the pytree in a checkpoint directory, named by their keys with slashes."""
    _check_files(path)
    _check_keys(path)
    try:
        import jax
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise CheckpointError(
            path, "is an Orbax checkpoint: pip install orbax-checkpoint"
        ) from error
    with any_failure(path), _quiet():
        reader = resources.enter_context(ocp.PyTreeCheckpointer())
        metadata = reader.metadata(path.absolute()).item_metadata
        if metadata is None:
            raise CheckpointError(path, "truncated or corrupt: its arrays cannot be opened")
        tree = metadata.tree
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_leaf)[0]
    tensors: dict[str, Tensor] = {}
    skipped = LeftOut(path)
    keys = {}
    for key, leaf in leaves:
        name = jax.tree_util.keystr(key, simple=True, separator="/")
        if getattr(leaf, "shape", None) is None or getattr(leaf, "dtype", None) is None:
            skipped[name] = f"a {type(leaf).__name__}, not an array"
            continue
        kind = np.dtype(leaf.dtype).name
        if not is_dtype(kind):
            skipped[name] = f"of the type {kind!r:.40}, which is not read"
            continue
        declare(path, tensors, name, leaf.shape, kind)
        keys[name] = key
    check_total(path, tensors)

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


def _check_files(folder: Path) -> None:
    """Refuse what a reader would wait for or read without end: pipes, devices, linked folders.

    Links to files are followed, as everywhere; one to a folder may lead to any part of the disk.
    """
    pending = [folder]
    while pending:
        for each in pending.pop().iterdir():
            if each.is_dir() and not each.is_symlink():
                pending.append(each)
            elif not each.is_file():
                inside = str(each.relative_to(folder))
                raise CheckpointError(folder, f"{inside!r:.80} in it is no regular file: refused")


def _check_keys(folder: Path) -> None:
    """Refuse keys that lead out of the folder, for orbax makes the names of files from them."""
    file = folder / "_METADATA"
    if not file.is_file() or file.stat().st_size > MAX_HEADER:
        raise CheckpointError(folder, "has no _METADATA of its arrays, or one too long to be that")
    leaves = parse_json(folder, file.read_bytes())["tree_metadata"].values()
    for leaf in leaves:
        name = ".".join(str(part["key"]) for part in leaf["key_metadata"])
        if name and not stays_inside(name):
            raise CheckpointError(folder, f"a key of it is {name!r:.80}, which leaves the folder")


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
