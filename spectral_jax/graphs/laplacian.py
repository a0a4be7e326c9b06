"""A network as a weighted graph: its Laplacian as a matrix-free operator.

Nodes are units (or channels) in groups ``0 .. L``; a weight block ``[n_source, n_target]`` joins
two groups with edge weights ``|w|``, so that a sign never matters; a one-dimensional block ``[n]``
joins equal-sized groups unit by unit (a skip). Without ``edges`` the blocks form the chain ``0-1,
1-2, ...``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, Num

from spectral_jax.linalg import SymmetricOperator
from spectral_jax.linalg.precision import power_of_two, unit_of, working

Edges = tuple[tuple[int, int], ...]
Blocks = Sequence[Float[Array, "..."]]


class Graph(NamedTuple):
    """A network as every function of this room reads it: blocks of one working dtype.

    ``edges`` names the two groups of each block, ``sizes`` counts the units of each group; nodes
    are numbered group after group.
    """

    weights: tuple[Array, ...]
    edges: Edges
    sizes: tuple[int, ...]


def read_graph(weights: Blocks, edges: Edges | None) -> Graph:
    """Check what a caller passed, and bring it to one dtype.

    Half types and integers are computed in float32. ``ValueError`` for complex numbers and blocks
    that do not fit together.
    """
    weights = _blocks(weights)
    edges = chain(weights) if edges is None else tuple((start, end) for start, end in edges)
    sizes = widths(weights, edges)
    read = [working(block, f"weights[{index}]") for index, block in enumerate(weights)]
    dtype = jnp.result_type(*read)
    return Graph(tuple(block.astype(dtype) for block in read), edges, sizes)


def inside_of(graph: Graph, mask: Bool[Array, " N"] | None) -> Bool[Array, " N"]:
    """The nodes of a mask that a caller passed: all, if there is none."""
    nodes = (sum(graph.sizes),)
    if mask is None:
        return jnp.ones(nodes, bool)
    mask = jnp.asarray(mask, bool)
    if mask.shape != nodes:
        raise ValueError(f"mask has shape {mask.shape}: pass one flag per node, {nodes}")
    return mask


def chain(weights: Blocks) -> Edges:
    """The ``edges`` of a plain feed-forward net, as other functions here take them.

    Block ``l`` of ``weights`` joins the groups of units ``l`` and ``l + 1``. Raises ``ValueError``
    for anything but a sequence of blocks.

    >>> chain([jnp.ones((4, 6)), jnp.ones((6, 3))])
    ((0, 1), (1, 2))
    """
    return tuple((layer, layer + 1) for layer in range(len(_blocks(weights))))


def widths(weights: Blocks, edges: Edges | None = None) -> tuple[int, ...]:
    """Units per node group, input first, read off the shapes of ``weights``.

    ``edges`` names the two groups of each block; None is the chain. Works under ``jit``. Raises
    ``ValueError`` where two blocks disagree on a group's width, a group has no block or no units,
    and for anything but a sequence of blocks.

    >>> widths([jnp.ones((4, 6)), jnp.ones((6, 3))])
    (4, 6, 3)
    """
    weights = _blocks(weights)
    edges = chain(weights) if edges is None else edges
    if not weights or len(weights) != len(edges):
        raise ValueError(
            f"weights has {len(weights)} blocks and edges {len(edges)}: pass one edge per block"
        )
    found: dict[int, int] = {}
    for index, (block, (source, target)) in enumerate(zip(weights, edges, strict=True)):
        shape = _shape(block, index)
        if len(shape) not in (1, 2) or source == target:
            raise ValueError(
                f"weights[{index}] has shape {shape} on edge {(source, target)}: pass "
                "[n_source, n_target] (or [n] for a unit-by-unit skip) between two different groups"
            )
        if 0 in shape:
            raise ValueError(
                f"weights[{index}] has shape {shape}, a group without units: leave its blocks out"
            )
        for group, width in ((source, shape[0]), (target, shape[-1])):
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
    normalised: bool = False,
    edges: Edges | None = None,
    mask: Bool[Array, " N"] | None = None,
) -> SymmetricOperator:
    """``L = D - A`` of the network graph, or ``D^-1/2 L D^-1/2``, on ``N = n_0 + ... + n_L`` nodes.

    One product costs two passes over the weights, about a forward and a backward pass at batch 1;
    the ``N x N`` matrix never exists.

    Args:
      weights: one block ``[n_source, n_target]`` (or ``[n]`` for a unit-by-unit skip) per pair of
        joined groups; an edge weighs ``|w|``.
      normalised: eigenvalues between 0 and 2, whatever the scale of the weights.
      edges: ``(source, target)`` group of each block; None is the chain ``0-1, 1-2, ...``.
      mask: nodes to keep, a union of connected components; all if None. The others (and, if
        ``normalised``, nodes of degree zero, by which one cannot divide) become eigenvectors of
        their own with the value 2, or twice the largest degree: above the rest of the spectrum,
        where a search for small eigenvalues does not meet them.

    Works under ``jit``, ``vmap``, ``grad`` with respect to ``weights`` and on sharded blocks.
    Raises ``ValueError`` for blocks or a mask that do not fit together.
    Source: arXiv 2003.00992; released code edrictam/FiedlerRegularization (combinatorial only).

    >>> laplacian([jnp.ones((1, 1)), jnp.ones((1, 1))]).dense().tolist()
    [[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]]
    """
    graph = read_graph(weights, edges)
    magnitudes = tuple(magnitude(block) for block in graph.weights)
    degree = degree_of(graph, edge_sums(magnitudes))
    inside = inside_of(graph, mask)
    return laplacian_operator(graph, magnitudes, degree, inside, normalised=normalised)


def laplacian_operator(
    graph: Graph,
    magnitudes: tuple[Array, ...],
    degree: Array,
    inside: Array,
    *,
    normalised: bool,
    root: Array | float = 1.0,
) -> SymmetricOperator:
    """``laplacian`` from known ``|w|`` and degrees; ``L / root**2`` if combinatorial.

    Dividing the vectors on either side by ``root`` brings the operator to unit scale in the passes
    over ``N`` numbers that are made anyway; dividing the weights would be another pass over them.
    """
    if normalised:
        # A node without edges has no D^-1/2.
        inside = inside & (degree > 0)
        scale = jnp.where(inside, inverse_root(degree), 0)
        ceiling = jnp.full((), 2, degree.dtype)
    else:
        scale = inside.astype(degree.dtype) / root
        ceiling = 2 * jax.lax.stop_gradient(jnp.max(jnp.where(inside, degree, 0))) / root / root
    data = _LaplacianData(magnitudes, degree, scale, jnp.where(inside, 0, ceiling))
    return SymmetricOperator(_LaplacianProduct(graph.edges, graph.sizes), data, sum(graph.sizes))


def degrees(weights: Blocks, *, edges: Edges | None = None) -> Float[Array, " N"]:
    """Weighted degree of every node: ``d_i = sum_j |w_ij|``, in the unit of the weights.

    ``weights`` and ``edges`` are those of ``laplacian``. Works under ``jit``, ``vmap`` and
    ``grad``. Raises ``ValueError`` for blocks that do not fit together.

    >>> degrees([jnp.array([[1.0, -2.0]])]).tolist()
    [3.0, 1.0, 2.0]
    """
    graph = read_graph(weights, edges)
    return degree_of(graph, edge_sums([magnitude(block) for block in graph.weights]))


def rayleigh_quotient(
    weights: Blocks, v: Float[Array, " N"], *, normalised: bool = False, edges: Edges | None = None
) -> Float[Array, ""]:
    """``v^T L v / v^T v``, or ``v^T L v / v^T D v`` if ``normalised``, as a sum over edges.

    ``v^T L v = sum_ij |W_ij| (v_i - v_j)^2``, so with ``v`` held constant the gradient with respect
    to ``W_ij`` is ``sign(W_ij) (v_i - v_j)^2`` for a unit ``v``: the Fiedler penalty. With
    ``normalised``, ``v`` is ``D^-1/2 u`` for an eigenvector ``u``, and the gradient
    ``sign(W_ij) ((v_i - v_j)^2 - nu (v_i^2 + v_j^2)) / v^T D v``. Never negative, and right to all
    digits however small it is beside the weights. ``v`` may have any length but 0, whose quotient
    is 0.

    Works under ``jit``, ``vmap`` and ``grad``, with respect to ``v`` too. Raises ``ValueError`` for
    blocks that do not fit together and for a ``v`` that is not one entry per node.
    Source: arXiv 2003.00992.

    >>> strong_and_weak = [jnp.ones((1, 1)), jnp.full((1, 1), 2.0**-60)]
    >>> float(rayleigh_quotient(strong_and_weak, jnp.array([1.0, 1.0, -2.0]))) == 1.5 * 2.0**-60
    True
    """
    graph = read_graph(weights, edges)
    v = working(v, "v").astype(graph.weights[0].dtype)
    if v.shape != (sum(graph.sizes),):
        raise ValueError(f"v has shape {v.shape}: pass one entry per node, {(sum(graph.sizes),)}")
    form = Form(graph.edges, graph.sizes, normalised)
    # The quotient does not depend on the length of v; squares of entries near 1 are numbers.
    return _quotient(form, graph.weights, v / unit_of(v))


class Form(NamedTuple):
    """The static part of a quadratic form on a graph: hashable, so that ``jit`` compiles once."""

    edges: Edges
    sizes: tuple[int, ...]
    normalised: bool


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _quotient(form: Form, weights: tuple[Array, ...], v: Array) -> Array:
    """The Rayleigh quotient of a vector whose entries reach up to 1."""
    # Weights of 1e-30 times squared differences of 1e-5 underflow in float32. A vector 2^50 times
    # as long has the same quotient and does not. Both sums are always made, in one pass over the
    # weights: `cond` would make both under `vmap` as well, and a loop would copy the weights.
    (plain, mass), (lifted, mass_lifted) = (
        _energy_and_mass(form, weights, lift * v) for lift in (1, 2.0**50)
    )
    small = plain < 2.0**-60
    mass = jnp.where(small, mass_lifted, mass)
    return jnp.where(small, lifted, plain) / jnp.where(mass > 0, mass, 1)


@partial(_quotient.defjvp, symbolic_zeros=True)
def _quotient_jvp(form, primals, tangents):
    weights, v = primals
    weights_dot, v_dot = tangents
    value = _quotient(form, weights, v)
    slope = quotient_slope(form, weights, weights_dot, v, value)
    if not isinstance(v_dot, SymbolicZero):
        (_, mass), (energy_dot, mass_dot) = jax.jvp(
            partial(_energy_and_mass, form, weights), (v,), (v_dot,)
        )
        slope += (energy_dot - value * mass_dot) / jnp.where(mass > 0, mass, 1)
    return value, slope


def quotient_slope(form: Form, weights, weights_dot, v: Array, value: Array) -> Array:
    """The derivative of the Rayleigh quotient ``value`` by the weights, ``v`` held constant.

    Written out by hand: the derivative of energy over mass that JAX would form divides by the
    square of the mass, which underflows in float32 at weights of 1e-20 (normalised).
    """
    _, mass = _energy_and_mass(form, weights, v)
    parts, slope = by_group(v, form.sizes), jnp.zeros((), v.dtype)
    for block, block_dot, (source, target) in zip(weights, weights_dot, form.edges, strict=True):
        if isinstance(block_dot, SymbolicZero):
            continue
        x, y = _ends(block, parts[source], parts[target])
        rate = (x - y) ** 2 - (value * (x**2 + y**2) if form.normalised else 0)
        slope += jnp.sum(jnp.sign(block) * rate * block_dot)
    return slope / jnp.where(mass > 0, mass, 1)


def _energy_and_mass(form: Form, weights, v: Array) -> tuple[Array, Array]:
    """Numerator ``v^T L v`` and denominator ``v^T v`` (``v^T D v``) of the Rayleigh quotient."""
    magnitudes = [magnitude(block) for block in weights]
    parts, energy = by_group(v, form.sizes), jnp.zeros((), v.dtype)
    for a, (source, target) in zip(magnitudes, form.edges, strict=True):
        x, y = _ends(a, parts[source], parts[target])
        energy += jnp.sum(_row_sums(a * (x - y) ** 2))
    graph = Graph(tuple(weights), form.edges, form.sizes)
    mass = degree_of(graph, edge_sums(magnitudes)) if form.normalised else 1
    return energy, jnp.sum(mass * v**2)


def _ends(block: Array, source: Array, target: Array) -> tuple[Array, Array]:
    """The values at both ends of every edge of a block, to broadcast."""
    return (source[:, None], target[None, :]) if block.ndim == 2 else (source, target)


def by_group(x: Num[Array, " N"], sizes: Sequence[int]) -> list[Num[Array, " n"]]:
    """The pieces of a node vector ``x``, one per group of ``sizes`` (see ``widths``), input first.

    Works under ``jit``, ``vmap`` and ``grad``.

    >>> [part.tolist() for part in by_group(jnp.arange(3), (2, 1))]
    [[0, 1], [2]]
    """
    offsets = [sum(sizes[:group]) for group in range(len(sizes) + 1)]
    return [x[start:stop] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]


class _LaplacianData(NamedTuple):
    """The arrays of a ``laplacian``: ``S (D - A) S + diag(apart)`` with ``S = diag(scale)``.

    ``scale`` is ``D^-1/2`` or one over the unit, and 0 at nodes set apart, where ``apart`` is their
    eigenvalue; elsewhere ``apart`` is 0.
    """

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
        parts = by_group(scaled, self.sizes)
        # `pulled` collects A x: over a block flows W^T x to its target and W x to its source.
        pulled = [jnp.zeros_like(part) for part in parts]
        for a, (source, target) in zip(data.magnitudes, self.edges, strict=True):
            # Not a.T @ x: on a CPU XLA reads the transpose across the rows that are contiguous in
            # memory, which takes three times as long.
            pulled[target] += _times(parts[source], a)
            pulled[source] += _times(a, parts[target])
        return data.scale * (data.degree * scaled - jnp.concatenate(pulled)) + data.apart * x


def column(op: SymmetricOperator, node: Array) -> Array:
    """``op @ e_node`` of a ``laplacian``, from one row or column of each block.

    A matvec with the indicator of the node would read every weight to use only those.
    """
    data, product = op.data, _product_of(op)
    edges, sizes = product.edges, product.sizes
    chosen = (jnp.arange(op.size) == node).astype(data.degree.dtype)
    first, ones = [sum(sizes[:group]) for group in range(len(sizes))], by_group(chosen, sizes)
    parts = [jnp.zeros_like(one) for one in ones]
    for a, (source, target) in zip(data.magnitudes, edges, strict=True):
        if a.ndim == 1:
            parts[target] += a * ones[source]
            parts[source] += a * ones[target]
            continue
        # `node` is traced: which group holds it is not known at compile time, so every block is
        # indexed (JAX clips indices that are out of range) and the result dropped where it is not.
        held = [jnp.any(ones[group] > 0) for group in (source, target)]
        parts[target] += jnp.where(held[0], a[node - first[source]], 0)
        parts[source] += jnp.where(held[1], a[:, node - first[target]], 0)
    pulled = data.scale[node] * jnp.concatenate(parts)
    return data.scale * (data.degree * data.scale * chosen - pulled) + data.apart * chosen


def nodal(op: SymmetricOperator, x: Array) -> Array:
    """The heights ``y`` for which ``x^T op x`` is the sum over edges of ``|w| (y_i - y_j)^2``.

    ``D^-1/2 x`` for a normalised ``laplacian``, and 0 at nodes set apart; ``[N]`` or ``[N, k]``.
    """
    return op.data.scale.reshape(-1, *[1] * (x.ndim - 1)) * x


@jax.jit
def pairs_by_edges(op: SymmetricOperator, vectors: Array) -> tuple[Array, Array]:
    """Rayleigh quotients of unit columns and the norms of their residuals, from sums over edges.

    A matrix product adds ``d_i x_i`` and takes away ``sum_j w_ij x_j``, two numbers of nearly one
    size, so that a quotient below ``eps`` times the norm (1e-7 of it in float32) is nothing but
    rounding, of either sign. Squared differences along edges cancel nothing; they cost an
    elementwise pass over the weights where a product is two matrix-vector products of BLAS.
    """
    data, product = op.data, _product_of(op)

    def one(x):
        parts = by_group(data.scale * x, product.sizes)
        pulled, energy = [jnp.zeros_like(part) for part in parts], jnp.sum(data.apart * x**2)
        for a, (source, target) in zip(data.magnitudes, product.edges, strict=True):
            start, end = _ends(a, parts[source], parts[target])
            difference = start - end
            flow = a * difference
            pulled[source] += _row_sums(flow)
            pulled[target] -= _column_sums(flow)
            energy += jnp.sum(_row_sums(flow * difference))
        squares = jnp.sum(x**2)
        value = energy / jnp.where(squares > 0, squares, 1)
        rest = data.scale * jnp.concatenate(pulled) + data.apart * x - value * x
        # In float32 the square of a residual of 1e-23 underflows to 0, and the pair would look
        # exact: take the norm in units of the largest entry.
        unit = unit_of(rest)
        return value, jnp.linalg.norm(rest / unit) * unit

    # One column after the other: `vmap` would hold the differences, as large as the weights, k
    # times in memory.
    return jax.lax.map(one, vectors.T)


def _product_of(op: SymmetricOperator) -> _LaplacianProduct:
    if not isinstance(op.apply, _LaplacianProduct):
        raise ValueError("op is no network Laplacian: pass what `laplacian` returns")
    return op.apply


def magnitude(block: Array) -> Array:
    """Edge weights ``|w|`` of a block."""
    # The derivative of jnp.abs at 0 is 1 in JAX: a penalty would then pull at edges that are
    # absent, such as pruned weights. That of w sign(w) is sign(w), 0 at 0.
    return block * jnp.sign(block)


def inverse_root(degree: Array) -> Array:
    """``degree ** -0.5``, and 0 for a node without edges.

    In units of a power of two near the largest degree, because the derivative ``degree ** -1.5``
    overflows in float32 at weights of 1e-30.
    """
    present, root = degree > 0, power_of_two(jnp.sqrt(jnp.max(degree)))
    return jnp.where(present, jnp.where(present, degree / root / root, 1) ** -0.5 / root, 0)


class EdgeSums(NamedTuple):
    """Row sums and column sums of a block: the weight that leaves each source node over it, and
    that which reaches each target node."""

    sent: Array
    received: Array


def edge_sums(magnitudes: Sequence[Array]) -> list[EdgeSums]:
    """The sums of every block."""
    return [EdgeSums(_row_sums(a), _column_sums(a)) for a in magnitudes]


def _row_sums(a: Array) -> Array:
    """Sums along rows, as a product with ones: BLAS takes half the time of XLA's sum on a CPU."""
    return _times(a, jnp.ones(a.shape[-1], a.dtype))


