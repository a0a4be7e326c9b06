"""How soon a process trains: a killed sweep's next one, and an experiment's second one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import NOTHING, Table, Target, row
from benchmarks.sweep.problem import NUMBERS, config, environment, written
from experiments.config import DataConfig, ExperimentConfig

PATIENCE = 300.0  # seconds until a process that has not trained has failed
TICK = 0.005


class Size(NamedTuple):
    """A sweep of ``trials``; an experiment of a paper, as the command line names it."""

    experiment: ExperimentConfig
    trials: int
    started: Sequence[str]


# A block takes a minute, so that its first checkpoint (after 40 s: of 40 MB) falls into it.
FULL = Size(
    config(
        DataConfig("mnist", train_limit=1000, validation=1000, test_limit=1000),
        hidden=(100,), epochs=500,
    ),
    trials=1000,
    started=("fiedler/mnist", "--preset", "small", "--arm", "fiedler"),
)  # fmt: skip
SMOKE = Size(
    config(DataConfig("digits", train_limit=500, validation=100), hidden=(4,), epochs=500),
    trials=8,
    started=("fiedler/digits", "--arm", "none", "train.seeds=1", "train.measures=[]"),
)


def resumption(size: Size) -> Table:
    """From the start of the process that goes on until the saved state of a block trains again."""
    with tempfile.TemporaryDirectory() as folder:
        root, compiled = Path(folder, "runs"), Path(folder, "xla")
        spaces = [f"{name}=log(1e-4,1e-1)" for name in NUMBERS]
        command = ["sweep", str(written(size.experiment, Path(folder))), *spaces]
        command += ["--search", f"random:{size.trials}", "--runs", str(root)]
        _until(_saved, command, root, compiled)
        again = _until(_begun, command, root, compiled)
    cells = f"{size.trials} trials", f"{again:.1f} s", NOTHING, NOTHING
    note = (
        "A sweep is killed (SIGKILL) when its first checkpoint is there. Seconds from the start of "
        "the same command, imports and data included, until it has read the state back and begins "
        "to train; compiled programs are kept."
    )
    return Table("A killed sweep back at work", note, [row(*cells, Target("<=", 5), again)])


def second_start(size: Size) -> Table:
    """From the start of `run` to the first recorded step, without and with compiled programs."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", *size.started, "train.evaluate_every=1 steps", "--runs"]
        cold, warm = (
            _until(
                _recorded, [*command, f"{folder}/{name}"], Path(folder, name), Path(folder, "xla")
            )
            for name in ("first", "second")
        )
    name, ratio = " ".join(size.started), cold / warm
    cells = f"{warm:.1f} s", f"{cold:.1f} s", f"{ratio:.1f}"
    note = (
        "Seconds from the start of the process (imports and data included) until its first step "
        "is recorded. Peer: with an empty compilation cache; ours: with the one it leaves."
    )
    return Table("Second start", note, [row(name, *cells, Target(">=", 3), ratio)])


Signs = Callable[[Path], set[Any]]


def _until(signs: Signs, command: list[str], root: Path, compiled: Path) -> float:
    """Seconds until there are signs below ``root`` that were not there; the process is killed."""
    before, began = signs(root), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "experiments", *command],
        env=environment(compiled), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not _now(signs, root) - before:
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                process.kill()
                _, said = process.communicate()
                raise RuntimeError(f"{' '.join(command)} has not begun: {said[-500:]}")
            time.sleep(TICK)
        seconds = time.perf_counter() - began
        process.kill()
        process.communicate()
    return seconds


def _now(signs: Signs, root: Path) -> set[Any]:
    try:
        return signs(root)
    except FileNotFoundError:  # a folder went while it was looked at
        return set()


def _saved(root: Path) -> set[Path]:
    """The checkpoints of all attempts."""
    return {path for path in root.rglob("checkpoints/*") if path.name.isdecimal()}


def _begun(root: Path) -> set[Path]:
    """The records of attempts; a new one begins with those of the state that it goes on from."""
    return set(root.rglob("metrics.jsonl"))


def _recorded(root: Path) -> set[tuple[Path, int]]:
    """File and step of every record after the start."""
    found = set()
    for path in root.rglob("metrics.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        steps = (json.loads(line)["step"] for line in lines if line.endswith("\n"))
        found |= {(path, step) for step in steps if step > 0}
    return found
