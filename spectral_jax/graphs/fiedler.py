"""The Fiedler pair of a network: its connectivity, where it sits, and how far to trust it.

The second-smallest eigenvalue of a graph's Laplacian (Fiedler 1973) is 0 if the graph falls apart
and small if a cheap cut nearly makes it; the eigenvector tells the two sides of the cut.
docs/fiedler.md derives what is used here: gradients, upper bounds, the start of the solver.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectral_jax._options import check_choice
from spectral_jax.graphs.components import component_mask
from spectral_jax.graphs.laplacian import (
    Blocks,
    Edges,
    EdgeSums,
    Form,
    Graph,
    by_group,
    column,
    degree_of,
    edge_sums,
    inside_of,
    laplacian_operator,
    magnitude,
    nodal,
    pairs_by_edges,
    pulls,
    quotient_slope,
    read_graph,
)
from spectral_jax.linalg import EigResult, SymmetricOperator, eigsh, unit
from spectral_jax.linalg.precision import power_of_two, working

Component = Literal["largest", "whole"]


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
    problem = _problem(weights, normalised, edges, component)
    stale = None if state is None else problem.embed(state)
    guesses = _guesses(problem, stale)
    pairs = _solve(problem, 1, guesses, tol, max_matvecs)
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
        staleness=_staleness(problem, guesses, value),
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
    problem = _problem(weights, normalised, edges, component)
    stale = None if state is None else problem.embed(state)
    values = _solve(problem, k, _guesses(problem, stale), tol, max_matvecs).values
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
    problem = _problem(weights, normalised, edges, component)
    stale = None if state is None else problem.embed(state)
    return _solve(problem, k, _guesses(problem, stale), tol, max_matvecs)


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
    root = jnp.ones((), degree.dtype) if normalised else _root(jnp.max(degree))
    everywhere = jnp.ones(degree.shape, bool)
    operator = laplacian_operator(
        graph, magnitudes, degree, everywhere, normalised=normalised, root=root
    )
    vectors = jax.lax.stop_gradient(vectors).astype(degree.dtype)
    values, residuals = pairs_by_edges(operator, vectors)
    return PairResiduals(values * root * root, residuals * root * root)


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
    root = _root(jnp.max(jnp.where(inside, degree, 0)))
    found = _merged(graph, sums, degree, inside, root, normalised=normalised)
    if normalised:
        return found
    return LayerQuotient(found.value * root * root, found.vector, found.image * root * root)


def _root(heaviest: Array) -> Array:
    """A power of two whose square lies below ``heaviest``, as the unit to measure weights in.

    Weights of 1e-20 would have squares that underflow in float32; dividing by a power of two
    brings them near 1 without a rounding error.
    """
    return power_of_two(jnp.sqrt(jax.lax.stop_gradient(heaviest))) / 2


def _merged(
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
    # To first order the eigenvector may be held constant (Hellmann-Feynman; see `_stationary`).
    slope = jnp.sum(totals_dot * _steps(incidence, height) ** 2)
    slope -= value * jnp.sum(size_dot * height**2)
    return value, slope / jnp.where(mass > 0, mass, 1)


def _steps(incidence: Array, height: Array) -> Array:
    return jnp.matmul(incidence, height, precision="highest")


class _Problem(NamedTuple):
    """What the solver is to find, at unit scale.

    Operator, degrees and quotient are those of the weights divided by ``root**2``, a power of two
    that brings the heaviest node near 1.
    """

    graph: Graph
    operator: SymmetricOperator
    root: Array
    mask: Array
    """The nodes to search; the vector is 0 at all others."""
    degree: Array
    null: Array
    """The unit eigenvector of the trivial eigenvalue 0, to be kept out of the search."""
    quotient: LayerQuotient
    nodes: Array
    """How many nodes the mask holds."""
    connected: Array
    """Whether the searched nodes are one component, so that the value cannot be 0."""
    readable: Array
    """Whether weights that XLA takes for 0, those below the smallest normal number of the dtype,
    are too small beside the heaviest node to change the answer."""
    normalised: bool

    @property
    def norm(self) -> Array:
        """An upper bound of the operator's norm, within a factor of 2 (Gershgorin)."""
        if self.normalised:
            return jnp.full((), 2, self.degree.dtype)
        return 2 * jnp.max(jnp.where(self.mask, self.degree, 0))

    def in_units(self, value: Array) -> Array:
        """An eigenvalue or residual of the scaled operator, in the unit of the weights."""
        return value if self.normalised else value * self.root * self.root

    def embed(self, state: Array) -> Array:
        """A usable start: zero outside the component, off the null vector, of unit length."""
        state = working(state, "state")
        if state.ndim not in (1, 2) or state.shape[0] != len(self.mask):
            raise ValueError(
                f"state has shape {state.shape}: pass an entry per node, {len(self.mask)}, as the "
                "``state`` of a result has"
            )
        inside = self.mask if state.ndim == 1 else self.mask[:, None]
        state = jnp.where(inside & jnp.isfinite(state), state, 0).astype(self.null.dtype)
        # The weights have changed since: drop what lies outside today's component, and along
        # today's trivial vector.
        state = state - self.null.reshape(-1, *[1] * (state.ndim - 1)) * (self.null @ state)
        length = jnp.linalg.norm(state, axis=0)
        return state / jnp.where(length > 0, length, 1)


