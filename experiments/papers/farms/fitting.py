"""What both training studies share: one compiled step, scanned in chunks, and trees as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

Tree = Any
Optimizer = Callable[[Tree], optax.GradientTransformation]


class Fit(NamedTuple):
    """All that persists between steps."""

    params: Tree
    opt_state: Tree
    key: Array
    step: Array


def start(params: Tree, optimizer: Optimizer, control: Tree, key: Array) -> Fit:
    """The state before the first step."""
    opt_state = jax.jit(lambda p, c: optimizer(c).init(p))(params, control)
    return Fit(params, opt_state, key, jnp.zeros((), jnp.int32))


@partial(jax.jit, static_argnames=("loss", "draw", "optimizer", "steps"))
def fit(
    state: Fit,
    data: Tree,
    control: Tree,
    *,
    loss: Callable[[Tree, Tree], Array],
    draw: Callable[[Tree, Array], Tree],
    optimizer: Optimizer,
    steps: int,
) -> tuple[Fit, Array]:
    """``steps`` steps of ``optimizer(control)`` on ``loss(params, draw(data, key))``.

    What the arms of an experiment differ in goes into ``control``, which is traced like the data:
    all of them share one program, where XLA would spend longer on each than its training takes.
    Batches depend on the state's key alone, so arms that share it see the same. Returns the losses
    too.
    """
    transformation = optimizer(control)

    def step(state: Fit, _):
        batch = draw(data, jax.random.fold_in(state.key, state.step))
        value, grads = jax.value_and_grad(loss)(state.params, batch)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return Fit(params, opt_state, state.key, state.step + 1), value

    return jax.lax.scan(step, state, length=steps)


def to_arrays(params: Tree) -> dict[str, np.ndarray]:
    """A tree of parameters as named arrays, for ``Run.save_array``."""
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Tree:
    """The tree that ``to_arrays`` took apart."""
    return unflatten_dict({name: jnp.asarray(array) for name, array in arrays.items()}, sep="/")
