"""The compiled part of training: a pure step, scanned over a chunk, for all seeds at once.

    program = Program(network.apply, optimizer, batch_size=100, train_size=60_000)
    state = program.init(network.init, keys)                      # leading axis: seeds
    state, metrics = program.chunk(state, data, steps=100, seed_axis="map")

Data is an argument, never a constant of the program. Every seed draws its own initial weights,
batches and dropout masks from its own key, so arms that share a seed differ in nothing but the arm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

Tree = Any
SeedAxis = Literal["vmap", "map", "stepwise"]
Apply = Callable[..., tuple[Array, Tree]]
# The name under which transformations may reduce over seeds when they are vmapped.
SEED_AXIS_NAME = "seed"
EVALUATION_BATCH = 1000


class Data(NamedTuple):
    """Training arrays on the device; the network sees ``(x - shift) * scale``."""

    x: Array
    y: Array
    shift: Array
    scale: Array


class TrainState(NamedTuple):
    """All that persists between steps; with a leading seed axis everywhere."""

    params: Tree
    opt_state: Tree
    model_state: Tree
    key: Array
    step: Array


@dataclass(frozen=True)
class Program:
    """One arm's training program. Static: equal programs share compiled code.

    A chunk must not cross an epoch's end: ``steps_per_epoch`` says where that is (the remainder of
    an epoch that does not fill a batch is dropped; batches are drawn anew each epoch). ``augment``
    changes the raw examples of a batch by a key.
    """

    apply: Apply
    optimizer: optax.GradientTransformation
    batch_size: int
    train_size: int
    augment: Callable[[Array, Array], Array] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.train_size // self.batch_size

    @partial(jax.jit, static_argnums=(0, 1))
    def init(self, init: Callable[[Array], tuple[Tree, Tree]], keys: Array) -> TrainState:
        """Initial state of every seed, one per key."""

        def one(key):
            params, model_state = init(key)
            step = jnp.zeros((), jnp.int32)
            return TrainState(params, self.optimizer.init(params), model_state, key, step)

        return jax.vmap(one)(keys)

    def chunk(
        self, state: TrainState, data: Data, steps: int, seed_axis: SeedAxis
    ) -> tuple[TrainState, dict[str, Array]]:
        """``steps`` optimiser steps of every seed; the chunk's mean loss and accuracy per seed.

        ``stepwise`` compiles one step of one seed and repeats it from Python. XLA's CPU backend is
        15 times slower at a convolution inside a loop (ResNet-8: 70 against 1070 images a second).
        """
        if seed_axis == "stepwise":
            return self._stepwise(state, data, steps)
        return self._compiled(state, data, steps, seed_axis)

    def lower(
        self, state: TrainState, data: Data, steps: int, seed_axis: SeedAxis
    ) -> jax.stages.Lowered:
        """The program of such a chunk, not compiled yet; the chunk itself is not traced again."""
        return Program._compiled.lower(self, state, data, steps, seed_axis)

    @partial(jax.jit, static_argnums=(0, 3, 4), donate_argnums=(1,))
    def _compiled(self, state: TrainState, data: Data, steps: int, seed_axis: SeedAxis):
        return over_seeds(partial(self._scan, data, steps), seed_axis)(state)

    def _stepwise(self, state: TrainState, data: Data, steps: int):
        ended = []
        for index in range(len(state.key)):
            seed, metrics = jax.tree.map(itemgetter(index), state), []
            for _ in range(steps):
                seed, measured = self._single(seed, data)
                metrics.append(measured)
            mean = jax.tree.map(lambda *values: jnp.stack(values).mean(), *metrics)
            ended.append((seed, mean))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *ended)

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _single(self, state: TrainState, data: Data):
        dropout_key, rows = self._rows(state, 1)
        return self._step(data, dropout_key, state, rows[0])

    def _scan(self, data: Data, steps: int, state: TrainState):
        dropout_key, rows = self._rows(state, steps)
        state, metrics = jax.lax.scan(partial(self._step, data, dropout_key), state, rows)
        return state, jax.tree.map(jnp.mean, metrics)

    def _rows(self, state: TrainState, steps: int) -> tuple[Array, Array]:
        """The key of the dropout masks, and the examples of the next ``steps`` batches."""
        order_key, dropout_key = jax.random.split(state.key)
        epoch, within = state.step // self.steps_per_epoch, state.step % self.steps_per_epoch
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), self.train_size)
        count = steps * self.batch_size
        rows = jax.lax.dynamic_slice(order, (within * self.batch_size,), (count,))
        return dropout_key, rows.reshape(steps, self.batch_size)

    def _step(self, data: Data, dropout_key: Array, state: TrainState, rows: Array):
        key = jax.random.fold_in(dropout_key, state.step)
        raw = data.x[rows]
        if self.augment is not None:
            raw = self.augment(jax.random.fold_in(key, 1), raw)

        def objective(params):
            x, y = normalise(data, raw), data.y[rows]
            logits, new_state = self.apply(params, state.model_state, x, train=True, key=key)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss, (new_state, accuracy(logits, y).mean())

        (loss, (model_state, hits)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(params, opt_state, model_state, state.key, state.step + 1)
        return state, {"train/loss": loss, "train/accuracy": hits}


@partial(jax.jit, static_argnames=("apply", "seed_axis", "dropout"))
def evaluate(
    state: TrainState, data: Data, *, apply: Apply, seed_axis: SeedAxis, dropout: bool = False
) -> dict[str, Array]:
    """Mean loss and accuracy of every seed on all of ``data``; ``dropout`` leaves dropout on.

    Not a method of ``Program``: arms that share a network share this compiled function.
    """

    size = len(data.y)
    rows = jnp.arange(-(-size // EVALUATION_BATCH) * EVALUATION_BATCH).reshape(-1, EVALUATION_BATCH)

    def one_seed(state):
        def one_batch(rows):
            inside = rows < size
            rows = jnp.minimum(rows, size - 1)
            x, y = normalise(data, data.x[rows]), data.y[rows]
            key = jax.random.fold_in(state.key, rows[0]) if dropout else None
            logits, _ = apply(state.params, state.model_state, x, train=dropout, key=key)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            hits = accuracy(logits, y)
            return jnp.sum(losses, where=inside), jnp.sum(hits, where=inside)

        losses, hits = jax.lax.map(one_batch, rows)
        return {"loss": losses.sum() / size, "accuracy": hits.sum() / size}

    return over_seeds(one_seed, seed_axis)(state)


def over_seeds(function: Callable, seed_axis: SeedAxis) -> Callable:
    """``function`` for every seed: side by side (``vmap``) or one after the other (the others)."""
    if seed_axis == "vmap":
        return jax.vmap(function, axis_name=SEED_AXIS_NAME)
    return partial(jax.lax.map, function)


def normalise(data: Data, x: Array) -> Array:
    """What the network sees of raw examples."""
    return (x.astype(data.shift.dtype) - data.shift) * data.scale


def accuracy(logits: Array, labels: Array) -> Array:
    """1 where the largest logit is the label's. A NaN logit is no answer, so it scores 0."""
    right = jnp.argmax(logits, axis=-1) == labels
    return (right & jnp.all(jnp.isfinite(logits), axis=-1)).astype(logits.dtype)
