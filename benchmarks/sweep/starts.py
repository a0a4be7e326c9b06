"""How soon a process trains: a killed sweep's next one, and an experiment's second one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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


# A block takes seconds, so that the kill falls into one.
FULL = Size(
    config(
        DataConfig("mnist", train_limit=1000, validation=1000, test_limit=1000),
        hidden=(100,), epochs=50,
    ),
    trials=1000,
    started=("fiedler/mnist", "--preset", "small", "--arm", "fiedler"),
)  # fmt: skip
SMOKE = Size(
    config(DataConfig("digits", train_limit=500, validation=100), hidden=(4,), epochs=500),
    trials=8,
    started=("fiedler/digits", "--arm", "l1", "train.seeds=2"),
)


def resumption(size: Size) -> Table:
    """From the start of the process that goes on to the first numbers it records of training."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        path = written(size.experiment, Path(folder))
        spaces = [f"{name}=log(1e-4,1e-1)" for name in NUMBERS]
        command = ["sweep", str(path), *spaces, "--search", f"random:{size.trials}"]
        command += ["--runs", str(root)]
        first = _until_trained(command, root, Path(folder) / "xla")
        again = _until_trained(command, root, Path(folder) / "xla")
    cells = f"{size.trials} trials", f"{again:.1f} s", f"{first:.1f} s", NOTHING
    note = (
        "Seconds until the first epoch's numbers of a block are on the disk. Ours: after the sweep "
        "was killed (SIGKILL) in that block; the same command again, compiled programs kept. Peer: "
        "its first start, with an empty compilation cache."
    )
    return Table("A killed sweep back at work", note, [row(*cells, Target("<=", 5), again)])


def second_start(size: Size) -> Table:
    """From the start of `run` to the first recorded step, without and with compiled programs."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", *size.started, "train.evaluate_every=1 steps", "--runs"]
        cold, warm = (
            _until_trained([*command, f"{folder}/{name}"], Path(folder, name), Path(folder, "xla"))
            for name in ("first", "second")
        )
    name, ratio = " ".join(size.started), cold / warm
    cells = f"{warm:.1f} s", f"{cold:.1f} s", f"{ratio:.1f}"
    note = (
        "Seconds from the start of the process (imports and data included) until its first step "
        "is recorded. Peer: with an empty compilation cache; ours: with the one it leaves."
    )
    return Table("Second start", note, [row(name, *cells, Target(">=", 3), ratio)])


def _until_trained(command: list[str], root: Path, compiled: Path) -> float:
    """Seconds until a process has recorded a step of its own; then it is killed."""
    before, began = _recorded(root), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "experiments", *command],
        env=environment(compiled), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not _recorded(root) - before:
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                process.kill()
                _, said = process.communicate()
                raise RuntimeError(f"{' '.join(command)} trained nothing: {said[-500:]}")
            time.sleep(TICK)
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return seconds


def _recorded(root: Path) -> set[tuple[str, int]]:
    """File and step of every record after the start."""
    found = set()
    with suppress(FileNotFoundError):  # a block that is committed loses its other attempts
        for path in root.rglob("metrics.jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            steps = (json.loads(line)["step"] for line in lines if line.endswith("\n"))
            found |= {(str(path), step) for step in steps if step > 0}
    return found
