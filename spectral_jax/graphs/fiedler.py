"""The Fiedler pair of a network: its connectivity, where it sits, and how far to trust it."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectral_jax.graphs.components import largest_component
from spectral_jax.graphs.laplacian import (
    Blocks,
    Edges,
    chain,
    column,
    degrees,
    edge_sums,
    laplacian,
    magnitude,
    pulls,
    split,
    widths,
)
from spectral_jax.linalg import EigResult, SymmetricOperator, eigsh

Component = Literal["largest", "whole"]


class FiedlerResult(NamedTuple):
    """``lambda_2`` (or ``nu_2``), its unit vector over the nodes, and what to know to use them."""

    value: Float[Array, ""]
    vector: Float[Array, " N"]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    matvecs: Int[Array, ""]
    participation_ratio: Float[Array, ""]
    """``1 / sum v^4``: 1 for a single node, ``N`` for an even spread."""
    peak_group: Int[Array, ""]
    """Node group (0 = input) that holds the largest entry of the vector."""
    quotient_bound: Float[Array, ""]
    """Upper bound from the layer quotient (``layer_quotient``)."""
    degree_bound: Float[Array, ""]
    """Upper bound ``N/(N-1) min_i d_i`` (combinatorial) or ``N/(N-1)`` (normalised)."""
    staleness: Float[Array, ""]
    """``v^T L v / value`` of the ``state`` passed in: what its penalty overstates; 1 if none."""
    component_size: Int[Array, ""]
    """Nodes in the component the pair belongs to; ``N`` for a connected network."""

    @property
    def state(self) -> Float[Array, " N"]:
        """What to pass as ``state`` next time for a warm start."""
        return self.vector


def fiedler(
    weights: Blocks,
    *,
    normalised: bool = True,
    edges: Edges | None = None,
    state: Float[Array, " N"] | None = None,
    component: Component = "largest",
    tol: float = 1e-3,
    max_matvecs: int = 400,
) -> FiedlerResult:
    """Second-smallest eigenpair of the network Laplacian, with diagnostics.

    The solver starts from what is known to be near: ``state`` (the previous vector), the node of
    least degree, and the layer-quotient vector, since networks come in two regimes: one where the
    vector is nearly constant in each layer, and one where it sits on a single weak unit. ``tol``
    bounds the relative residual; the relative error of the value is about ``tol**2 * value / gap``.

    A disconnected network has ``lambda_2 = 0``, which says nothing and has no useful gradient; by
    default the largest component is analysed (``component_size`` tells); ``component="whole"``
    keeps the zero. A network without edges has value 0 and a zero vector.

    Works under ``jit``, ``vmap`` and on sharded blocks; for derivatives use ``fiedler_value``.
    NaN weights give NaN and ``converged = False``. Raises ``ValueError`` for blocks that do not fit
    together.
    Source: arXiv 2003.00992; start block and regimes: measured here (benchmarks/RESULTS.md).

    >>> path = [jnp.ones((1, 1)), jnp.full((1, 1), 2.0)]
    >>> round(float(fiedler(path, normalised=False).value), 4)
    1.2679
    """
    edges = chain(weights) if edges is None else tuple(edges)
    sizes = widths(weights, edges)
    problem = _problem(weights, normalised, edges, component)
    stale = None if state is None else problem.embed(state)
    guesses = _guesses(problem, stale)
    pairs = _solve(problem, 1, guesses, tol, max_matvecs)
    exists = problem.nodes > 1
    vector = jnp.where(exists, pairs.vectors[:, 0], 0)
    value = jnp.where(exists, pairs.values[0], 0)
    staleness = _staleness(guesses, value) if state is not None else jnp.ones_like(value)
    weighted = jnp.where(problem.mask, problem.degree, jnp.inf)
    count = problem.nodes.astype(vector.dtype)
    fourth = jnp.sum(vector**4)
    return FiedlerResult(
        value=value,
        vector=vector,
        residual=jnp.where(exists, pairs.residuals[0], 0),
        converged=pairs.converged[0] | ~exists,
        matvecs=pairs.matvecs,
        participation_ratio=jnp.where(fourth > 0, 1 / jnp.where(fourth > 0, fourth, 1), 0),
        peak_group=jnp.argmax(jnp.stack([jnp.max(jnp.abs(v)) for v in split(vector, sizes)])),
        quotient_bound=problem.quotient.value,
        degree_bound=count / jnp.maximum(count - 1, 1) * (1 if normalised else jnp.min(weighted)),
        staleness=staleness,
        component_size=problem.nodes,
    )


def fiedler_value(
    weights: Blocks,
    *,
    normalised: bool = True,
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

    ``reduce="mean"`` averages the ``k`` values (the peer's clusterability penalty, arXiv
    2103.03386); ``"softmin"`` is ``-log(mean(exp(-sharpness lambda))) / sharpness``. Both are
    smooth where the single eigenvalue crosses another and its gradient jumps.

    The gradient is ``sign(W_ij) (v_i - v_j)^2``, or for the normalised Laplacian
    ``sign(W_ij) ((y_i - y_j)^2 - nu (y_i^2 + y_j^2))`` with ``y = D^-1/2 v``; it is exact at a
    converged pair, finite at a repeated eigenvalue and for disconnected networks, and itself
    differentiable.

    Works under ``jit``, ``vmap`` and reverse-mode ``grad``. ``tol`` defaults to ``sqrt(eps)``: a
    gradient wants a better vector than a value does. Raises ``ValueError`` for misfitting blocks or
    ``k >= N``.
    Source: arXiv 2003.00992; Hellmann-Feynman.

    >>> path = [jnp.ones((1, 1)), 2 * jnp.ones((1, 1))]
    >>> grads = jax.grad(lambda w: fiedler_value(w, normalised=False))(path)
    >>> [round(float(g[0, 0]), 3) for g in grads]
    [1.0, 0.134]
    """
    if reduce not in ("mean", "softmin"):
        raise ValueError(f"reduce={reduce!r}: choose 'mean' or 'softmin'")
    edges = chain(weights) if edges is None else tuple(edges)
    problem = _problem(weights, normalised, edges, component)
    stale = None if state is None else problem.embed(state)
    values = _solve(problem, k, _guesses(problem, stale), tol, max_matvecs).values
    # Fewer than k non-trivial pairs in the component: what is left lies above the spectrum.
    real = jnp.arange(k) < problem.nodes - 1
    count = jnp.maximum(jnp.sum(real), 1).astype(values.dtype)
    if reduce == "mean":
        return jnp.sum(jnp.where(real, values, 0)) / count
    exponents = jnp.where(real, -sharpness * values, -jnp.inf)
    mixture = jax.nn.logsumexp(exponents, where=real) - jnp.log(count)
    return jnp.where(problem.nodes > 1, -mixture / sharpness, 0)


