"""The engine in memory: trials of one task trained together, by studies and by ``train.train``.

    trainer = Trainer(task, optimizer)                   # optimizer(hyper) -> an Optax chain
    state = trainer.start([Trial(seed, {"learning_rate": 0.1}) for seed in range(8)])
    state = trainer.train(state, epochs=5)
    trainer.evaluate(state)["accuracy"]                  # one number per trial

A state is a pytree whose leaves have a leading axis of trials. Whatever maps states to states may
stand between two calls of ``train``: networks may be cut, numbers changed, trials repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.runs.processes import gathered
from experiments.training import blocks
from experiments.training.blocks import Trial
from experiments.training.devices import Devices, here
from experiments.training.orders import Orders, no_orders, orders
from experiments.training.program import Axis, Optimizer, Program, TrainState, evaluate, predict
from experiments.training.task import Task, Tree

# Steps between two looks at the clock, the signals and the loss.
CHUNK_STEPS = 100
PROBE_STEPS = 8
FEW = 5000  # examples: of so few the number of each is kept
Metrics = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Trainer:
    """A task and an optimiser, a function of the numbers of a trial; holds no state.

    Trainers of equal structure and the same optimiser function share their programs. So an
    optimiser is written at the top of a module, or made by a function with a cache.

    seeds: for how many different seeds at least programs are compiled.
    """

    task: Task
    optimizer: Optimizer
    axis: Axis = "map"
    seeds: int = 1
    devices: Devices | None = None

    @property
    def program(self) -> Program:
        return Program(self.task.structure, self.optimizer)

    def over(self, devices: Devices | None) -> Trainer:
        """The trainer with its data and its states on these devices; None: as it is."""
        if devices is None:
            return self
        return replace(self, task=devices.task(self.task), devices=devices)

    def start(self, trials: Sequence[Trial]) -> TrainState:
        """Every trial as its seed draws it; all have numbers of the same names."""
        names = trials[0].hyper.keys()
        for trial in trials:
            if trial.hyper.keys() != names:
                raise ValueError(
                    f"trials: hyper has {sorted(trial.hyper)} in one and {sorted(names)} in "
                    "another: give every trial the same names"
                )
        keys = jax.vmap(jax.random.key)(jnp.array([trial.seed for trial in trials], jnp.uint32))
        hyper = {
            name: jnp.array([trial.hyper[name] for trial in trials], jnp.float32) for name in names
        }
        return self.placed(self.program.init(keys, hyper))

    def restart(self, state: TrainState) -> TrainState:
        """The same weights and step with an optimiser that remembers nothing."""
        return self.program.restart(state)

    def train(
        self,
        state: TrainState,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        on_chunk: Callable[[TrainState, Metrics], Any] | None = None,
    ) -> TrainState:
        """So many more epochs or steps; the state that is given can be used again.

        ``on_chunk`` is told the state and the metrics after every chunk; it must not keep the
        state, whose memory the next chunk takes.
        """
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs={epochs}, steps={steps}: give one of them")
        left = steps if epochs is None else epochs * self.task.steps_per_epoch
        state = jax.tree.map(jnp.copy, state)
        while left:
            state, metrics, done = self.advance(state, left)
            left -= done
            if on_chunk is not None:
                on_chunk(state, metrics)
        return state

    def advance(self, state: TrainState, most: int) -> tuple[TrainState, Metrics, int]:
        """To the next chunk's end, at most so many steps on; takes the memory of ``state``.

        An epoch's last chunk ends with it. Returns how many steps were made, too.
        """
        # Batches that are drawn with replacement know no epoch.
        endless = self.task.order == "replacement"
        epoch = CHUNK_STEPS if endless else self.task.steps_per_epoch
        step = int(gathered(state.step)[0])
        steps = min(chunk_steps(epoch), epoch - step % epoch, most)
        count = len(state.key)
        state = self._filled(state)
        arguments = self.task.data["train"], self._orders(state.key, step // epoch), steps
        state, metrics = self.program.chunk(state, *arguments, self.axis, self._mesh)
        if len(state.key) > count:
            state, metrics = self.placed(blocks.cut((state, metrics), count))
        return state, gathered(metrics), steps

    def evaluate(self, state: TrainState, split: str = "test", *, dropout: bool = False) -> Metrics:
        """Mean loss and metrics per trial; ``dropout`` leaves dropout on."""
        found = self._evaluated(state, split, dropout, items=self._few(split))[0]
        return self._of_trials(found, state)

    def items(self, state: TrainState, split: str = "test", *, dropout: bool = False) -> Metrics:
        """What the numbers of `evaluate` are means of: ``[trials, examples]``."""
        return self._of_trials(self._evaluated(state, split, dropout, items=True)[1], state)

    def outputs(self, state: TrainState, split: str = "test") -> Tree:
        """What the objective sees of every example, ``[trials, n, ...]``."""
        return self._of_trials(self._apply(predict, state, split), state)

    def faster_axis(self, trials: Sequence[Trial], *, repeats: int = 4) -> Axis:
        """Which of ``map`` and ``vmap`` is faster here: the best short chunk of each."""
        state, steps = self.start(trials), min(PROBE_STEPS, self.task.steps_per_epoch)
        axes: tuple[Axis, ...] = ("map", "vmap")
        trainers = {axis: replace(self, axis=axis) for axis in axes}
        times: dict[Axis, list[float]] = {axis: [] for axis in axes}
        for _ in range(repeats + 1):
            for axis, trainer in trainers.items():
                copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))
                start = time.perf_counter()
                jax.block_until_ready(trainer.advance(copy, steps)[0])
                times[axis].append(time.perf_counter() - start)
        # The first round compiles.
        return min(axes, key=lambda axis: min(times[axis][1:]))

    def traced(self, trials: Sequence[Trial]) -> jax.stages.Traced:
        """The program that ``advance`` runs for so many trials, of shapes alone.

        The program itself is not traced again.
        """
        width, data = self.width(len(trials)), self.task.data["train"]
        lanes = [*trials, *[trials[-1]] * (width - len(trials))]
        state = jax.eval_shape(lambda: replace(self, devices=None).start(lanes))
        rows = max(self.seeds, len({trial.seed for trial in trials})), data.size
        rows = (1, 0) if self.task.order == "replacement" else rows
        orders = jax.eval_shape(lambda: Orders(jnp.zeros(rows, int), jnp.zeros(width, int)))
        return self.program.trace(state, data, orders, self.axis, self._mesh)

    def width(self, trials: int) -> int:
        """For how many trials a program is compiled that trains so many."""
        lanes = blocks.width(trials, self.axis)
        if self._mesh is None:
            return lanes
        fewest = blocks.FEWEST["map"] if self.axis == "map" else 1
        return max(fewest, -(-lanes // self._mesh.size)) * self._mesh.size

    def placed(self, state: Tree) -> Tree:
        """A state, or numbers of trials, on the devices that are to have it."""
        return state if self.devices is None else self.devices.state(state)

    def whole(self, state: TrainState) -> TrainState:
        """The state on one device, for what is not written for several."""
        return state if self.devices is None else here(state)

    def _filled(self, state: TrainState) -> TrainState:
        """The state with as many trials as the program is compiled for."""
        width = self.width(len(state.key))
        if width == len(state.key):
            return state
        fill = blocks.padded if self._mesh is None else blocks.filled
        return self.placed(fill(state, width))

    @property
    def _mesh(self) -> Mesh | None:
        """The devices that share the trials."""
        return self.devices.mesh if self.devices and self.devices.share == "trials" else None

    def _orders(self, keys: jax.Array, epoch: int) -> Orders:
        if self.task.order == "replacement":
            found = no_orders(keys)
        else:
            found = orders(keys, epoch, self.task.data["train"].size, seeds=self.seeds)
        return found if self.devices is None else self.devices.orders(found)

    def _few(self, split: str) -> bool:
        """Whether to have what the means are means of as well: `items` then has their program."""
        return self.task.data[split].size <= FEW

    def _evaluated(self, state: TrainState, split: str, dropout: bool, *, items: bool) -> Any:
        return self._apply(evaluate, state, split, dropout=dropout, items=items)

    def _apply(self, function: Callable, state: TrainState, split: str, **options: Any) -> Any:
        # Without the optimiser's state, so that arms of other optimisers share the program.
        state = self._filled(state._replace(opt_state=None))
        shared = {"task": self.task.structure, "axis": self.axis, "mesh": self._mesh}
        return function(state, self.task.data[split], **shared, **options)

    def _of_trials(self, found: Tree, state: TrainState) -> Tree:
        """What was computed, on the host, without the lanes that fill the width."""
        return jax.tree.map(lambda leaf: leaf[: len(state.key)], gathered(found))


def chunk_steps(steps_per_epoch: int) -> int:
    """The steps of a chunk: an epoch in as few equal parts of at most ``CHUNK_STEPS`` as can be."""
    parts = -(-steps_per_epoch // CHUNK_STEPS)
    return -(-steps_per_epoch // parts)
