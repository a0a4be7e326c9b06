"""Whether weights chatter: change sign at every update, under a penalty too strong for the rate.

A penalty on ``|W|`` pushes a weight towards zero by a fixed step. If that step is larger than the
weight, it lands on the other side and is pushed back at the next update, and so on: the penalty
then adds noise where it should set weights to zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from spectral_jax._transforms.leaves import floats

SAMPLE = 128  # weights per leaf: tells 10 % from 1 %, and costs nothing beside a training step


class Crossings(NamedTuple):
    """Signs of `SAMPLE` weights of each leaf with two axes or more, the same at every update.

    negative: whether the weight was negative at the last update.
    crossed: whether its sign then was another than at the update before.
    chatter: the share of a leaf's sample that changed sign in both of the last two updates, of the
      leaf where it is largest.
    """

    negative: Bool[Array, "leaves sample"]
    crossed: Bool[Array, "leaves sample"]
    chatter: Float[Array, ""]


def no_crossings(params: PyTree) -> Crossings:
    """The signs before the first update."""
    negative = _negative(params)
    return Crossings(negative, jnp.zeros_like(negative), jnp.zeros((), jnp.float32))


def crossings(params: PyTree, last: Crossings) -> Crossings:
    """The signs at the next update, given its weights and the last signs."""
    negative = _negative(params)
    crossed = negative != last.negative
    shares = jnp.mean(crossed & last.crossed, axis=1, dtype=last.chatter.dtype)
    return Crossings(negative, crossed, jnp.max(shares, initial=0))


def _negative(params: PyTree) -> Bool[Array, "leaves sample"]:
    kernels = [leaf for leaf in jax.tree.leaves(floats(params)) if leaf.ndim > 1 and leaf.size]
    if not kernels:
        return jnp.zeros((0, SAMPLE), bool)
    return jnp.stack([kernel[_places(kernel.shape)] < 0 for kernel in kernels])


def _places(shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Indices of the sample, evenly spread; in a small leaf some entries occur repeatedly."""
    return np.unravel_index(np.arange(SAMPLE) * np.prod(shape) // SAMPLE, shape)
