"""Networks that differ in numbers only, trained by one program: seeds, rates, penalties, logits.

    task = make_task("mnist", hidden=(300, 300), train_limit=5_000, batch_size=128)
    state = task.start([Member(seed, 0.08, relu) for relu in (False, True) for seed in range(8)])
    state = task.train(state, epochs=5)
    task.assess(state)                      # accuracies and dead classes, one number per member

A weight that is exactly 0 stays 0. So a mask needs no mask, and factors padded with zeros to a
common rank train as the smaller ones that they are: whatever the ranks, programs are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments import data as datasets
from experiments.runs import Run
from experiments.runs.study import study
from experiments.training.blocks import Trial
from experiments.training.optimisers import elastic_net, zeros_stay
from experiments.training.program import Axis, TrainState
from experiments.training.task import classification
from experiments.training.trainer import Trainer
from models.factored import factored
from spectral_jax import prune

Tree = Any


class Member(NamedTuple):
    """What tells a network of an arm from the others.

    relu: a ReLU on the logits, as the papers define their networks.
    l1, l2: penalties ``l1 |w| + l2 w^2 / 2`` on every parameter.
    """

    seed: int
    learning_rate: float
    relu: bool = False
    l1: float = 0.0
    l2: float = 0.0


@dataclass(frozen=True)
class Task:
    """Data, network and program; equal options give the same one, so compiled code is shared."""

    trainer: Trainer
    sha256: str

    def start(self, members: Sequence[Member]) -> TrainState:
        """Every member as its seed draws it."""
        trials = [
            Trial(one.seed, {"learning_rate": one.learning_rate, "l1": one.l1, "l2": one.l2,
                             "relu_logits": float(one.relu)})
            for one in members
        ]  # fmt: skip
        return self.trainer.start(trials)

    def train(self, state: TrainState, epochs: int) -> TrainState:
        """So many more epochs; the state that is given can be used again."""
        return self.trainer.train(state, epochs=epochs)

    def restart(self, state: TrainState) -> TrainState:
        """The same weights with an optimiser that remembers nothing."""
        return self.trainer.restart(state)

    def assess(self, state: TrainState) -> dict[str, np.ndarray]:
        """Accuracy in percent on each split, and the classes never answered on the test split."""
        found = {
            f"{split} accuracy": 100 * self.trainer.evaluate(state, split)["accuracy"].astype(float)
            for split in self.trainer.task.data
        }
        dead = jax.vmap(prune.dead_classes)(self.trainer.outputs(state)).sum(axis=-1)
        return found | {"dead classes": np.asarray(dead, float)}


@cache
def make_task(
    dataset: str,
    *,
    train_limit: int | None,
    validation: int = 0,
    batch_size: int,
    momentum: float = 0.9,
    decay: tuple[float, int] = (1.0, 1),
    model: str = "mlp",
    hidden: tuple[int, ...] = (),
    seed_axis: Axis = "map",
) -> Task:
    """``decay``: rates are multiplied by the first every so many (the second) epochs."""
    found = datasets.load(dataset, preprocessing="unit")
    splits = datasets.prepare(found, train_limit=train_limit, validation=validation)
    sizes = {"hidden": hidden} if hidden else {}
    net = factored(model, input_shape=found.train_x.shape[1:], classes=found.classes, **sizes)
    task = classification(dataset, found, splits, net, batch_size=batch_size)
    optimizer = _optimizer(momentum, decay, task.steps_per_epoch)
    return Task(Trainer(task, optimizer, seed_axis), found.sha256)


@cache
def _optimizer(momentum: float, decay: tuple[float, int], steps_per_epoch: int) -> Any:
    falling = optax.exponential_decay(1.0, decay[1] * steps_per_epoch, decay[0], staircase=True)

    def optimizer(hyper: Mapping[str, jax.Array]) -> optax.GradientTransformation:
        return optax.chain(
            elastic_net(hyper["l1"], hyper["l2"]),
            optax.trace(momentum),
            optax.scale_by_learning_rate(hyper["learning_rate"]),
            optax.scale_by_schedule(falling),
            zeros_stay(),
        )

    return optimizer


def trained_study(
    name: str, measure: Callable[..., Mapping[str, Any]], options: Mapping[str, Any], root: Any
) -> Run:
    """A study of networks that it trains on ``options["dataset"]``, made or found."""
    sha256 = datasets.load(options["dataset"], preprocessing="unit").sha256
    return study(f"rmt_svd/{name}", measure, options=options, root=root, data_sha256=sha256)


def in_turn(function: Callable[..., Tree], *trees: Tree) -> Tree:
    """``function`` of every member, one after the other, and done when this returns.

    For whatever calls LAPACK: side by side, as under ``vmap``, such calls can wait for each other
    for ever on jaxlib's CPU thread pool (seen with 0.10.2; cf. jax#36927).
    """
    return jax.block_until_ready(_in_turn(function, trees))


@partial(jax.jit, static_argnums=0)
def _in_turn(function: Callable[..., Tree], trees: tuple[Tree, ...]) -> Tree:
    return jax.lax.map(lambda given: function(*given), trees)
