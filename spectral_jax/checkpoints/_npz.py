"""npy and npz, streamed, and never unpickled."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from spectral_jax.checkpoints._base import (
    CheckpointError,
    LeftOut,
    Source,
    Tensor,
    declare,
    fill,
    open_zip,
    take,
)

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # as numpy's own limit
# A Python literal by the standard, but of one form only; older writers end numbers with an L.
HEADER = re.compile(
    r"\s*\{\s*'descr':\s*(.+?),\s*'fortran_order':\s*(True|False),"
    r"\s*'shape':\s*\(([\dL,\s]*)\),?\s*\}\s*"
)
NUMERIC = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)")


class _Header:
    """The type, memory order and shape that an npy header declares, and its length."""

    def __init__(self, path: Path, member: str, stream: IO[bytes]):
        magic = take(stream, 8)
        if magic[:6] != MAGIC or magic[6] not in (1, 2, 3):
            raise CheckpointError(path, f"{member!r:.80} is not an array of NumPy")
        width = 2 if magic[6] == 1 else 4
        length = int.from_bytes(take(stream, width), "little")
        if length > MAX_HEADER:
            raise CheckpointError(path, f"{member!r:.80} declares a header of {length} bytes")
        text = take(stream, length).decode("utf-8" if magic[6] == 3 else "latin-1")
        header = HEADER.fullmatch(text)
        if header is None:
            raise CheckpointError(path, f"{member!r:.80} has a header that describes no array")
        self.descr = header[1].strip("'")
        self.columns_first = header[2] == "True"
        self.shape = tuple(int(n.strip(" L")) for n in header[3].split(",") if n.strip())
        self.length = 8 + width + length

    @property
    def refusal(self) -> str | None:
        """Why the array is no tensor, or None."""
        if NUMERIC.fullmatch(self.descr):
            return None
        if self.descr == "|O":
            return "an object array: reading it would execute pickled code"
        return f"of the type {self.descr!r:.40}, which is not read"


def open_npy(path: Path, resources: ExitStack) -> Source:
    """One array, named ``arr_0`` as ``numpy.savez`` would."""
    file = resources.enter_context(path.open("rb", buffering=0))
    header = _Header(path, path.name, file)
    tensors: dict[str, Tensor] = {}
    if header.refusal:
        return Source(tensors, _nothing, {"arr_0": header.refusal})
    _declare(path, tensors, "arr_0", header, path.stat().st_size)

    def read(name: str) -> np.ndarray:
        file.seek(header.length)
        return _body(file, header, tensors[name])

    return Source(tensors, read, {})


def open_npz(path: Path, resources: ExitStack) -> Source:
    """A zip archive of npy files, each named as its member less ``.npy``."""
    archive = open_zip(path, resources)
    tensors: dict[str, Tensor] = {}
    skipped = LeftOut(path)
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            skipped[name] = "not an array of NumPy"
            continue
        with archive.open(member) as stream:
            header = _Header(path, member.filename, stream)
        if header.refusal:
            skipped[name] = header.refusal
        else:
            _declare(path, tensors, name, header, member.file_size)

    def read(name: str) -> np.ndarray:
        with archive.open(f"{name}.npy") as stream:
            array = _body(stream, _Header(path, name, stream), tensors[name])
            stream.read(1)  # the end is where zipfile compares the checksum
            return array

    return Source(tensors, read, skipped)


def _nothing(name: str) -> np.ndarray:
    raise KeyError(name)


def _declare(path: Path, tensors: dict[str, Tensor], name: str, header: _Header, size: int) -> None:
    tensor = declare(path, tensors, name, header.shape, np.dtype(header.descr).name)
    if header.length + tensor.nbytes != size:
        raise CheckpointError(
            path,
            f"{name!r:.80} of shape {tensor.shape!r:.80} needs {tensor.nbytes} bytes, "
            f"the file holds {size - header.length}",
        )


def _body(stream: IO[bytes], header: _Header, tensor: Tensor) -> np.ndarray:
    stored = np.dtype(header.descr)
    flat = fill(stream, tensor.size, stored).astype(stored.newbyteorder("="), copy=False)
    return flat.reshape(tensor.shape, order="F" if header.columns_first else "C")
