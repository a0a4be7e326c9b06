"""Connected components of a network graph, by label propagation inside the compiled program.

Union-find and breadth-first search follow pointers, which compiled array code cannot; labels that
spread to neighbours until nothing changes are passes over the weights.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from spectral_jax.graphs.laplacian import Blocks, Edges, Graph, by_group, read_graph


def largest_component(weights: Blocks, *, edges: Edges | None = None) -> Bool[Array, " N"]:
    """Nodes of the largest connected component (the first one, where sizes tie).

    Two nodes are joined where their weight is not zero. A connected network is recognised early:
    from the first row and the first column of each block if they hold no zero, which costs nothing,
    or else by one or two passes of the cost of a matvec. Otherwise labels spread one edge per pass
    until nothing changes: at most as many passes as the component's diameter, a handful in a
    trained network.

    ``weights`` and ``edges`` are those of ``laplacian``.
    Works under ``jit`` and ``vmap``; piecewise constant, so no gradient. Raises ``ValueError`` for
    blocks that do not fit together.

    >>> largest_component([jnp.array([[1.0, 0.0], [1.0, 0.0]])]).tolist()
    [True, True, True, False]
    """
    return component_mask(read_graph(weights, edges))


def component_mask(graph: Graph) -> Array:
    """``largest_component`` of a graph that is read already."""
    return _component_mask(graph.weights, graph.edges, graph.sizes)


@partial(jax.jit, static_argnames=("edges", "sizes"))
def _component_mask(weights: Blocks, edges: Edges, sizes: tuple[int, ...]) -> Array:
    weights = jax.lax.stop_gradient(weights)
    # Three tests, each dearer than the one before and made only where that has not decided.
    return jax.lax.cond(
        jax.lax.cond(
            _joined_by_hubs(weights, edges, len(sizes)),
            lambda: jnp.array(True),
            lambda: _connected(weights, edges, sizes),
        ),
        lambda: jnp.ones(sum(sizes), bool),
        lambda: _most_frequent(_labels(weights, edges, sizes)),
    )


def _joined_by_hubs(weights: Blocks, edges: Edges, groups: int) -> Array:
    """Whether in every kernel the first node of either side reaches the whole other side.

    Then each kernel's nodes are one component, and the network is one if the kernels link all
    groups. Enough for a dense network, not necessary: False decides nothing.
    """
    kernels = [(a, edge) for a, edge in zip(weights, edges, strict=True) if a.ndim == 2]
    # Whether the kernels join all groups, at compile time: only shapes are needed.
    reached = {0}
    for _ in kernels:
        for _, edge in kernels:
            reached |= set(edge) if reached & set(edge) else set()
    if len(reached) < groups:
        return jnp.array(False)
    return jnp.all(jnp.stack([jnp.all(a[0] != 0) & jnp.all(a[:, 0] != 0) for a, _ in kernels]))


def _connected(weights: Blocks, edges: Edges, sizes: tuple[int, ...]) -> Array:
    """Whether node 0 reaches all others, by products of an indicator vector with ``|w|``.

    Products whose terms underflow, or are NaN, do not count as reached: the answer is then False,
    which sends the network to the slower search by labels, not to a wrong result.
    """

    def spread(carry):
        seen, _ = carry
        parts = by_group(seen, sizes)
        for block, (source, target) in zip(weights, edges, strict=True):
            a = jnp.abs(block)
            parts[target] = jnp.maximum(parts[target], _reached(parts[source], a))
            parts[source] = jnp.maximum(parts[source], _reached(a, parts[target]))
        # Forward through the layers in one pass, since each update uses the one before.
        now_seen = jnp.concatenate(parts)
        return now_seen, jnp.any(now_seen != seen)

    def unfinished(carry):
        seen, spreading = carry
        return spreading & ~jnp.all(seen > 0)

    start = jnp.zeros(sum(sizes), weights[0].dtype).at[0].set(1)
    seen, _ = jax.lax.while_loop(unfinished, spread, (start, jnp.array(True)))
    return jnp.all(seen > 0)


def _reached(a: Array, b: Array) -> Array:
    """Indicator of the nodes that a product with nonnegative numbers reaches, as 0.0 or 1.0."""
    product = a @ b if a.ndim != b.ndim else a * b
    return (product > 0).astype(product.dtype)


def _labels(weights: Blocks, edges: Edges, sizes: tuple[int, ...]) -> Array:
    """For every node, the lowest number of a node in its component.

    Every node starts with its own number and takes the lowest of its neighbours', over and over.
    """
    joined = tuple(block != 0 for block in weights)

    def spread(carry):
        labels, _ = carry
        parts = by_group(labels, sizes)
        for near, (source, target) in zip(joined, edges, strict=True):
            parts[target] = jnp.minimum(parts[target], _lowest(near, parts[source], axis=0))
            parts[source] = jnp.minimum(parts[source], _lowest(near, parts[target], axis=1))
        spread_labels = jnp.concatenate(parts)
        return spread_labels, jnp.any(spread_labels != labels)

    nodes = jnp.arange(sum(sizes))
    return jax.lax.while_loop(lambda carry: carry[1], spread, (nodes, jnp.array(True)))[0]


def _lowest(near: Array, labels: Array, *, axis: int) -> Array:
    """The lowest label among a node's neighbours along ``axis`` of the block."""
    unreached = jnp.iinfo(labels.dtype).max
    if near.ndim == 1:
        return jnp.where(near, labels, unreached)
    candidates = jnp.where(near, jnp.expand_dims(labels, 1 - axis), unreached)
    return jnp.min(candidates, axis=axis, initial=unreached)


def _most_frequent(labels: Array) -> Array:
    """Nodes whose label occurs most often; ``argmax`` takes the first where counts tie."""
    counts = jnp.zeros_like(labels).at[labels].add(1)
    return labels == jnp.argmax(counts)