def _problem(
    weights: Blocks, normalised: bool, edges: Edges | None, component: Component
) -> _Problem:
    check_choice(get_args(Component), component=component)
    graph = read_graph(weights, edges)
    magnitudes = tuple(magnitude(block) for block in graph.weights)
    sums = edge_sums(magnitudes)
    total = degree_of(graph, sums)
    mask, connected = _searched(graph, total > 0 if normalised else total >= 0, component)
    heaviest, limits = jnp.max(jnp.where(mask, total, 0)), jnp.finfo(total.dtype)
    root = _root(heaviest)
    # Starts and the trivial vector are constants to derivatives: at a converged pair they do not
    # matter.
    constant = jax.lax.stop_gradient((sums, total))
    degree = constant[1] / root / root
    # The trivial vector: constant on the component, times D^1/2 if normalised.
    null = jnp.where(mask, jnp.sqrt(degree) if normalised else 1, 0).astype(degree.dtype)
    length = jnp.linalg.norm(null)
    return _Problem(
        graph=graph,
        operator=laplacian_operator(
            graph, magnitudes, total, mask, normalised=normalised, root=root
        ),
        root=root,
        mask=mask,
        degree=degree,
        null=null / jnp.where(length > 0, length, 1),
        quotient=_merged(graph, *constant, mask, root, normalised=normalised),
        nodes=mask.sum(),
        connected=connected,
        readable=(heaviest * float(limits.eps) > float(limits.tiny)) | (heaviest == 0),
        normalised=normalised,
    )


def _searched(graph: Graph, usable: Array, component: Component) -> tuple[Array, Array]:
    """The nodes to search, and whether they are one component."""
    largest = component_mask(graph)
    if component == "largest":
        return largest, jnp.array(True)
    return usable, jnp.all(largest | ~usable)


class _Guesses(NamedTuple):
    """Columns to start from, and the products of the Laplacian with them."""

    vectors: Array
    images: Array
    matvecs: int


def _guesses(problem: _Problem, stale: Array | None) -> _Guesses:
    """Vectors that are likely to be near the wanted one: those of an earlier solve first, then the
    best vector that is constant in each layer and the indicator of the node of least degree.

    The products with the last two come from sums that are known already, not from a matvec.
    """
    operator = jax.lax.stop_gradient(problem.operator)
    weakest = jnp.argmin(jnp.where(problem.mask, problem.degree, jnp.inf))
    indicator = jnp.zeros_like(problem.null).at[weakest].set(1)
    vectors = jnp.column_stack([problem.quotient.vector, indicator])
    images = jnp.column_stack([problem.quotient.image, column(operator, weakest)])
    if stale is None:
        return _Guesses(vectors, images, 0)
    stale = stale.reshape(len(indicator), -1)
    return _Guesses(
        jnp.column_stack([stale, vectors]),
        jnp.column_stack([operator @ stale, images]),
        stale.shape[1],
    )


def _staleness(problem: _Problem, guesses: _Guesses, value: Array) -> Array:
    """``FiedlerResult.staleness``: the quotient of the first stale vector over the new value."""
    if not guesses.matvecs:
        return jnp.ones_like(value)
    stale, image = guesses.vectors[:, :1], guesses.images[:, 0]
    by_product = jnp.vdot(stale, image)[None]
    quotients, _ = _by_edges_if_small(problem.operator, stale, by_product, by_product, problem.norm)
    known = (value > 0) & (jnp.vdot(stale, stale) > 0)
    overstated = problem.in_units(quotients[0]) / jnp.where(value > 0, value, 1)
    return jnp.where(known, overstated, 1)


