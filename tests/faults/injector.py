"""A disk on which the k-th write, fsync, rename or link ends the process or fails.

Operations below one folder are counted, in Python: what Orbax writes in C++ is out of reach.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

Kind = Literal["die", "ENOSPC", "EIO"]
KINDS: tuple[Kind, ...] = ("die", "ENOSPC", "EIO")
OPEN = open  # that of a sound disk
DIED = 77  # the exit code of a process that was made to die


class Disk:
    """What happens at the k-th operation below ``root``; with ``at=0`` they are only counted.

    A process that is forked goes on counting from where it was forked, and has a disk of its own.

    die: the first process that comes so far is gone, with half of what it wrote on the disk.
    ENOSPC: half is written, and nothing that follows succeeds; a full disk stays full.
    EIO: one operation of the first process that comes so far fails, those after it succeed.
    """

    def __init__(self, root: Path, at: int = 0, kind: Kind = "die") -> None:
        self.root, self.at, self.kind = os.path.abspath(root), at, kind
        self.count = 0

    def fails(self, operation: str, path: Any) -> bool:
        """Count an operation on a path; whether it is one that is not to succeed."""
        path = os.path.abspath(os.fsdecode(path))
        if path != self.root and not path.startswith(self.root + os.sep):
            return False
        self.count += 1
        self.tell(f"{operation} {os.path.relpath(path, self.root)}")
        if self.kind == "ENOSPC":
            return 0 < self.at <= self.count
        return self.count == self.at and self._first()

    def fail(self) -> None:
        """End the process, or raise what the system would."""
        if self.kind == "die":
            os._exit(DIED)
        number = getattr(errno, self.kind)
        raise OSError(number, os.strerror(number))

    def tell(self, line: str) -> None:
        """Add a line to this process's list of operations, beside the folder."""
        with OPEN(f"{self.root}.done-{os.getpid()}", "a") as stream:
            stream.write(f"{line}\n")

    def _first(self) -> bool:
        try:
            os.close(os.open(f"{self.root}.struck", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


@contextmanager
def installed(disk: Disk) -> Iterator[Disk]:
    """Send this process's writing through the disk."""
    with (
        patch.object(os, "fsync", _of_descriptor(disk, "fsync", os.fsync)),
        patch.object(os, "write", _of_descriptor(disk, "write", os.write)),
        patch.object(os, "replace", _of_path(disk, "rename", os.replace)),
        patch.object(os, "rename", _of_path(disk, "rename", os.rename)),
        patch.object(os, "link", _of_path(disk, "link", os.link)),
        patch.object(io, "open", _opening(disk)),
        patch.object(builtins, "open", _opening(disk)),
    ):
        yield disk


def _of_path(disk: Disk, name: str, function: Callable) -> Callable:
    def call(source, destination, **options):
        if disk.fails(name, destination):
            disk.fail()
        return function(source, destination, **options)

    return call


def _of_descriptor(disk: Disk, name: str, function: Callable) -> Callable:
    def call(descriptor, *data):
        if disk.fails(name, os.readlink(f"/proc/self/fd/{descriptor}")):
            disk.fail()
        return function(descriptor, *data)

    return call


class _Raw(io.FileIO):
    """The lowest layer of an open file."""

    disk: Disk
    full = False

    def write(self, data, /):
        if self.full:
            self.disk.fail()
        if not self.disk.fails("write", self.name):
            return super().write(data)
        if self.disk.kind != "EIO" and self.disk.count == self.disk.at:
            written = super().write(memoryview(data)[: len(data) // 2])
            if self.disk.kind == "ENOSPC" and written:
                self.full = True  # as the kernel does: first a short write, then the error
                return written
        return self.disk.fail()


def _opening(disk: Disk) -> Callable:
    real = io.open

    def call(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **options):
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return real(file, mode, buffering, encoding, errors, newline, **options)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), **options)
        raw.disk = disk
        if buffering == 0:
            return raw
        stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding, errors, newline)

    return call
