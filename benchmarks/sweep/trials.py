"""All trials in one program, against one at a time; and against the program alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import Table, Target, interleaved, ratio_of, ratio_text, row
from benchmarks.sweep.problem import config, environment, space, written
from experiments.config import DataConfig, ExperimentConfig
from experiments.errors import CHECK_FAILED, DONE
from experiments.sweep.search import search
from experiments.sweep.space import Space, configure
from experiments.sweep.sweep import sweep
from experiments.training.loading import task_of
from experiments.training.session import Session, seeds_of

TRAINING = ("_compiled", "_single")  # the methods of `Program` that train


class Size(NamedTuple):
    """``each`` cubed trials; how many of them are measured as processes, and in turn as arms."""

    experiment: ExperimentConfig
    each: int
    processes: int
    arms: int
    rounds: int
    epochs: int  # of the long training beside which the machinery is seen


FULL = Size(
    config(
        DataConfig("mnist", train_limit=5000, validation=1000, test_limit=1000),
        hidden=(100,), epochs=5,
    ),
    each=4, processes=4, arms=12, rounds=3, epochs=30,
)  # fmt: skip
SMOKE = Size(
    config(DataConfig("digits", train_limit=100, validation=100), hidden=(4,), epochs=1),
    each=2, processes=0, arms=2, rounds=1, epochs=1,
)  # fmt: skip


def against_loops(size: Size) -> Table:
    """From a cold process to the table, against a process per trial and a loop in one process."""
    trials = size.each**3
    with tempfile.TemporaryDirectory() as folder:
        path = written(size.experiment, Path(folder))
        ours, compiled = _all_at_once(path, size)
        processes = _processes(path, size)
        arms = _arms(path, size)
    programs = sum(any(name in each for name in TRAINING) for each in compiled)
    several, loop = trials * np.mean(processes), arms[0] + (trials - 1) * np.mean(arms[1:])
    what = f"{size.experiment.data.name}, {trials} trials"
    rows = [
        row(f"{what}: training programs compiled", programs, "", "", Target("<=", 1), programs),
        _row(f"{what}; peer: a `run` process each", ours, several, Target(">=", 5)),
        _row(f"{what}; peer: `train` of each, one process", ours, loop, Target(">=", 2)),
    ]
    note = (
        f"Whole processes, each side with an empty compilation cache of its own, which it keeps: "
        f"imports, data, compilation, training and files until the table is printed. Of the peers, "
        f"{size.processes} of {trials} `python -m experiments run` processes are measured (the "
        f"second and later ones, which find compiled programs) and {size.arms} arms of the loop, "
        "and scaled to all; the first arm counts once. A ratio is the peer's time over ours."
    )
    return Table("Trials together against one at a time", note, rows)


def machinery(size: Size) -> Table:
    """A sweep whose programs are compiled, against the same states trained without a file."""
    base = replace(size.experiment, train=replace(size.experiment.train, epochs=size.epochs))
    with tempfile.TemporaryDirectory() as folder:
        places = (Path(folder, str(place)) for place in count())
        calls = {
            "ours": lambda: sweep(base, over=space(size.each), root=next(places)),
            "bare": lambda: _bare(base, space(size.each)),
        }
        times = interleaved(calls, repeats=size.rounds)
    ours, bare = times["ours"], times["bare"]
    ratio = ratio_of(ours, bare)
    what = f"{base.data.name}, {size.each**3} trials, {size.epochs} epochs"
    note = (
        "A whole `sweep(...)` in a process that has trained the same programs: plan, blocks, "
        "checkpoints, results, log, tables. Peer: `Trainer.train` of the same states epoch by "
        "epoch, and `evaluate` of what a sweep evaluates: validation and test examples before and "
        "after each epoch, the training examples at the end. No files."
    )
    rows = [row(what, ours, bare, ratio_text(ours, bare), Target("<=", 1.03), ratio)]
    return Table("What the machinery costs", note, rows)


def _bare(base: ExperimentConfig, over: Space) -> None:
    arms = [configure(base, setting) for setting in search("grid", over).propose([])]
    session = Session(base, task_of(base), [trial for arm in arms for trial in seeds_of(arm)])
    trainer = replace(session.trainer, axis="map")
    state = trainer.start(session.trials)
    for epoch in range(base.train.epochs + 1):
        state = trainer.train(state, epochs=1) if epoch else state
        trainer.evaluate(state, "validation")
        trainer.evaluate(state, "test")
    trainer.evaluate(state, "train")


def _row(what: str, ours: float, peer: float, target: Target) -> tuple[str, ...]:
    return row(what, f"{ours:.1f} s", f"{peer:.1f} s", f"{peer / ours:.1f}", target, peer / ours)


def _all_at_once(path: Path, size: Size) -> tuple[float, list[str]]:
    began = time.perf_counter()
    told = _worker("sweep", path, path.parent / "together", size.each)
    return time.perf_counter() - began, told["compiled"]


def _arms(path: Path, size: Size) -> list[float]:
    """Seconds of each arm; of the first with the process's start."""
    began = time.monotonic()
    told = _worker("arms", path, path.parent / "arms", size.each, size.arms)
    return [after - before for before, after in pairwise([began, *told["done"]])]


def _processes(path: Path, size: Size) -> list[float]:
    """Seconds of each process but the first, which compiles; of that one where it is alone."""
    settings = search("grid", space(size.each)).propose([])[: size.processes + 1]
    seconds = []
    for setting in settings:
        words = [f"{name}={value}" for name, value in setting.items()]
        call = ["-m", "experiments", "run", str(path), "--runs", str(path.parent / "runs"), *words]
        began = time.perf_counter()
        _run(call, path.parent / "xla-runs")
        seconds.append(time.perf_counter() - began)
    return seconds[1:] or seconds


def _worker(task: str, path: Path, folder: Path, *numbers: int) -> Any:
    call = ["-m", "benchmarks.sweep.worker", task, str(path), str(folder), *map(str, numbers)]
    return json.loads(_run(call, path.parent / f"xla-{task}"))


def _run(call: list[str], compiled: Path) -> str:
    done = subprocess.run(
        [sys.executable, *call], env=environment(compiled), capture_output=True, text=True
    )
    if done.returncode not in (DONE, CHECK_FAILED):  # the latter: a trial came to nothing
        raise RuntimeError(f"{' '.join(call)} failed: {done.stderr[-500:]}")
    return done.stdout
