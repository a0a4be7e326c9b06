"""Trials that share a program, and how many of them it is compiled for.

One after the other (``lax.map``), a trial's numbers do not depend on its company, if it has any.
Side by side (``vmap``) they depend on how many there are, since that decides the order of sums
(jax#26795); so their number is rounded up to a multiple of ``LANES``. What fills it up repeats the
last trial, or is dead, and is cut off every result.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.training.program import Axis, TrainState

LANES = 8
# In a program of several blocks: XLA removes a loop of one turn, and then fuses in other ways.
FEWEST: dict[Axis, int] = {"map": 2, "vmap": LANES}
Tree = Any


class Trial(NamedTuple):
    """A seed, and the numbers by which trials of one program differ."""

    seed: int
    hyper: Mapping[str, float] = {}


def width(trials: int, axis: Axis) -> int:
    """For how many trials a program is compiled that trains so many."""
    return -(-trials // LANES) * LANES if axis == "vmap" else trials


@partial(jax.jit, static_argnums=1)
def padded(tree: Tree, width: int) -> Tree:
    """The tree with its last trial repeated up to ``width``; always a copy."""

    def pad(leaf):
        return leaf[jnp.minimum(jnp.arange(width), len(leaf) - 1)]

    return jax.tree.map(pad, tree)


@partial(jax.jit, static_argnums=1)
def filled(state: TrainState, width: int) -> TrainState:
    """The state with dead lanes up to ``width``: their weights are NaN, so they are not trained."""
    count = len(state.key)

    def dead(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf.at[count:].set(jnp.nan)

    state = padded(state, width)
    return state._replace(params=jax.tree.map(dead, state.params))


@partial(jax.jit, static_argnums=1)
def cut(tree: Tree, trials: int) -> Tree:
    """The first trials of the tree."""
    return jax.tree.map(lambda leaf: leaf[:trials], tree)
