"""The catalogue of penalties on networks; a new one is one function and its line in `PENALTIES`.

A penalty has an expensive part, computed now and then (eigenvectors, kept in ``state``), and a
cheap part, its ``value`` as a function of the weights with that state held constant. Gradient,
proximal step, schedule and the start from the last vectors are the same for all of them and are in
`spectral_penalty`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectral_jax import features, graphs

Blocks = Sequence[Float[Array, "..."]]
Sees = Literal["matrices", "magnitudes", "activations"]


class Penalty(NamedTuple):
    """A penalty as functions of ``w``, a tuple of arrays in float32 or float64.

    value: ``(w, state) -> scalar``, differentiable in ``w``.
    init: ``w -> state`` before the first refresh; nothing by default.
    refresh: ``(w, state) -> state``, the expensive part, which may start from the last state. None
      for a penalty without a state.
    staleness: ``(w, state) -> scalar``, the relative residual of the kept vectors for these
      weights: how wrong they have become since the last refresh.
    sees: what ``w`` is. ``"matrices"``: the weights with their signs, for functions of singular
      values. ``"magnitudes"``: ``|W|``, for a network as a graph whose edges weigh ``|W_ij|``.
      ``"activations"``: no weights at all, but what the network computes of a batch, in whatever
      dtype it does; ``init`` is then given nothing to see.
    prox: ``(w, step, state) -> w``, the minimiser ``x`` of ``step value(x) + ||x - w||^2 / 2``. A
      penalty on matrices needs it for ``mode="proximal"``. One on magnitudes does not: it is
      replaced by its linear part at ``w``, whose proximal step is a soft threshold. One on
      activations has none.
    """

    value: Callable[[Blocks, Any], Array]
    init: Callable[[Blocks], Any] = lambda w: ()
    refresh: Callable[[Blocks, Any], Any] | None = None
    staleness: Callable[[Blocks, Any], Array] | None = None
    sees: Sees = "matrices"
    prox: Callable[[Blocks, Array, Any], Blocks] | None = None


class EigenState(NamedTuple):
    """What an eigenvector penalty keeps in the optimiser's state, from its last refresh.

    vectors: eigenvectors, a column each, from which the next solve starts; 0 before the first.
    values: their eigenvalues (``lambda_2``, and further for ``k > 1``); inf before the first.
    residuals: ``||L v - lambda v||`` of each; inf before the first.
    converged: whether all residuals are within the tolerance.
    matvecs: products with the matrix that the refresh took.
    refreshes: how many there have been.
    """

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
    """``sum W_ij^2 / 2``; in proximal mode, weight decay that momentum and Adam do not see."""
    return Penalty(lambda w, _: jnp.stack([jnp.sum(x**2) for x in w]).sum() / 2, sees="magnitudes")


def layer_quotient(*, edges: graphs.Edges | None = None, normalised: bool = False) -> Penalty:
    """An upper bound on ``lambda_2`` from the sums of ``|W|`` per layer: no eigenvectors to keep.

    Its slope is one constant per layer, so it acts like an L1 penalty with a strength per layer.

    Args:
      edges: for each array, which two groups of units it connects, as ``(source, target)`` with
        group 0 the inputs. By default a chain, ``(0, 1), (1, 2), ...``; skips need others.
      normalised: of the normalised Laplacian, ``nu_2``.

    Source: `spectral_jax.graphs.layer_quotient`, derived in docs/fiedler.md.
    """

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
    """The mean of the ``k`` smallest non-trivial eigenvalues of the network's Laplacian.

    ``sign * mean(lambda_2 .. lambda_{k+1})``. Penalising ``lambda_2``, the Fiedler value, makes the
    network easier to cut in two.

    Args:
      edges: for each array, which two groups of units it connects, as ``(source, target)`` with
        group 0 the inputs. By default a chain, ``(0, 1), (1, 2), ...``; skips need others.
      normalised: use the normalised Laplacian ``D^-1/2 L D^-1/2``, whose eigenvalues ``nu`` do not
        depend on the scale of the weights.
      k: how many eigenvalues.
      sign: -1 rewards connectivity instead.
      component: ``"largest"`` ignores units that no path of weights connects to the largest part;
        with ``"whole"`` the value of a network in several parts is 0.
      tol: relative residual at which a solve ends.
      max_matvecs: the most products with the Laplacian per solve; the next goes on from there.

    Source: arXiv 2003.00992 (``lambda_2``); arXiv 2103.03386 (several ``nu``).
    """

    def quotients(w, state):
        def one(v):
            return graphs.rayleigh_quotient(w, v, normalised=normalised, edges=edges)

        return jax.vmap(one, in_axes=1)(_nodal(w, state.vectors))

    def _nodal(w, vectors):
        """The vectors on the units: ``D^-1/2 u`` if normalised, with ``D`` held constant."""
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


def richness(
    *, sign: float = 1.0, order: features.Order = "literal", corrected: bool = False
) -> Penalty:
    """``sign * D_LR`` of a layer on the batch: rich training is 0, lazy training 1.

    It sees ``(features, outputs)`` of the batch, or ``(features, outputs, weights)`` with 0 for
    examples that are padding: pass ``view=lambda params, batch: (...)``. Where the number is not
    defined, as behind a head of zeros, it is NaN and its gradient is 0.

    Args:
      sign: -1 rewards a high number instead.
      order: as for `spectral_jax.features.richness`.
      corrected: likewise: without it a batch of no more examples than features counts a part of
        chance, which no training takes away.

    Source: the number, arXiv 2410.04264; that it is penalised, ours.
    """

    def value(seen, _):
        x, outputs, *weights = seen
        masked = {"weights": weights[0]} if weights else {}
        found = features.richness(x, outputs=outputs, order=order, corrected=corrected, **masked)
        return sign * found.value

    return Penalty(value, sees="activations")


PENALTIES: dict[str, Callable[..., Penalty]] = {
    "l1": l1,
    "l2": l2,
    "layer_quotient": layer_quotient,
    "fiedler": fiedler,
    "richness": richness,
}
