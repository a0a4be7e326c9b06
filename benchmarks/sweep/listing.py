"""How long one waits for the table of very many trials, and for their comparison."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.harness import NOTHING, Table, Target, row
from benchmarks.sweep.problem import config
from experiments.config import DataConfig
from experiments.sweep.log import Entry, TrialLog
from experiments.sweep.plan import Plan, write_plan
from experiments.sweep.planning import plan_of
from experiments.sweep.search import search
from experiments.sweep.space import Choice, Log, Space

PENALTIES = ("l1", "l2")
METRICS = ("validation/accuracy", "validation/loss", "test/accuracy", "test/loss")
AT_MOST = Target("<=", 2)


class Size(NamedTuple):
    """Two penalties, ``each`` strengths and as many rates, all with so many seeds."""

    each: int
    seeds: int
    rounds: int

    @property
    def trials(self) -> int:
        return len(PENALTIES) * self.each**2 * self.seeds


FULL, SMOKE = Size(25, 8, 5), Size(2, 2, 1)


def ten_thousand(size: Size) -> Table:
    """Whole processes of `sweep status` and `compare` on a log that a sweep might have written."""
    with tempfile.TemporaryDirectory() as folder:
        directory = _finished(Path(folder), size)
        calls = {
            "sweep status": ["sweep", "status", str(directory)],
            "compare": ["compare", str(directory), "--by", "penalty.name", "--baseline", "l2"],
        }
        calls["compare"] += ["--finals", "0", "--format", "md", "--out", folder]
        seconds = {
            name: [_seconds(call) for _ in range(size.rounds)] for name, call in calls.items()
        }
    rows = [
        row(f"{size.trials:,} trials: {name}", f"{np.median(all_of):.2f} s", NOTHING, NOTHING,
            AT_MOST, float(np.median(all_of)))
        for name, all_of in seconds.items()
    ]  # fmt: skip
    note = (
        f"Whole processes, imports included: the median of {size.rounds}. The log holds "
        f"{size.trials // size.seeds:,} settings of two penalties with {size.seeds} seeds each and "
        "random numbers for results."
    )
    return Table("Very many trials", note, rows)


def _finished(folder: Path, size: Size) -> Path:
    """The directory of a sweep whose every trial has ended."""
    base = config(DataConfig("digits", validation=100), hidden=(4,), epochs=1)
    over: Space = {
        "penalty.name": Choice(PENALTIES),
        "penalty.strength": Log(1e-6, 1e-3, size.each),
        "optimizer.learning_rate": Log(1e-3, 1e-1, size.each),
    }
    plan = plan_of(base, over=over, search="grid", seeds=size.seeds, objective=METRICS[0])
    plan = write_plan(folder / "sweep", replace(plan, axis="map", width=64))
    TrialLog(folder / "sweep").add(_entries(plan))
    return folder / "sweep"


def _entries(plan: Plan) -> list[Entry]:
    random = np.random.default_rng(0)
    fates = {"diverged": [0.0] * len(plan.seeds), "collapsed": [0.0] * len(plan.seeds)}
    return [
        Entry(
            round=0, rung=0, number=number, setting=dict(setting), epochs=1,
            seeds=list(plan.seeds),
            metrics={name: random.random(len(plan.seeds)).tolist() for name in METRICS} | fates,
        )
        for number, setting in enumerate(search("grid", plan.space).propose([]))
    ]  # fmt: skip


def _seconds(call: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "experiments", *call], capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(call)} failed: {done.stderr[-500:]!r}")
    return time.perf_counter() - began
