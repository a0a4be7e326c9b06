"""The command line: `python -m tests.faults --help`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from itertools import product
from pathlib import Path

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    dump_yaml,
)
from tests import faults
from tests.faults.soak import Soak

# Trials of two structures, trained in two rungs: half a minute, with checkpoints in between.
SOAKED = ExperimentConfig(
    "soaked",
    data=DataConfig("digits", batch_size=20, train_limit=400, validation=200),
    model=ModelConfig("mlp", hidden=(16,)),
    optimizer=OptimizerConfig("sgd"),
    train=TrainConfig(epochs=2000, seeds=2, measures=(), evaluate_every=50, seed_axis="map"),
)
SPACE = ("optimizer.learning_rate=log(1e-3,1e-1,4)", "model.hidden=[[16], [24]]")
HALVE = "2@1000"
# Where waiting for the disk takes no time; elsewhere, the usual place.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=faults.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    points = commands.add_parser("points", help="interrupt a toy sweep at every operation")
    points.add_argument("--stride", type=int, default=1, help="only every so manieth")
    soak = commands.add_parser("soak", help="kill a real sweep at random")
    soak.add_argument("--kills", type=int, default=200)
    soak.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the events")
    soak.add_argument("--executor", default="processes:2", help="as of sweep")
    soak.add_argument("--folder", type=Path, help="where to work, a new one; kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY) as temporary:
        return {"points": run_points, "soak": run_soak}[options.command](options, Path(temporary))


def run_points(options: argparse.Namespace, folder: Path) -> int:
    """A line per interrupted sweep, and how many there were."""
    from tests.faults import toy

    count = 0
    for executor, halve in product(("local", "processes:2"), (None, "2@1")):
        how = f"{executor}{' --halve ' + halve if halve else ''}"
        within = folder / str(count)
        for point in toy.every_point(executor, within, halve=halve, stride=options.stride):
            print(f"{how}: {point.kind} at {point.at}: {point.operation}", flush=True)
            count += 1
    print(f"{count} interrupted sweeps ended as the undisturbed one")
    return 0


def run_soak(options: argparse.Namespace, folder: Path) -> int:
    """A line per event; a failure is the `AssertionError` of the oracle."""
    print(f"seed {options.seed}", flush=True)
    experiment = folder / "experiment.yaml"
    experiment.write_text(dump_yaml(SOAKED), encoding="utf-8")
    entry = "tests.faults.impatient" if options.executor.startswith("processes") else "experiments"
    command = ["-m", entry, "sweep", str(experiment), *SPACE, "--halve", HALVE]
    command += ["--executor", options.executor]
    Soak(command, options.folder or folder, kills=options.kills, seed=options.seed).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
