"""A block of trials while it trains into a directory: what ``train`` and sweeps steer alike.

session = Session(config, task_of(config))  # the seeds of a configuration
session.begin(run, axis="map")
session.train(run, stop)
numbers = session.final(run)  # one per trial
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from experiments.config import ExperimentConfig, to_mapping
from experiments.errors import UserError
from experiments.runs import Run, probes
from experiments.runs.interruption import Interruption
from experiments.runs.lapack import PAGE, may_deadlock
from experiments.runs.memory import granted
from experiments.runs.processes import agreed, by_first
from experiments.training import blocks, stopping, when
from experiments.training.blocks import Trial
from experiments.training.devices import devices_of
from experiments.training.measures import measures_of
from experiments.training.optimisers import (
    hyper_of,
    optimizer_of,
    refuse_what_cannot_balance,
    structure_of,
)
from experiments.training.program import Axis, TrainState, axis_here
from experiments.training.task import Task
from experiments.training.trainer import Metrics, Trainer
from models import Network
from spectral_jax._progress import progress
from spectral_jax.optim import Stop

# Between checkpoints: training that long again costs less than an Orbax checkpoint every epoch.
# A save that takes longer than SAVE_COST is made as much more rarely: saving takes 1 % at most.
SAVE_SECONDS, SAVE_COST = 2.0, 0.02
# The first one is thought to go to a common disk (bytes a second), but is not put off for long.
SAVE_RATE, FIRST_SAVE = 1e8, 300.0
HANG = f"wait for ever for decompositions of batches: see {PAGE}"


class Sizes(NamedTuple):
    """What training takes: bytes of the state of all trials, and of the data."""

    state: int
    data: int


class Final(NamedTuple):
    """How every trial ended: numbers by name, NaN for those of a trial that diverged.

    collapsed: it is no better than the majority class.
    """

    numbers: dict[str, np.ndarray]
    diverged: np.ndarray
    collapsed: np.ndarray


class Session:
    """Trials of one structure, trained together from the end of one epoch to that of another.

    config: what the trials have in common; where they differ, in numbers of `hyper_of`, it is not
      asked. Whatever ``end`` is, schedules run over ``config.train.epochs``.
    trials: without the number of their data set; by default the seeds of ``config``.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        task: Task,
        trials: Sequence[Trial] = (),
        *,
        start: int = 0,
        end: int | None = None,
    ) -> None:
        self.config, self.task = config, task
        first, sets = config.train.seed, task.data["train"].sets
        self.trials = [
            trial._replace(hyper={**trial.hyper, "set": (trial.seed - first) % sets})
            for trial in trials or seeds_of(config)
        ]
        _refuse_what_memory_cannot_hold(config, task.net, len(self.trials))
        refuse_what_cannot_balance(config, task.net)
        optimizer = optimizer_of(structure_of(config), task.net, task.steps_per_epoch)
        self.trainer = Trainer(task, optimizer).over(devices_of(config.train.shard))
        self.measure = measures_of(config, task.net)
        self.step = start * task.steps_per_epoch
        self.total = (config.train.epochs if end is None else end) * task.steps_per_epoch
        self.evaluated = self._steps("evaluate_every")
        self.measured = self._steps("measure_every")
        self.stop = _stop_of(config)
        if self.stop is not None:  # any measurement may be the last thing recorded
            self.evaluated = tuple(sorted({*self.evaluated, *self.measured}))
        self.stopped = False
        self.started = self.saved = time.monotonic()
        self.kept, self.pause = -1, SAVE_SECONDS

    @property
    def due(self) -> bool:
        """Whether something is recorded at this step."""
        return self.step in self.evaluated or self.step in self.measured

    @property
    def ended(self) -> bool:
        """Whether all epochs are over, or a measured number has ended training before."""
        return self.stopped or self.step >= self.total

    @property
    def unsaved(self) -> bool:
        """Whether an epoch has ended and the last checkpoint is some time ago."""
        ended = self.step % self.task.steps_per_epoch == 0
        return ended and time.monotonic() - self.saved >= self.pause

    @property
    def live(self) -> TrainState:
        """The state of the trials, without the lanes that fill the width."""
        return self._first(len(self.trials))

    def begin(
        self,
        run: Run,
        *,
        axis: Axis,
        width: int = 0,
        inherited: Callable[[TrainState], TrainState] | None = None,
    ) -> None:
        """The state that is saved, or the first one, recorded.

        width: for how many trials the program is compiled, if it is more than there are.
        inherited: the state where training starts, shaped like the one that it is given, if that
          is not the one that the seeds draw.
        """
        count = len(self.trials)
        self.trainer = replace(self.trainer, axis=axis)
        width = self.trainer.width(max(width, count))
        self.trainer = replace(self.trainer, seeds=min(width, self.config.train.seeds))
        lanes = [*self.trials, *self.trials[-1:] * (width - count)]
        drawn = blocks.cut(self.trainer.start(lanes), count)
        self.pause = min(FIRST_SAVE, _pause(_bytes(drawn._replace(key=())) / SAVE_RATE))
        found = run.restore_checkpoint(drawn)
        if found is not None:
            self.step, state = found
        else:
            state = drawn if inherited is None else inherited(drawn)
        self.state = self.trainer.placed(blocks.filled(state, width))
        if found is not None:
            self.stopped = self._reached(run)
        elif inherited is None:
            self.record(run, {})

    def train(
        self,
        run: Run,
        stop: Interruption,
        *,
        on_chunk: Callable[[Metrics], Any],
        show: bool = True,
    ) -> None:
        """Train to the end; `UserError` (75, 130) when asked to stop, the state saved.

        ``on_chunk`` is told the metrics of every chunk before anything is recorded or saved.
        """
        with progress(self.total, self.config.name, done=self.step, show=show) as advance:
            while not self.ended:
                before, metrics = self.step, self.advance()
                on_chunk(metrics)
                if self.due:
                    self.record(run, metrics)
                unsaved, asked = self._settled(stop)
                if unsaved or asked:
                    self.save(run)
                if asked:
                    raise stop.error(self.step)
                advance(self.step - before, note=_note(metrics))

    def _settled(self, stop: Interruption) -> tuple[bool, bool]:
        """Whether to save, and whether to stop: of several processes all do, or none."""
        answers = agreed(self.unsaved, stop.number or 0)
        asked = int(answers[:, 1].max())
        if asked:
            stop.number = stop.number or asked
        return bool(answers[0, 0]), bool(asked)

    def advance(self) -> Metrics:
        """Train to the next chunk's end, or to the next record."""
        stops = {self.total, *self.evaluated, *self.measured}
        most = min(stop for stop in stops if stop > self.step) - self.step
        self.state, metrics, done = self.trainer.advance(self.state, most)
        self.step += done
        return self._of_trials(metrics)

    def save(self, run: Run) -> None:
        """Keep the state as it is, if this session has not done so."""
        if self.kept == self.step:
            return
        begun = time.monotonic()
        run.save_checkpoint(self.step, self.live)
        self.kept, self.saved = self.step, time.monotonic()
        self.pause = _pause(self.saved - begun)

    def record(self, run: Run, chunk_metrics: Metrics) -> None:
        """Evaluate and measure the state as it is, and append it to the run's history."""
        metrics: dict[str, Any] = dict(chunk_metrics)
        if self.step in self.evaluated:
            for split in ("validation", "test"):
                if split in self.task.data:
                    metrics |= self._evaluate(split)
        if self.step in self.measured:
            taken = self.measure(self.trainer.whole(self._lanes(axis_here())), self.task.data)
            scalars, arrays = self._of_trials(taken)
            metrics |= scalars
            if arrays:
                run.save_array(f"vectors-{self.step:08d}", **arrays)
        epoch = self.step / self.task.steps_per_epoch
        run.record(self.step, epoch, jax.tree.map(np.asarray, metrics))
        if self.step in self.measured:
            self.stopped = self._reached(run)

    def final(self, run: Run) -> Final:
        """The last of everything recorded, and what the training set says at the end."""
        final = {name: values[-1] for name, (_, values) in run.history().items()}
        final |= {f"final_{name}": value for name, value in self._evaluate("train").items()}
        if self.config.model.dropout:
            left_on = self._evaluate("test", dropout=True)["test/accuracy"]
            final["final_test_dropout_on/accuracy"] = left_on
        finite = np.isfinite(final["final_train/loss"])
        stuck = np.asarray(final["final_train/accuracy"]) <= _most_common(self.task) + 0.01
        numbers = {name: np.where(finite, value, np.nan) for name, value in final.items()}
        return Final(numbers, ~finite, finite & stuck)

    def items(self, diverged: np.ndarray) -> Metrics:
        """Which test examples each trial gets right; one that diverged has no numbers."""
        dropout = "dropout_at_eval" in self.config.paper_compat
        items = self.trainer.items(self._lanes(self.trainer.axis), dropout=dropout)
        return {
            f"test/{metric}": np.where(diverged[:, None], np.nan, values)
            for metric, values in self._of_trials(items).items()
            if metric != "loss"
        }

    def sizes(self) -> Sizes:
        """What training takes, before anything is allocated for it."""
        state = jax.eval_shape(lambda: self.trainer.start(self.trials))
        return Sizes(_bytes(state._replace(key=())), _bytes(self.task.data))

    def choose_axis(self, log: Callable[[str], None]) -> Axis:
        """The one that is configured, or the faster one, if it cannot hang; what is odd is logged.

        The two sum in different orders, so it is chosen once, and kept with the numbers.
        """
        wanted = self.config.train.seed_axis
        if wanted == "auto":
            wanted = self._known_axis() or "auto"
        if wanted in ("auto", "vmap") and self._may_deadlock("vmap"):
            log(f"{self.config.name}: seeds are trained in turn: side by side could {HANG}")
            wanted = "map"
        chosen = self._faster_axis() if wanted == "auto" else wanted
        if chosen == "map" and self._may_deadlock("map"):
            log(f"warning: {self.config.name} could {HANG}")
        return chosen

    def _may_deadlock(self, axis: Axis) -> bool:
        trainer = replace(self.trainer, axis=axis)
        answer = may_deadlock(lambda: trainer.traced(self.trials).lower())
        return by_first(lambda: answer)

    def _known_axis(self) -> Axis | None:
        """The faster one, where that need not be tried: programs of two axes take long to trace."""
        if len(self.trials) == 1:
            return "map"
        answer = by_first(lambda: probes.answered(self._shape))
        return cast(Axis | None, answer)

    def _faster_axis(self) -> Axis:
        """Time a few steps of both; arms of the same shape share the answer."""
        answer = self.trainer.faster_axis(self.trials)
        chosen = by_first(lambda: answer)
        probes.keep(self._shape, chosen)
        return chosen

    @property
    def _shape(self) -> list[Any]:
        """What decides which axis is the faster one."""
        config = to_mapping(self.config)
        optimizer, share = config["optimizer"]["name"], config["train"]["shard"]
        shape = [config["data"], config["model"], optimizer, share, len(self.trials)]
        return ["which axis is faster", *shape]

    def _reached(self, run: Run) -> bool:
        # Of training batches nothing is known before the first.
        if self.stop is None or (self.step == 0 and self.stop.name.startswith("train/")):
            return False
        return stopping.reached(self.stop, run.history())

    def _steps(self, key: str) -> tuple[int, ...]:
        per_epoch = self.task.steps_per_epoch
        every = when.parse(f"train.{key}", getattr(self.config.train, key))
        planned = every.steps(self.config.train.epochs * per_epoch, per_epoch)
        return (*(step for step in planned if self.step <= step < self.total), self.total)

    def _evaluate(self, split: str, *, dropout: bool = False) -> Metrics:
        dropout = dropout or "dropout_at_eval" in self.config.paper_compat
        lanes = self._lanes(self.trainer.axis)
        values = self._of_trials(self.trainer.evaluate(lanes, split, dropout=dropout))
        return {f"{split}/{metric}": value for metric, value in values.items()}

    def _lanes(self, axis: Axis) -> TrainState:
        """What is measured: side by side the width decides the last digits, so all of it."""
        if axis == "vmap":
            return self.state
        return self._first(max(len(self.trials), blocks.FEWEST["map"]))

    def _first(self, lanes: int) -> TrainState:
        return self.state if lanes >= len(self.state.key) else blocks.cut(self.state, lanes)

    def _of_trials(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[: len(self.trials)], tree)