def _solve(problem: _Problem, k: int, guesses: _Guesses, tol, max_matvecs: int) -> EigResult:
    dtype = problem.degree.dtype
    tol = float(jnp.finfo(dtype).eps) ** 0.5 if tol is None else tol
    # Residuals divided by the degrees, the diagonal of L (Jacobi's preconditioner): degrees of a
    # network differ by orders of magnitude. The normalised Laplacian has a diagonal of ones.
    jacobi = None
    if k == 1 and not problem.normalised:
        heaviest = jnp.max(problem.degree)
        usable = problem.mask & (problem.degree > 0)
        jacobi = 1 / jnp.where(usable, problem.degree, jnp.where(heaviest > 0, heaviest, 1))
    # Two guesses come from the weights; more are from an earlier solve.
    stale = guesses.vectors.shape[1] > 2
    pairs = eigsh(
        problem.operator,
        k,
        v0=guesses.vectors,
        v0_images=guesses.images,
        deflate=problem.null[:, None],
        preconditioner=jacobi,
        tol=tol,
        max_matvecs=max_matvecs - guesses.matvecs,
        # A vector from an earlier solve may have become another eigenvector, with nothing of the
        # wanted one in it; then only a longer probe sees past it (the numbers: `eigsh`).
        probe_steps=6 if stale else 3,
    )
    values, residuals, converged = _judged(problem, jax.lax.stop_gradient(pairs), tol)
    # Heights at both ends of every edge, for the gradient. They are 0 at nodes outside the
    # component, so that a network padded with unconnected units has the gradient of its own.
    ends = nodal(problem.operator, pairs.vectors) * (1 if problem.normalised else problem.root)
    form = Form(problem.graph.edges, problem.graph.sizes, problem.normalised)
    return EigResult(
        values=_stationary(form, problem.graph.weights, ends, problem.in_units(values)),
        vectors=pairs.vectors,
        residuals=problem.in_units(residuals),
        converged=converged,
        matvecs=pairs.matvecs + guesses.matvecs,
    )


def _judged(problem: _Problem, pairs: EigResult, tol: float) -> tuple[Array, Array, Array]:
    """Values, residuals, and which pairs have ``converged`` in the sense of ``fiedler``."""
    operator = jax.lax.stop_gradient(problem.operator)
    values, residuals = _by_edges_if_small(
        operator, pairs.vectors, pairs.values, pairs.residuals, problem.norm
    )
    # The solver also accepts a residual at the rounding level of its products, about eps times the
    # norm. A value smaller than that is not resolved by it: ask again, relative to the value.
    sound = residuals < tol**0.5 * values
    # A graph in parts has the value 0 exactly. No residual is small relative to 0, so accept what
    # the edge sum of a vector with entries wrong by a rounding error can give: its square.
    rounding = 10 * float(jnp.finfo(values.dtype).eps)
    zero = ~problem.connected & (values <= rounding**2 * problem.norm)
    # NaN or inf among the weights shows in the degrees, and so in the norm.
    finite = jnp.isfinite(problem.norm)
    values = jnp.where(finite, values, jnp.nan)
    return values, residuals, pairs.converged & (sound | zero) & finite & problem.readable


@jax.jit
def _by_edges_if_small(
    operator: SymmetricOperator, vectors: Array, values: Array, residuals: Array, norm: Array
) -> tuple[Array, Array]:
    """Quotients and residuals as products gave them, or anew from sums over edges.

    A quotient below ``sqrt(eps)`` times the norm has lost half of its digits to cancellation in
    the products (``pairs_by_edges``).
    """
    small = ~(jnp.min(values) >= float(jnp.finfo(values.dtype).eps) ** 0.5 * norm)
    # A loop of one turn at most, because `cond` under `vmap` runs both of its branches for every
    # network of the batch; a loop under `vmap` ends when no network needs the turn.
    _, values, residuals = jax.lax.while_loop(
        lambda state: state[0],
        lambda _: (jnp.array(False), *pairs_by_edges(operator, vectors)),
        (small, values, residuals),
    )
    return values, residuals


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _stationary(form: Form, weights: tuple[Array, ...], ends: Array, values: Array) -> Array:
    """``values``, given the derivative ``v^T dL v`` of eigenvalues.

    That is the derivative of the Rayleigh quotient with ``v`` held constant (Hellmann-Feynman): a
    quotient is stationary at an eigenvector, so how ``v`` itself moves does not count to first
    order. The second derivative goes through ``ends``, and is right where that of the vectors is.
    """
    return values


@_stationary.defjvp
def _stationary_jvp(form, primals, tangents):
    weights, ends, _ = primals
    values = _stationary(form, *primals)
    slope = partial(quotient_slope, form, weights, tangents[0])
    return values, jax.vmap(slope, in_axes=(1, 0))(ends, values)
