"""Which format a path holds, judged by its content, and the one reader for all of them."""

import errno
import importlib
import os
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np

from spectral_jax._choices import check_choice
from spectral_jax.checkpoints import _msgpack, _npz, _onnx, _safetensors, _sharded
from spectral_jax.checkpoints._base import (
    CheckpointError,
    Source,
    Tensor,
    one_line,
    printable,
)
from spectral_jax.checkpoints._child import open_apart
from spectral_jax.checkpoints._folders import checkpoint_in

# Format to module and function; modules load on use, as some bring a library with them.
FORMATS = {
    "safetensors": ("_safetensors", "open_safetensors"),
    "npz": ("_npz", "open_npz"),
    "npy": ("_npz", "open_npy"),
    "torch": ("_torch", "open_torch"),
    "keras": ("_hdf5", "open_keras"),
    "hdf5": ("_hdf5", "open_hdf5"),
    "onnx": ("_onnx", "open_onnx"),
    "orbax": ("_orbax", "open_orbax"),
    "msgpack": ("_msgpack", "open_msgpack"),
}

# Modules and their libraries, which a broken file can crash: they run in a process of their own.
NATIVE = {"_hdf5": "h5py", "_orbax": "orbax.checkpoint"}

# What people point at by mistake, by its first bytes.
STRANGERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file: run 'git lfs pull'",
    b"GGUF": "a GGUF file, which is not read: point at the safetensors file it was made from",
    b"<!DOCTYPE": "a web page, not a checkpoint",
    b"<html": "a web page, not a checkpoint",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
}

# safetensors first: the length that it starts with may look like anyone's magic number.
SIGNS: dict[str, Callable[[bytes], bool]] = {
    "safetensors": _safetensors.is_safetensors,
    "npy": lambda head: head.startswith(_npz.MAGIC),
    "hdf5": lambda head: head.startswith(b"\x89HDF\r\n\x1a\n"),
    "torch": lambda head: head[:1] == b"\x80" and 2 <= int.from_bytes(head[1:2]) <= 5,
}


