"""The catalogue of penalties on networks; a new one is one function and its line in `PENALTIES`.

A penalty has an expensive part, computed now and then (eigenvectors, kept in ``state``), and a
cheap part, its ``value`` as a function of the weights with that state held constant. Gradient,
proximal step, schedule and the start from the last vectors are the same for all of them and are in
`spectral_penalty`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectral_jax import features, graphs, linalg
from spectral_jax._choices import check_choice
from spectral_jax._options import check_count, check_number
from spectral_jax.linalg.decompositions import to_unit_size
from spectral_jax.linalg.subspace import mm

Blocks = Sequence[Float[Array, "..."]]
# Of the power iteration, per refresh. By default there is one refresh every ten updates: so as many
# products as updates, as published.
LEAST_PRODUCTS = 10
Sees = Literal["matrices", "magnitudes", "activations", "function"]


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
      dtype it does; ``init`` is then given nothing to see. ``"function"``: not even that, but the
      network itself, to be differentiated: ``value(apply, params, batch, key)``, where
      ``apply(params, x)`` are its outputs; for Jacobians and curvature. One that keeps a state, as
      a vector of the curvature, is ``value(apply, params, batch, key, state)``, its ``refresh``
      and ``staleness`` are given the same, and ``init`` the parameters.
      The two differ in who computes: of activations the ``view`` does, so that the penalty knows
      no network, and a hidden layer can be seen, which ``apply`` does not show.
    prox: ``(w, step, state) -> w``, the minimiser ``x`` of ``step value(x) + ||x - w||^2 / 2``. A
      penalty on matrices needs it for ``mode="proximal"``. No other has one: of a penalty on
      magnitudes it is the linear part at ``w`` whose proximal step is taken, a soft threshold.
    strengths: the least and the largest strength that are worth a try, where a search begins.
    """

    value: Callable[..., Array]
    init: Callable[[Any], Any] = lambda w: ()
    refresh: Callable[..., Any] | None = None
    staleness: Callable[..., Array] | None = None
    sees: Sees = "matrices"
    prox: Callable[[Blocks, Array, Any], Blocks] | None = None
    strengths: tuple[float, float] = (1e-5, 1e-1)


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


class PowerState(NamedTuple):
    """What `spectral_norm` keeps in the optimiser's state.

    vectors: of each matrix ``[m, n]`` the right singular vector ``[n]`` of its largest value.
    residual: of the matrix where it is largest, ``||W^T W v - s v|| / s``, ``s = ||W v||^2``,
      before the last product; inf before the first refresh.
    matvecs: products with ``W^T W`` that the last refresh took.
    """

    vectors: tuple[Float[Array, "*stack n"], ...]
    residual: Float[Array, ""]
    matvecs: Int[Array, ""]


def l1() -> Penalty:
    """``sum |W_ij|``."""
    return Penalty(
        lambda w, _: jnp.stack([jnp.sum(x) for x in w]).sum(),
        sees="magnitudes",
        strengths=(1e-6, 1e-2),
    )


def l2() -> Penalty:
    """``sum W_ij^2 / 2``; in proximal mode, weight decay that momentum and Adam do not see."""
    return Penalty(lambda w, _: jnp.stack([jnp.sum(x**2) for x in w]).sum() / 2, sees="magnitudes")


