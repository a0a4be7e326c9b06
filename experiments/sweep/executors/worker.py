"""What every worker does: take a block without a result, run it, commit it, take the next.

Workers do not speak with each other. That two are at one block wastes time and spoils nothing, for
a block has one result whoever commits it; the locks below are for thrift alone.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from experiments.errors import DONE
from experiments.runs.files import disk_full_is_one_line
from experiments.runs.interruption import Preempted
from experiments.sweep.committed import committed
from experiments.sweep.executors.waiting import POLL

STALLED = 60.0  # seconds without a new file of a block before somebody idle begins it as well


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `sweep worker` takes beside a sweep's directory."""
    parser.add_argument(
        "--share", type=_share, default=(0, 1), metavar="I/N", help="begin at part I of N (from 0)"
    )
    parser.add_argument(
        "--accept-machine",
        action="store_true",
        help="although the sweep was begun where other last digits are computed",
    )
    parser.add_argument("--tied", metavar="NAME", help=argparse.SUPPRESS)


def command(options: argparse.Namespace) -> int:
    """Run blocks of a sweep until all that are there have their results.

    A worker that a coordinator started (`--tied`) waits for further blocks, and stops when that
    process ends or closes its stdin: as SIGTERM would stop it, so it saves.
    """
    from experiments.sweep.plan import accept_machines, read_plan, refuse_other_code

    plan = read_plan(options.directory)
    refuse_other_code(plan, options.directory)
    if options.accept_machine:
        accept_machines(plan, options.directory)
    if options.tied is None:
        return worker(options.directory, name=name_of_this(), share=options.share)
    _stop_with(sys.stdin.fileno())
    try:
        return worker(options.directory, name=options.tied, share=options.share, patience=math.inf)
    except Preempted:  # between two blocks
        return DONE


def name_of_this() -> str:
    """The name of a worker that nobody gave one."""
    return f"process {os.getpid()} on {platform.node()}"


def worker(
    directory: Path, *, name: str, share: tuple[int, int] = (0, 1), patience: float = 0.0
) -> int:
    """Run every block that has no result, then wait `patience` seconds for further ones.

    `name` is what a block's lock says while the worker is at it. Of `share` = (i, n), i chooses
    which block is the first: without locks, n workers would all begin with the same.
    """
    silence = Silence(directory)
    idle = 0.0
    while True:
        left = _without_result(directory, share)
        if left and run_one(directory, left, name, silence):
            continue
        idle = 0.0 if left else idle + POLL
        if idle > patience:
            return DONE
        time.sleep(POLL)


def run_one(directory: Path, blocks: Sequence[str], name: str, silence: Silence) -> bool:
    """Run the first block that nobody is at, else the first that has stalled; False if none is."""
    taken = _first(directory, blocks, name, lambda block: 0.0) or _first(
        directory, blocks, name, silence.of
    )
    if taken is None:
        return False
    block, lock = taken
    with lock:
        if not committed(directory, block):
            from experiments.sweep.attempts import run_block  # imports jax

            run_block(directory, block)
        lock.truncate(0)  # not where it failed: the coordinator reads who was at the block
    return True


def at_block(directory: Path, block: str, name: str) -> bool:
    """Whether the worker of that name is at the block, or ended while it was."""
    locks = (directory / "blocks" / block).glob(".lock*")
    return any(lock.read_text(encoding="utf-8") == name for lock in locks)


class Silence:
    """For how long the attempts at a block have written nothing.

    By the clock of this process, from its first look on: those of other machines may differ.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def of(self, block: str) -> float:
        """Seconds since a file of an attempt at the block was seen to appear or to grow."""
        now, signs = time.monotonic(), _signs(self.directory / "blocks" / block / "attempts")
        before, since = self._seen.get(block, (signs, now))
        self._seen[block] = (signs, since if signs == before else now)
        return now - self._seen[block][1]


def _first(
    directory: Path, blocks: Sequence[str], name: str, silence: Callable[[str], float]
) -> tuple[str, IO[str]] | None:
    """The first block with a place for one more worker, and the lock that keeps the place.

    There is one place, and one more for each minute of silence. Who takes that writes files, so
    of many idle workers one begins.
    """
    for block in blocks:
        for place in range(1 + int(silence(block) // STALLED)):
            lock = _locked(directory / "blocks" / block / f".lock{place or ''}", name)
            if lock is not None:
                return block, lock
    return None


def _locked(path: Path, name: str) -> IO[str] | None:
    """The file, locked until it is closed, with a name in it; None if another process holds it.

    The system lets go of a lock when its process ends, however it does.
    """
    with disk_full_is_one_line(path), ExitStack() as stack:
        stream = stack.enter_context(path.open("a+", encoding="utf-8"))
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:
            pass  # a file system without locks: every worker may have the block
        stream.truncate(0)
        stream.write(name)
        stream.flush()
        stack.pop_all()
        return stream


def _without_result(directory: Path, share: tuple[int, int]) -> list[str]:
    """The blocks to run, from the share's first one on."""
    blocks = sorted(path.parent.name for path in (directory / "blocks").glob("*/block.json"))
    first = len(blocks) * share[0] // share[1]
    return [b for b in blocks[first:] + blocks[:first] if not committed(directory, b)]


def _signs(attempts: Path) -> tuple[int, int]:
    """How many files there are, and when the newest was written; files may go meanwhile."""
    times = []
    for folder, _, names in os.walk(attempts):
        for name in names:
            with suppress(OSError):
                times.append(os.stat(os.path.join(folder, name)).st_mtime_ns)
    return len(times), max(times, default=0)


def _stop_with(pipe: int) -> None:
    """Stop this process as SIGTERM does once nobody holds the other end of a pipe.

    The coordinator need do nothing for that, so it holds however the coordinator ends. To be called
    in the main thread.
    """
    main = threading.get_ident()

    def wait() -> None:
        os.read(pipe, 1)
        signal.pthread_kill(main, signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _share(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text}: write I/N with I from 0 to N - 1, as in 0/4")
    return int(part), int(parts)
