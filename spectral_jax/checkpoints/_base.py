"""What every format shares: how a tensor is declared, how bytes become one, how a file fails."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

CHUNK = 1 << 18
# Deflate reaches 1000:1 on zeros; trained weights stay below 2:1, pruned ones below 50:1.
MAX_INFLATION = 100
INFLATION_MATTERS = 64 << 20
MAX_DIMENSIONS = 32
MAX_NAME = 1000  # letters; the longest in use have some 150
MAX_TENSORS = 1 << 19  # the largest checkpoints in use have some 140,000
MAX_LINE = 400

_EXTRA_DTYPES = (
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float8_e8m0fnu,
)
NUMPY_DTYPES = frozenset(np.dtype(code).name for code in "?bhilqBHILQefdFD")
EXTRA_DTYPES = {np.dtype(kind).name: np.dtype(kind) for kind in _EXTRA_DTYPES}


class CheckpointError(ValueError):
    """A file that is not a readable checkpoint; its message is one line, path first."""

    def __init__(self, path: Path | str, problem: str):
        super().__init__(path, problem)

    def __str__(self) -> str:
        return as_line(f"{self.args[0]}: {self.args[1]}")


def as_line(text: str) -> str:
    """A message as one line of at most 400 letters that are safe to print.

    Messages quote names from files of strangers, which may be long or steer a terminal.

    >>> as_line("two\\nlines \\x1b[31m")
    'two lines ?[31m'
    """
    line = printable(" ".join(text.split()))
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."


def printable(text: str) -> str:
    """The text without what could steer the terminal that it is shown on."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Tensor(NamedTuple):
    """What a checkpoint says of one array, before any of it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes once read."""
        return self.size * to_dtype(self.dtype).itemsize


class LeftOut(dict[str, str]):
    """What a file holds besides tensors, and why it is not read: in names of bounded length and
    number, for those that share a long beginning take more memory than the file has bytes.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def __setitem__(self, name: str, why: str) -> None:
        if len(self) == MAX_TENSORS:
            raise CheckpointError(self.path, f"holds over {MAX_TENSORS} things that are no tensors")
        super().__setitem__(name[:MAX_NAME], why)


class Source(NamedTuple):
    """What a format module finds in a file: tensors in file order, what it leaves out and why.

    ``tied`` maps a name to an earlier one if both stand for the same elements of the file.
    """

    tensors: dict[str, Tensor]
    read: Callable[[str], np.ndarray]
    skipped: dict[str, str]
    tied: Mapping[str, str] = MappingProxyType({})


def is_dtype(name: str) -> bool:
    """Whether a name, maybe of a file's own choice, is that of a type of numbers."""
    return name in EXTRA_DTYPES or name in NUMPY_DTYPES


def to_dtype(name: str) -> np.dtype:
    """The dtype of a NumPy or ml_dtypes name, in native byte order."""
    return EXTRA_DTYPES[name] if name in EXTRA_DTYPES else np.dtype(name)


def declare(path: Path, tensors: dict[str, Tensor], name: Any, shape: Any, dtype: str) -> Tensor:
    """Enter a tensor into ``tensors``; refuse what no array can be, and a name met before."""
    if not isinstance(name, str) or not name.isprintable():
        raise CheckpointError(path, f"a tensor is named {name!r:.80}, which is not printable text")
    if len(name) > MAX_NAME:
        raise CheckpointError(path, f"the name {name!r:.40} has over {MAX_NAME} letters")
    if len(tensors) == MAX_TENSORS:
        raise CheckpointError(path, f"holds over {MAX_TENSORS} tensors")
    if name in tensors:
        raise CheckpointError(path, f"two tensors are named {name!r:.80}")
    sane = isinstance(shape, list | tuple) and len(shape) <= MAX_DIMENSIONS
    if not sane or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise CheckpointError(path, f"tensor {name!r:.80} has the impossible shape {shape!r:.80}")
    # NumPy refuses an array whose non-zero extents overflow, empty or not.
    if math.prod(max(n, 1) for n in shape) * to_dtype(dtype).itemsize >= 2**62:
        raise CheckpointError(path, f"tensor {name!r:.80} has the impossible shape {shape!r:.80}")
    tensors[name] = Tensor(name, tuple(shape), dtype)
    return tensors[name]


