"""What ``flax.serialization`` writes: nested tables in msgpack, walked without reading the arrays.

An array is an extension that holds its shape, the name of its type and its bytes; one above a
gigabyte is a table of a shape and flat chunks.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from spectral_jax.checkpoints._base import (
    MAX_NAME,
    CheckpointError,
    LeftOut,
    Source,
    Tensor,
    declare,
    fill,
    is_dtype,
    take,
    to_dtype,
)

ARRAY, SCALAR = 1, 3  # codes of extensions
CHUNKED = "__msgpack_chunked_array__"
MAX_DEPTH = 32
MAX_OBJECTS = 1 << 20  # as many as tensors may be

# The last code of a kind whose value or length is in the code itself, and the bits that hold it.
FIXED = ((0x7F, "value", 0x7F), (0x8F, "table", 0xF), (0x9F, "list", 0xF), (0xBF, "text", 0x1F))
PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}
SIZED = {
    **{0xC4 + i: ("bytes", layout) for i, layout in enumerate((">B", ">H", ">I"))},
    **{0xC7 + i: ("extension", layout) for i, layout in enumerate((">B", ">H", ">I"))},
    **{0xCA + i: ("value", f">{letter}") for i, letter in enumerate("fdBHIQbhiq")},
    **{0xD4 + i: ("extension", "") for i in range(5)},  # of 1, 2, 4, 8 and 16 bytes
    **{0xD9 + i: ("text", layout) for i, layout in enumerate((">B", ">H", ">I"))},
    **{0xDC + i: ("list", layout) for i, layout in enumerate((">H", ">I"))},
    **{0xDE + i: ("table", layout) for i, layout in enumerate((">H", ">I"))},
}


class _Array(NamedTuple):
    """A stored array whose bytes begin at ``start``."""

    shape: tuple[Any, ...]
    dtype: str
    start: int
    nbytes: int


class _Chunks(NamedTuple):
    """An array in pieces, each of one axis."""

    shape: tuple[Any, ...]
    pieces: list[_Array]


class _Walker:
    """Reads objects one after another, arrays aside."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.objects = 0

    def object(self, depth: int = 0) -> Any:
        """The next object: lists as tables by number, text and bytes as the name of their kind."""
        self.objects += 1
        if depth > MAX_DEPTH or self.objects > MAX_OBJECTS:
            raise ValueError(f"over {MAX_OBJECTS} objects, or tables more than {MAX_DEPTH} deep")
        kind, value = self.head()
        if kind == "table":
            return self.table(value, depth)
        if kind == "list":
            return {str(place): self.object(depth + 1) for place in range(value)}
        if kind == "extension":
            return self.extension(value)
        if kind in ("text", "bytes"):
            self.skip(value)
            return kind
        return value

    def head(self) -> tuple[str, Any]:
        """The kind of the next object, and its value, or the length of what follows."""
        code = take(self.file, 1)[0]
        for last, kind, mask in FIXED:
            if code <= last:
                return kind, code & mask
        if code in PLAIN:
            return "value", PLAIN[code]
        if code >= 0xE0:
            return "value", code - 0x100
        if code not in SIZED:
            raise ValueError(f"there is no object of the code {code}")
        kind, layout = SIZED[code]
        if not layout:
            return kind, 1 << (code - 0xD4)
        (value,) = struct.unpack(layout, take(self.file, struct.calcsize(layout)))
        return kind, value

    def table(self, count: int, depth: int) -> Any:
        """A table with keys of text, or the array that is kept as one."""
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.text()
            if key in found:
                raise ValueError(f"two entries of a table are named {key!r:.80}")
            found[key] = self.object(depth + 1)
        return _joined(found) if found.get(CHUNKED) is True else found

    def text(self) -> str:
        """The next object, which is text."""
        kind, length = self.head()
        if kind != "text" or length > MAX_NAME:
            raise ValueError("a key of a table is no text, or too long")
        return take(self.file, length).decode()

    def extension(self, length: int) -> Any:
        """An array of the next extension, or what else it is."""
        code = take(self.file, 1)[0]
        end = self.file.tell() + length
        if code not in (ARRAY, SCALAR):
            self.skip(length)
            return "extension"
        parts, axes = self.head(), self.head()
        if (parts, axes[0]) != (("list", 3), "list") or axes[1] > MAX_DEPTH:
            raise ValueError("an array is not a shape, a type and bytes")
        shape = tuple(self.head()[1] for _ in range(axes[1]))
        dtype = self.text()
        kind, nbytes = self.head()
        start = self.file.tell()
        if kind != "bytes" or start + nbytes != end:
            raise ValueError("the bytes of an array do not end where it does")
        self.skip(nbytes)
        return _Array(shape, dtype, start, nbytes)

    def skip(self, length: int) -> None:
        """Pass over bytes that the file must have."""
        if self.file.seek(length, os.SEEK_CUR) > self.size:
            raise EOFError("the file ends too early")


