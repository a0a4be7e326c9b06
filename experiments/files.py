"""Writing files so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import FAILED, UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it takes the name `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_full_is_one_line(path):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add one line and wait until it is on the disk; a failed write leaves the file as it was."""
    with disk_full_is_one_line(path), path.open("ab") as stream:
        size = stream.tell()
        try:
            stream.write(line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        except OSError:
            os.truncate(path, size)
            raise


@contextmanager
def disk_full_is_one_line(path: Path) -> Iterator[None]:
    """Turn the full disk's OSError into a `UserError` (1) that says what to do."""
    try:
        yield
    except OSError as error:
        if not out_of_space(error):
            raise
        raise UserError(
            f"no space left on the disk of {path}; the state saved so far is kept: "
            "free some space and run the same command again",
            FAILED,
        ) from error


def out_of_space(error: BaseException) -> bool:
    """Whether an exception is a full disk, as Python or as a library below Orbax says it."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error) or "quota exceeded" in str(error).lower()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{path} is damaged; remove {path.parent} to start again") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object that may hold arrays and NaN as JSON, whole or not at all."""
    write_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Only what JSON has: arrays as lists, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(np.asarray(value).tolist()) if hasattr(value, "dtype") else value