def beside(path: Path, name: Any) -> Path:
    """The regular file that a checkpoint at ``path`` calls ``name``, in its folder or below.

    Judged by the name alone: the caches of model hubs are symbolic links, which are followed, so
    where a file really lies proves nothing.
    """
    if not stays_inside(name):
        raise CheckpointError(path, f"names the file {name!r:.80}, which leaves its directory")
    file = path.parent / name
    if not file.is_file():
        raise CheckpointError(path, f"its part {name!r:.80} is missing")
    return file


def stays_inside(name: Any) -> bool:
    """Whether ``name``, taken in a folder, can only be something in it, on any system.

    >>> [stays_inside(name) for name in ("a.bin", "a/b:0", "//etc/passwd", "a/../../b", "C:x", "")]
    [True, True, False, False, False, False]
    """
    if not isinstance(name, str) or not PurePath(name).parts:
        return False
    places: tuple[PurePath, ...] = (PurePosixPath(name), PureWindowsPath(name))
    return not any(place.anchor or ".." in place.parts for place in places)


def fill(stream: IO[bytes], count: int, dtype: np.dtype) -> np.ndarray:
    """``count`` elements from where ``stream`` stands, with one chunk of memory besides them."""
    flat = np.empty(count, np.uint8 if dtype == np.bool_ else dtype)
    room, done = flat.view(np.uint8).data, 0
    while done < len(room):
        got = stream.readinto(room[done : done + CHUNK])  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"the file ends {len(room) - done} bytes before the tensor does")
        done += got
    # Any other byte in a boolean array is undefined behaviour in NumPy.
    return flat != 0 if dtype == np.bool_ else flat


def take(stream: IO[bytes], count: int) -> bytes:
    """Exactly ``count`` bytes."""
    parts, missing = [], count
    while missing > 0:
        part = stream.read(min(missing, CHUNK))
        if not part:
            raise EOFError(f"the file ends {missing} bytes too early")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def check_inflation(path: Path, name: str, stored: int, expanded: int) -> None:
    """Refuse a zip bomb: much memory declared by few bytes."""
    if expanded > INFLATION_MATTERS and expanded > MAX_INFLATION * stored:
        raise CheckpointError(
            path, f"{name!r:.80} would grow from {stored} to {expanded} bytes: not weights, a bomb"
        )


def check_total(path: Path, tensors: dict[str, Tensor], *others: Path) -> None:
    """Refuse a file whose tensors, each of which may pass, share or repeat what little it holds."""
    stored = sum(map(stored_bytes, {path, *others}))
    check_inflation(path, "all tensors", stored, sum(each.nbytes for each in tensors.values()))


def stored_bytes(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def open_zip(path: Path, resources: ExitStack) -> zipfile.ZipFile:
    """The archive, once its directory has been found sane."""
    archive = resources.enter_context(zipfile.ZipFile(path))
    seen = set()
    for member in archive.infolist():
        name = member.filename
        if name in seen:
            raise CheckpointError(path, f"two members of the archive are named {name!r:.80}")
        seen.add(name)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(path, f"{name!r:.80} is compressed by a method that is not read")
        stored = member.compress_type == zipfile.ZIP_STORED
        if stored and member.compress_size != member.file_size:
            raise CheckpointError(path, f"the archive contradicts itself on the size of {name!r}")
    expanded = sum(member.file_size for member in archive.infolist())
    check_inflation(path, "the archive", path.stat().st_size, expanded)
    return archive


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn what parsers say of broken bytes into a ``CheckpointError``."""
    try:
        yield
    except (CheckpointError, FileNotFoundError, PermissionError):
        raise
    except MemoryError as error:
        raise CheckpointError(path, f"does not fit in memory ({error})") from error
    except (
        ArithmeticError,
        EOFError,
        LookupError,
        NotImplementedError,  # zipfile, of features it lacks
        OSError,
        RuntimeError,  # zipfile, of encryption; and RecursionError
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        what = str(error) or type(error).__name__
        raise CheckpointError(path, f"truncated or corrupt: {what}") from error


@contextmanager
def any_failure(path: Path) -> Iterator[None]:
    """Like `one_line`, around a library whose parser may raise anything on broken bytes."""
    try:
        with one_line(path):
            yield
    except (CheckpointError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise CheckpointError(path, f"truncated or corrupt: {error}") from error
