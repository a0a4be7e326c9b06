"""Networks that studies train in memory: dense, of the initial weights of protocol ``p1``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments import data as datasets
from experiments.config import ExperimentConfig, OptimizerConfig
from experiments.papers.feature_map.protocols import GAIN
from experiments.training import when
from experiments.training.optimisers import optimizer_of, structure_of
from experiments.training.program import TrainState
from experiments.training.task import OBJECTIVES, Data, Task
from experiments.training.trainer import Trainer
from models import Network, network

Tree = Any


@cache
def dense(shape: tuple[int, ...], hidden: tuple[int, ...], classes: int) -> Network:
    """ReLU layers of these widths; the same widths give the same functions, and programs."""
    return network("mlp", input_shape=shape, classes=classes, hidden=hidden, gain=GAIN)


def trainer(
    net: Network, data: Mapping[str, Data], *, batch: int, optimizer: OptimizerConfig
) -> Trainer:
    """Squared error on one-hot labels; numbers of the optimiser are those of the trials."""
    task = Task("feature_map", net, OBJECTIVES["mse"], data, sha256="", batch_size=batch)
    # Nothing here has a schedule, which alone would ask how many steps an epoch has.
    structure = structure_of(ExperimentConfig("feature_map", optimizer=optimizer))
    return Trainer(task, optimizer_of(structure, net, 1))


class Images(NamedTuple):
    """A data set with pixels from 0 to 1."""

    x: Float[np.ndarray, "n ..."]
    y: Int[np.ndarray, " n"]
    test_x: Float[np.ndarray, "m ..."]
    test_y: Int[np.ndarray, " m"]
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.x.shape[1:]


def images(name: str) -> Images:
    """A registered data set."""
    found = datasets.load(name, preprocessing="unit")
    x, test_x = (part * found.scale for part in (found.train_x, found.test_x))
    return Images(x, found.train_y, test_x, found.test_y, found.classes)


def split(x: np.ndarray, y: np.ndarray) -> Data:
    """Examples as a network sees them, and their labels."""
    as_they_are = {"shift": jnp.zeros(()), "scale": jnp.ones(())}
    return Data({"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y)}, as_they_are)


def checkpoints(
    trainer: Trainer, state: TrainState, *, epochs: int, count: int
) -> Iterator[tuple[int, TrainState]]:
    """The state at log-spaced steps, the first and the last included."""
    per_epoch = trainer.task.steps_per_epoch
    for step in when.log_spaced(count).steps(epochs * per_epoch, per_epoch):
        ahead = step - int(state.step[0])
        state = trainer.train(state, steps=ahead) if ahead else state
        yield step, state


def each(tree: Tree) -> list[Tree]:
    """What belongs to each trial, of a tree whose leaves have a leading axis of trials."""
    count = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(itemgetter(i), tree) for i in range(count)]


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """An array over seeds for every number that they all have."""
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}