def _column_sums(a: Array) -> Array:
    return _times(jnp.ones(a.shape[0], a.dtype), a)


def pulls(
    sums: Sequence[EdgeSums], heights: Float[Array, " L"], edges: Edges, sizes: Sequence[int]
) -> Array:
    """``L h`` for an ``h`` that is constant in each group, from row and column sums alone.

    Over an edge flows ``|w| (h_source - h_target)``, and all edges of a block have one difference.
    """
    parts = [jnp.zeros(size, sums[0].sent.dtype) for size in sizes]
    for block, (source, target) in zip(sums, edges, strict=True):
        step = heights[source] - heights[target]
        parts[source] += step * block.sent
        parts[target] -= step * block.received
    return jnp.concatenate(parts)


def degree_of(graph: Graph, sums: Sequence[EdgeSums]) -> Array:
    """The degree of every node from the sums of the blocks."""
    parts = [jnp.zeros(size, sums[0].sent.dtype) for size in graph.sizes]
    for block, (source, target) in zip(sums, graph.edges, strict=True):
        parts[source] += block.sent
        parts[target] += block.received
    return jnp.concatenate(parts)


def _blocks(weights: Blocks) -> tuple:
    """``weights`` as a tuple; ``ValueError`` for a tree of parameters or a single array."""
    one = type(weights).__name__
    # An array of three axes would pass for a sequence of its slices.
    if hasattr(weights, "shape"):
        one = f"array of shape {np.shape(weights)}"
    elif isinstance(weights, Iterable) and not isinstance(weights, str | Mapping):
        return tuple(weights)
    raise ValueError(
        f"weights is one {one}: pass a sequence of blocks [n_source, n_target], such as [w] for "
        "one layer or, for the parameters of a network, weights.graph_weights(params, "
        "weights.layout(params))"
    )


def _shape(block: Array, index: int) -> tuple[int, ...]:
    try:
        if isinstance(block, str | Mapping):
            raise ValueError(f"a {type(block).__name__}")
        return np.shape(block)
    except ValueError as error:
        raise ValueError(
            f"weights[{index}] is no array ({error}): pass [n_source, n_target]"
        ) from error


def _times(a: Array, b: Array) -> Array:
    matrix = a.ndim == 2 or b.ndim == 2
    return jnp.matmul(a, b, precision=Precision.HIGHEST) if matrix else a * b
