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
    matvecs: Array


def thick_restart(search: Search, start: Array) -> EigResult:
    """Solve from the sum of the columns of ``start``, restarting with the best Ritz vectors."""
    op, k, sign, fixed = search.op, search.k, search.sign, search.fixed
    size = min(search.free_dimension, 2 * k + EXTRA)
    keep = min(k + EXTRA // 2, size - 1)
    refill = generic_vectors(op.size, size + 1, op.dtype, stream=2)

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
        first = jnp.where(state.matvecs == 0, 0, keep)
        kept_diagonal = jnp.where(jnp.arange(size) < first, state.kept, 0)
        projected = jnp.zeros((size + 1, size), op.dtype).at[:size].set(jnp.diag(kept_diagonal))
        basis, projected, scale = jax.lax.fori_loop(
            first, size, extend, (state.basis, projected, state.scale)
        )
        # Kept columns were not multiplied again: what couples them is in the upper triangle.
        square = jnp.triu(projected[:size]) + jnp.triu(projected[:size], 1).T
        values, y = jnp.linalg.eigh(sign * square)
        ritz = mm(basis[:, :size], y[:, : max(keep, k)])
        kept = jnp.concatenate([ritz[:, :keep], basis[:, size:]], axis=1)
        return _State(
            basis=jnp.zeros_like(basis).at[:, : keep + 1].set(kept),
            vectors=ritz[:, :k],
            kept=sign * values,
            values=sign * values[:k],
            residuals=jnp.abs(projected[size, size - 1] * y[-1, :k]),
            scale=scale,
            matvecs=state.matvecs + size - first,
        )

    def unfinished(state: _State):
        good = jnp.all(search.converged(state.values, state.residuals, state.scale))
        affordable = state.matvecs + size - keep + k <= search.max_matvecs
        healthy = jnp.all(jnp.isfinite(state.residuals)) | (state.matvecs == 0)
        return (~good & affordable & healthy) | (state.matvecs == 0)

    mixed = unit(jnp.sum(unit(start), axis=1)) + GENERIC_PART * unit(refill[:, 0])
    first = unit(orthogonalise(mixed, fixed))
    zeros = jnp.zeros(size, op.dtype)
    state = _State(
        basis=jnp.zeros((op.size, size + 1), op.dtype).at[:, 0].set(first),
        vectors=jnp.zeros((op.size, k), op.dtype),
        kept=zeros,
        values=zeros[:k],
        residuals=zeros[:k] + jnp.inf,
        scale=jnp.zeros((), op.dtype),
        matvecs=jnp.zeros((), jnp.int32),
    )
    state = jax.lax.while_loop(unfinished, cycle, state)
    return search.certify(state.vectors, state.scale, state.matvecs)
