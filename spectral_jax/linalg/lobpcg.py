"""LOBPCG (Knyazev 2001), with a probe for what a start block led it past."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spectral_jax.linalg.subspace import (
    EigResult,
    Search,
    best_pairs,
    generic_vectors,
    mm,
    orthonormal_rows,
)

# A probe ends when its Ritz value stands clear of the answer by this many residuals: an eigenvalue
# lies within one, and a better one nearby would still pull it down.
PROBE_MARGIN = 4
PROBE_STEPS_MOST = 24


class _Iterate(NamedTuple):
    x: Array
    ax: Array
    p: Array
    ap: Array
    values: Array
    residuals: Array
    scale: Array
    step: Array
    matvecs: Array


class _Round(NamedTuple):
    """The answer so far; a round either solves for it or probes its complement."""

    x: Array
    start: Array
    values: Array
    residuals: Array
    scale: Array
    matvecs: Array
    probing: Array
    finished: Array


def lobpcg(
    search: Search, start: Array, precondition: Callable[[Array], Array], *, probe_steps: int
) -> EigResult:
    """Solve from the block ``start`` (``[n, s]``, best guess first), then look beyond.

    A probe is the same iteration on the complement of the answer, from a generic vector and cut
    short, though not before ``probe_steps`` (0: no probe); while one finds a better value, the
    search goes on from there. No probe of a few steps can see an eigenvalue that is better by very
    little.
    """
    op, k = search.op, search.k
    probe = probe_steps > 0 and search.free_dimension > k
    width = -(-max(start.shape[1], 2 * k if probe else k) // k) * k
    # From here on blocks of vectors are rows.
    start = jnp.pad(start.T, ((0, width - start.shape[1]), (0, 0)))
    fixed = search.fixed.T
    nothing = jnp.zeros((k, op.size), op.dtype)
    infinite = jnp.full(k, jnp.inf, op.dtype)
    generic = jnp.zeros_like(start).at[:k].set(generic_vectors(op.size, k, op.dtype, stream=1).T)

    def one_round(state: _Round) -> _Round:
        probing = state.probing
        known = jnp.concatenate([fixed, jnp.where(probing, state.x, 0)])
        limit = jnp.where(probing, PROBE_STEPS_MOST, search.max_matvecs)
        bar = jnp.where(probing, search.sign * state.values[-1], jnp.inf)
        block = jnp.where(probing, generic, state.start)
        end = _iterate(
            search,
            block,
            known,
            precondition,
            limit,
            bar,
            state.scale,
            state.matvecs,
            probe_steps=probe_steps,
        )
        beyond = (
            search.sign * end.values[0]
            < search.sign * (state.values[-1] - search.tol * jnp.abs(state.values[-1]))
            - state.residuals[-1]
        )
        again = jnp.zeros_like(start).at[: 2 * k].set(jnp.concatenate([state.x, end.x])[:width])
        sound = jnp.all(search.converged(end.values, end.residuals, end.scale))
        return _Round(
            x=jnp.where(probing, state.x, end.x),
            start=jnp.where(probing, again, state.start),
            values=jnp.where(probing, state.values, end.values),
            # Something better exists: the answer is not one, whatever its residual.
            residuals=jnp.where(
                probing, jnp.where(beyond, jnp.inf, state.residuals), end.residuals
            ),
            scale=end.scale,
            matvecs=end.matvecs,
            probing=~probing,
            finished=jnp.where(probing, ~beyond, ~sound),
        )

    state = _Round(
        x=nothing,
        start=start,
        values=infinite,
        residuals=infinite,
        scale=jnp.zeros((), op.dtype),
        matvecs=jnp.zeros((), jnp.int32),
        probing=jnp.array(False),
        finished=jnp.array(False),
    )
    if not probe:
        end = _iterate(
            search,
            start,
            fixed,
            precondition,
            search.max_matvecs,
            jnp.inf,
            state.scale,
            state.matvecs,
            probe_steps=0,
        )
        return search.certify(end.x.T, end.scale, end.matvecs)
    state = jax.lax.while_loop(
        lambda state: ~state.finished & (state.matvecs + 2 * k < search.max_matvecs),
        one_round,
        state,
    )
    result = search.certify(state.x.T, state.scale, state.matvecs)
    return result._replace(converged=result.converged & jnp.isfinite(state.residuals))


def _iterate(
    search: Search, block, known, precondition, limit, bar, scale, matvecs, *, probe_steps: int
) -> _Iterate:
    """Until converged, settled above ``bar``, at ``limit`` steps or out of matvecs.

    First come the guesses in ``block``.
    """
    op, k, sign = search.op, search.k, search.sign
    guesses = block.shape[0] // k

    def step(state: _Iterate) -> _Iterate:
        guess = jax.lax.dynamic_slice_in_dim(block, k * state.step, k)
        residual = precondition(state.ax - state.values[:, None] * state.x)
        w = jnp.where(state.step < guesses, guess, residual)
        w = orthonormal_rows(w, jnp.concatenate([known, state.x, state.p]))
        s = jnp.concatenate([state.x, w, state.p])
        image = jnp.concatenate([state.ax, (op @ w.T).T, state.ap])
        gram = sign * mm(s, image.T)
        values, c = best_pairs((gram + gram.T) / 2, jnp.sum(s**2, axis=1) > 0.5, k)
        # P is what moved X, kept orthogonal to the new X by working in coordinates.
        c = c.T
        both = jnp.concatenate([c, orthonormal_rows(c.at[:, :k].set(0), c)])
        s, image = mm(both, s), mm(both, image)
        x, ax = s[:k], image[:k]
        residuals = jnp.sqrt(jnp.sum((ax - sign * values[:, None] * x) ** 2, axis=1))
        return _Iterate(
            x=x,
            ax=ax,
            p=s[k:],
            ap=image[k:],
            values=sign * values,
            residuals=residuals,
            scale=jnp.maximum(state.scale, jnp.sqrt(jnp.max(jnp.sum(image**2, axis=1)))),
            step=state.step + 1,
            matvecs=state.matvecs + k,
        )

    def unfinished(state: _Iterate):
        good = jnp.all(search.converged(state.values, state.residuals, state.scale))
        settled = sign * state.values[0] - PROBE_MARGIN * state.residuals[0] > bar
        good |= settled & (state.step >= probe_steps)
        affordable = (state.step < limit) & (state.matvecs + 2 * k <= search.max_matvecs)
        healthy = jnp.all(jnp.isfinite(state.residuals)) | (state.step == 0)
        return (~good | (state.step < guesses)) & affordable & healthy

    nothing = jnp.zeros((k, op.size), op.dtype)
    infinite = jnp.full(k, jnp.inf, op.dtype)
    zero = jnp.zeros((), jnp.int32)
    zeros = jnp.zeros(k, op.dtype)
    state = _Iterate(nothing, nothing, nothing, nothing, zeros, infinite, scale, zero, matvecs)
    return jax.lax.while_loop(unfinished, step, state)