class Checkpoint:
    """Named tensors in a file: their shapes at once, their values one at a time.

    A context manager; after it no tensor can be read. Reading needs the memory of that tensor plus
    a constant, whatever the size of the file; twice that for HDF5 and Orbax, whose libraries run in
    a process of their own, as a damaged file can end it. Not safe to share between threads.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    """Name to name, shape and dtype, in the order of the file."""
    skipped: dict[str, str]
    """What the file holds besides tensors, and why it is not read."""
    tied: dict[str, str]
    """A name to an earlier one, where both stand for the same elements of the file."""

    def __init__(self, path: Path, format: str, source: Source, resources: ExitStack):
        self.path, self.format = path, format
        self.tensors, self.tied = source.tensors, dict(source.tied)
        self.skipped = {printable(name): why for name, why in source.skipped.items()}
        self._read, self._resources, self._open = source.read, resources, True

    def read(self, name: str) -> np.ndarray:
        """The array of that name, in native byte order, of the shape and dtype in ``tensors``.

        bfloat16 and float8 come as the types of ``ml_dtypes``. Raises ``KeyError`` for a name that
        is not in ``tensors``, ``ValueError`` once closed, ``CheckpointError`` for corrupt data.
        """
        if not self._open:
            raise ValueError(f"{self.path} is closed: read within the with block")
        if name not in self.tensors:
            raise KeyError(f"{self.path} has no tensor {name!r}")
        with one_line(self.path):
            return self._read(name)

    def close(self) -> None:
        """Let go of the file; twice does no harm."""
        self._open = False
        self._resources.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path}: {self.format}, {len(self.tensors)} tensors>"


def open_checkpoint(
    path: str | os.PathLike[str], *, format: str | None = None, step: int | None = None
) -> Checkpoint:
    """Open a file or directory of weights; only names, shapes and dtypes are read.

    The format is told from the content, not from the suffix of ``path``; ``format`` (a key of
    ``FORMATS``) overrules. A JSON index stands for the shards that it names. Of a folder of steps
    (``10``, ``step_10``, ``checkpoint-10``) the newest that holds a checkpoint is read, or
    ``step``. Nothing in a file is ever executed, and no name in it leads out of its directory;
    symbolic links are followed, as the caches of model hubs are made of them.

    - ``safetensors``: tensors of a type that NumPy lacks are skipped;
    - ``npz``, ``npy``: arrays of numbers; object arrays are skipped, never unpickled;
    - ``torch``: a state dict, also one under ``state_dict``, ``model_state_dict`` or ``model``;
      objects of other classes than tensors need are skipped, never made;
    - ``hdf5``, ``keras``: ``.h5``, ``.weights.h5``, ``.keras`` (needs h5py: extra ``hdf5``);
    - ``onnx``: initialisers and constants, those of graphs in nodes and of functions among them;
    - ``orbax``: a checkpoint folder, or that of a manager with one item (needs orbax, which
      imports jax, in a process that leaves accelerators alone);
    - ``msgpack``: what ``flax.serialization`` writes.

    Raises ``FileNotFoundError`` if there is no such path, ``CheckpointError`` (a ``ValueError`` of
    one line) for anything that is not a sound checkpoint with at least one tensor.
    """
    if not os.fspath(path):
        raise ValueError("path is empty: name a file or a folder")
    path = Path(path)
    check_choice((*FORMATS, None), format=format)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
    if step is not None and not path.is_dir():
        raise ValueError(f"step={step}: {path} is a file, which has no steps; leave step out")
    with ExitStack() as resources:
        with one_line(path):
            file = checkpoint_in(path, step) if path.is_dir() else path
            format, source = _open(file, resources, format)
        if not source.tensors:
            first = islice(source.skipped.items(), 3)
            beside = "; ".join(f"{name!r:.40} is {why}" for name, why in first)
            raise CheckpointError(path, f"holds no tensors{beside and ': ' + beside}")
        return Checkpoint(file, format, source, resources.pop_all())


def load(path: str | os.PathLike[str], *, step: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint by name, in memory at once.

    ``path``, ``step`` and errors are those of `open_checkpoint`.
    """
    with open_checkpoint(path, step=step) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def detect(path: Path) -> str:
    """The format of a file or directory, from its content; ``CheckpointError`` if unknown."""
    if path.is_dir():
        return "orbax"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(path, "is empty")
    for format, is_it in SIGNS.items():
        if is_it(head):
            return format
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _kind_of_zip(path)
    for start, what in STRANGERS.items():
        if head.startswith(start):
            raise CheckpointError(path, f"is {what}")
    if _onnx.is_onnx(path):
        return "onnx"
    if _msgpack.is_msgpack(path):
        return "msgpack"
    raise CheckpointError(path, f"is of no known format ({', '.join(FORMATS)}), or cut short")


def _kind_of_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "torch"
    if "model.weights.h5" in names:
        return "keras"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    inside = ", ".join(map(repr, names[:3])) or "nothing"
    raise CheckpointError(path, f"is a zip archive of {inside:.120}, not of weights")


def _open(path: Path, resources: ExitStack, format: str | None) -> tuple[str, Source]:
    """The format and the content of a file or an Orbax folder."""
    if not path.is_file() and not path.is_dir():  # a pipe or a device would be read without end
        raise CheckpointError(path, "is neither a file nor a directory")
    if path.is_file() and _sharded.is_index(path):
        return _sharded.open_index(path, resources, partial(_open_shard, format=format))
    return _open_one(path, resources, format=format)


def _open_one(path: Path, resources: ExitStack, *, format: str | None) -> tuple[str, Source]:
    format = format or detect(path)
    return format, _opener(format)(path, resources)


def _open_shard(path: Path, resources: ExitStack, *, format: str | None) -> tuple[str, Source]:
    format = format or detect(path)
    if FORMATS[format][0] in NATIVE:  # an index of a thousand would start as many processes
        raise CheckpointError(path, f"is a shard in {format}, of which there is no standard")
    return _open_one(path, resources, format=format)


def _opener(format: str) -> Callable[[Path, ExitStack], Source]:
    module, function = FORMATS[format]
    dotted = f"spectral_jax.checkpoints.{module}"
    if module in NATIVE:
        return partial(open_apart, dotted, function, NATIVE[module])
    return getattr(importlib.import_module(dotted), function)
