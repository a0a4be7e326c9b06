"""PyTorch state dicts, from the zip format and the one before it, without executing their pickle.

A tensor is a view (offset, shape, strides) of a storage: a run of elements that lies in a member
of the archive, or behind the pickles of the older format.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from spectral_jax.checkpoints._base import (
    MAX_NAME,
    CheckpointError,
    LeftOut,
    Source,
    Tensor,
    check_total,
    declare,
    fill,
    open_zip,
    take,
    to_dtype,
)
from spectral_jax.checkpoints._pickle import Foreign, Global, Machine, enter

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_DEPTH = 16
MAX_PICKLE = 1 << 26  # bytes; a tensor takes some 200
# Where training scripts keep the weights, beside optimiser states and epochs.
WRAPPERS = ("state_dict", "model_state_dict", "model")

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
# Types younger than storages with a type; their tensors view bytes.
DTYPES = (
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "uint16",
    "uint32",
    "uint64",
)


class _Storage(NamedTuple):
    key: str
    dtype: str


class _View(NamedTuple):
    """A tensor as pickled; what is in it has not been checked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    dtype: str


class _Span(NamedTuple):
    """A checked view: which bytes of which storage to read, and how they become the tensor."""

    key: str
    start: int
    elements: int
    strides: tuple[int, ...]


