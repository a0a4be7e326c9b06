"""The Lanczos process: a symmetric operator seen through a small tridiagonal matrix.

Step ``j`` multiplies the basis vector ``q_j`` and orthogonalises the image; what is left, scaled to
length 1, is ``q_(j+1)``. In exact arithmetic only the parts along ``q_j`` (``alpha_j``) and
``q_(j-1)`` (``beta_j``) are not zero. In floating point the others grow as soon as an eigenvalue
has converged (Paige 1976), so that `lanczos` removes them as well (full reorthogonalisation);
`three_term` lets them grow.
"""

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

# The basis is allocated in this many pieces. With one, every step reads the whole final basis to
# orthogonalise against rows that are still zero; with five, 3/5 of that. More compile longer.
STAGES = 5


class Tridiagonal(NamedTuple):
    """``A basis = basis T + residual e_last^T`` with ``T`` tridiagonal.

    ``alpha`` is the diagonal of ``T`` and ``beta`` its off-diagonal, at least 0; ``basis`` has
    orthonormal columns, the first along ``v0``. ``rank`` is the number of valid columns: where the
    basis is an invariant subspace of ``A`` nothing is left of the next vector (breakdown), and all
    later columns, ``alpha`` and ``beta`` are zero.
    """

    alpha: Float[Array, " m"]
    beta: Float[Array, " m-1"]
    basis: Float[Array, "n m"]
    residual: Float[Array, " n"]
    rank: Int[Array, ""]


class _Front(NamedTuple):
    """Where the recurrence stands.

    ``last`` is the newest basis vector, ``candidate`` what will be the next one when it is divided
    by its ``length``. ``scale`` is the longest image so far, against which ``length`` is judged.
    ``factor`` is one over the operator's magnitude (``scale.py``), and 0 before the first product.
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
    once, by classical Gram-Schmidt, against the whole basis. That is two passes in all for the two
    vectors with large parts, and keeps ``||Q^T Q - I||`` at rounding level for any number of steps,
    at ``O(n steps)`` extra work a step. Uses exactly ``steps`` matvecs.

    Args:
      v0: start ``[n]``; only its direction counts.
      steps: columns of the basis, at most ``n``; memory ``n steps``.
      deflate: orthonormal columns ``[n, d]`` to keep the basis orthogonal to. They get three passes
        instead of one: they need not be eigenvectors, and what ``op`` returns along them may be
        large.

    The operator may have any scale from 1e-30 to 1e30 in float32; NaN in it or in ``v0`` is NaN in
    the result. Works under ``jit`` and ``vmap``; differentiable by unrolled reverse mode (``steps``
    is static). Raises ``ValueError`` if ``steps`` is not in ``1..n``, or ``v0`` no vector of that
    size.
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
    # Orthogonalising reads the basis twice a step, which is what a step costs beside the product.
    # Vectors are rows, which are contiguous in memory. Shapes are static under `jit`, so a basis
    # that grows is a chain of stages, each with the rows of those before.
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

    Orthogonality is lost as soon as an eigenvalue of ``T`` has converged to one of ``A``, and
    copies of it appear in ``T``. The Gauss quadrature that ``T`` stands for stays good, since the
    copies share the weight of the one (Greenbaum 1989; Knizhnerman 1996).
    Works under ``jit`` and ``vmap``; differentiable by unrolled reverse mode.
    """

    # The carry from step to step is the image A q, not the vector that comes of it. Used twice
    # within one step (for alpha and for the rest), a product of cheap operations such as a diagonal
    # one would be computed twice: XLA fuses it into each of its uses. A carry is computed once.
    def step(carry, _):
        image, alpha, scale, factor, q, beta, last = carry
        rest = image * jnp.where(factor == 0, 1, factor) - alpha * q - beta * last
        front = _Front(q, rest, jnp.linalg.norm(rest), scale, factor)
        q, beta, valid = _next(front)
        image, factor = seen(op, factor, q)
        alpha = factor * jnp.vdot(q, image, precision=Precision.HIGHEST)
        # ||A q||, without its part along the next vector. That part is what breakdown is judged by
        # (`_next`): where it is small the norm is right, where it is large there is no breakdown.
        scale = _larger(front, jnp.hypot(alpha, jnp.where(front.factor == 0, 0, beta)))
        return (image, alpha, scale, factor, q, beta, front.last), (alpha, beta, valid)

    v0 = unit(v0)
    none, zero = jnp.zeros_like(v0), jnp.zeros((), v0.dtype)
    start = v0, zero, jnp.linalg.norm(v0), zero, none, zero, none
    (_, _, _, factor, *_), (alpha, beta, valid) = jax.lax.scan(step, start, length=steps)
    return alpha / factor, beta[1:] / factor, valid.sum()


def _stage(op: SymmetricOperator, fixed: Array, older: Array, front: _Front, height: int):
    """``height`` steps that add as many rows; ``older`` are the rows of the stages before.

    ``older`` begins with the rows of ``fixed``.
    """

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
    """The longest image so far. Before the first product ``scale`` is the start's length: drop it,
    for it says nothing of the operator."""
    return jnp.where(front.factor == 0, length, jnp.maximum(front.scale, length))


def _next(front: _Front) -> tuple[Array, Array, Array]:
    """The next basis vector, its ``beta``, and whether there is one (else both are zero)."""
    # Rounding leaves about eps ||A q|| where nothing should be left. So "nothing" is judged against
    # the longest image, not against 1; and by `not <=`, because a NaN must go on, to be seen.
    tiny = 10 * jnp.finfo(front.candidate.dtype).eps
    valid = ~(front.length <= tiny * front.scale)
    q = jnp.where(valid, front.candidate / jnp.where(valid, front.length, 1), 0)
    return q, jnp.where(valid, front.length, 0), valid
