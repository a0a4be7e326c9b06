"""The Lanczos process with full reorthogonalisation."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from spectral_jax._options import count
from spectral_jax.linalg.operators import SymmetricOperator, check_operator
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.scale import seen
from spectral_jax.linalg.subspace import mm, orthogonalise, unit

STAGES = 5


class Tridiagonal(NamedTuple):
    """``A basis = basis T + residual e_last^T`` with ``T`` tridiagonal.

    ``rank`` is the number of valid basis columns: the process stops growing when it has found an
    invariant subspace (breakdown); later columns, ``alpha`` and ``beta`` are zero.
    """

    alpha: Float[Array, " m"]
    beta: Float[Array, " m-1"]
    basis: Float[Array, "n m"]
    residual: Float[Array, " n"]
    rank: Int[Array, ""]


class _Front(NamedTuple):
    """Where the recurrence stands: the last vector, and what becomes the next one.

    ``factor`` is one over the operator's magnitude, and 0 before the first product.
    """

    last: Array
    candidate: Array
    length: Array
    scale: Array
    factor: Array


@partial(jax.jit, static_argnames="steps")
def lanczos(
    op: SymmetricOperator,
    v0: Float[Array, " n"],
    steps: int,
    *,
    deflate: Float[Array, "n d"] | None = None,
) -> Tridiagonal:
    """Tridiagonalise ``op`` on the Krylov space of ``v0``: ``Q^T A Q = T``.

    Every new vector is orthogonalised against the last two (the three-term recurrence) and then
    once against the whole basis, which keeps ``||Q^T Q - I||`` at rounding level for any number of
    steps at ``O(n steps)`` extra work a step; against the orthonormal columns of ``deflate`` three
    times, as nothing says that ``op`` leaves them. Uses exactly ``steps`` matvecs. Only the
    direction of the start counts; the operator may have any scale from 1e-30 to 1e30 in float32.
    NaN in either is NaN in the result.

    Works under ``jit`` and ``vmap``; differentiable by unrolled reverse mode (``steps`` is static).
    Raises ``ValueError`` if ``steps`` is not in ``1..n``, or ``v0`` no vector of that size.
    Source: Golub & Van Loan, Matrix Computations, section 10.3.

    >>> from spectral_jax.linalg import dense_operator
    >>> t = lanczos(dense_operator(jnp.diag(jnp.arange(4.0))), jnp.ones(4), 4)
    >>> [round(float(x), 3) for x in t.alpha]
    [1.5, 1.5, 1.5, 1.5]
    """
    check_operator(op)
    steps = count("steps", steps, most=op.size, why="the size of op")
    v0 = working(v0, "v0").astype(op.dtype)
    if v0.shape != (op.size,):
        raise ValueError(f"v0 has shape {v0.shape}: pass one vector [{op.size}], the size of op")
    v0 = unit(v0)
    fixed = jnp.zeros((op.size, 0), v0.dtype) if deflate is None else deflate
    start, unknown = orthogonalise(v0, fixed), jnp.zeros((), v0.dtype)
    front = _Front(jnp.zeros_like(v0), start, jnp.linalg.norm(start), jnp.linalg.norm(v0), unknown)
    # The basis is read twice a step, and that is what a step costs. Vectors in rows are read at
    # the speed of memory; growing in stages, with static shapes, spares what is not yet filled.
    basis, parts = fixed.T, []
    height = -(-steps // STAGES)
    for filled in range(0, steps, height):
        rows, front, part = _stage(op, fixed, basis, front, min(height, steps - filled))
        basis = jnp.concatenate([basis, rows])
        parts.append(part)
    alpha, beta, valid = (jnp.concatenate(pieces) for pieces in zip(*parts, strict=True))
    alpha, beta, rest = (x / front.factor for x in (alpha, beta[1:], front.candidate))
    return Tridiagonal(alpha, beta, basis[fixed.shape[1] :].T, rest, valid.sum())


def three_term(
    op: SymmetricOperator, v0: Float[Array, " n"], steps: int
) -> tuple[Float[Array, " m"], Float[Array, " m-1"], Int[Array, ""]]:
    """``alpha``, ``beta`` and ``rank`` of the bare recurrence: three vectors of memory, no basis.

    Orthogonality is lost as soon as a Ritz value has converged, and copies of it appear; the
    quadrature that ``T`` stands for stays good (Greenbaum 1989; Knizhnerman 1996).
    Works under ``jit`` and ``vmap``; differentiable by unrolled reverse mode.
    """

    # The image is carried, not the vector that becomes of it: within one step XLA would compute a
    # product of cheap operations once for each of its uses.
    def step(carry, _):
        image, alpha, scale, factor, q, beta, last = carry
        rest = image * jnp.where(factor == 0, 1, factor) - alpha * q - beta * last
        front = _Front(q, rest, jnp.linalg.norm(rest), scale, factor)
        q, beta, valid = _next(front)
        image, factor = seen(op, factor, q)
        alpha = factor * jnp.vdot(q, image, precision=Precision.HIGHEST)
        # The norm of the image where it matters: where little is left of it.
        scale = _larger(front, jnp.hypot(alpha, jnp.where(front.factor == 0, 0, beta)))
        return (image, alpha, scale, factor, q, beta, front.last), (alpha, beta, valid)

    v0 = unit(v0)
    none, zero = jnp.zeros_like(v0), jnp.zeros((), v0.dtype)
    start = v0, zero, jnp.linalg.norm(v0), zero, none, zero, none
    (_, _, _, factor, *_), (alpha, beta, valid) = jax.lax.scan(step, start, length=steps)
    return alpha / factor, beta[1:] / factor, valid.sum()


def _stage(op: SymmetricOperator, fixed: Array, older: Array, front: _Front, height: int):
    """``height`` steps; the rows of ``older`` no longer change."""

    def step(carry, j):
        rows, front = carry
        q, beta, valid = _next(front)
        rows = rows.at[j].set(q)
        image, factor = seen(op, front.factor, q)
        alpha = factor * jnp.vdot(q, image, precision=Precision.HIGHEST)
        scale = _larger(front, jnp.linalg.norm(factor * image))
        rest = orthogonalise(factor * image, fixed) - alpha * q - beta * front.last
        rest = rest - mm(mm(older, rest), older) - mm(mm(rows, rest), rows)
        front = _Front(q, rest, jnp.linalg.norm(rest), scale, factor)
        return (rows, front), (alpha, beta, valid)

    rows = jnp.zeros((height, older.shape[1]), older.dtype)
    (rows, front), part = jax.lax.scan(step, (rows, front), jnp.arange(height))
    return rows, front, part


def _larger(front: _Front, length: Array) -> Array:
    """The largest image so far; before the first the scale is that of the start."""
    return jnp.where(front.factor == 0, length, jnp.maximum(front.scale, length))


def _next(front: _Front) -> tuple[Array, Array, Array]:
    """The next basis vector, its ``beta``, and whether there is one (else both are zero)."""
    # Breakdown is judged against the operator's own scale, not against the unit vector; NaN is no
    # breakdown.
    tiny = 10 * jnp.finfo(front.candidate.dtype).eps
    valid = ~(front.length <= tiny * front.scale)
    q = jnp.where(valid, front.candidate / jnp.where(valid, front.length, 1), 0)
    return q, jnp.where(valid, front.length, 0), valid
