"""The compiled part of training: a pure step, looped over a chunk, for all trials at once.

    program = Program(task.structure, optimizer)
    state = program.init(keys, hyper)                             # leading axis: trials
    state, metrics = program.chunk(state, data, orders, 100, "map")

Data and the numbers that trials differ in are arguments, never constants of the program. Every
trial draws its own initial weights, batches and dropout masks from its own key, so arms that share
a seed differ in nothing but the arm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, Key

from experiments.training.orders import Orders
from experiments.training.task import Data, Hyper, Task
from models import Dropout
from spectral_jax.linalg.convolutions import fast_convolutions

Tree = Any
Axis = Literal["vmap", "map"]
Optimizer = Callable[[Hyper], optax.GradientTransformation]
EVALUATION_BATCH = 1000


class TrainState(NamedTuple):
    """All that persists between steps; with a leading axis of trials everywhere.

    hyper: the numbers of a trial (learning rate, strength), which its optimiser is built from.
    """

    params: Tree
    opt_state: Tree
    model_state: Tree
    hyper: dict[str, Array]
    key: Array
    step: Array


@dataclass(frozen=True)
class Program:
    """The training program of a task. Static: equal programs share compiled code.

    task: without its data, as ``Task.structure`` is.
    optimizer: called inside the step with the numbers of the trial. So they are traced, and trials
      that differ in numbers share the program.
    """

    task: Task
    optimizer: Optimizer

    @partial(jax.jit, static_argnums=0)
    def init(self, keys: Key[Array, " trials"], hyper: dict[str, Array]) -> TrainState:
        """Initial state of every trial, its weights drawn by its key."""

        def one(key, hyper):
            params, model_state = self.task.net.init(key)
            opt_state = self.optimizer(hyper).init(params)
            return TrainState(params, opt_state, model_state, hyper, key, jnp.zeros((), jnp.int32))

        return jax.vmap(one)(keys, hyper)

    @partial(jax.jit, static_argnums=0)
    def restart(self, state: TrainState) -> TrainState:
        """The same weights and step, with an optimiser that remembers nothing."""

        def one(state):
            opt_state = self.optimizer(state.hyper).init(state.params)
            return state._replace(opt_state=opt_state)

        return jax.vmap(one)(state)

    @partial(jax.jit, static_argnums=(0, 5, 6), donate_argnums=1)
    def chunk(
        self,
        state: TrainState,
        data: Data,
        orders: Orders,
        steps: int | Array,
        axis: Axis,
        mesh: Mesh | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        """``steps`` optimiser steps of every trial; the chunk's mean loss and metrics per trial.

        It takes the memory of ``state``, and must not cross an epoch's end, where the orders do.
        Chunks of any length share the program. A trial whose weights are no longer finite has
        ended: its metrics are NaN.

        ``mesh``: its devices share the trials, as `over_trials` has it.
        """
        trials = over_trials(partial(self._loop, axis), axis, mesh)
        return trials((state, orders.row_of), data, orders.rows, steps)

    def trace(
        self, state: TrainState, data: Data, orders: Orders, axis: Axis, mesh: Mesh | None = None
    ) -> jax.stages.Traced:
        """The program of such a chunk, of shapes alone; the chunk itself is not traced again."""
        return Program.chunk.trace(self, state, data, orders, 1, axis, mesh)

    def _loop(self, axis: Axis, trial: Tree, data: Data, rows: Array, steps: Array):
        state, row = trial
        alive = _finite(state.params)
        keys = jax.random.split(state.key)
        # Side by side the number of steps must be the same for all, or each step would copy all.
        count = steps if axis == "vmap" else jnp.where(alive, steps, 0)

        def step(_, carry):
            state, sums = carry
            state, metrics = self._step(data, rows[row], keys[1], state)
            return state, {name: sums[name] + value for name, value in metrics.items()}

        names = ("train/loss", *(f"train/{name}" for name, _ in self.task.objective.metrics))
        start = state, dict.fromkeys(names, jnp.zeros(()))
        ended, sums = jax.lax.fori_loop(0, count, step, start)
        means = {name: jnp.where(alive, total / steps, jnp.nan) for name, total in sums.items()}
        return ended._replace(step=state.step + steps), means

    def _step(self, data: Data, order: Array, dropout_key: Array, state: TrainState):
        key = jax.random.fold_in(dropout_key, state.step)
        chosen = self._chosen(data, order, state)
        raw = data.rows(chosen, state.hyper)
        if self.task.augment is not None:
            raw = self.task.augment(jax.random.fold_in(key, 1), raw)

        def objective(params):
            now = state._replace(params=params)
            values, kept = forward(self.task, now, raw, data.shared, train=True, key=key)
            means = {f"train/{name}": each.mean() for name, each in values.items()}
            return means["train/loss"], (kept, means)

        (_, (model_state, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        optimizer = optax.with_extra_args_support(self.optimizer(state.hyper))
        step = seen(self.task, state, raw, data.shared, jax.random.fold_in(key, 2))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **step)
        params = optax.apply_updates(state.params, updates)
        state = state._replace(
            params=params, opt_state=opt_state, model_state=model_state, step=state.step + 1
        )
        return state, metrics

    def _chosen(self, data: Data, order: Array, state: TrainState) -> Int[Array, " b"]:
        """The examples of the batch that is next."""
        size, hyper = self.task.batch_size, state.hyper
        if self.task.order == "replacement":
            most = hyper["examples"].astype(int) if "examples" in hyper else data.size
            return jax.random.randint(jax.random.fold_in(state.key, state.step), (size,), 0, most)
        within = state.step % (data.size // size)
        return jax.lax.dynamic_slice(order, (within * size,), (size,))


def forward(
    task: Task, state: TrainState, raw: Tree, shared: Tree, **options: Any
) -> tuple[dict[str, Array], Tree]:
    """Loss and metrics of each of the raw examples, and the new state of the network.

    ``options`` go to the network: ``train`` and ``key``.
    """
    outputs, batch, kept = outputs_of(task, state, raw, shared, **options)
    return task.measured(outputs, batch), kept


def outputs_of(task: Task, state: TrainState, raw: Tree, shared: Tree, **options: Any):
    """What the objective sees: the network's outputs and the batch; and its new state."""
    batch = {**task.prepare(raw, shared), "hyper": state.hyper}
    if options.get("train") and "dropout_keep" in state.hyper:
        options["dropout"] = Dropout(state.hyper["dropout_keep"], state.hyper["dropout_scale"])
    outputs, kept = task.net.apply(state.params, state.model_state, batch["x"], **options)
    if task.head is not None:
        outputs = task.head(outputs, state.hyper)
    return outputs, batch, kept


