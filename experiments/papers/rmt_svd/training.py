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
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import data as datasets
from experiments.loop import Apply, Data, Program, SeedAxis, TrainState, accuracy, normalise
from experiments.runs import Run
from experiments.runs.study import study
from models import Network
from models.factored import factored
from spectral_jax import prune

Tree = Any
# What members differ in and the optimiser reads.
_NUMBERS = ("learning_rate", "l1", "l2")


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

    net: Network
    program: Program
    data: Mapping[str, Data]
    sha256: str
    seed_axis: SeedAxis

    def start(self, members: Sequence[Member]) -> TrainState:
        """Every member as its seed draws it."""
        keys = jax.vmap(jax.random.key)(jnp.array([member.seed for member in members]))
        state = self.program.init(self.net.init, keys)
        numbers = {
            name: jnp.array([getattr(member, name) for member in members], jnp.float32)
            for name in _NUMBERS
        }
        relu = jnp.array([member.relu for member in members])
        return state._replace(
            opt_state=optax.tree.set(state.opt_state, **numbers),
            model_state={**state.model_state, "relu": relu},
        )

    def train(self, state: TrainState, epochs: int) -> TrainState:
        """So many more epochs; the state that is given can be used again."""
        steps = self.program.steps_per_epoch
        state = jax.tree.map(jnp.copy, state)
        for _ in range(epochs):
            state, _ = self.program.chunk(state, self.data["train"], steps, self.seed_axis)
        return state

    def restart(self, state: TrainState) -> TrainState:
        """The same weights with an optimiser that remembers nothing."""
        fresh = jax.vmap(self.program.optimizer.init)(state.params)
        kept = {name: optax.tree.get(state.opt_state, name) for name in _NUMBERS}
        return state._replace(opt_state=optax.tree.set(fresh, **kept))

    def assess(self, state: TrainState) -> dict[str, np.ndarray]:
        """Accuracy in percent on each split, and the classes never answered on the test split."""
        found: dict[str, list[float]] = {}
        for member in range(len(state.key)):
            params, kept = jax.tree.map(itemgetter(member), (state.params, state.model_state))
            for split, data in self.data.items():
                hits, dead = _assess(params, kept, data, apply=self.net.apply)
                found.setdefault(f"{split} accuracy", []).append(100 * float(hits))
                if split == "test":
                    found.setdefault("dead classes", []).append(float(dead))
        return {name: np.array(values) for name, values in found.items()}


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
    seed_axis: SeedAxis = "map",
) -> Task:
    """``decay``: rates are multiplied by the first every so many (the second) epochs."""
    found = datasets.load(dataset, preprocessing="unit")
    splits = datasets.prepare(found, train_limit=train_limit, validation=validation)
    sizes = {"hidden": hidden} if hidden else {}
    shape = found.train_x.shape[1:]
    net = _switchable(factored(model, input_shape=shape, classes=found.classes, **sizes))
    arrays = {
        "train": (splits.train_x, splits.train_y),
        "validation": (splits.validation_x, splits.validation_y),
        "test": (splits.test_x, splits.test_y),
    }
    data = {name: on_device(found, x, y) for name, (x, y) in arrays.items() if len(y)}
    steps = len(splits.train_y) // batch_size
    falling = optax.exponential_decay(1.0, decay[1] * steps, decay[0], staircase=True)
    optimizer = optax.chain(
        optax.inject_hyperparams(_penalised)(l1=0.0, l2=0.0),
        optax.trace(momentum),
        optax.inject_hyperparams(optax.scale_by_learning_rate)(0.0),
        optax.scale_by_schedule(falling),
        optax.stateless(_zeros_stay),
    )
    program = Program(net.apply, optimizer, batch_size, len(splits.train_y))
    return Task(net, program, data, found.sha256, seed_axis)


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


def on_device(dataset: datasets.Dataset, x: np.ndarray, y: np.ndarray) -> Data:
    """Examples of the data set as programs take them."""
    return Data(*map(jnp.asarray, (x, y, dataset.shift, dataset.scale)))


def _switchable(net: Network) -> Network:
    """The network, whose state says whether a ReLU is on its logits."""

    def init(key):
        params, state = net.init(key)
        return params, {"net": state, "relu": jnp.array(False)}

    def apply(params, state, x, *, train=False, key=None):
        logits, kept = net.apply(params, state["net"], x, train=train, key=key)
        logits = jnp.where(state["relu"], jax.nn.relu(logits), logits)
        return logits, {"net": kept, "relu": state["relu"]}

    return net._replace(init=init, apply=apply)


def _penalised(l1: Any, l2: Any) -> optax.GradientTransformation:
    def add(update, param):
        return update + l1 * jnp.sign(param) + l2 * param

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params))


def _zeros_stay(updates: Tree, params: Tree) -> Tree:
    return jax.tree.map(lambda u, p: jnp.where(p == 0, 0, u), updates, params)


@partial(jax.jit, static_argnames="apply")
def _assess(params: Tree, state: Tree, data: Data, *, apply: Apply) -> tuple[jax.Array, jax.Array]:
    logits, _ = apply(params, state, normalise(data, data.x))
    return accuracy(logits, data.y).mean(), prune.dead_classes(logits).sum()
