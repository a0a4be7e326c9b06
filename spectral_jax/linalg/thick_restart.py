"""Thick-restart Lanczos with full reorthogonalisation (Wu & Simon 2000)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spectral_jax.linalg.subspace import (
    EigResult,
    Search,
    generic_vectors,
    mm,
    orthogonalise,
    unit,
)

# Basis vectors beyond twice the wanted pairs; half of them survive a restart.
EXTRA = 20
# How much of the start is generic: what the given start lacks must be there to grow.
GENERIC_PART = 0.1


class _State(NamedTuple):
    basis: Array
    vectors: Array
    kept: Array
    values: Array
    residuals: Array
    scale: Array
    first: Array
    looks: Array
    done: Array
    matvecs: Array


def thick_restart(search: Search, start: Array) -> EigResult:
    """Solve from the sum of the columns of ``start``, restarting with the best Ritz vectors.

    One Krylov space holds a single vector of a repeated eigenvalue, so several converged pairs get
    a second look: they are kept, and the next cycle starts from a generic vector beside them. The
    answer stands when nothing better shows.
    """
    op, k, sign, fixed = search.op, search.k, search.sign, search.fixed
    size = min(search.free_dimension, 2 * k + EXTRA)
    keep = min(k + EXTRA // 2, size - 1)
    complete = k == 1 or size == search.free_dimension
    refill = generic_vectors(op.size, size + 1, op.dtype, stream=2)
    empty = jnp.zeros((op.size, size + 1), op.dtype)

    def extend(j, carry):
        """Column ``j`` meets the operator; what is new becomes column ``j + 1``."""
        basis, projected, scale = carry
        image = op @ basis[:, j]
        coordinates = mm(basis.T, image)
        known = jnp.concatenate([fixed, basis], axis=1)
        rest = orthogonalise(image, known)
        length = jnp.linalg.norm(rest)
        scale = jnp.maximum(scale, jnp.linalg.norm(image))
        # An invariant subspace is complete: go on in a fresh direction, coupled to nothing.
        broken = length <= 10 * jnp.finfo(rest.dtype).eps * scale
        fresh = unit(orthogonalise(jnp.where(broken, refill[:, j + 1], rest), known))
        basis = basis.at[:, j + 1].set(jnp.where(j + 1 < search.free_dimension, fresh, 0))
        column = coordinates.at[j + 1].set(jnp.where(broken, 0, length))
        return basis, projected.at[:, j].set(column), scale

    def cycle(state: _State) -> _State:
        first = state.first
        kept_diagonal = jnp.where(jnp.arange(size, dtype=first.dtype) < first, state.kept, 0)
        projected = jnp.zeros((size + 1, size), op.dtype).at[:size].set(jnp.diag(kept_diagonal))
        basis, projected, scale = jax.lax.fori_loop(
            first, size, extend, (state.basis, projected, state.scale)
        )
        # Kept columns were not multiplied again: what couples them is in the upper triangle.
        square = jnp.triu(projected[:size]) + jnp.triu(projected[:size], 1).T
        values, y = jnp.linalg.eigh(sign * square)
        ritz = mm(basis[:, :size], y[:, : max(keep, k)])
        residuals = jnp.abs(projected[size, size - 1] * y[-1, :k])
        good = jnp.all(search.converged(sign * values[:k], residuals, scale))
        slack = search.allowed(state.values, scale)
        looked = (first == k) & (not complete)
        stands = looked & jnp.all(values[:k] >= sign * state.values - slack)

        def pick(old: Array, new: Array) -> Array:
            return jnp.where(stands, old, new)

        return _State(
            basis=jnp.where(good, beside(ritz[:, :k], state.looks), kept(ritz, basis[:, size])),
            vectors=pick(state.vectors, ritz[:, :k]),
            kept=sign * values,
            values=pick(state.values, sign * values[:k]),
            residuals=pick(state.residuals, residuals),
            scale=scale,
            first=jnp.where(good, k, keep).astype(jnp.int32),
            looks=state.looks + good.astype(jnp.int32),
            done=stands | (good & complete),
            matvecs=state.matvecs + size - first,
        )

    def kept(ritz, last):
        """The basis of a restart."""
        return empty.at[:, :keep].set(ritz[:, :keep]).at[:, keep].set(last)

    def beside(vectors, looks):
        """The basis of a look: a generic direction outside ``vectors``, each time another."""
        known = jnp.concatenate([fixed, vectors], axis=1)
        fresh = unit(orthogonalise(jnp.take(refill, looks % (size + 1), axis=1), known))
        return empty.at[:, :k].set(vectors).at[:, k].set(fresh)

    def unfinished(state: _State):
        affordable = state.matvecs + size - state.first + k <= search.max_matvecs
        healthy = jnp.all(jnp.isfinite(state.residuals))
        return (~state.done & affordable & healthy) | (state.matvecs == 0)

    mixed = unit(jnp.sum(unit(start), axis=1)) + GENERIC_PART * unit(refill[:, 0])
    first = unit(orthogonalise(mixed, fixed))
    zeros = jnp.zeros(size, op.dtype)
    state = _State(
        basis=empty.at[:, 0].set(first),
        vectors=jnp.zeros((op.size, k), op.dtype),
        kept=zeros,
        values=zeros[:k],
        residuals=zeros[:k] + jnp.inf,
        scale=jnp.zeros((), op.dtype),
        first=jnp.zeros((), jnp.int32),
        looks=jnp.zeros((), jnp.int32),
        done=jnp.array(False),
        matvecs=jnp.zeros((), jnp.int32),
    )
    state = jax.lax.while_loop(unfinished, cycle, state)
    return search.certify(state.vectors, state.scale, state.matvecs)
