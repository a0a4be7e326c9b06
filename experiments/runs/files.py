"""Writing files so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import FAILED, UserError

CHECKSUM = "checksum"  # the key of `write_json` for the digest of the other keys


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
            sync_directory(path.parent)
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
            if size == 0:
                sync_directory(path.parent)
        except OSError:
            os.truncate(path, size)
            raise


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, and wait until their names are on the disk."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Wait until the names in ``directory`` are on the disk: a file's own fsync leaves them out."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Wait until ``directory`` is on the disk with everything in it."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with Path(folder, name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_directory(Path(folder))


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


@contextmanager
def cannot_write_is_one_line(folder: Path) -> Iterator[None]:
    """Turn an OSError below ``--runs`` into a `UserError` that says what to do."""
    try:
        with disk_full_is_one_line(folder):
            yield
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror}; give --runs a folder you can write in"
        ) from None


def out_of_space(error: BaseException) -> bool:
    """Whether an exception is a full disk, as Python or as a library below Orbax says it."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error) or "quota exceeded" in str(error).lower()


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """The object that `write_json` put into a file; empty if there is no file.

    Raises `UserError` (2) with `remedy` where the file holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sound = isinstance(content, dict) and content.pop(CHECKSUM, None) == _checksum(content)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path} is damaged or was edited; {remedy}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object that may hold arrays and NaN as JSON, whole or not at all.

    Its checksum goes with it: a changed digit would be as good a number as the right one.
    """
    body = plain(content)
    text = json.dumps({**body, CHECKSUM: _checksum(body)}, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_json_once(path: Path, content: Mapping[str, Any]) -> None:
    """`write_json`, unless the file is there: of several processes, the first one's stays."""
    mine = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        write_json(mine, content)
        os.link(mine, path)
        sync_directory(path.parent)
    except FileExistsError:
        pass
    finally:
        mine.unlink(missing_ok=True)


def sha256_of(path: Path) -> str | None:
    """The digest of a file's content; None if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def plain(value: Any) -> Any:
    """Only what JSON has: arrays as lists, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(np.asarray(value).tolist()) if hasattr(value, "dtype") else value


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