def is_msgpack(path: Path) -> bool:
    """Whether a file begins with a table whose first key is printable text."""
    with path.open("rb") as file:
        walker = _Walker(file)
        try:
            kind, count = walker.head()
            return kind == "table" and count > 0 and walker.text().isprintable()
        except (ValueError, EOFError):
            return False


def open_msgpack(path: Path, resources: ExitStack) -> Source:
    """The arrays of nested tables, by their keys with slashes between."""
    file = resources.enter_context(path.open("rb"))
    tree = _Walker(file).object()
    if file.read(1):
        raise CheckpointError(path, "goes on behind the table that it should be")
    tensors: dict[str, Tensor] = {}
    skipped = LeftOut(path)
    pieces: dict[str, list[_Array]] = {}
    for name, leaf in _leaves(tree):
        if isinstance(leaf, _Array):
            leaf = _Chunks(leaf.shape, [leaf])
        if not isinstance(leaf, _Chunks):
            skipped[name] = f"a {type(leaf).__name__}, not an array"
        elif not is_dtype(leaf.pieces[0].dtype):
            skipped[name] = f"of the type {leaf.pieces[0].dtype!r:.40}, which is not read"
        else:
            tensor = declare(path, tensors, name, leaf.shape, leaf.pieces[0].dtype)
            _check(path, tensor, leaf.pieces)
            pieces[name] = leaf.pieces

    def read(name: str) -> np.ndarray:
        dtype = to_dtype(tensors[name].dtype)
        parts = []
        for piece in pieces[name]:
            file.seek(piece.start)
            parts.append(fill(file, piece.nbytes // dtype.itemsize, dtype))
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return flat.reshape(tensors[name].shape)

    return Source(tensors, read, skipped)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if len(name) > MAX_NAME:  # a million leaves may share one that is long
        raise ValueError(f"the name {name!r:.40} has over {MAX_NAME} letters")
    if not isinstance(tree, dict):
        yield name or "array", tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{name}/{key}" if name else key)


def _joined(table: dict[str, Any]) -> _Chunks:
    """The array that Flax keeps as a table of its shape and its flat pieces."""
    shape, pieces = table.get("shape"), table.get("chunks")
    if not isinstance(shape, dict) or not isinstance(pieces, dict) or not pieces:
        raise ValueError("an array in chunks lacks its shape or its chunks")
    ordered = [pieces[str(place)] for place in range(len(pieces))]
    if not all(isinstance(piece, _Array) for piece in ordered):
        raise ValueError("a chunk of an array is no array")
    return _Chunks(tuple(shape[str(axis)] for axis in range(len(shape))), ordered)


def _check(path: Path, tensor: Tensor, pieces: list[_Array]) -> None:
    held = sum(piece.nbytes for piece in pieces)
    if held != tensor.nbytes or any(piece.dtype != tensor.dtype for piece in pieces):
        raise CheckpointError(
            path, f"tensor {tensor.name!r:.80} needs {tensor.nbytes} bytes, not {held}"
        )
