"""A program interrupted at each of its operations on the disk, and then run to its end.

Every try is a forked process, so that dying is what it is: no ``finally`` runs, no buffer is
flushed.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.errors import UserError
from tests.faults.injector import DIED, KINDS, Disk, Kind, installed

ENDED, REFUSED, BUG = 0, 1, 70
Program = Callable[[Path], None]  # works in a folder, whatever an earlier try left there


class Point(NamedTuple):
    """Where a program was interrupted: at its k-th operation, and which that was."""

    at: int
    kind: Kind
    operation: str


def every_point(
    program: Program, folder: Path, *, kinds: Sequence[Kind] = KINDS, stride: int = 1
) -> Iterator[Point]:
    """Interrupt ``program`` at each operation, then run it to the end in ``folder / "end"``.

    Yields each point once that folder holds what the second run has left; ``folder`` /
    "undisturbed" holds what it should be. ``stride``: every so manieth operation, with the kinds in
    turn. Raises `AssertionError` if the program ends by anything but its death or one line, or does
    not end well the second time.
    """
    operations = _operations(program, folder / "undisturbed")
    for at in range(1, len(operations) + 1, stride):
        for kind in kinds if stride == 1 else (kinds[at // stride % len(kinds)],):
            point, end = Point(at, kind, operations[at - 1]), folder / "end"
            for old in folder.glob("end*"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            end.mkdir()
            code = _forked(program, end, Disk(end, at, kind))
            # It may also have lost a worker only, or could do without what failed.
            allowed = (ENDED, DIED if kind == "die" else REFUSED)
            assert code in allowed, f"{point} ended the first run with code {code}"
            code = _forked(program, end, Disk(end))
            assert code == ENDED, f"after {point} the second run ended with code {code}"
            yield point


def _operations(program: Program, folder: Path) -> list[str]:
    """What the process of an undisturbed run that does most does."""
    folder.mkdir(parents=True)
    code = _forked(program, folder, Disk(folder))
    assert code == ENDED, f"undisturbed, it ended with code {code}"
    records = [path.read_text().splitlines() for path in folder.parent.glob(f"{folder.name}.done*")]
    return max(records, key=len)


def _forked(program: Program, folder: Path, disk: Disk) -> int:
    """The exit code of a process of its own that runs the program, once all it began have ended."""
    alive, theirs = os.pipe()
    child = os.fork()
    if not child:
        code = BUG
        try:
            code = _run(program, folder, disk)
        finally:
            os._exit(code)
    os.close(theirs)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.read(alive, 1)  # returns when nobody holds the other end any more
    os.close(alive)
    return code


def _run(program: Program, folder: Path, disk: Disk) -> int:
    try:
        with installed(disk):
            program(folder)
    except (UserError, OSError) as error:
        disk.tell(f"ended by {error}")
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return BUG
    return ENDED
