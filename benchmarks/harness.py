"""Timing, tables and provenance, for every suite."""

import contextlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.runs import provenance
from experiments.timing import Timing
from experiments.timing import interleaved as interleaved  # for every suite, from here

HEADER = ("what", "ours", "peer", "ratio", "target", "met?")
NOTHING = "–"
PEERS = (
    "networkx",
    "matfree",
    "scikit-learn",
    "torch",
    "curvlinops-for-pytorch",
    "PyHessian",
    "hessian-eigenthings",
    "weightwatcher",
    "optht",
    "neural_collapse",
    "ckatorch",
    "pytorch-cka",
    "stable-pretraining",
)
THREADS = (
    "OPENBLAS_NUM_THREADS=1 throughout. Comparisons with other solvers run, on both sides, with "
    "every thread of the process held to one core (sched_setaffinity); training runs on all cores."
)


class Target(NamedTuple):
    """A limit on a measured value; ``relation`` is ``<=`` or ``>=``."""

    relation: str
    limit: float

    def met(self, value: float) -> bool:
        return value <= self.limit if self.relation == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.relation} {self.limit:g}"


class Table(NamedTuple):
    title: str
    note: str
    rows: list[tuple[str, ...]]
    header: tuple[str, ...] = HEADER


def with_first(timing: Timing) -> str:
    return f"{timing} (first call {timing.first:.1f} s)"


def ratio_of(above: Timing, below: Timing) -> float:
    """Median over rounds of the two times' ratio: both were measured in the same round."""
    return float(np.median(above.wall / below.wall))


def ratio_text(above: Timing, below: Timing) -> str:
    cpu = np.median(above.cpu / np.maximum(below.cpu, 1e-9))
    return f"{ratio_of(above, below):.2f} (CPU time {cpu:.2f})"


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Hold every thread of this process, XLA's too, to one core; nothing happens off Linux."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    _bind({max(cores)})
    try:
        yield
    finally:
        _bind(cores)


def _bind(cores: set[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def row(
    what: str,
    ours: Any,
    peer: Any = NOTHING,
    ratio: str = NOTHING,
    target: Target | None = None,
    value: float | None = None,
) -> tuple[str, ...]:
    """One line under ``HEADER``; ``value`` is what the target is about."""
    met = NOTHING if target is None or value is None else "yes" if target.met(value) else "no"
    return (what, str(ours), str(peer), ratio, NOTHING if target is None else str(target), met)


def missed(table: Table) -> bool:
    return table.header == HEADER and any(cells[-1] == "no" for cells in table.rows)


def markdown(table: Table) -> str:
    """The table as text; `ValueError` for one without rows, or with a row that is too short."""
    if not table.rows or any(len(cells) != len(table.header) for cells in table.rows):
        raise ValueError(f"{table.title}: every row has {len(table.header)} cells: {table.rows}")
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"### {table.title}\n\n{table.note}\n\n{body}\n"


class Provenance:
    """The machine and the versions, and how busy it was from beginning to end."""

    def __init__(self, command: str) -> None:
        self.command, self.session = command, provenance.session()
        self.load_before = _load()

    def lines(self) -> list[str]:
        session = self.session
        changed = " with uncommitted changes" if session["git"]["diff"] else ""
        versions = session["versions"] | {name: _version(name) for name in PEERS}
        return [
            f"- command: `{self.command}`",
            f"- date: {session['started']}, commit {session['git']['commit']}{changed}",
            f"- hardware: {_processor()}, {session['cpus']} cores; JAX on {session['device']}",
            "- versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
            f"- load average (1 minute): {self.load_before} before, {_load()} after",
            f"- threads: {THREADS}",
            "- times: median [quartiles] over interleaved repetitions, without the first call, "
            "which compiles and is reported apart; a ratio is the median over rounds, with that "
            "of process CPU time as a cross-check",
        ]


def section(suite: str, what: str, tables: list[Table], provenance: Provenance) -> str:
    parts = [f"## {suite}: {what}", "\n".join(provenance.lines()), *map(markdown, tables)]
    return "\n\n".join(part.rstrip() for part in parts)


def update(path: Path, suite: str, text: str) -> None:
    """Put a suite's section in its place, or at the end if it is new."""
    title = "# Measured\n\nWritten by `python -m benchmarks`; one section per suite.\n"
    known = path.read_text(encoding="utf-8") if path.exists() else title
    opening, closing = f"<!-- suite: {suite} -->", f"<!-- end of suite: {suite} -->"
    block = f"{opening}\n{text}\n{closing}"
    pattern = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
    if pattern.search(known):
        known = pattern.sub(lambda _: block, known)
    else:
        known = f"{known.rstrip()}\n\n{block}\n"
    path.write_text(known, encoding="utf-8")


def say(what: str) -> None:
    """Progress, for whoever waits."""
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()
