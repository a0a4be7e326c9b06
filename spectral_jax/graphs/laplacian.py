"""A network as a weighted graph: its Laplacian as a matrix-free operator.

Nodes are units (or channels) in groups ``0 .. L``; a weight block ``[n_source, n_target]`` joins
two groups with edge weights ``|w|``; a one-dimensional block ``[n]`` joins equal-sized groups unit
by unit (a skip). Without ``edges`` the blocks form the chain ``0-1, 1-2, ...``.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, Num

from spectral_jax.linalg import SymmetricOperator

Edges = tuple[tuple[int, int], ...]
Blocks = Sequence[Float[Array, "..."]]


def chain(weights: Blocks) -> Edges:
    """The edges of a plain feed-forward net: block ``l`` joins groups ``l`` and ``l + 1``."""
    return tuple((layer, layer + 1) for layer in range(len(weights)))


def widths(weights: Blocks, edges: Edges | None = None) -> tuple[int, ...]:
    """Units per node group, input first.

    Raises ``ValueError`` where two blocks disagree on a group's width or a group has no block.

    >>> widths([jnp.ones((4, 6)), jnp.ones((6, 3))])
    (4, 6, 3)
    """
    edges = chain(weights) if edges is None else edges
    if not weights or len(weights) != len(edges):
        raise ValueError(
            f"weights has {len(weights)} blocks and edges {len(edges)}: pass one edge per block"
        )
    found: dict[int, int] = {}
    for index, (block, (source, target)) in enumerate(zip(weights, edges, strict=True)):
        if block.ndim not in (1, 2) or source == target:
            raise ValueError(
                f"weights[{index}] has shape {block.shape} on edge {(source, target)}: pass "
                "[n_source, n_target] (or [n] for a unit-by-unit skip) between two different groups"
            )
        for group, width in ((source, block.shape[0]), (target, block.shape[-1])):
            if found.setdefault(group, width) != width:
                raise ValueError(
                    f"weights[{index}] gives group {group} {width} units, an earlier block "
                    f"{found[group]}: check the order and orientation ([n_source, n_target]) of "
                    "the blocks"
                )
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"edges={edges}: every group 0..{max(found)} needs a block")
    return tuple(found[group] for group in range(len(found)))


def laplacian(
    weights: Blocks,
    *,
    normalised: bool = True,
    edges: Edges | None = None,
    mask: Bool[Array, " N"] | None = None,
) -> SymmetricOperator:
    """``L = D - A`` of the network graph, or ``D^-1/2 L D^-1/2``, on ``N = n_0 + ... + n_L`` nodes.

    One product costs two passes over the weights, about a forward and a backward pass at batch 1;
    the ``N x N`` matrix never exists. Nodes outside ``mask`` (or of degree zero, if ``normalised``)
    are set apart: they become eigenvectors above the rest of the spectrum. ``mask`` must be a union
    of components.

    Works under ``jit``, ``vmap``, ``grad`` with respect to ``weights`` and on sharded blocks.
    Raises ``ValueError`` for blocks that do not fit together.
    Source: arXiv 2003.00992; released code edrictam/FiedlerRegularization (combinatorial only).

    >>> laplacian([jnp.ones((1, 1)), jnp.ones((1, 1))], normalised=False).dense().tolist()
    [[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]]
    """
    edges = chain(weights) if edges is None else tuple(edges)
    sizes = widths(weights, edges)
    magnitudes = tuple(magnitude(block) for block in weights)
    degree = _degrees(magnitudes, edges, sizes)
    inside = jnp.ones(degree.shape, bool) if mask is None else mask
    if normalised:
        inside = inside & (degree > 0)
        scale = jnp.where(inside, jnp.where(inside, degree, 1) ** -0.5, 0)
        ceiling = jnp.full((), 2, degree.dtype)
    else:
        scale = inside.astype(degree.dtype)
        ceiling = jax.lax.stop_gradient(2 * jnp.max(degree))
    apart = jnp.where(inside, 0, ceiling)
    data = _LaplacianData(magnitudes, degree, scale, apart)
    return SymmetricOperator(_LaplacianProduct(edges, sizes), data, sum(sizes))


def degrees(weights: Blocks, *, edges: Edges | None = None) -> Float[Array, " N"]:
    """Weighted degree of every node, ``d = |A| 1``. Works under ``jit``, ``vmap`` and ``grad``."""
    edges = chain(weights) if edges is None else tuple(edges)
    sizes = widths(weights, edges)
    return _degrees(tuple(magnitude(block) for block in weights), edges, sizes)


def rayleigh_quotient(
    weights: Blocks, v: Float[Array, " N"], *, normalised: bool = False, edges: Edges | None = None
) -> Float[Array, ""]:
    """``v^T L v / v^T v``, or ``v^T L v / v^T D v`` if ``normalised``, as a sum over edges.

    ``v^T L v = sum_ij |W_ij| (v_i - v_j)^2``, so with ``v`` held constant the gradient with respect
    to ``W_ij`` is ``sign(W_ij) (v_i - v_j)^2`` for a unit ``v``: the Fiedler penalty. With
    ``normalised``, ``v`` is ``D^-1/2 u`` and the gradient
    ``sign(W_ij) ((v_i - v_j)^2 - nu (v_i^2 + v_j^2)) / v^T D v``.

    Works under ``jit``, ``vmap`` and ``grad`` (one fused pass over the weights).
    Source: arXiv 2003.00992.
    """
    edges = chain(weights) if edges is None else tuple(edges)
    sizes = widths(weights, edges)
    parts = split(v, sizes)
    energy = mass = jnp.zeros((), v.dtype)
    for block, (source, target) in zip(weights, edges, strict=True):
        a, x, y = magnitude(block), parts[source], parts[target]
        x, y = (x[:, None], y[None, :]) if a.ndim == 2 else (x, y)
        energy += jnp.sum(a * (x - y) ** 2)
        mass += jnp.sum(a * (x**2 + y**2)) if normalised else 0
    mass = mass if normalised else jnp.sum(v**2)
    return energy / jnp.where(mass > 0, mass, 1)


def split(x: Num[Array, " N"], sizes: Sequence[int]) -> list[Num[Array, " n"]]:
    """The pieces of a node vector, one per group."""
    offsets = [sum(sizes[:group]) for group in range(len(sizes) + 1)]
    return [x[start:stop] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]


class _LaplacianData(NamedTuple):
    magnitudes: tuple[Array, ...]
    degree: Array
    scale: Array
    apart: Array


@dataclasses.dataclass(frozen=True)
class _LaplacianProduct:
    """``x -> S (D - A) S x + apart x``; hashable, so that equal graphs share one compilation."""

    edges: Edges
    sizes: tuple[int, ...]

    def __call__(self, data: _LaplacianData, x: Array) -> Array:
        scaled = data.scale * x
        parts = split(scaled, self.sizes)
        pulled = [jnp.zeros_like(part) for part in parts]
        for a, (source, target) in zip(data.magnitudes, self.edges, strict=True):
            # Not a.T @ x, which XLA reads against the grain on a CPU: three times slower.
            pulled[target] += _times(parts[source], a)
            pulled[source] += _times(a, parts[target])
        return data.scale * (data.degree * scaled - jnp.concatenate(pulled)) + data.apart * x


def column(op: SymmetricOperator, node: Array) -> Array:
    """``op @ e_node`` of a ``laplacian``: from one row or column of each block, not from all."""
    data, product = op.data, op.apply
    if not isinstance(product, _LaplacianProduct):
        raise ValueError("op is no network Laplacian: pass what `laplacian` returns")
    edges, sizes = product.edges, product.sizes
    chosen = (jnp.arange(op.size) == node).astype(data.degree.dtype)
    first, ones = [sum(sizes[:group]) for group in range(len(sizes))], split(chosen, sizes)
    parts = [jnp.zeros_like(one) for one in ones]
    for a, (source, target) in zip(data.magnitudes, edges, strict=True):
        if a.ndim == 1:
            parts[target] += a * ones[source]
            parts[source] += a * ones[target]
            continue
        held = [jnp.any(ones[group] > 0) for group in (source, target)]
        parts[target] += jnp.where(held[0], a[node - first[source]], 0)
        parts[source] += jnp.where(held[1], a[:, node - first[target]], 0)
    pulled = data.scale[node] * jnp.concatenate(parts)
    return data.scale * (data.degree * data.scale * chosen - pulled) + data.apart * chosen


def magnitude(block: Array) -> Array:
    """Edge weights ``|w|`` of a block."""
    # Not jnp.abs, whose slope at 0 is 1: an absent edge must not be pulled.
    return block * jnp.sign(block)


class EdgeSums(NamedTuple):
    """What each node of a block sends over it, and what each receives."""

    sent: Array
    received: Array


def edge_sums(magnitudes: Sequence[Array]) -> list[EdgeSums]:
    """The sums of every block by products with ones, which a CPU does in half a sum's time."""
    ones = [[jnp.ones(size, a.dtype) for size in (a.shape[-1], a.shape[0])] for a in magnitudes]
    return [
        EdgeSums(_times(a, right), _times(left, a))
        for a, (right, left) in zip(magnitudes, ones, strict=True)
    ]


def pulls(
    sums: Sequence[EdgeSums], heights: Float[Array, " L"], edges: Edges, sizes: Sequence[int]
) -> Array:
    """``L h`` for ``h`` constant in each group, from the sums alone."""
    parts = [jnp.zeros(size, sums[0].sent.dtype) for size in sizes]
    for block, (source, target) in zip(sums, edges, strict=True):
        step = heights[source] - heights[target]
        parts[source] += step * block.sent
        parts[target] -= step * block.received
    return jnp.concatenate(parts)


def _degrees(magnitudes: Sequence[Array], edges: Edges, sizes: Sequence[int]) -> Array:
    parts = [jnp.zeros(size, magnitudes[0].dtype) for size in sizes]
    for block, (source, target) in zip(edge_sums(magnitudes), edges, strict=True):
        parts[source] += block.sent
        parts[target] += block.received
    return jnp.concatenate(parts)


def _times(a: Array, b: Array) -> Array:
    matrix = a.ndim == 2 or b.ndim == 2
    return jnp.matmul(a, b, precision=Precision.HIGHEST) if matrix else a * b
