"""How Fiedler pairs are found: a problem at unit scale, guesses to start from, pairs judged."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spectral_jax._choices import check_choice
from spectral_jax.graphs.components import component_mask
from spectral_jax.graphs.laplacian import (
    Blocks,
    Edges,
    Form,
    Graph,
    column,
    degree_of,
    edge_sums,
    laplacian_operator,
    magnitude,
    nodal,
    pairs_by_edges,
    quotient_slope,
    read_graph,
)
from spectral_jax.graphs.quotient import LayerQuotient, merged, root_of
from spectral_jax.linalg import EigResult, SymmetricOperator, eigsh
from spectral_jax.linalg.precision import working

Component = Literal["largest", "whole"]


class Problem(NamedTuple):
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


def problem_of(
    weights: Blocks, normalised: bool, edges: Edges | None, component: Component
) -> Problem:
    """What is to be found in a network, as read and checked."""
    check_choice(get_args(Component), component=component)
    graph = read_graph(weights, edges)
    magnitudes = tuple(magnitude(block) for block in graph.weights)
    sums = edge_sums(magnitudes)
    total = degree_of(graph, sums)
    mask, connected = _searched(graph, total > 0 if normalised else total >= 0, component)
    heaviest, limits = jnp.max(jnp.where(mask, total, 0)), jnp.finfo(total.dtype)
    root = root_of(heaviest)
    # Starts and the trivial vector are constants to derivatives: at a converged pair they do not
    # matter.
    constant = jax.lax.stop_gradient((sums, total))
    degree = constant[1] / root / root
    # The trivial vector: constant on the component, times D^1/2 if normalised.
    null = jnp.where(mask, jnp.sqrt(degree) if normalised else 1, 0).astype(degree.dtype)
    length = jnp.linalg.norm(null)
    return Problem(
        graph=graph,
        operator=laplacian_operator(
            graph, magnitudes, total, mask, normalised=normalised, root=root
        ),
        root=root,
        mask=mask,
        degree=degree,
        null=null / jnp.where(length > 0, length, 1),
        quotient=merged(graph, *constant, mask, root, normalised=normalised),
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


class Guesses(NamedTuple):
    """Columns to start from, and the products of the Laplacian with them."""

    vectors: Array
    images: Array
    matvecs: int


def guesses_of(problem: Problem, state: Array | None) -> Guesses:
    """Vectors that are likely to be near the wanted one: those of an earlier solve first, then the
    best vector that is constant in each layer and the indicator of the node of least degree.

    The products with the last two come from sums that are known already, not from a matvec.
    """
    operator = jax.lax.stop_gradient(problem.operator)
    weakest = jnp.argmin(jnp.where(problem.mask, problem.degree, jnp.inf))
    indicator = jnp.zeros_like(problem.null).at[weakest].set(1)
    vectors = jnp.column_stack([problem.quotient.vector, indicator])
    images = jnp.column_stack([problem.quotient.image, column(operator, weakest)])
    if state is None:
        return Guesses(vectors, images, 0)
    stale = problem.embed(state).reshape(len(indicator), -1)
    return Guesses(
        jnp.column_stack([stale, vectors]),
        jnp.column_stack([operator @ stale, images]),
        stale.shape[1],
    )


def staleness_of(problem: Problem, guesses: Guesses, value: Array) -> Array:
    """``FiedlerResult.staleness``: the quotient of the first stale vector over the new value."""
    if not guesses.matvecs:
        return jnp.ones_like(value)
    stale, image = guesses.vectors[:, :1], guesses.images[:, 0]
    by_product = jnp.vdot(stale, image)[None]
    quotients, _ = _by_edges_if_small(problem.operator, stale, by_product, by_product, problem.norm)
    known = (value > 0) & (jnp.vdot(stale, stale) > 0)
    overstated = problem.in_units(quotients[0]) / jnp.where(value > 0, value, 1)
    return jnp.where(known, overstated, 1)


def solve(
    problem: Problem, k: int, guesses: Guesses, tol: float | None, max_matvecs: int
) -> EigResult:
    """The ``k`` smallest non-trivial pairs, in the unit of the weights and with derivatives."""
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


def _judged(problem: Problem, pairs: EigResult, tol: float) -> tuple[Array, Array, Array]:
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
