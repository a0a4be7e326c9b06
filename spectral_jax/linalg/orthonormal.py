"""Orthonormal bases of tall blocks by CholeskyQR2, checked, with Householder QR to fall back on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from spectral_jax.linalg.operators import transposed_product
from spectral_jax.linalg.subspace import mm, outside


def orthonormal_basis(
    x: Float[Array, "n k"], against: Float[Array, "n d"] | None = None
) -> Float[Array, "n k"]:
    """Orthonormal columns ``Q`` whose span, beside that of ``against``, is that of ``x``.

    CholeskyQR2: twice in turn, project off ``against`` and set ``Q = X L^-T`` with the Cholesky
    factor of ``X^T X = L L^T``. These are matrix products; Householder QR is a chain of small
    steps, one for each column. But ``X^T X`` squares the condition number, so that the first round
    may leave ``Q^T Q`` far from the identity. The second round mends it to rounding error if the
    distance is below ``1/2``, which is checked. Where it is not (dependent columns, a block inside
    ``against``, a condition number beyond ``eps^-1/2``: 3000 in float32; NaN), Householder QR of
    ``[against, x]`` takes over. ``Q`` therefore has ``k`` orthonormal columns whatever ``x`` is;
    dependent columns are completed by arbitrary ones.

    ``against`` must have orthonormal columns. NaN in ``x`` gives NaN.
    Works under ``jit`` and ``vmap``; a batch pays for Householder only if a member needs it. Not
    differentiable. Raises ``ValueError`` for ``d + k > n`` columns, which cannot be orthonormal.
    Source: Yamamoto, Nakatsukasa, Yanagisawa & Fukaya 2015 (CholeskyQR2, and when it holds).

    >>> q = orthonormal_basis(jnp.array([[3.0, 1.0], [4.0, 2.0], [0.0, 2.0]]))
    >>> jnp.round(q.T @ q, 5).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    basis = jnp.zeros((x.shape[0], 0), x.dtype) if against is None else against
    if basis.shape[1] + x.shape[1] > x.shape[0]:
        raise ValueError(
            f"x has shape {x.shape} beside {basis.shape[1]} columns of against: "
            f"no more than {x.shape[0]} columns can be orthonormal"
        )
    largest = jnp.max(jnp.abs(x), axis=0)
    x = x / jnp.where(largest > 0, largest, 1)
    first = outside(x, basis)
    factor = jnp.linalg.cholesky(transposed_product(first, first))
    second = outside(_divide(first, factor), basis)
    gram, identity = transposed_product(second, second), jnp.eye(x.shape[1], dtype=x.dtype)
    # Multiplying by the inverse of a triangular factor is faster than solving with it, and loses
    # digits only if the factor is ill conditioned; this one is near the identity, or `holds` below
    # refuses the result.
    inverse = _divide(identity, jnp.linalg.cholesky(gram))
    # A Cholesky factorisation that fails leaves NaN, and NaN <= 0.5 is False.
    holds = jnp.linalg.norm(gram - identity) <= 0.5
    return _checked(holds, mm(second, inverse), basis, x)


def _divide(x: Array, factor: Array) -> Array:
    """``x L^-T``."""
    return jax.lax.linalg.triangular_solve(factor, x, left_side=False, lower=True, transpose_a=True)


def _householder(basis: Array, x: Array) -> Array:
    return jnp.linalg.qr(jnp.concatenate([basis, x], axis=1))[0][:, basis.shape[1] :]


@custom_vmap
def _checked(holds: Array, candidate: Array, basis: Array, x: Array) -> Array:
    return jax.lax.cond(holds, lambda: candidate, lambda: _householder(basis, x))


@_checked.def_vmap
def _checked_batch(axis_size, in_batched, *arguments):
    """The same for a batch, by a ``cond`` on one predicate for all of it.

    Plain ``vmap`` turns a ``cond`` into a ``select`` that runs both branches: every batch would pay
    for Householder QR.
    """
    holds, candidate, basis, x = (
        argument if batched else jnp.broadcast_to(argument, (axis_size, *argument.shape))
        for argument, batched in zip(arguments, in_batched, strict=True)
    )

    def repaired():
        return jnp.where(holds[:, None, None], candidate, jax.vmap(_householder)(basis, x))

    return jax.lax.cond(jnp.all(holds), lambda: candidate, repaired), True
