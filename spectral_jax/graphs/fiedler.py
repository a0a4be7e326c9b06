"""The Fiedler pair of a network: its connectivity, where it sits, and how far to trust it.

The second-smallest eigenvalue of a graph's Laplacian (Fiedler 1973) is 0 if the graph falls apart
and small if a cheap cut nearly makes it; the eigenvector tells the two sides of the cut.
docs/fiedler.md derives what is used here: gradients, upper bounds, the start of the solver.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax.graphs.laplacian import (
    Blocks,
    Edges,
    by_group,
    degree_of,
    edge_sums,
    laplacian_operator,
    magnitude,
    pairs_by_edges,
    read_graph,
)
from spectral_jax.graphs.quotient import root_of
from spectral_jax.graphs.solving import Component, guesses_of, problem_of, solve, staleness_of
from spectral_jax.linalg import EigResult
from spectral_jax.linalg.precision import working


class FiedlerResult(NamedTuple):
    """``lambda_2`` (or ``nu_2``), its unit vector over the nodes, and what to know to use them.

    Values and bounds have the unit of the weights, or none if normalised.
    """

    value: Float[Array, ""]
    vector: Float[Array, " N"]
    """Of length 1; its sign is arbitrary. If normalised, divide by ``sqrt(degrees)`` for heights
    whose differences along edges count (``rayleigh_quotient``)."""
    residual: Float[Array, ""]
    """``||L v - value v||``: some eigenvalue lies that close to ``value``."""
    converged: Bool[Array, ""]
    matvecs: Int[Array, ""]
    """Products with the Laplacian that the solver made, each about a forward and a backward pass
    of the network at batch 1."""
    participation_ratio: Float[Array, ""]
    """``1 / sum v^4``: 1 for a single node, ``N`` for an even spread."""
    peak_group: Int[Array, ""]
    """Node group (0 = input) that holds the largest entry of the vector."""
    quotient_bound: Float[Array, ""]
    """Upper bound on the value from the layer quotient (``layer_quotient``)."""
    degree_bound: Float[Array, ""]
    """Upper bound ``N/(N-1) min_i d_i`` (combinatorial, Fiedler 1973) or ``N/(N-1)``
    (normalised, Chung 1997): no network is better connected than its least connected unit."""
    staleness: Float[Array, ""]
    """``v^T L v / value`` for the ``state`` ``v`` that was passed in, at least 1 up to rounding: a
    penalty that keeps ``v`` overstates the connectivity by this factor. 1 without a ``state``."""
    component_size: Int[Array, ""]
    """Nodes in the component the pair belongs to; ``N`` for a connected network."""

    @property
    def state(self) -> Float[Array, " N"]:
        """What to pass as ``state`` next time, to start the solver near the solution."""
        return self.vector


def fiedler(
    weights: Blocks,
    *,
    normalised: bool = False,
    edges: Edges | None = None,
    state: Float[Array, " N"] | None = None,
    component: Component = "largest",
    tol: float = 1e-3,
    max_matvecs: int = 400,
) -> FiedlerResult:
    """Second-smallest eigenpair of the network Laplacian, with diagnostics.

    ``lambda_2 = min v^T L v / v^T v`` over the ``v`` orthogonal to the constant vector, where ``L =
    D - A``, ``A_ij = |w_ij|`` and ``D`` holds the degrees ``d_i = sum_j A_ij``.

    Args:
      weights: one block ``[n_source, n_target]`` (or ``[n]`` for a unit-by-unit skip) per pair of
        joined layers; signs are dropped. ``weights.graph_weights`` reads them off parameters.
      normalised: ``nu_2`` of ``D^-1/2 L D^-1/2``, between 0 and 2, which does not change when all
        weights grow by one factor; ``lambda_2`` grows with them.
      edges: which two groups of units each block joins, ``(source, target)`` with group 0 the
        input. None is the chain ``0-1, 1-2, ...`` of a plain feed-forward network.
      state: the ``state`` of an earlier result, or several columns. It saves products where the
        weights have changed little; it does not change what is looked for.
      component: ``"largest"`` analyses the largest connected component, since a network in parts
        has ``lambda_2 = 0``, which says nothing and has no useful gradient (``component_size``
        tells). ``"whole"`` keeps that zero.
      tol: the largest residual ``||L v - value v|| / value``. The relative error of the value is
        about ``tol**2 * value / gap``, so that 1e-3 gives it about five digits.
      max_matvecs: cap on products. The default is about 14 times what the hardest network of
        benchmarks/RESULTS.md took (29 products for 20,531 inputs).

    The solver starts from vectors that are likely to be near: ``state``, the indicator of the node
    of least degree, and the best vector that is constant in each layer. Networks are found in two
    regimes, and the last two guesses are nearly exact in one each: the vector sits on a single weak
    unit, or changes only from layer to layer.

    A value far below the norm of the Laplacian, and its residual, are computed as sums over edges:
    never negative, and right to all digits for the vector at hand. Where rounding keeps every
    residual above ``tol``, ``converged`` still asks for ``residual < sqrt(tol) * value``, which is
    enough because the value's error is quadratic in the residual. A network without edges has value
    0 and a zero vector.

    Works under ``jit``, ``vmap`` and on sharded blocks; for derivatives use ``fiedler_value``.
    NaN and infinite weights give NaN and ``converged = False``. Weights below the smallest normal
    number count as 0, and a network in which that could show is not ``converged``. Raises
    ``ValueError`` for blocks that do not fit together, complex ones and trees of parameters.
    Sources: Fiedler 1973; arXiv 2003.00992 for networks; start and regimes: docs/fiedler.md.

    >>> path = [jnp.ones((1, 1)), jnp.full((1, 1), 2.0)]
    >>> round(float(fiedler(path).value), 4)
    1.2679
    """
    problem = problem_of(weights, normalised, edges, component)
    guesses = guesses_of(problem, state)
    pairs = solve(problem, 1, guesses, tol, max_matvecs)
    # A component of a single node has no pair but the trivial one.
    exists = problem.nodes > 1
    vector = jnp.where(exists, pairs.vectors[:, 0], 0)
    value = jnp.where(exists, pairs.values[0], 0)
    lightest = jnp.min(jnp.where(problem.mask, problem.degree, jnp.inf))
    count = problem.nodes.astype(vector.dtype)
    share = count / jnp.maximum(count - 1, 1)
    fourth = jnp.sum(vector**4)
    groups = by_group(vector, problem.graph.sizes)
    return FiedlerResult(
        value=value,
        vector=vector,
        residual=jnp.where(exists, pairs.residuals[0], 0),
        converged=pairs.converged[0] | ~exists,
        matvecs=pairs.matvecs,
        participation_ratio=jnp.where(fourth > 0, 1 / jnp.where(fourth > 0, fourth, 1), 0),
        peak_group=jnp.argmax(jnp.stack([jnp.max(jnp.abs(v)) for v in groups])),
        quotient_bound=problem.in_units(problem.quotient.value),
        degree_bound=share if normalised else share * problem.in_units(lightest),
        staleness=staleness_of(problem, guesses, value),
        component_size=problem.nodes,
    )


def fiedler_value(
    weights: Blocks,
    *,
    normalised: bool = False,
    edges: Edges | None = None,
    k: int = 1,
    reduce: Literal["mean", "softmin"] = "mean",
    sharpness: float = 10.0,
    state: Float[Array, "N s"] | Float[Array, " N"] | None = None,
    component: Component = "largest",
    tol: float | None = None,
    max_matvecs: int = 400,
) -> Float[Array, ""]:
    """Differentiable connectivity: ``lambda_2``, or a mixture of ``lambda_2..lambda_{k+1}``.

    The gradient is ``sign(W_ij) (v_i - v_j)^2``, or for the normalised Laplacian
    ``sign(W_ij) ((y_i - y_j)^2 - nu (y_i^2 + y_j^2))`` with ``y = D^-1/2 v``; it is exact at a
    converged pair, finite at a repeated eigenvalue and for disconnected networks, and itself
    differentiable.

    Args:
      k: how many of the smallest non-trivial eigenvalues are mixed. A single one has a gradient
        that jumps where it crosses another; a mixture of both is smooth there.
      reduce: ``"mean"`` averages them, as the clusterability penalty of arXiv 2103.03386;
        ``"softmin"`` is ``-log(mean(exp(-sharpness lambda))) / sharpness``.
      sharpness: of the softmin, in one over the unit of the values: ``lambda_2`` alone counts where
        the next one lies several ``1 / sharpness`` above; towards 0 it is the mean.
      state: columns ``[N, s]`` near the wanted vectors, such as those of ``fiedler_pairs``.
      tol: the largest relative residual; ``sqrt(eps)`` of the dtype if None. The default of
        ``fiedler`` is looser, for a value's error is ``tol**2`` and a gradient's is ``tol``.

    ``weights``, ``normalised``, ``edges``, ``component`` and ``max_matvecs`` are those of
    ``fiedler``. Works under ``jit``, ``vmap`` and reverse-mode ``grad``. Raises ``ValueError`` for
    blocks that do not fit together, ``k >= N`` or an unknown ``reduce``.
    Sources: arXiv 2003.00992; Hellmann-Feynman theorem (docs/fiedler.md).

    >>> path = [jnp.ones((1, 1)), 2 * jnp.ones((1, 1))]
    >>> grads = jax.grad(fiedler_value)(path)
    >>> [round(float(g[0, 0]), 3) for g in grads]
    [1.0, 0.134]
    """
    check_choice(("mean", "softmin"), reduce=reduce)
    problem = problem_of(weights, normalised, edges, component)
    values = solve(problem, k, guesses_of(problem, state), tol, max_matvecs).values
    # Where the component has fewer than k non-trivial pairs, the others are those of nodes outside
    # it, with a value above the spectrum that must not enter the mean.
    real = jnp.arange(k) < problem.nodes - 1
    count = jnp.maximum(jnp.sum(real), 1).astype(values.dtype)
    if reduce == "mean":
        return jnp.sum(jnp.where(real, values, 0)) / count
    # logsumexp subtracts the largest exponent first: exp(-sharpness lambda) itself underflows.
    exponents = jnp.where(real, -sharpness * values, -jnp.inf)
    mixture = jax.nn.logsumexp(exponents, where=real) - jnp.log(count)
    return jnp.where(problem.nodes > 1, -mixture / sharpness, 0)


def fiedler_pairs(
    weights: Blocks,
    k: int,
    *,
    normalised: bool = False,
    edges: Edges | None = None,
    state: Float[Array, "N s"] | None = None,
    component: Component = "largest",
    tol: float | None = None,
    max_matvecs: int = 400,
) -> EigResult:
    """The ``k`` smallest non-trivial eigenpairs of the network Laplacian, ascending.

    The trivial pair is the eigenvalue 0 with the constant vector (``sqrt(degrees)`` if normalised).
    A component of ``count`` nodes has only ``count - 1`` others; where ``k`` asks for more, they
    come from the nodes outside it, which are given the value of twice the largest degree
    (combinatorial) or 2 (normalised), above the rest of the spectrum.

    Arguments, values, residuals and ``converged`` are those of ``fiedler``, but that ``tol``
    defaults to ``sqrt(eps)``, for vectors to differentiate with. Works under ``jit``, ``vmap`` and
    reverse-mode ``grad``. Raises ``ValueError`` as ``fiedler`` does, and for ``k >= N``.
    Source: arXiv 2103.03386 for penalties on several.

    >>> fiedler_pairs([jnp.ones((2, 3))], 2).values.round(3).tolist()
    [2.0, 2.0]
    """
    problem = problem_of(weights, normalised, edges, component)
    return solve(problem, k, guesses_of(problem, state), tol, max_matvecs)


class PairResiduals(NamedTuple):
    """Rayleigh quotients of given vectors and ``||L v - value v||``, one each per column."""

    values: Float[Array, " k"]
    residuals: Float[Array, " k"]


def pair_residuals(
    weights: Blocks,
    vectors: Float[Array, "N k"],
    *,
    normalised: bool = False,
    edges: Edges | None = None,
) -> PairResiduals:
    """How well kept eigenvectors fit today's weights, from sums over edges.

    Training that solves for the pairs only now and then asks this in between: a residual that has
    grown says that the vectors are stale.

    ``vectors`` are unit columns as ``fiedler_pairs`` returns them (for ``normalised``, eigenvectors
    of ``D^-1/2 L D^-1/2``, not yet divided by the roots of the degrees). One elementwise pass over
    the weights per column. Works under ``jit`` and ``vmap``; a diagnostic, so a constant to
    ``grad``. Raises ``ValueError`` for blocks that do not fit together, and for vectors that are
    not columns of an entry per node.

    >>> old = fiedler_pairs([jnp.ones((2, 3))], 1).vectors
    >>> [bool(x < 1e-5) for x in pair_residuals([3 * jnp.ones((2, 3))], old).residuals]
    [True]
    """
    graph = read_graph(weights, edges)
    vectors = working(vectors, "vectors")
    if vectors.ndim != 2 or len(vectors) != sum(graph.sizes):
        raise ValueError(
            f"vectors have shape {vectors.shape}: pass columns of an entry per node, "
            f"[{sum(graph.sizes)}, k]"
        )
    magnitudes = tuple(jax.lax.stop_gradient(magnitude(block)) for block in graph.weights)
    degree = degree_of(graph, edge_sums(magnitudes))
    root = jnp.ones((), degree.dtype) if normalised else root_of(jnp.max(degree))
    everywhere = jnp.ones(degree.shape, bool)
    operator = laplacian_operator(
        graph, magnitudes, degree, everywhere, normalised=normalised, root=root
    )
    vectors = jax.lax.stop_gradient(vectors).astype(degree.dtype)
    values, residuals = pairs_by_edges(operator, vectors)
    return PairResiduals(values * root * root, residuals * root * root)