def _pause(cost: float) -> float:
    """Seconds between two checkpoints of which each takes ``cost``."""
    return SAVE_SECONDS * max(1.0, cost / SAVE_COST)


def seeds_of(config: ExperimentConfig) -> list[Trial]:
    """The trials of a configuration: its seeds."""
    first, count = config.train.seed, config.train.seeds
    return [Trial(seed, hyper_of(config)) for seed in range(first, first + count)]


def _stop_of(config: ExperimentConfig) -> Stop | None:
    """The number that ends training early; `UserError` (2) if it is one of the test set."""
    if config.train.stop is None:
        return None
    stop = stopping.parse(config.train.stop)
    of_test = stop.name.startswith("test/")
    if of_test or ("/unseen/" in stop.name and not config.data.validation):
        raise UserError(
            f"train.stop = {config.train.stop!r} ends training by the test set, which then says "
            "nothing about other data: set data.validation, and stop by that"
        )
    return stop


def _refuse_what_memory_cannot_hold(config: ExperimentConfig, net: Network, trials: int) -> None:
    """Parameters, gradients and momentum of all trials, against the memory of this process."""
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    needed = 3 * trials * _bytes(params)
    available = granted()
    if needed > available:
        raise UserError(
            f"model.hidden, model.width or train.seeds: {trials} networks of "
            f"{config.model.name} need {needed / 2**30:,.0f} GiB to train, this machine has "
            f"{available / 2**30:,.0f}"
        )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _most_common(task: Task) -> float:
    """The share of the majority class, in the first set of training examples."""
    labels = np.asarray(task.data["train"].examples["y"][: task.data["train"].size])
    return np.bincount(labels).max() / len(labels)


def _note(metrics: Metrics) -> str:
    losses = metrics["train/loss"]
    return f"loss {np.nanmean(losses):.3f}" if np.isfinite(losses).any() else "all diverged"
