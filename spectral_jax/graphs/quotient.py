"""The network with each layer merged into one node: a bound, and a start for the solver."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spectral_jax.graphs.laplacian import (
    Blocks,
    Edges,
    EdgeSums,
    Graph,
    by_group,
    degree_of,
    edge_sums,
    inside_of,
    magnitude,
    pulls,
    read_graph,
)
from spectral_jax.linalg import unit
from spectral_jax.linalg.precision import power_of_two


class LayerQuotient(NamedTuple):
    """The network with each node group merged into one node."""

    value: Float[Array, ""]
    vector: Float[Array, " N"]
    image: Float[Array, " N"]
    """The Laplacian times ``vector``, which costs next to nothing here."""


def layer_quotient(
    weights: Blocks,
    *,
    normalised: bool = False,
    edges: Edges | None = None,
    mask: Bool[Array, " N"] | None = None,
) -> LayerQuotient:
    """Connectivity of the graph whose nodes are the layers: a cheap upper bound on ``lambda_2``.

    With ``S_l = sum |W_l|`` and ``Q`` the ``(L+1) x (L+1)`` Laplacian with weights ``S``, the value
    is the second eigenvalue of ``diag(n)^-1/2 Q diag(n)^-1/2``, ``n`` the number of units per group
    (the sum of their degrees if ``normalised``): the Rayleigh quotient of the best vector that is
    constant in each layer. ``vector`` is that unit vector over the nodes. One pass over the
    weights, the cost of half a product with the Laplacian.

    ``mask``: nodes to count, all if None; the others have the entry 0.

    Works under ``jit``, ``vmap`` and ``grad`` (of ``value``; finite at repeated eigenvalues).
    Raises ``ValueError`` for blocks or a mask that do not fit together.
    Source: Courant-Fischer (the minimum over fewer vectors is no smaller): docs/fiedler.md.

    >>> net = [jnp.ones((2, 2)), jnp.ones((2, 2))]
    >>> round(float(layer_quotient(net).value), 4)
    2.0
    """
    graph = read_graph(weights, edges)
    sums = edge_sums([magnitude(block) for block in graph.weights])
    degree = degree_of(graph, sums)
    inside = inside_of(graph, mask)
    root = root_of(jnp.max(jnp.where(inside, degree, 0)))
    found = merged(graph, sums, degree, inside, root, normalised=normalised)
    if normalised:
        return found
    return LayerQuotient(found.value * root * root, found.vector, found.image * root * root)


def root_of(heaviest: Array) -> Array:
    """A power of two whose square lies below ``heaviest``, as the unit to measure weights in.

    Weights of 1e-20 would have squares that underflow in float32; dividing by a power of two
    brings them near 1 without a rounding error.
    """
    return power_of_two(jnp.sqrt(jax.lax.stop_gradient(heaviest))) / 2


def merged(
    graph: Graph,
    sums: list[EdgeSums],
    degree: Array,
    inside: Array,
    root: Array,
    *,
    normalised: bool,
) -> LayerQuotient:
    """``layer_quotient`` of the weights in units of ``root**2``."""
    # Divided by root twice, here and below: root**2 itself may underflow or overflow. `amount` is
    # the mass of each node in the denominator of the quotient.
    sizes, inside = graph.sizes, inside.astype(degree.dtype)
    sums = [EdgeSums(*(part / root / root for part in block)) for block in sums]
    amount = inside * degree / root / root if normalised else inside
    size = jnp.stack([part.sum() for part in by_group(amount, sizes)])
    member = by_group(inside, sizes)
    totals = jnp.stack(
        [
            jnp.vdot(block.sent, member[source], precision="highest")
            for block, (source, _) in zip(sums, graph.edges, strict=True)
        ]
    )
    # Q = B^T diag(S) B with the signed incidence matrix B of the layers.
    incidence = np.zeros((len(graph.edges), len(sizes)))
    for row, (source, target) in enumerate(graph.edges):
        incidence[row, source], incidence[row, target] = 1, -1
    b = jnp.asarray(incidence, degree.dtype)
    q = jnp.einsum("ei,e,ej->ij", b, totals, b, precision="highest")
    # A group that the mask empties has no mass to divide by: its row and column become 0, and
    # `ceiling`, above every other eigenvalue (Gershgorin), keeps it out of the first two vectors.
    present = size > 0
    scale = jnp.where(present, jnp.where(present, size, 1) ** -0.5, 0)
    ceiling = jax.lax.stop_gradient(2 * jnp.max(jnp.diag(q) * scale**2) + 1)
    _, vectors = jnp.linalg.eigh(
        scale[:, None] * q * scale[None, :] + jnp.diag(jnp.where(present, 0, ceiling))
    )
    # From the eigenvector of the symmetric matrix to the height of each layer.
    height = scale * _off_null(vectors[:, :2], jnp.sqrt(size))
    value = _layer_value(totals, size, height, b)
    # Vector and image only start a solver, so that no derivative flows through them.
    height, length, sums = jax.lax.stop_gradient((height, jnp.sqrt(amount), sums))
    spread = jnp.concatenate([jnp.full(n, height[group]) for group, n in enumerate(sizes)])
    image = pulls(sums, height, graph.edges, sizes)
    image = jnp.where(length > 0, image / jnp.where(length > 0, length, 1), 0)
    return LayerQuotient(value, spread * length, image)


def _off_null(pair: Array, null: Array) -> Array:
    """The second of the first two eigenvectors, which come out mixed where both of their values
    are rounding errors: the part outside the null vector of whichever has more of it."""
    null = unit(null)
    outside = pair - jnp.outer(null, jnp.matmul(null, pair, precision="highest"))
    return outside[:, jnp.argmax(jnp.sum(outside**2, axis=0))]


@jax.custom_jvp
def _layer_value(totals: Array, size: Array, height: Array, incidence: Array) -> Array:
    """The Rayleigh quotient of an eigenvector ``h`` of the layers as a sum over edges.

    ``sum S (h_i - h_j)^2 / sum n h^2``: an upper bound on the network's value even where the
    eigenvalue that ``eigh`` returned is nothing but its rounding error, of either sign.
    """
    mass = jnp.sum(size * height**2)
    return jnp.sum(totals * _steps(incidence, height) ** 2) / jnp.where(mass > 0, mass, 1)


@_layer_value.defjvp
def _layer_value_jvp(primals, tangents):
    (_, size, height, incidence), (totals_dot, size_dot, *_) = primals, tangents
    value, mass = _layer_value(*primals), jnp.sum(size * height**2)
    # To first order the eigenvector may be held constant (Hellmann-Feynman: docs/fiedler.md).
    slope = jnp.sum(totals_dot * _steps(incidence, height) ** 2)
    slope -= value * jnp.sum(size_dot * height**2)
    return value, slope / jnp.where(mass > 0, mass, 1)


def _steps(incidence: Array, height: Array) -> Array:
    return jnp.matmul(incidence, height, precision="highest")
