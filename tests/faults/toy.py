"""A sweep whose blocks train in no time, in plain Python: all else of it is the real thing.

Its coordinator, executors, attempts, commits, log and tables are those of `experiments.sweep`.
Replaced are the arithmetic (`attempts.train_block`), checkpoints (Orbax writes in C++, where no
fault can be put; here they are JSON files), and what takes a second to look up: digests of code and
data, and the width. Worker processes are forked, not started.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from experiments.config import DataConfig, ExperimentConfig, TrainConfig
from experiments.errors import UserError
from experiments.runs import checkpoint
from experiments.runs.files import read_json, write_json
from experiments.sweep import attempts, machine, plan, planning, sweep
from experiments.sweep.block import Block, result_of
from experiments.sweep.executors import EXECUTORS, crew, here, waiting, worker
from experiments.sweep.executors.crew import Crew
from experiments.sweep.space import Log
from experiments.sweep.width import Layout
from tests.faults import points
from tests.faults.forked import Forked
from tests.faults.injector import KINDS, Kind
from tests.faults.oracle import compare, outputs

EPOCHS, INTERVAL, SEEDS, WIDTH = 4, 2, 2, 4
CONFIG = ExperimentConfig(
    "toy", data=DataConfig("digits", validation=100), train=TrainConfig(epochs=EPOCHS)
)
SPACE = {"optimizer.learning_rate": Log(1e-3, 1e-1, 4)}
POLL = 0.002
MACHINE = {"versions": {}, "device": "1 x toy (toy)", "dtype": "", "threads": {}}


def every_point(
    executor: str,
    folder: Path,
    *,
    kinds: Sequence[Kind] = KINDS,
    halve: str | None = None,
    stride: int = 1,
) -> Iterator[points.Point]:
    """Interrupt the sweep at each of its operations, or some; `AssertionError` where that shows."""

    def program(root: Path) -> None:
        options = {"seeds": SEEDS, "halve": halve, "executor": executor, "root": root / "runs"}
        with in_no_time(root):
            sweep.sweep(CONFIG, over=SPACE, **options)

    expected = None
    for point in points.every_point(program, folder, kinds=kinds, stride=stride):
        expected = expected or outputs(_directory(folder / "undisturbed"))
        compare(_directory(folder / "end"), expected)
        left = [*_directory(folder / "end").glob("blocks/*/attempts/*/checkpoints")]
        assert halve or not left, f"{point}: nobody needs {left} any more"
        for tries in _directory(folder / "end").glob("blocks/*/attempts"):
            assert len([*tries.iterdir()]) < 2, f"{point}: left the dead in {tries}"
        # A worker is replaced twice, and each of them may have to repeat what was not saved.
        often = 2 if executor == "local" else 4
        trained = Counter(epochs_of(folder / "end").read_text().splitlines())
        assert max(trained.values()) <= often, f"{point}: repeated {trained.most_common(1)}"
        repeated = sum(trained.values()) - len(trained)
        assert executor != "local" or repeated <= INTERVAL * WIDTH, f"{point}: {repeated} repeated"
        yield point


@contextmanager
def in_no_time(root: Path) -> Iterator[None]:
    """Replace what takes time."""
    forked = {**EXECUTORS, "processes": lambda workers, options: Crew(workers, Forked)}
    nothing: dict[str, str] = {}
    with ExitStack() as stack:
        for where, name, what in (
            (attempts, "train_block", partial(_train, root)),
            (attempts, "_inherited", _inherited),
            (checkpoint, "save", _save),
            (checkpoint, "newest", _newest),
            # Of JAX, which must not begin in a process that is forked further.
            (attempts, "machine", lambda: MACHINE),
            (machine, "machine", lambda: MACHINE),
            (machine, "session", lambda: MACHINE),
            (planning, "data_of", lambda *_: "data"),
            (planning, "code_of", lambda *_: nothing),
            (plan, "code_of", lambda *_: nothing),
            (sweep, "layout", lambda *_, **__: Layout("map", WIDTH)),
            *((module, "POLL", POLL) for module in (crew, here, waiting, worker)),
        ):
            stack.enter_context(patch.object(where, name, what))
        stack.enter_context(patch.dict(EXECUTORS, forked))
        yield


def epochs_of(root: Path) -> Path:
    """The file that has a line for each epoch of each trial that was trained, beside the sweep."""
    return root.with_name(f"{root.name}.epochs")


def _train(
    root: Path, of: Block, run: Any, stop: Any, *, inherited: Any = None, on_chunk: Any
) -> dict[str, Any]:
    """As `attempts.train_block`: a trial's weights are a digest of its whole past."""
    found = run.restore_checkpoint(None)
    drawn = [f"{trial.setting} {trial.seed}" for trial in of.trials]
    step, state = found or (of.start, drawn if inherited is None else inherited(None))
    for epoch in range(step, of.end):
        state = [hashlib.sha256(f"{weights} {epoch}".encode()).hexdigest() for weights in state]
        _note(root, [f"{trial.number} {trial.seed} {epoch}" for trial in of.trials])
        on_chunk({})
        run.record(epoch + 1, epoch + 1, {"validation/accuracy": _scores(state)})
        if (epoch + 1) % INTERVAL == 0 or stop:
            run.save_checkpoint(epoch + 1, state)
        if stop:
            raise stop.error(epoch + 1)
    if of.end < EPOCHS:
        run.save_checkpoint(of.end, state)
    return {
        "trials": [[trial.number, trial.seed] for trial in of.trials],
        "metrics": {name: values[-1] for name, (_, values) in run.history().items()},
        "diverged": [False] * len(state),
        "collapsed": [False] * len(state),
        "steps": of.end,
        "seconds": 0.0,
        "parts": [],
    }


def _scores(state: Sequence[str]) -> list[float]:
    return [int(weights[:8], 16) / 2**32 for weights in state]


def _note(root: Path, lines: Sequence[str]) -> None:
    descriptor = os.open(epochs_of(root), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())
    os.close(descriptor)


def _save(directory: Path, step: int, tree: Any, *, note: bytes = b"") -> None:
    write_json(directory / str(step), {"tree": tree, "note": note.decode()})
    for old in checkpoint.steps(directory)[: -checkpoint.KEEP]:
        (directory / str(old)).unlink()


def _newest(directories: Iterable[Path], like: Any) -> checkpoint.Restored | None:
    places = [(step, folder) for folder in directories for step in checkpoint.steps(folder)]
    for step, folder in sorted(places, reverse=True):
        try:
            stored = read_json(folder / str(step), remedy="")
        except UserError:
            continue
        if stored:
            return checkpoint.Restored(step, stored["tree"], stored["note"].encode(), folder)
    return None


def _inherited(directory: Path, of: Block, stop: Any, like: Any) -> list[str]:
    states = {}
    for parent in of.parents:
        result = result_of(directory, parent)
        assert result is not None, "parents are committed"
        folder = directory / "blocks" / parent / "attempts" / result.attempt
        found = _newest([folder / "checkpoints"], like)
        assert found is not None and found.step == of.start, f"{folder} lost its end state"
        states |= dict(zip(result.trials, found.tree, strict=True))
    return [states[trial.number, trial.seed] for trial in of.trials]


def _directory(root: Path) -> Path:
    return next((root / "runs" / CONFIG.name / "sweeps").iterdir())
