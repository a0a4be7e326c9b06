"""Keras weights in HDF5, read by h5py (the extra ``hdf5``), in a process of its own."""

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from spectral_jax.checkpoints._base import (
    CheckpointError,
    LeftOut,
    Source,
    Tensor,
    any_failure,
    check_inflation,
    check_total,
    declare,
    open_zip,
)

OPTIMISER = ("optimizer", "optimizer_weights")
MAX_DEPTH = 64


def open_hdf5(path: Path, resources: ExitStack) -> Source:
    """Every numeric dataset of a file, named by its path in it; the optimiser's are skipped."""
    return _open(path, path, resources)


def open_keras(path: Path, resources: ExitStack) -> Source:
    """The weights inside a ``.keras`` archive, unpacked to a temporary file first."""
    with open_zip(path, resources).open("model.weights.h5") as member:
        unpacked = resources.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(member, unpacked)
    return _open(path, unpacked, resources)


def _open(path: Path, file: Any, resources: ExitStack) -> Source:
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError(
            path, "is HDF5, which needs h5py: pip install 'spectral-jax[hdf5]'"
        ) from error
    tensors: dict[str, Tensor] = {}
    skipped = LeftOut(path)

    with any_failure(path):
        opened = resources.enter_context(h5py.File(file, "r"))
        for name, item in _datasets(path, opened):
            if name.split("/")[0] in OPTIMISER:
                skipped[name] = "state of the optimiser"
            elif item.shape is None or item.dtype.kind not in "biufc" or item.dtype.itemsize > 16:
                skipped[name] = "not an array of numbers"
            else:
                _check_layout(path, name, item)
                declare(path, tensors, name, item.shape, item.dtype.newbyteorder("=").name)
        check_total(path, tensors)

    def read(name: str) -> np.ndarray:
        with any_failure(path):
            array = np.asarray(opened[name][()])
            return array.astype(array.dtype.newbyteorder("="), copy=False)

    return Source(tensors, read, skipped)


def _datasets(path: Path, root: Any) -> Iterator[tuple[str, Any]]:
    """Each dataset once, with its path in the file: of hard links only, never of another file."""
    import h5py

    seen: set[int] = set()

    def walk(group: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if len(place) == MAX_DEPTH:
            raise CheckpointError(path, f"its groups are nested more than {MAX_DEPTH} deep")
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item, name = group[key], (*place, key)
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:  # a group may hold itself
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                yield from walk(item, name)
            elif isinstance(item, h5py.Dataset):
                yield "/".join(name), item

    return walk(root, ())


def _check_layout(path: Path, name: str, item: Any) -> None:
    if item.external or item.is_virtual:
        raise CheckpointError(path, f"{name!r:.80} takes its data from another file: refused")
    # Not more than the file has: in an archive it may be compressed twice.
    stored = min(item.id.get_storage_size(), path.stat().st_size)
    chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
    check_inflation(path, name, stored, max(item.nbytes, chunk))