def fiedler_pairs(
    weights: Blocks,
    k: int,
    *,
    normalised: bool = True,
    edges: Edges | None = None,
    state: Float[Array, "N s"] | None = None,
    component: Component = "largest",
    tol: float | None = None,
    max_matvecs: int = 400,
) -> EigResult:
    """The ``k`` smallest non-trivial eigenpairs of the network Laplacian.

    In a component of ``count`` nodes only ``count - 1`` are real; further ones lie at twice the
    largest degree (combinatorial) or at 2 (normalised). Works under ``jit``, ``vmap`` and
    reverse-mode ``grad``. Raises ``ValueError`` as ``fiedler`` does.
    Source: arXiv 2103.03386 for the sum of several.

    >>> fiedler_pairs([jnp.ones((2, 3))], 2, normalised=False).values.round(3).tolist()
    [2.0, 2.0]
    """
    edges = chain(weights) if edges is None else tuple(edges)
    problem = _problem(weights, normalised, edges, component)
    stale = None if state is None else problem.embed(state)
    return _solve(problem, k, _guesses(problem, stale), tol, max_matvecs)


class LayerQuotient(NamedTuple):
    """The network with each node group merged into one node."""

    value: Float[Array, ""]
    vector: Float[Array, " N"]
    image: Float[Array, " N"]
    """The Laplacian times ``vector``, which costs next to nothing here."""


