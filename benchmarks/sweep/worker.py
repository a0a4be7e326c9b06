"""What is timed as a whole process, from nothing.

    python -m benchmarks.sweep.worker sweep EXPERIMENT.yaml FOLDER EACH
    python -m benchmarks.sweep.worker arms EXPERIMENT.yaml FOLDER EACH COUNT

The first trains all trials of the space; the second the first COUNT of them, one after the other.
Prints as JSON what was compiled, and when each arm was done.
"""

import json
import sys
import time
from pathlib import Path

import jax

from benchmarks.sweep.problem import space
from experiments.config import load_yaml
from experiments.sweep.search import search
from experiments.sweep.space import configure
from experiments.sweep.sweep import sweep
from experiments.training.train import train


def all_at_once(experiment: str, folder: str, each: str) -> list[float]:
    found = sweep(load_yaml(experiment), over=space(int(each)), root=folder)
    print(found.table.text(), file=sys.stderr)
    return []


def one_by_one(experiment: str, folder: str, each: str, count: str) -> list[float]:
    base, done = load_yaml(experiment), []
    for setting in search("grid", space(int(each))).propose([])[: int(count)]:
        arm = configure(base, setting)
        train(arm, root=Path(folder), argv=sys.argv)
        done.append(time.monotonic())
    return done


def main(task: str, *arguments: str) -> None:
    compiled: list[str] = []

    def listen(event: str, duration: float, **about: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    done = {"sweep": all_at_once, "arms": one_by_one}[task](*arguments)
    print(json.dumps({"compiled": compiled, "done": done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
