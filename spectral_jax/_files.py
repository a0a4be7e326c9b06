"""Files that are whole, or not there at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def parsed(path: Path, what: str) -> Iterator[BinaryIO]:
    """The open file; whatever its parser raises of broken bytes, as ``ValueError`` naming it."""
    with path.open("rb") as file:
        try:
            yield file
        except MemoryError:
            raise
        except Exception as error:
            said = str(error) or type(error).__name__
            raise ValueError(f"{path} cannot be read as {what}: {said:.90}") from None


@contextmanager
def replacing(path: Path, *, force: bool = True) -> Iterator[Path]:
    """A new file to write, which takes the name ``path`` when the block ends well, else goes.

    Without ``force`` a file that has that name by then, whoever wrote it, stays, and it is a
    ``FileExistsError``.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield partial
        with partial.open("rb+") as file:  # or after a power cut the name could be of no bytes
            os.fsync(file.fileno())
        if not force:
            path.open("xb").close()  # takes the name, or fails if someone else did meanwhile
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
