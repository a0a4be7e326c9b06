"""LOBPCG (Knyazev 2001), with a probe for pairs that the start block hides.

The locally optimal block preconditioned conjugate gradient method keeps three blocks: the best
vectors ``X``, the preconditioned residuals ``W``, and the directions ``P`` that moved ``X`` in the
last step. A step takes the best pairs in the span of all three (Rayleigh-Ritz). The blocks are kept
orthonormal (Hetmaniuk & Lehoucq 2006): in the original basis ``P`` and ``X`` become parallel near
convergence, and the small projected problem loses its digits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spectral_jax.linalg.scale import known_factor
from spectral_jax.linalg.subspace import (
    EigResult,
    Search,
    best_pairs,
    generic_vectors,
    inner_rows,
    mm,
    off_rows,
    orthonormal_rows,
    restored,
    whitener,
)

# A probe ends when its Ritz value lies above the answer by this many of its residuals. An
# eigenvalue lies within one residual; the others are a margin, since a better one nearby would
# still pull the Ritz value down in the next steps.
PROBE_MARGIN = 4
PROBE_STEPS_MOST = 24
# The least eigenvalue of the Gram matrix of the start vectors whose direction is kept. Their images
# are combined as they are and not multiplied anew, so that rounding errors in them grow by one over
# its root: tenfold at most.
LEAST_INDEPENDENCE = 1e-2


class _Basis(NamedTuple):
    """Blocks of ``k`` rows: the best vectors ``x``, the directions ``p`` that last moved them, and
    the products of both with the operator. Rows may be zero (no direction)."""

    x: Array
    ax: Array
    p: Array
    ap: Array


class _Iterate(NamedTuple):
    """State of the inner iteration; ``gram`` is ``sign * [x, p] A [x, p]^T``, carried along."""

    basis: _Basis
    gram: Array
    values: Array
    residuals: Array
    scale: Array
    step: Array
    matvecs: Array


class _Round(NamedTuple):
    """The answer so far. A round either iterates on it or probes its complement (``probing``).

    ``residuals`` are infinite where a probe has found that something better exists.
    """

    basis: _Basis
    values: Array
    residuals: Array
    scale: Array
    matvecs: Array
    probing: Array
    finished: Array


def lobpcg(
    search: Search,
    start: Array,
    images: Array | None,
    precondition: Callable[[Array], Array],
    *,
    probe_steps: int,
) -> EigResult:
    """Solve from the best pairs in the block ``start`` (``[n, s]``), then look beyond.

    ``images`` are the products with the columns of ``start``, if they are known.

    A start that is an eigenvector, though not the wanted one, has residual 0 and looks like an
    answer. So an answer is probed: the same iteration in its orthogonal complement, from a generic
    vector, for at least ``probe_steps`` steps (0: no probe) and at most 24. If it finds a better
    value, the search goes on with the probe's vectors as ``P``, and is probed again. No probe of a
    few steps can see an eigenvalue that is better by very little.
    """
    op = search.op
    spent = start.shape[1] if images is None else 0
    images = op @ start if images is None else images
    generic = generic_vectors(op.size, search.k, op.dtype, stream=1)
    basis, values = _best_guesses(search, start, images)
    # From here on the operator has an ordinary magnitude (scale.py).
    factor, products = known_factor(op, jnp.concatenate([basis.ax, basis.ap]), generic[:, 0])
    search = search._replace(op=factor * op)
    basis = basis._replace(ax=factor * basis.ax, ap=factor * basis.ap)
    result = _rounds(
        search, basis, factor * values, generic.T, precondition, probe_steps, spent + products
    )
    return restored(result, factor)


def _rounds(
    search: Search,
    basis: _Basis,
    values: Array,
    generic: Array,
    precondition: Callable[[Array], Array],
    probe_steps: int,
    spent: Array,
) -> EigResult:
    """From the best guesses: rounds that iterate on the answer and rounds that probe, in turn.

    Here and below blocks of vectors are rows.
    """
    op, k = search.op, search.k
    iterate = partial(_iterate, search, precondition=precondition)
    state = _Round(
        basis=basis,
        values=values,
        residuals=jnp.full(k, jnp.inf, op.dtype),
        scale=_largest_length(jnp.concatenate([basis.ax, basis.ap])),
        matvecs=spent,
        probing=jnp.array(False),
        finished=jnp.array(False),
    )
    if probe_steps == 0 or search.free_dimension <= k:
        end = iterate(
            basis,
            values=values,
            lead=generic,
            leads=jnp.array(False),
            known=search.fixed.T,
            limit=search.max_matvecs,
            bar=jnp.inf,
            least_steps=0,
            scale=state.scale,
            matvecs=spent,
        )
        return search.certify(end.basis.x.T, end.scale, end.matvecs)
    # Another round needs k products at least, and the final check of the answer k more.
    state = jax.lax.while_loop(
        lambda state: ~state.finished & (state.matvecs + 2 * k < search.max_matvecs),
        partial(_next_round, search, iterate, generic, probe_steps),
        state,
    )
    result = search.certify(state.basis.x.T, state.scale, state.matvecs)
    return result._replace(converged=result.converged & jnp.isfinite(state.residuals))


def _next_round(
    search: Search,
    iterate: Callable[..., _Iterate],
    generic: Array,
    probe_steps: int,
    state: _Round,
) -> _Round:
    """Iterate on the answer, or probe its complement, whichever is due.

    Both are one call of ``iterate``, with arguments chosen by ``where``: the loop is compiled once
    instead of twice, and under ``vmap`` members of a batch may be at different stages.
    """
    probing, fixed = state.probing, search.fixed.T
    nothing = jax.tree.map(jnp.zeros_like, state.basis)
    end = iterate(
        _where(probing, nothing, state.basis),
        values=jnp.where(probing, 0, state.values),
        lead=generic,
        leads=probing,
        known=jnp.concatenate([fixed, jnp.where(probing, state.basis.x, 0)]),
        limit=jnp.where(probing, PROBE_STEPS_MOST, search.max_matvecs),
        bar=jnp.where(probing, search.sign * state.values[-1], jnp.inf),
        least_steps=probe_steps,
        scale=state.scale,
        matvecs=state.matvecs,
    )
    # Better than the answer by more than both its tolerance and its residual: a value within either
    # would be the answer itself, seen with an error.
    beyond = (
        search.sign * end.values[0]
        < search.sign * (state.values[-1] - search.tol * jnp.abs(state.values[-1]))
        - state.residuals[-1]
    )
    found = state.basis._replace(p=end.basis.x, ap=end.basis.ax)
    sound = jnp.all(search.converged(end.values, end.residuals, end.scale))
    return _Round(
        basis=_where(probing, found, end.basis),
        values=jnp.where(probing, state.values, end.values),
        # A better value exists, so this is not the wanted pair, however small its residual is. If
        # the products run out now, `_rounds` reports it as not converged.
        residuals=jnp.where(probing, jnp.where(beyond, jnp.inf, state.residuals), end.residuals),
        scale=end.scale,
        matvecs=end.matvecs,
        probing=~probing,
        finished=jnp.where(probing, ~beyond, ~sound),
    )


def _best_guesses(search: Search, start: Array, images: Array) -> tuple[_Basis, Array]:
    """The best ``k`` Ritz vectors in the span of the start block, as ``X``; the next ``k``, ``P``.

    Their images are the same combinations of ``images``.
    """
    k, sign = search.k, search.sign
    length = jnp.linalg.norm(start, axis=0)
    length = jnp.where(length > 0, length, 1)
    fixed = search.fixed.T
    # The fixed vectors are eigenvectors of the operator: projecting them out of an image gives the
    # image of the projected vector, without a new product.
    x, image = off_rows((start / length).T, fixed), off_rows((images / length).T, fixed)
    # Whitened twice, as in `orthonormal_rows`. After the first round rows have eigenvalues near 1
    # or are zero, which 0.5 tells apart.
    for floor in (LEAST_INDEPENDENCE, 0.5):
        whiten = whitener(x, floor)
        x, image = mm(whiten, x), mm(whiten, image)
    gram = _symmetric(sign * inner_rows(x, image))
    width = min(2 * k, x.shape[0])
    values, c = best_pairs(gram, jnp.sum(x**2, axis=1) > 0.5, width)
    pad = ((0, 2 * k - width), (0, 0))
    x, image = jnp.pad(mm(c.T, x), pad), jnp.pad(mm(c.T, image), pad)
    return _Basis(x[:k], image[:k], x[k:], image[k:]), sign * values[:k]


def _iterate(
    search: Search,
    basis: _Basis,
    *,
    values: Array,
    lead: Array,
    leads: Array,
    known: Array,
    limit: Array | int,
    bar: Array | float,
    least_steps: int,
    scale: Array,
    matvecs: Array,
    precondition: Callable[[Array], Array],
) -> _Iterate:
    """LOBPCG steps until converged, ``limit`` steps are made or the products are spent.

    Args:
      lead, leads: a block to use in place of the residuals in the first step, if ``leads`` is true:
        a probe begins without vectors, and so without residuals.
      known: orthonormal rows to stay orthogonal to.
      bar: a probe's reason to stop early, the answer's worst value (times the sign): it ends when
        its best Ritz value has settled above, though not before ``least_steps``. Infinite: none.
    """
    k, sign = search.k, search.sign

    def step(state: _Iterate) -> _Iterate:
        x, ax, p, _ = state.basis
        residual = precondition(ax - state.values[:, None] * x)
        w = jnp.where(leads & (state.step == 0), lead, residual)
        w = orthonormal_rows(w, jnp.concatenate([known, x, p]))
        return _improved(search, state, w)

    def unfinished(state: _Iterate):
        good = jnp.all(search.converged(state.values, state.residuals, state.scale))
        settled = sign * state.values[0] - PROBE_MARGIN * state.residuals[0] > bar
        good |= settled & (state.step >= least_steps)
        affordable = (state.step < limit) & (state.matvecs + 2 * k <= search.max_matvecs)
        # NaN and inf never become smaller: stop, and let the residuals tell.
        healthy = jnp.all(jnp.isfinite(state.residuals)) | (state.step == 0)
        return ~good & affordable & healthy

    infinite = jnp.full(k, jnp.inf, search.op.dtype)
    rows, images = jnp.concatenate([basis.x, basis.p]), jnp.concatenate([basis.ax, basis.ap])
    gram = _symmetric(sign * inner_rows(rows, images))
    state = _Iterate(basis, gram, values, infinite, scale, jnp.zeros((), jnp.int32), matvecs)
    return jax.lax.while_loop(unfinished, step, state)


def _improved(search: Search, state: _Iterate, w: Array) -> _Iterate:
    """The best ``k`` Ritz pairs in the span of X, P and the new rows W, orthonormal to both."""
    k, sign = search.k, search.sign
    x, ax, p, ap = state.basis
    # The only product of a step: X and P have theirs from the last one.
    aw = (search.op @ w.T).T
    s, image = jnp.concatenate([x, p, w]), jnp.concatenate([ax, ap, aw])
    cross = sign * mm(s, aw.T)
    gram = jnp.concatenate([state.gram, cross[: 2 * k].T])
    gram = _symmetric(jnp.concatenate([gram, cross], axis=1))
    values, c = best_pairs(gram, jnp.sum(s**2, axis=1) > 0.5, k)
    # P is the part of the new X that comes from the old P and W, orthogonalised against X. Both
    # are formed in coordinates of S, whose rows are orthonormal: small matrices instead of
    # passes over vectors of length n. (Hetmaniuk & Lehoucq 2006.)
    c = c.T
    both = jnp.concatenate([c, orthonormal_rows(c.at[:, :k].set(0), c)])
    s, image = mm(both, s), mm(both, image)
    x, ax = s[:k], image[:k]
    residuals = jnp.sqrt(jnp.sum((ax - sign * values[:, None] * x) ** 2, axis=1))
    return _Iterate(
        basis=_Basis(x, ax, s[k:], image[k:]),
        gram=mm(both, mm(gram, both.T)),
        values=sign * values,
        residuals=residuals,
        scale=jnp.maximum(state.scale, _largest_length(image)),
        step=state.step + 1,
        matvecs=state.matvecs + k,
    )


def _where(condition: Array, one: _Basis, other: _Basis) -> _Basis:
    return jax.tree.map(partial(jnp.where, condition), one, other)


def _symmetric(gram: Array) -> Array:
    """Without the antisymmetric part that rounding leaves: ``eigh`` reads one triangle only."""
    return (gram + gram.T) / 2


def _largest_length(rows: Array) -> Array:
    return jnp.sqrt(jnp.max(jnp.sum(rows**2, axis=1)))