def spectral_norm(*, tol: float = 1e-2, max_iterations: int = 100) -> Penalty:
    """``sum_l sigma_1(W_l)^2 / 2``, over the matrices of all layers.

    ``sigma_1^2`` is ``||W v||^2`` at the kept vector ``v``, so the gradient is ``W v v^T``, which
    is ``sigma_1 u v^T`` where ``v`` is right, and a lower bound of ``sigma_1`` where it is not. A
    refresh goes on from the kept vectors by power iteration, at least `LEAST_PRODUCTS`, however
    good they are: an eigenvector whose value another one has overtaken shows no residual.

    Its proximal step clips: with ``t = step`` the singular values become ``min(sigma_i, c)``,
    ``c = max_k (sigma_1 + ... + sigma_k) / (t + k)``. It takes an SVD of every matrix in every
    step: in penalty mode a step costs two products with each matrix.

    Args:
      tol: the relative residual at which a refresh ends.
      max_iterations: the most products with ``W^T W`` per refresh.

    Raises ``ValueError`` for a tolerance that is not positive or a count that is none.
    Source: arXiv 1705.10941; the proximal step: ours.
    """
    check_number("choose above 0", lambda x: 0 < x < float("inf"), tol=tol)
    check_count(max_iterations=max_iterations)

    def value(w, state):
        pairs = zip(w, state.vectors, strict=True)
        return jnp.stack([jnp.sum(_times(x, v) ** 2) for x, v in pairs]).sum() / 2

    def init(w):
        shapes = [((*x.shape[:-2], x.shape[-1]), x.dtype) for x in w]
        starts = [linalg.generic_vectors(math.prod(s), 1, dtype).reshape(s) for s, dtype in shapes]
        unknown = jnp.full((), jnp.inf, w[0].dtype)
        return PowerState(tuple(map(_unit, starts)), unknown, jnp.zeros((), jnp.int32))

    def refresh(w, state):
        return _power_iteration(tuple(w), state, tol, max_iterations)

    def prox(w, step, state):
        return tuple(_clipped(x, step) for x in w)

    return Penalty(value, init, refresh, prox=prox, strengths=(1e-4, 1.0))


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

    return Penalty(value, sees="magnitudes", strengths=(1e-3, 1.0))


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

    Raises ``ValueError`` for options that are none.
    Source: arXiv 2003.00992 (``lambda_2``); arXiv 2103.03386 (several ``nu``).
    """
    check_count(k=k, max_matvecs=max_matvecs)
    check_choice(get_args(graphs.Component), component=component)
    _check_numbers(sign=sign, tol=tol)

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
        # Arrays of their own, each: a state that is donated may hold no buffer twice.
        values, residuals = (jnp.full(k, jnp.inf, dtype) for _ in range(2))
        matvecs, refreshes = (jnp.zeros((), jnp.int32) for _ in range(2))
        vectors = jnp.zeros((size, k), dtype)
        return EigenState(vectors, values, residuals, jnp.array(False), matvecs, refreshes)

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

    strengths = (1e-2, 10.0) if normalised else (1e-3, 1.0)
    return Penalty(value, init, refresh, staleness, sees="magnitudes", strengths=strengths)


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

    Raises ``ValueError`` for options that are none.
    Source: the number, arXiv 2410.04264; that it is penalised, ours.
    """
    check_choice(get_args(features.Order), order=order)
    _check_numbers(sign=sign)

    def value(seen, _):
        x, outputs, *weights = seen
        masked = {"weights": weights[0]} if weights else {}
        found = features.richness(x, outputs=outputs, order=order, corrected=corrected, **masked)
        return sign * found.value

    return Penalty(value, sees="activations", strengths=(1e-3, 1.0))


def _check_numbers(*, sign: float, tol: float = 0.0) -> None:
    finite = "choose a finite number"
    check_number(f"{finite}, 0 or above", lambda x: 0 <= x < math.inf, tol=tol)
    check_number(f"{finite} other than 0", lambda x: 0 < abs(x) < math.inf, sign=sign)


def _times(x: Float[Array, "*stack m n"], v: Float[Array, "*stack n"]) -> Float[Array, "*stack m"]:
    return mm(x, v[..., None])[..., 0]


def _unit(v: Float[Array, "*stack n"]) -> Float[Array, "*stack n"]:
    squares = jnp.sum(v**2, axis=-1, keepdims=True)
    return v / jnp.sqrt(jnp.where(squares > 0, squares, 1))


@partial(jax.jit, static_argnums=(2, 3))  # eagerly, a loop would be compiled at every call
def _power_iteration(w: Blocks, state: PowerState, tol: float, most: int) -> PowerState:
    """The vectors after so many products that all residuals are small, at most ``most``."""
    units = [to_unit_size(x)[0] for x in w]  # no square leaves the numbers of the dtype

    def unsettled(now):
        above = (now.residual > tol) & (now.matvecs < most)
        return above | (now.matvecs < min(LEAST_PRODUCTS, most))

    def product(now):
        steps = [_power_step(x, v) for x, v in zip(units, now.vectors, strict=True)]
        vectors, residuals = zip(*steps, strict=True)
        worst = jnp.stack([jnp.max(r, initial=0) for r in residuals]).max()
        return PowerState(vectors, worst, now.matvecs + 1)

    start = state._replace(matvecs=jnp.zeros_like(state.matvecs))
    return jax.lax.while_loop(unsettled, product, start)


def _power_step(x: Array, v: Array) -> tuple[Array, Array]:
    """The vector ``x^T x v`` at length 1, and the relative residual of ``v``; ``v`` stays where
    that is 0."""
    image = _times(x, v)
    square = jnp.sum(image**2, axis=-1, keepdims=True)
    further = _times(jnp.swapaxes(x, -1, -2), image)
    residual = jnp.linalg.norm(further - square * v, axis=-1)
    known = square > 0
    return jnp.where(known, _unit(further), v), residual / jnp.where(known, square, 1)[..., 0]


def _clipped(x: Float[Array, "*stack m n"], step: Array) -> Float[Array, "*stack m n"]:
    """The proximal step of ``sigma_1^2 / 2``.

    All values above some ``c`` become ``c``, where ``step c`` equals what they lose in all. The
    loss is the largest of ``sum_{i <= k} (sigma_i - c)`` over k, and so is c over their solutions.
    """
    u, s, vt = linalg.svd(x)
    count = jnp.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    cap = jnp.max(jnp.cumsum(s, axis=-1) / (step + count), axis=-1, keepdims=True, initial=0)
    return x - mm(u * jnp.maximum(s - cap, 0)[..., None, :], vt)  # what is below keeps its digits


PENALTIES: dict[str, Callable[..., Penalty]] = {
    "l1": l1,
    "l2": l2,
    "spectral_norm": spectral_norm,
    "layer_quotient": layer_quotient,
    "fiedler": fiedler,
    "richness": richness,
}