def seen(task: Task, state: TrainState, raw: Tree, shared: Tree, key: Array) -> dict[str, Any]:
    """What a penalty on activations or on the function may look at in a step, by name.

    The network is the one of evaluation, without dropout and with running statistics: what it says
    of an example does not depend on the others, so there is a Jacobian of each. ``batch`` holds its
    ``state`` too. Where nothing looks at them, none of this is computed.
    """

    def apply(params: Tree, x: Array) -> Tree:
        outputs, _ = task.net.apply(params, state.model_state, x)
        return outputs if task.head is None else task.head(outputs, state.hyper)

    batch = {**task.prepare(raw, shared), "hyper": state.hyper, "state": state.model_state}
    return {"batch": batch, "key": key, "apply": apply}


@partial(jax.jit, static_argnames=("task", "axis", "dropout", "items", "mesh"))
def evaluate(
    state: TrainState,
    data: Data,
    *,
    task: Task,
    axis: Axis,
    dropout: bool = False,
    items: bool = False,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Mean loss and metrics of every trial on all of ``data``; ``dropout`` leaves dropout on.

    Returns the means ``[trials]``, and with ``items`` what they are means of, ``[trials,
    examples]``: of many trials that fills gigabytes.

    Not a method of ``Program``: arms that differ in the optimiser share this compiled function, if
    the state comes without that of the optimiser.
    """
    size = data.size
    batch = min(size, EVALUATION_BATCH)
    places = jnp.arange(-(-size // batch) * batch).reshape(-1, batch)

    def one_trial(state, data):
        def one_batch(rows):
            inside = rows < size
            rows = jnp.minimum(rows, size - 1)
            raw = data.rows(rows, state.hyper)
            key = jax.random.fold_in(state.key, rows[0]) if dropout else None
            values, _ = forward(task, state, raw, data.shared, train=dropout, key=key)
            sums = jax.tree.map(partial(jnp.sum, where=inside), values)
            return sums, values if items else {}

        sums, values = jax.lax.map(one_batch, places)
        means = jax.tree.map(lambda parts: parts.sum() / size, sums)
        return means, jax.tree.map(lambda parts: parts.reshape(-1)[:size], values)

    return over_trials(one_trial, axis, mesh)(state, data)


@partial(jax.jit, static_argnames=("task", "axis", "mesh"))
def predict(
    state: TrainState, data: Data, *, task: Task, axis: Axis, mesh: Mesh | None = None
) -> Tree:
    """What the objective sees of every example of ``data``, ``[trials, n, ...]``."""

    def one_trial(state, data):
        raw = data.rows(jnp.arange(data.size), state.hyper)
        return outputs_of(task, state, raw, data.shared)[0]

    return over_trials(one_trial, axis, mesh)(state, data)


def over_trials(function: Callable, axis: Axis, mesh: Mesh | None = None) -> Callable:
    """``function(trial, *shared)`` of every trial, given ``(trials, *shared)``.

    Side by side (``vmap``), or one after the other (the others). Each device of ``mesh`` does so
    with its own part of the trials, and none waits for another; left to itself, XLA has every
    device run a ``lax.map`` of all of them.
    """

    @fast_convolutions
    def these(trials: Tree, shared: tuple) -> Tree:
        def one(trial):
            return function(trial, *shared)

        return jax.vmap(one)(trials) if axis == "vmap" else jax.lax.map(one, trials)

    if mesh is not None:
        lanes, whole = PartitionSpec(*mesh.axis_names), PartitionSpec()
        these = jax.shard_map(
            these, mesh=mesh, in_specs=(lanes, whole), out_specs=lanes, check_vma=False
        )
    return lambda trials, *shared: these(trials, shared)


def axis_here() -> Axis:
    """Which axis is the fast one on this machine for what is not probed, such as measures."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


@jax.jit
def _finite(params: Tree) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
