"""Where blocks run. An executor places them, no more: whatever dies, nothing is lost or done twice.

    with parse("processes:2") as executor:
        for block in executor.run(directory, blocks):
            ...  # its result is there

A new one is a file beside this one, and a line here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from experiments.errors import UserError
from experiments.names import offered
from experiments.sweep.executors import here, processes, ray, slurm

SYNTAX = re.compile(r"(?P<name>[\w-]+)(:(?P<workers>\d+))?(?P<options>(,\w+=[^,=]+)*)")
WORKERS = 2  # where none are said
# Each makes an executor of a number of workers and of options, and refuses what it has not.
EXECUTORS: Mapping[str, Callable[[int, Mapping[str, Any]], Executor]] = {
    "local": here.Here,
    "processes": processes.processes,
    "slurm": slurm.slurm,
    "ray": ray.Ray,
}


class Executor(AbstractContextManager[Any], Protocol):
    """A place to run blocks in. Its workers stay until the `with` ends: then they are stopped."""

    workers: int

    def run(self, directory: Path, blocks: Sequence[str]) -> Iterator[str]:
        """Yield each id once, in any order, when its result is on the disk.

        Raises `UserError` where a block fails in every attempt, or where another attempt could
        change nothing.
        """
        ...


def parse(text: str) -> Executor:
    """The executor that `local`, `processes:2`, `ray:8` or `slurm:4,partition=gpu` means.

    It starts nothing yet. Raises `UserError` (2) that says what to type, or what to install.
    """
    words = SYNTAX.fullmatch(text)
    if words is None:
        raise UserError(f"--executor {text}: write NAME, NAME:WORKERS or NAME:WORKERS,option=value")
    name = words["name"]
    if name not in EXECUTORS:
        hint = offered(name, EXECUTORS)
        raise UserError(f"--executor {text}: no executor {name!r}{hint}")
    workers = int(words["workers"] or (1 if name == "local" else WORKERS))
    if workers < 1:
        raise UserError(f"--executor {text}: it needs a worker, as in {name}:1")
    if name != "local":
        # A process that takes most of a GPU's memory beforehand leaves none to the others.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = dict(option.split("=") for option in words["options"].split(",")[1:])
    return EXECUTORS[name](workers, {key: _number(value) for key, value in options.items()})


def _number(text: str) -> Any:
    """The number that a text is, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
