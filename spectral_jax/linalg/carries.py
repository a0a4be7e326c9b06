"""What a loop starts from, where it may run inside of ``jax.shard_map``."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def start_beside(seen: Array, start: PyTree[Array]) -> PyTree[Array]:
    """``start``, of a loop that reads ``seen``: the same numbers, and they follow from ``seen``.

    ``jax.shard_map`` tells constants from what differs by device, and a loop may not turn one into
    the other. The 0 that is added here is one that XLA leaves out again.
    """
    zero = jnp.any(jnp.ravel(seen)[:1] > 0).astype(jnp.int8) & 0
    return jax.tree.map(lambda value: value + zero.astype(value.dtype), start)