def open_torch(path: Path, resources: ExitStack) -> Source:
    """A state dict in the zip format, or in the one before PyTorch 1.6."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    tree, sizes, stream = (_unzip if is_zip else _read_legacy)(path, resources)
    tensors: dict[str, Tensor] = {}
    spans: dict[str, _Span] = {}
    weights, beside = _weights(tree)
    skipped = LeftOut(path)
    for key in beside:
        skipped[str(key)] = "beside the weights: state of the training"
    for name, leaf in _leaves(path, weights):
        if isinstance(leaf, _View):
            tensor = declare(path, tensors, name, leaf.shape, leaf.dtype)
            spans[name] = _span(path, tensor, leaf, sizes)
        else:
            skipped[name] = _refusal(leaf)
    check_total(path, tensors)

    def read(name: str) -> np.ndarray:
        tensor, span = tensors[name], spans[name]
        with stream(span.key, span.start) as data:
            flat = fill(data, span.elements, to_dtype(tensor.dtype))
        strides = tuple(stride * flat.itemsize for stride in span.strides)
        view = np.ndarray(tensor.shape, flat.dtype, flat.view(np.uint8).data, strides=strides)
        # A slice must not keep alive the elements between its own.
        return view if view.size == flat.size else view.copy()

    return Source(tensors, read, skipped, _tied(tensors, spans))


Stream = Callable[[str, int], AbstractContextManager[IO[bytes]]]


def _unzip(path: Path, resources: ExitStack) -> tuple[Any, dict[str, int], Stream]:
    """The pickled tree, the bytes in each storage, and how to reach them."""
    archive = open_zip(path, resources)
    sizes = {member.filename: member.file_size for member in archive.infolist()}
    pickles = [name for name in sizes if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(path, f"holds {len(pickles)} pickles named data.pkl, not one")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in sizes and archive.read(f"{root}byteorder").strip() != b"little":
        raise CheckpointError(path, "was written by a big-endian machine, which is not read")
    if sizes[pickles[0]] > MAX_PICKLE:
        raise CheckpointError(path, f"its pickle has {sizes[pickles[0]]} bytes: not one of weights")
    tree = _machine(path, io.BytesIO(archive.read(pickles[0]))).load()
    data = f"{root}data/"

    def stream(key: str, start: int) -> IO[bytes]:
        member = archive.open(data + key)
        member.seek(start)
        return member

    storages = {name[len(data) :]: size for name, size in sizes.items() if name.startswith(data)}
    return tree, storages, stream


def _read_legacy(path: Path, resources: ExitStack) -> tuple[Any, dict[str, int], Stream]:
    """Three pickles of preamble, the tree, the storage keys; then each storage with its count."""
    file = resources.enter_context(path.open("rb"))
    storages: dict[str, _Storage] = {}
    machine = _machine(path, file, storages)
    if machine.load() != LEGACY_MAGIC:
        calls = f"; it calls for {machine.foreign!r:.100}" if machine.foreign else ""
        raise CheckpointError(path, f"is a pickle, but not one of PyTorch{calls}")
    machine.load()
    system, tree, keys = machine.load(), machine.load(), machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(path, "was written by a big-endian machine, which is not read")
    sizes, starts = {}, {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            raise CheckpointError(path, f"holds the storage {key!r:.40}, which no tensor views")
        count = int.from_bytes(take(file, 8), "little")
        sizes[key], starts[key] = count * to_dtype(storages[key].dtype).itemsize, file.tell()
        if starts[key] + sizes[key] > os.fstat(file.fileno()).st_size:
            raise CheckpointError(path, f"ends before its storage {key!r:.40} does")
        file.seek(starts[key] + sizes[key])

    def stream(key: str, start: int) -> AbstractContextManager[IO[bytes]]:
        file.seek(starts[key] + start)
        return nullcontext(file)

    return tree, sizes, stream


def _machine(path: Path, stream: IO[bytes], storages: dict[str, _Storage] | None = None) -> Machine:
    """The machine that knows tensors; ``storages`` collects those it meets."""

    def persistent(identity: Any) -> _Storage | Foreign:
        # A sixth part, if not None, makes a storage the view of another: PyTorch before 0.4.
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or any(identity[5:]):
            raise ValueError("the pickle refers to something that is no storage")
        _, kind, key = identity[:3]
        if not isinstance(kind, Global):
            raise ValueError("the pickle refers to a storage of unknown type")
        if kind.name not in STORAGES:
            return Foreign(f"{kind.module}.{kind.name}")
        if not isinstance(key, str):
            raise ValueError("the pickle refers to a storage without a name")
        storage = _Storage(key, STORAGES[kind.name])
        if storages is not None:
            storages[key] = storage
        return storage

    return Machine(path, stream, _CALLS, persistent)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View | Foreign:
    if isinstance(storage, Foreign):
        return storage
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor in the pickle has no storage")
    return _View(storage, offset, shape, strides, storage.dtype)


def _young_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> _View | Foreign:
    if not isinstance(dtype, Global):
        raise ValueError("a tensor in the pickle is of unknown type")
    view = _tensor(storage, offset, shape, strides)
    if isinstance(view, Foreign) or dtype.name not in DTYPES:
        return Foreign(f"{dtype.module}.{dtype.name}")
    return view._replace(dtype=dtype.name)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _with_attributes(function: Any, kind: Any, arguments: Any, *_: Any) -> _View | Foreign:
    """A tensor that somebody set attributes on; of another class, it may hold anything."""
    if not isinstance(kind, Global) or not isinstance(arguments, tuple):
        raise ValueError("a tensor in the pickle is of unknown type")
    maker = _CALLS.get(function)
    if maker and maker in (_tensor, _young_tensor) and kind == Global("torch", "Tensor"):
        return maker(*arguments)
    return Foreign(f"{kind.module}.{kind.name}")


def _table(pairs: Any = ()) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for key, value in pairs:  # there are some in what Python 2 wrote
        enter(table, key, value)
    return table


def _empty_table(*_: Any) -> dict[Any, Any]:
    return {}


_CALLS: dict[Global, Callable[..., Any] | None] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _young_tensor,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Global("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
    Global("collections", "OrderedDict"): _table,
    Global("collections", "defaultdict"): _empty_table,
    Global("torch", "Size"): tuple,
    Global("torch.storage", "UntypedStorage"): None,
    **{Global("torch", name): None for name in (*STORAGES, *DTYPES)},
}


def _weights(tree: Any) -> tuple[Any, list[Any]]:
    """The table of weights in what a training script saved, and the keys beside it."""
    beside: list[Any] = []
    for _ in range(MAX_DEPTH):
        tables = tree.items() if isinstance(tree, dict) else ()
        inner = {key: table for key, table in tables if isinstance(table, dict)}
        wrapper = next((key for key in WRAPPERS if key in inner), None)
        if wrapper is None:
            break
        beside += [key for key in tree if key != wrapper]
        tree = inner[wrapper]
    return tree, beside


def _leaves(path: Path, tree: Any) -> Iterator[tuple[str, Any]]:
    """What hangs in the tree, named by its keys with dots between."""
    seen: set[int] = set()

    def walk(node: Any, name: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if _is_plain(node):
            yield ".".join(name) or "tensor", node
            return
        # A table shared many times over, level upon level, would unfold without end.
        if id(node) in seen:
            return
        seen.add(id(node))
        if len(name) == MAX_DEPTH:
            raise CheckpointError(path, f"its tables are nested more than {MAX_DEPTH} deep")
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in pairs:
            yield from walk(value, (*name, str(key)[: MAX_NAME + 1]))

    return walk(tree, ())


def _tied(tensors: dict[str, Tensor], spans: dict[str, _Span]) -> dict[str, str]:
    """Names of the same elements of a storage as an earlier name, transposed ones among them."""
    first: dict[Any, str] = {}
    tied = {}
    for name, (key, start, elements, strides) in spans.items():
        axes = zip(tensors[name].shape, strides, strict=True)
        layout = sorted(axis for axis in axes if axis[0] != 1)
        place = (key, start, elements, tensors[name].dtype, *layout)
        if elements and first.setdefault(place, name) != name:
            tied[name] = first[place]
    return tied


def _refusal(leaf: Any) -> str:
    if isinstance(leaf, Global):
        return f"the name {f'{leaf.module}.{leaf.name}'!r:.100}, not a tensor"
    if isinstance(leaf, Foreign):
        return f"an object of {leaf.name!r:.100}, which is not made: unpickling may run any code"
    return f"a {type(leaf).__name__}, not a tensor"


def _is_plain(node: Any) -> bool:
    """Whether there is no tensor below a node; a history of a million losses is one thing."""
    if isinstance(node, list) or type(node) is tuple:
        return not any(isinstance(each, dict | list | tuple) for each in node)
    return not isinstance(node, dict)


def _span(path: Path, tensor: Tensor, view: _View, sizes: dict[str, int]) -> _Span:
    """The bytes that a view needs, once it is certain that they exist."""
    storage, offset, strides = view.storage, view.offset, view.strides
    numbers = (offset, *strides) if isinstance(strides, tuple) else (None,)
    if len(numbers) != 1 + len(tensor.shape) or not all(
        type(n) is int and 0 <= n < 2**62 for n in numbers
    ):
        raise CheckpointError(path, f"tensor {tensor.name!r:.80} has impossible strides")
    if storage.key not in sizes:
        raise CheckpointError(path, f"the data of tensor {tensor.name!r:.80} are missing")
    size = to_dtype(tensor.dtype).itemsize
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, strides, strict=True))
    count = 1 + last if tensor.size else 0
    held = sizes[storage.key] // size
    # A stride of zero repeats elements; more than the storage holds is no weight, but a bomb.
    if (count and offset + count > held) or tensor.size > held:
        raise CheckpointError(
            path,
            f"tensor {tensor.name!r:.80} of shape {tensor.shape!r:.80} needs {offset + count} "
            f"elements, its storage holds {held}",
        )
    return _Span(storage.key, offset * size, count, strides)
