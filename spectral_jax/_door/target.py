"""The files that a command is to write, checked before it computes."""

import os
from collections.abc import Sequence
from pathlib import Path


def check_target(target: str, *, inputs: Sequence[str], force: bool) -> None:
    """Refuse, before anything is computed, a file that cannot or must not be written.

    ``force`` replaces an older result, never a device or a pipe, nor what is being read.
    """
    path = Path(target)
    if not target or path.is_dir():
        raise ValueError(f"{target!r} is a folder: name a file")
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path} is no regular file: name another one")
    if path.exists() and not force:
        raise ValueError(f"{path} exists: name another file, or add --force to overwrite it")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    for place in (path, *path.resolve().parents) if path.exists() else ():
        if any(os.path.exists(each) and place.samefile(each) for each in inputs):
            raise ValueError(f"{path} is what is to be read, or in it: name another file")
