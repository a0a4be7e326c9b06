"""ONNX initialisers and constants, by a walk over the protobuf wire format.

They are in the main graph, in the graphs that its nodes have (loops, conditions) and in functions.
What is not needed is skipped unread.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from spectral_jax.checkpoints._base import (
    MAX_DIMENSIONS,
    CheckpointError,
    LeftOut,
    Source,
    Tensor,
    beside,
    check_total,
    declare,
    fill,
    take,
    to_dtype,
)

# TensorProto.DataType
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
}
MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
# Of a model, a graph, a node, an attribute and a function.
GRAPH, FUNCTION = 7, 25
NODE, INITIALIZER, SPARSE_INITIALIZER = 1, 5, 15
OUTPUT, OP_TYPE, ATTRIBUTE = 2, 4, 5
TENSOR, SUBGRAPH, FLOATS, SUBGRAPHS, SPARSE_TENSOR = 5, 6, 7, 11, 22
FUNCTION_NAME, FUNCTION_NODE, FUNCTION_DOMAIN, FUNCTION_OVERLOAD = 1, 7, 10, 13
# Of a tensor.
DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA, DOUBLE_DATA, EXTERNAL = 1, 2, 4, 8, 9, 10, 13
MAX_TEXT = 4096
MAX_DEPTH = 16  # of graphs in nodes of graphs
ONE_BY_ONE = "its elements are stored one by one, which is not read"
SPARSE = "a sparse tensor, which is not read"
MAX_ATTRIBUTES = 1000
MAX_ENTRIES = 16  # of where external data lie; the standard has five
MAX_FIELDS = 100_000  # a model has dozens; a file of anything may seem to have billions


class _Field(NamedTuple):
    """One field of a message: a number, or the bytes from ``start`` to ``end`` of the file."""

    number: int
    value: int
    start: int
    end: int


class _Place(NamedTuple):
    """Where the elements of a tensor lie."""

    file: Path
    start: int


class _Initialiser:
    """A TensorProto: what it declares, and where its elements lie in the file, if they do."""

    def __init__(self, file: IO[bytes], at: _Field):
        self.name, self.shape, self.code = "", [], 0  # type: tuple[str, list[int], int]
        self.data: tuple[int, int] | None = None
        self.external: dict[str, str] = {}
        for field in _fields(file, at.start, at.end):
            if field.number == DIMS and field.start == field.end:
                self.shape.append(field.value)
            elif field.number == DIMS:
                file.seek(field.start)
                while file.tell() < field.end and len(self.shape) <= MAX_DIMENSIONS:
                    self.shape.append(_varint(file))
            elif field.number == DATA_TYPE:
                self.code = field.value
            elif field.number == NAME:
                self.name = _text(file, field)
            elif field.number in (RAW_DATA, FLOAT_DATA, DOUBLE_DATA) and field.end > field.start:
                self.data = (field.start, field.end)
            elif field.number == EXTERNAL:
                parts = islice(_fields(file, field.start, field.end), 2)
                entry = {part.number: _text(file, part) for part in parts}
                self.external[entry.get(1, "")] = entry.get(2, "")
            if len(self.shape) > MAX_DIMENSIONS or len(self.external) > MAX_ENTRIES:
                raise ValueError("a tensor has more dimensions or entries than any can have")


def open_onnx(path: Path, resources: ExitStack) -> Source:
    """The initialisers and constants of all graphs; their data may lie in files beside the model.

    Constants go by their output, what is in a graph of a node by the node's output before a slash.
    """
    file = resources.enter_context(path.open("rb"))
    size = os.fstat(file.fileno()).st_size
    tensors: dict[str, Tensor] = {}
    skipped = LeftOut(path)
    places: dict[str, _Place] = {}
    for name, found in _stored(file, size):
        if isinstance(found, str):
            skipped[name] = found
        else:
            _enter(path, name, found, tensors, places, skipped)

    check_total(path, tensors, *(place.file for place in places.values()))

    def read(name: str) -> np.ndarray:
        tensor, place = tensors[name], places[name]
        with place.file.open("rb", buffering=0) as data:
            data.seek(place.start)
            return fill(data, tensor.size, to_dtype(tensor.dtype)).reshape(tensor.shape)

    return Source(tensors, read, skipped)


def _stored(file: IO[bytes], size: int) -> Iterator[tuple[str, _Initialiser | str]]:
    """Each tensor in a model by its name, or the reason why it is not read."""
    for part in _fields(file, 0, size):
        if part.number == GRAPH:
            yield from _in_graph(file, part)
        elif part.number == FUNCTION:
            words = (FUNCTION_DOMAIN, FUNCTION_NAME, FUNCTION_OVERLOAD)
            named = {
                field.number: _text(file, field)
                for field in _fields(file, part.start, part.end)
                if field.number in words
            }
            prefix = ".".join(filter(None, map(named.get, words))) + "/"
            for field in _fields(file, part.start, part.end):
                if field.number == FUNCTION_NODE:
                    yield from _in_node(file, field, prefix, 1)


def _in_graph(
    file: IO[bytes], graph: _Field, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, _Initialiser | str]]:
    if depth > MAX_DEPTH:
        raise ValueError(f"its graphs are nested more than {MAX_DEPTH} deep")
    for field in _fields(file, graph.start, graph.end):
        if field.number == INITIALIZER:
            found = _Initialiser(file, field)
            yield prefix + found.name, found
        elif field.number == SPARSE_INITIALIZER:
            values = next(_fields(file, field.start, field.end))
            yield prefix + _Initialiser(file, values).name, SPARSE
        elif field.number == NODE:
            yield from _in_node(file, field, prefix, depth)


def _in_node(
    file: IO[bytes], node: _Field, prefix: str, depth: int
) -> Iterator[tuple[str, _Initialiser | str]]:
    name, kind = "", ""
    attributes = []
    for field in _fields(file, node.start, node.end):
        if field.number == OUTPUT:
            name = name or prefix + _text(file, field)
        elif field.number == OP_TYPE:
            kind = _text(file, field)
        elif field.number == ATTRIBUTE:
            attributes.append(field)
            if len(attributes) > MAX_ATTRIBUTES:
                raise ValueError("a node has more attributes than any can have")
    for attribute in attributes:
        for field in _fields(file, attribute.start, attribute.end):
            if field.number in (SUBGRAPH, SUBGRAPHS):
                yield from _in_graph(file, field, f"{name}/", depth + 1)
            elif kind == "Constant" and field.number == TENSOR:
                yield name, _Initialiser(file, field)
            elif kind == "Constant" and field.number in (FLOATS, SPARSE_TENSOR):
                yield name, SPARSE if field.number == SPARSE_TENSOR else ONE_BY_ONE


def is_onnx(path: Path) -> bool:
    """Whether a file is a protobuf message with the fields of an ONNX model, a graph among them."""
    has_graph = False
    with path.open("rb") as file:
        try:
            for count, field in enumerate(_fields(file, 0, path.stat().st_size)):
                if field.number not in MODEL_FIELDS or count > MAX_FIELDS:
                    return False
                has_graph |= field.number == GRAPH
        except (ValueError, EOFError):
            return False
    return has_graph


def _enter(
    path: Path,
    name: str,
    found: _Initialiser,
    tensors: dict[str, Tensor],
    places: dict[str, _Place],
    skipped: dict[str, str],
) -> None:
    if found.code not in DTYPES:
        skipped[name] = f"of the ONNX type {found.code}, which is not read"
        return
    empty = 0 in found.shape
    if not (found.external or found.data or empty):
        skipped[name] = ONE_BY_ONE
        return
    tensor = declare(path, tensors, name, found.shape, DTYPES[found.code])
    if found.external:
        places[tensor.name] = _external(path, tensor, found.external)
        return
    start, end = found.data or (0, 0)
    if end - start != tensor.nbytes:
        raise CheckpointError(
            path, f"tensor {tensor.name!r:.80} needs {tensor.nbytes} bytes, not {end - start}"
        )
    places[tensor.name] = _Place(path, start)


def _external(path: Path, tensor: Tensor, entry: dict[str, str]) -> _Place:
    location = entry.get("location", "")
    file = beside(path, location)
    start = int(entry.get("offset", "0"))
    length = int(entry.get("length", str(tensor.nbytes)))
    if length != tensor.nbytes or start < 0 or start + length > file.stat().st_size:
        raise CheckpointError(
            path, f"tensor {tensor.name!r:.80} does not fit into its data file {location!r:.80}"
        )
    return _Place(file, start)


def _fields(file: IO[bytes], start: int, end: int) -> Iterator[_Field]:
    """The fields of the message between two positions; payloads are skipped, not read."""
    while start < end:
        file.seek(start)
        key = _varint(file)
        number, kind = key >> 3, key & 7
        value = _varint(file) if kind in (0, 2) else 0
        begin = file.tell()
        if number == 0 or kind not in (0, 1, 2, 5):
            raise ValueError("not a protobuf message")
        start = begin + {0: 0, 1: 8, 2: value, 5: 4}[kind]
        if start > end:
            raise ValueError("a message ends before its fields do")
        yield _Field(number, value, begin, start)


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = take(file, 1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise ValueError("a number in the message does not end")


def _text(file: IO[bytes], field: _Field) -> str:
    if field.end - field.start > MAX_TEXT:
        raise ValueError("a name in the message is too long")
    file.seek(field.start)
    return take(file, field.end - field.start).decode()
