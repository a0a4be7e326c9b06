"""Whether weights chatter: step over zero and back, as under a penalty too strong for its rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from spectral_jax._transforms.leaves import floats

SAMPLE = 128  # of each leaf: enough to tell one in ten from one in a hundred, and too few to cost


class Crossings(NamedTuple):
    """Signs of a fixed sample of the weights of each leaf with two axes or more.

    negative: at the last update.
    crossed: whether that was another sign than at the update before.
    chatter: the share that crossed zero at both of the last two updates, of the worst leaf.
    """

    negative: Bool[Array, "leaves sample"]
    crossed: Bool[Array, "leaves sample"]
    chatter: Float[Array, ""]


def no_crossings(params: PyTree) -> Crossings:
    """Before the first update."""
    negative = _negative(params)
    return Crossings(negative, jnp.zeros_like(negative), jnp.zeros((), jnp.float32))


def crossings(params: PyTree, last: Crossings) -> Crossings:
    """With the weights of the next update."""
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
    """Evenly spread over the entries; small leaves give some of theirs more than once."""
    return np.unravel_index(np.arange(SAMPLE) * np.prod(shape) // SAMPLE, shape)