def layer_quotient(
    weights: Blocks,
    *,
    normalised: bool = True,
    edges: Edges | None = None,
    mask: Bool[Array, " N"] | None = None,
) -> LayerQuotient:
    """Connectivity of the graph whose nodes are the layers: a cheap upper bound on ``lambda_2``.

    With ``S_l = sum |W_l|`` and ``Q`` the ``(L+1) x (L+1)`` Laplacian with weights ``S``, the value
    is the second eigenvalue of ``diag(n)^-1/2 Q diag(n)^-1/2``, ``n`` the group sizes (the group
    volumes if ``normalised``): the Rayleigh quotient of the best vector that is constant in each
    layer. ``vector`` is that unit vector over the nodes. One pass over the weights.

    Works under ``jit``, ``vmap`` and ``grad`` (of ``value``; finite at repeated eigenvalues).
    Source: derived (quotient of an equitable relaxation; Courant-Fischer).

    >>> net = [jnp.ones((2, 2)), jnp.ones((2, 2))]
    >>> round(float(layer_quotient(net, normalised=False).value), 4)
    2.0
    """
    edges = chain(weights) if edges is None else tuple(edges)
    sizes = widths(weights, edges)
    total = sum(sizes)
    inside = (jnp.ones(total, bool) if mask is None else mask).astype(weights[0].dtype)
    degree = degrees(weights, edges=edges) * inside
    amount = degree if normalised else inside
    size = jnp.stack([part.sum() for part in split(amount, sizes)])
    member = split(inside, sizes)
    sums = edge_sums([magnitude(block) for block in weights])
    totals = [
        jnp.vdot(block.sent, member[source], precision="highest")
        for block, (source, _) in zip(sums, edges, strict=True)
    ]
    # Q = B^T diag(S) B with the signed incidence matrix B of the layers.
    incidence = np.zeros((len(edges), len(sizes)))
    for row, (source, target) in enumerate(edges):
        incidence[row, source], incidence[row, target] = 1, -1
    b = jnp.asarray(incidence, degree.dtype)
    q = jnp.einsum("ei,e,ej->ij", b, jnp.stack(totals), b, precision="highest")
    present = size > 0
    scale = jnp.where(present, jnp.where(present, size, 1) ** -0.5, 0)
    ceiling = jax.lax.stop_gradient(2 * jnp.max(jnp.diag(q) * scale**2) + 1)
    values, vectors = jnp.linalg.eigh(
        scale[:, None] * q * scale[None, :] + jnp.diag(jnp.where(present, 0, ceiling))
    )
    height, root, sums = jax.lax.stop_gradient((vectors[:, 1] * scale, jnp.sqrt(amount), sums))
    spread = jnp.concatenate([jnp.full(n, height[group]) for group, n in enumerate(sizes)])
    image = jnp.where(root > 0, pulls(sums, height, edges, sizes) / jnp.where(root > 0, root, 1), 0)
    return LayerQuotient(values[1], spread * root, image)


class _Problem(NamedTuple):
    operator: SymmetricOperator
    mask: Array
    degree: Array
    null: Array
    quotient: LayerQuotient
    nodes: Array
    normalised: bool

    def embed(self, state: Array) -> Array:
        """A usable start: zero outside the component, off the null vector, of unit length."""
        inside = self.mask if state.ndim == 1 else self.mask[:, None]
        state = jnp.where(inside & jnp.isfinite(state), state, 0).astype(self.null.dtype)
        state = state - self.null.reshape(-1, *[1] * (state.ndim - 1)) * (self.null @ state)
        length = jnp.linalg.norm(state, axis=0)
        return state / jnp.where(length > 0, length, 1)


def _problem(weights: Blocks, normalised: bool, edges: Edges, component: Component) -> _Problem:
    if component not in ("largest", "whole"):
        raise ValueError(f"component={component!r}: choose 'largest' or 'whole'")
    constants = jax.lax.stop_gradient(tuple(weights))
    degree = degrees(constants, edges=edges)
    if component == "largest":
        mask = largest_component(constants, edges=edges)
    else:
        mask = degree > 0 if normalised else jnp.ones(degree.shape, bool)
    null = jnp.where(mask, jnp.sqrt(degree) if normalised else 1, 0).astype(degree.dtype)
    length = jnp.linalg.norm(null)
    return _Problem(
        operator=laplacian(weights, normalised=normalised, edges=edges, mask=mask),
        mask=mask,
        degree=degree,
        null=null / jnp.where(length > 0, length, 1),
        quotient=layer_quotient(constants, normalised=normalised, edges=edges, mask=mask),
        nodes=mask.sum(),
        normalised=normalised,
    )


class _Guesses(NamedTuple):
    """Columns to start from, and the products of the Laplacian with them."""

    vectors: Array
    images: Array
    matvecs: int


def _guesses(problem: _Problem, stale: Array | None) -> _Guesses:
    """What is known to be near: the stale vectors first, where there are any."""
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


def _staleness(guesses: _Guesses, value: Array) -> Array:
    stale, image = guesses.vectors[:, 0], guesses.images[:, 0]
    known = (value > 0) & (jnp.vdot(stale, stale) > 0)
    return jnp.where(known, jnp.vdot(stale, image) / jnp.where(value > 0, value, 1), 1)


def _solve(problem: _Problem, k: int, guesses: _Guesses, tol, max_matvecs: int) -> EigResult:
    jacobi = None
    if k == 1 and not problem.normalised:
        heaviest = jnp.max(problem.degree)
        usable = problem.mask & (problem.degree > 0)
        jacobi = 1 / jnp.where(usable, problem.degree, jnp.where(heaviest > 0, heaviest, 1))
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
        # Unlike the other guesses, a stale vector may be another eigenvector.
        probe_steps=6 if stale else 3,
    )
    return pairs._replace(matvecs=pairs.matvecs + guesses.matvecs)
