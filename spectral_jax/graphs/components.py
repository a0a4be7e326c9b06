"""Connected components of a network graph, by label propagation inside the compiled program."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from spectral_jax.graphs.laplacian import Blocks, Edges, chain, split, widths


def largest_component(weights: Blocks, *, edges: Edges | None = None) -> Bool[Array, " N"]:
    """Nodes of the largest connected component (the first one, where sizes tie).

    Two nodes are joined where their weight is not zero. Labels spread one edge per pass until
    nothing changes: a pass over the weights costs about one matvec, and there are at most as many
    passes as the component's diameter, a handful in a trained network.

    Works under ``jit`` and ``vmap``; piecewise constant, so no gradient.

    >>> largest_component([jnp.array([[1.0, 0.0], [1.0, 0.0]])]).tolist()
    [True, True, True, False]
    """
    return _largest_component(tuple(weights), chain(weights) if edges is None else tuple(edges))


@partial(jax.jit, static_argnames="edges")
def _largest_component(weights: Blocks, edges: Edges) -> Array:
    sizes = widths(weights, edges)
    joined = tuple(jax.lax.stop_gradient(block) != 0 for block in weights)

    def spread(carry):
        labels, _ = carry
        parts = split(labels, sizes)
        for near, (source, target) in zip(joined, edges, strict=True):
            parts[target] = jnp.minimum(parts[target], _lowest(near, parts[source]))
            parts[source] = jnp.minimum(parts[source], _lowest(near.T, parts[target]))
        spread_labels = jnp.concatenate(parts)
        return spread_labels, jnp.any(spread_labels != labels)

    nodes = jnp.arange(sum(sizes))
    labels, _ = jax.lax.while_loop(lambda carry: carry[1], spread, (nodes, jnp.array(True)))
    counts = jnp.zeros_like(nodes).at[labels].add(1)
    return labels == jnp.argmax(counts)


def _lowest(near: Array, labels: Array) -> Array:
    """For every target, the lowest label among its own edges' sources."""
    unreached = jnp.iinfo(labels.dtype).max
    if near.ndim == 1:
        return jnp.where(near, labels, unreached)
    return jnp.min(jnp.where(near, labels[:, None], unreached), axis=0, initial=unreached)
