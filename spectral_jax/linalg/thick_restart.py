"""Thick-restart Lanczos with full reorthogonalisation (Wu & Simon 2000)."""

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
    off_rows,
    unit_rows,
)

# Basis vectors beyond twice the wanted pairs; half of them survive a restart.
EXTRA = 20
# How often the growing basis is asked for its pairs between two restarts.
LOOKS_PER_CYCLE = 3
# How much of the start is generic: what the given start lacks must be there to grow.
GENERIC_PART = 0.1


class _State(NamedTuple):
    """Vectors are rows; the first ``filled`` of the basis have met the operator."""

    basis: Array
    projected: Array
    filled: Array
    vectors: Array
    values: Array
    residuals: Array
    scale: Array
    second_look: Array
    looks: Array
    done: Array
    matvecs: Array


class _Pairs(NamedTuple):
    """What the basis says; ``values`` ascend, times ``sign``."""

    values: Array
    coordinates: Array
    residuals: Array


def thick_restart(search: Search, start: Array) -> EigResult:
    """Solve from the sum of the columns of ``start``, restarting with the best Ritz vectors.

    One Krylov space holds a single vector of a repeated eigenvalue, so several converged pairs get
    a second look: they are kept, and the next cycle starts from a generic vector beside them. The
    answer stands when nothing better shows.
    """
    op, k, sign, fixed = search.op, search.k, search.sign, search.fixed.T
    size = min(search.free_dimension, 2 * k + EXTRA)
    keep = min(k + EXTRA // 2, size - 1)
    stride = -(-(size - keep) // LOOKS_PER_CYCLE)
    exhaustive = size == search.free_dimension
    complete = k == 1 or exhaustive
    refill = generic_vectors(op.size, size + 1, op.dtype, stream=2).T
    empty = jnp.zeros((size + 1, op.size), op.dtype)
    order = jnp.arange(size, dtype=jnp.int32)

    def extend(j, carry):
        """Vector ``j`` meets the operator; what is new becomes vector ``j + 1``."""
        basis, projected, scale = carry
        image = op @ basis[j]
        coordinates = mm(basis, image)
        known = jnp.concatenate([fixed, basis])
        rest = off_rows(image, known)
        length = jnp.linalg.norm(rest)
        scale = jnp.maximum(scale, jnp.linalg.norm(image))
        # An invariant subspace is complete: go on in a fresh direction, coupled to nothing.
        broken = length <= 10 * jnp.finfo(rest.dtype).eps * scale
        fresh = outside(jnp.where(broken, refill[j + 1], rest), known)
        basis = basis.at[j + 1].set(jnp.where(j + 1 < search.free_dimension, fresh, 0))
        column = coordinates.at[j + 1].set(jnp.where(broken, 0, length))
        return basis, projected.at[:, j].set(column), scale

    def pairs_of(projected, filled) -> _Pairs:
        # Kept vectors were not multiplied again: what couples them is in the upper triangle.
        square = jnp.triu(projected[:size]) + jnp.triu(projected[:size], 1).T
        met = order < filled
        square = jnp.where(met & met[:, None], square, 0)
        values, y = best_pairs(sign * square, met, max(keep, k))
        return _Pairs(values, y, jnp.abs(projected[filled, filled - 1] * y[filled - 1, :k]))

    def grow(state: _State) -> _State:
        filled = jnp.minimum(state.filled + stride, size)
        basis, projected, scale = jax.lax.fori_loop(
            state.filled, filled, extend, (state.basis, state.projected, state.scale)
        )
        pairs = pairs_of(projected, filled)
        best = sign * pairs.values[:k]
        good = jnp.all(search.converged(best, pairs.residuals, scale)) & (filled >= k)
        full = filled == size
        better = jnp.any(pairs.values[:k] < sign * state.values - search.allowed(best, scale))
        stands = state.second_look & full & ~better
        # A space that can be filled is: then nothing is left to look for.
        early = not exhaustive or k == 1
        found = good & ~stands & (full | (early & ~state.second_look))
        grown = state._replace(
            basis=basis,
            projected=projected,
            filled=filled,
            scale=scale,
            matvecs=state.matvecs + filled - state.filled,
            done=stands | (found & complete),
        )
        return jax.lax.cond(
            found | (full & ~stands), lambda: restarted(grown, pairs, found), lambda: grown
        )

    def restarted(state: _State, pairs: _Pairs, found) -> _State:
        """Begin the next cycle, from the pairs found or from the best so far."""
        ritz = mm(pairs.coordinates.T, state.basis[:size])
        values = sign * pairs.values
        kept = jnp.where(found, k, keep)
        padded = jnp.zeros(size, op.dtype).at[: len(values)].set(values)
        diagonal = jnp.where(order < kept, padded, 0)
        basis = jnp.where(
            found,
            beside(ritz[:k], state.looks),
            empty.at[:keep].set(ritz[:keep]).at[keep].set(state.basis[size]),
        )
        return state._replace(
            basis=basis,
            projected=jnp.zeros((size + 1, size), op.dtype).at[:size].set(jnp.diag(diagonal)),
            filled=kept.astype(jnp.int32),
            vectors=ritz[:k],
            values=values[:k],
            residuals=pairs.residuals,
            second_look=found,
            looks=state.looks + found.astype(jnp.int32),
        )

    def beside(vectors, looks):
        """The basis of a look: a generic direction outside ``vectors``, each time another."""
        known = jnp.concatenate([fixed, vectors])
        fresh = outside(jnp.take(refill, looks % (size + 1), axis=0), known)
        return empty.at[:k].set(vectors).at[k].set(fresh)

    def outside(vector, known):
        return unit_rows(off_rows(vector, known)[None])[0]

    def unfinished(state: _State):
        affordable = state.matvecs + stride + k <= search.max_matvecs
        healthy = jnp.isfinite(state.scale)
        return (~state.done & affordable & healthy) | (state.matvecs == 0)

    mixed = unit_rows(jnp.sum(unit_rows(start.T), axis=0)[None]) + GENERIC_PART * unit_rows(
        refill[:1]
    )
    zeros = jnp.zeros(k, op.dtype)
    state = _State(
        basis=empty.at[0].set(outside(mixed[0], fixed)),
        projected=jnp.zeros((size + 1, size), op.dtype),
        filled=jnp.zeros((), jnp.int32),
        vectors=jnp.zeros((k, op.size), op.dtype),
        values=zeros,
        residuals=zeros + jnp.inf,
        scale=jnp.zeros((), op.dtype),
        second_look=jnp.array(False),
        looks=jnp.zeros((), jnp.int32),
        done=jnp.array(False),
        matvecs=jnp.zeros((), jnp.int32),
    )
    state = jax.lax.while_loop(unfinished, grow, state)
    # Stopped by the cap in the middle of a cycle: the best so far.
    so_far = mm(pairs_of(state.projected, state.filled).coordinates[:, :k].T, state.basis[:size])
    vectors = jnp.where(state.done | state.second_look, state.vectors, so_far)
    result = search.certify(vectors.T, state.scale, state.matvecs)
    return result._replace(converged=result.converged & state.done)
