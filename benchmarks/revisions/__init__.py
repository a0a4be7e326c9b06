"""What a change costs: the same calls in this tree and in an earlier revision of it, in turn.

The revision is ``SPECTRAL_JAX_BASE`` (default ``HEAD~1``), checked out into a folder of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import Table, Target, row, say

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).parent / "worker.py"
SLOWER = Target("<=", 1.03)


class Size(NamedTuple):
    n: int
    rounds: int
    names: tuple[str, ...] = ()  # all


FULL, SMOKE = Size(1000, 9), Size(100, 1, ("hill_alpha",))


def tables(smoke: bool) -> Iterator[Table]:
    """The one table of the suite."""
    base = "HEAD" if smoke else os.environ.get("SPECTRAL_JAX_BASE", "HEAD~1")
    with _checked_out(base) as tree:
        yield _compared(base, tree, SMOKE if smoke else FULL)


def _compared(base: str, tree: Path, size: Size) -> Table:
    with _worker(tree, size) as (ask_before, _), _worker(ROOT, size) as (ask, names):
        rows = []
        for name in names:
            say(name)
            rounds = np.array([_round(ask_before, ask, name, i) for i in range(size.rounds)])
            before, after = np.median(rounds[:, :, 0], axis=0)
            wall, cpu = np.median(rounds[:, 1] / np.maximum(rounds[:, 0], 1e-9), axis=0)
            text = f"{wall:.3f} (CPU time {cpu:.3f})"
            rows.append(
                row(name, f"{1e3 * after:.3f} ms", f"{1e3 * before:.3f} ms", text, SLOWER, cpu)
            )
    note = (
        f"Peer: the same call at {_commit(base)}. Two processes on one core, asked in turn, the "
        f"order changing; {size.rounds} rounds of calls worth 0.15 s, programs warm. A ratio is "
        "the median over rounds of this tree's time over the peer's; the target is about that of "
        "CPU time. Updates alone are without the training step around them."
    )
    return Table("This tree against an earlier revision", note, rows)


def _round(ask_before, ask, name: str, number: int) -> tuple[list[float], list[float]]:
    if number % 2:
        before = ask_before(name)
        return before, ask(name)
    after = ask(name)
    return ask_before(name), after


@contextmanager
def _worker(tree: Path, size: Size):
    """A function that times a call in a process of ``tree``, and the names that it knows."""
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(WORKER), str(size.n), *size.names]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment, cwd=tree, **pipes) as process:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})

        def answer() -> Any:
            line = process.stdout.readline()
            if not line:
                sys.exit(f"the worker of {tree} ended with code {process.wait()}: see above")
            return json.loads(line)

        def ask(name: str) -> list[float]:
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            return answer()

        try:
            yield ask, answer()
        finally:
            process.stdin.close()


@contextmanager
def _checked_out(revision: str) -> Iterator[Path]:
    """A tree of the revision, unpacked from an archive: git knows of no worktree that is left."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["git", "-C", str(ROOT), "archive", revision, "spectral_jax"]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


def _commit(revision: str) -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", revision]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
