"""The catalogue of penalties on weights; a new one is one entry here.

A penalty has an expensive part, refreshed now and then (eigenvectors, kept in ``state``), and a
cheap part, its ``value`` as a function of the weights with that state held constant. Everything
else (gradient, proximal step, schedule, warm start) is shared: see ``spectral_penalty``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectral_jax import graphs

Blocks = Sequence[Float[Array, "..."]]
Sees = Literal["matrices", "magnitudes"]


class Penalty(NamedTuple):
    """``value(w, state)``, ``init(w)``, ``refresh(w, state) -> state``, ``staleness(w, state)``.

    ``w`` is a tuple of arrays, in float32 or float64, and ``value`` differentiable in them.
    ``staleness`` is the relative residual of the kept vectors for the current weights: what a
    refresh would repair. ``refresh`` is None for a penalty without state.

    sees: what ``w`` is. ``"matrices"``, as signed as they are, for whatever is a function of
      singular values; ``"magnitudes"``, ``|W|``, for a graph whose edges the weights are.
    prox: ``(w, step, state) -> w``, the minimiser of ``step value(x) + ||x - w||^2 / 2``, which
      ``mode="proximal"`` needs of a penalty on matrices. One on magnitudes is linear in them, or
      made so: its step is a soft threshold at its slope.
    """

    value: Callable[[Blocks, Any], Array]
    init: Callable[[Blocks], Any] = lambda w: ()
    refresh: Callable[[Blocks, Any], Any] | None = None
    staleness: Callable[[Blocks, Any], Array] | None = None
    sees: Sees = "matrices"
    prox: Callable[[Blocks, Array, Any], Blocks] | None = None


class EigenState(NamedTuple):
    """Warm start and diagnostics of the last refresh, carried in the optimiser's state."""

    vectors: Float[Array, "N k"]
    values: Float[Array, " k"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, ""]
    matvecs: Int[Array, ""]
    refreshes: Int[Array, ""]


def l1() -> Penalty:
    """``sum |W_ij|``."""
    return Penalty(lambda w, _: jnp.stack([jnp.sum(x) for x in w]).sum(), sees="magnitudes")


def l2() -> Penalty:
    """``sum W_ij^2 / 2``; its proximal mode is decoupled weight decay."""
    return Penalty(lambda w, _: jnp.stack([jnp.sum(x**2) for x in w]).sum() / 2, sees="magnitudes")


def layer_quotient(*, edges: graphs.Edges | None = None, normalised: bool = False) -> Penalty:
    """The layer-quotient bound on ``lambda_2``: L1 with a constant per layer, from layer sums."""

    def value(w, _):
        return graphs.layer_quotient(w, normalised=normalised, edges=edges).value

    return Penalty(value, sees="magnitudes")


def fiedler(
    *,
    edges: graphs.Edges | None = None,
    normalised: bool = False,
    k: int = 1,
    sign: float = 1.0,
    component: graphs.Component = "largest",
    tol: float = 1e-3,
    max_matvecs: int = 400,
) -> Penalty:
    """``sign * mean(lambda_2 .. lambda_{k+1})`` (``nu`` if ``normalised``); -1 widens the gap.

    Source: arXiv 2003.00992 (``lambda_2``); arXiv 2103.03386 (several ``nu``).
    """

    def quotients(w, state):
        def one(v):
            return graphs.rayleigh_quotient(w, v, normalised=normalised, edges=edges)

        return jax.vmap(one, in_axes=1)(_nodal(w, state.vectors))

    def _nodal(w, vectors):
        """``y = D^-1/2 u`` for the normalised Laplacian, today's degrees held constant."""
        if not normalised:
            return vectors
        degree = jax.lax.stop_gradient(graphs.degrees(w, edges=edges))
        return vectors * jnp.where(degree > 0, jnp.where(degree > 0, degree, 1) ** -0.5, 0)[:, None]

    def init(w):
        size, dtype = sum(graphs.widths(w, edges)), w[0].dtype
        unknown = jnp.full(k, jnp.inf, dtype)
        nothing = jnp.zeros((), jnp.int32)
        return EigenState(
            jnp.zeros((size, k), dtype), unknown, unknown, jnp.array(False), nothing, nothing
        )

    def refresh(w, state):
        pairs = graphs.fiedler_pairs(
            w,
            k,
            normalised=normalised,
            edges=edges,
            state=state.vectors,
            component=component,
            tol=tol,
            max_matvecs=max_matvecs,
        )
        done = jnp.all(pairs.converged)
        return EigenState(
            pairs.vectors, pairs.values, pairs.residuals, done, pairs.matvecs, state.refreshes + 1
        )

    def staleness(w, state):
        pairs = graphs.pair_residuals(w, state.vectors, normalised=normalised, edges=edges)
        return jnp.max(pairs.residuals / jnp.where(pairs.values > 0, pairs.values, 1))

    def value(w, state):
        return sign * jnp.mean(quotients(w, state))

    return Penalty(value, init, refresh, staleness, sees="magnitudes")


PENALTIES: dict[str, Callable[..., Penalty]] = {
    "l1": l1,
    "l2": l2,
    "layer_quotient": layer_quotient,
    "fiedler": fiedler,
}
