"""safetensors: eight bytes of header length, a JSON header, and the tensors end to end."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from spectral_jax._files import replacing
from spectral_jax.checkpoints._base import (
    CheckpointError,
    LeftOut,
    Source,
    Tensor,
    declare,
    fill,
    take,
    to_dtype,
)

MAX_HEADER = 100_000_000  # bytes of JSON: the format's own limit, and that of other tables here
MAX_VALUES = 1 << 23  # in a header, of which a tensor has some 8

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
CODES = {name: code for code, name in DTYPES.items()}


def open_safetensors(path: Path, resources: ExitStack) -> Source:
    """One file; tensors of a type that NumPy lacks are left out."""
    file = resources.enter_context(path.open("rb", buffering=0))
    tensors, starts, skipped = _read_header(path, file)

    def read(name: str) -> np.ndarray:
        file.seek(starts[name])
        tensor = tensors[name]
        return fill(file, tensor.size, to_dtype(tensor.dtype)).reshape(tensor.shape)

    return Source(tensors, read, skipped)


def is_safetensors(head: bytes) -> bool:
    """Whether a file that starts with ``head`` has the shape of a safetensors file."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def _read_header(
    path: Path, file: IO[bytes]
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, str]]:
    """The tensors in header order, where in the file each begins, and what is no tensor."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(take(file, 8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise CheckpointError(
            path, f"declares a header of {length} bytes; the file has {size - 8}, the format 1e8"
        )
    header = parse_json(path, take(file, length))
    header.pop("__metadata__", None)
    tensors: dict[str, Tensor] = {}
    skipped = LeftOut(path)
    starts, spans = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise CheckpointError(path, f"the header entry {name!r:.80} does not describe a tensor")
        code, offsets = entry["dtype"], entry["data_offsets"]
        if not isinstance(offsets, list) or [type(at) for at in offsets] != [int, int]:
            raise CheckpointError(path, f"tensor {name!r:.80} lies at {offsets!r:.40}: no offsets")
        if not isinstance(code, str) or code not in DTYPES:
            skipped[name] = f"of the type {code!r:.40}, which is not read"
            spans.append((*offsets, name))
            continue
        tensor = declare(path, tensors, name, entry["shape"], DTYPES[code])
        if offsets[1] - offsets[0] != tensor.nbytes:
            raise CheckpointError(
                path, f"tensor {name!r:.80} needs {tensor.nbytes} bytes but lies at {offsets!r:.60}"
            )
        starts[name] = 8 + length + offsets[0]
        spans.append((*offsets, name))
    _check_coverage(path, spans, size - 8 - length)
    return tensors, starts, skipped


def _check_coverage(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """Every byte belongs to one tensor: no overlap, no hole, nothing beyond the end."""
    reached = 0
    for start, end, name in sorted(spans):
        if start != reached:
            problem = "overlaps another one" if start < reached else "leaves a gap before it"
            raise CheckpointError(path, f"tensor {name!r:.80} {problem}")
        reached = end
    if reached != size:
        raise CheckpointError(path, f"the tensors need {reached} bytes; the file holds {size}")


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """The table in a header or an index, which may hold millions of values, but not more."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise CheckpointError(path, "two entries of the header have the same name")
        return table

    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise CheckpointError(
            path, f"the header holds over {MAX_VALUES} values: not weights, a bomb"
        )
    header = json.loads(text, object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise CheckpointError(path, "the header is not a table of tensors")
    return header


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write named arrays of any shape as one safetensors file, whole or not at all.

    ``tensors`` maps names to what ``numpy.asarray`` takes, jax arrays included; the order is kept.
    ``metadata`` is text to text. The file appears under its name only once complete.

    Raises ``FileExistsError`` if ``path`` exists, unless ``force``; ``ValueError`` for a type that
    the format lacks, metadata that is not text, or no tensors at all.
    """
    path = Path(path)
    if not force and path.exists():
        raise FileExistsError(f"{path} exists: pass force=True to replace it")
    if os.path.lexists(path) and not path.is_file():
        raise FileExistsError(f"{path} is no regular file, which force does not replace")
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    header = _header(path, arrays, dict(metadata or {}))
    with replacing(path, force=force) as partial, partial.open("xb") as file:
        file.write(header)
        for name in _stored_order(arrays):
            file.write(_little_endian(arrays[name]))


def _stored_order(arrays: Mapping[str, np.ndarray]) -> list[str]:
    # Wide elements first, so that every tensor lies aligned for readers that map the file.
    return sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)


def _header(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    if not arrays:
        raise ValueError("tensors is empty: a checkpoint holds at least one")
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError(f"metadata={metadata!r}: names and values must be text")
    checked: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if name == "__metadata__" or array.dtype.name not in CODES:
            raise ValueError(f"tensors[{name!r}]: safetensors has no {array.dtype} of that name")
        declare(path, checked, name, array.shape, array.dtype.name)
    starts, reached = {}, 0
    for name in _stored_order(arrays):
        starts[name] = reached
        reached += arrays[name].nbytes
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, array in arrays.items():
        header[name] = {
            "dtype": CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [starts[name], starts[name] + array.nbytes],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _little_endian(array: np.ndarray) -> memoryview:
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return flat.view(np.uint8).data
