"""Eigenvalues of batches of symmetric tridiagonal matrices, by bisection on Sturm counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def tridiagonal_eigvals(
    diagonal: Float[Array, "*batch n"], off_diagonal: Float[Array, "*batch n-1"]
) -> Float[Array, "*batch n"]:
    """All eigenvalues, ascending, with absolute error of a few ``eps ||T||``.

    The number of eigenvalues below ``x`` is the number of negative pivots in ``T - x = L D L^T``
    (Sylvester). Counts at ``n`` points or a few more give every eigenvalue its first bracket; then
    all of them, of every matrix, are bisected at once, one lane each, so the work is ``n`` fused
    steps over ``n * batch`` lanes for each bit of the dtype beyond the first ``log2 n``.

    Works under ``jit`` and ``vmap``; has no useful derivative (the callers bring their own). NaN or
    inf in a matrix gives NaN for that matrix only.
    Source: Barth, Martin & Wilkinson 1967; Demmel, Dhillon & Ren 1995 on why the count stays
    monotone in floating point.

    >>> [round(float(x), 4) for x in tridiagonal_eigvals(jnp.full(3, 2.0), jnp.full(2, -1.0))]
    [0.5858, 2.0, 3.4142]
    """
    batch, n = diagonal.shape[:-1], diagonal.shape[-1]
    # The batch goes last, where it is contiguous: XLA then vectorises over matrices.
    d = diagonal.reshape(-1, n).T
    e = jnp.pad(off_diagonal.reshape(-1, n - 1).T, ((1, 0), (0, 0)))
    bound = jnp.max(jnp.abs(d), axis=0) + 2 * jnp.max(jnp.abs(e), axis=0)
    usable = (bound > 0) & jnp.isfinite(bound)
    scale = jnp.where(usable, bound, 1)
    values = _bisect(d / scale, (e / scale) ** 2) * scale
    values = jnp.where(usable, values, jnp.where(bound == 0, 0, jnp.nan))
    return values.T.reshape(*batch, n)


def _bisect(d: Float[Array, "n b"], e_squared: Float[Array, "n b"]) -> Float[Array, "n b"]:
    """Eigenvalues in ``[-1, 1]``; ``e_squared[0]`` has no row above it and is zero."""
    n, batch = d.shape
    index = jnp.arange(n, dtype=jnp.int32)[:, None]
    # Kept from 0, so that a vanishing pivot gives an infinite one next and never 0 / 0.
    e_squared = jnp.maximum(e_squared, jnp.finfo(d.dtype).tiny)
    bits = (n - 1).bit_length()
    points = jnp.linspace(-1, 1, 2**bits, endpoint=False, dtype=d.dtype)[:, None]
    counts = _count_below(d, e_squared, jnp.broadcast_to(points, (2**bits, batch)))
    cell = jnp.sum(counts[1:, None] <= index, axis=0, dtype=jnp.int32)

    def halve(_, bracket):
        low, width = bracket
        middle = low + width
        return jnp.where(_count_below(d, e_squared, middle) <= index, middle, low), width / 2

    start = points[cell, 0], jnp.asarray(0.5**bits, d.dtype)
    low, width = jax.lax.fori_loop(0, jnp.finfo(d.dtype).nmant + 1 - bits, halve, start)
    return low + width


def _count_below(
    d: Float[Array, "n b"], e_squared: Float[Array, "n b"], x: Float[Array, "p b"]
) -> Int[Array, "p b"]:
    def next_pivot(carry, row):
        pivot, count = carry
        pivot = row[0] - x - row[1] / pivot
        # The sign bit, not `< 0`: a pivot -0 makes the next one +inf, and must itself count.
        return (pivot, count + jnp.signbit(pivot).astype(jnp.int32)), None

    start = jnp.ones_like(x), jnp.zeros(x.shape, jnp.int32)
    return jax.lax.scan(next_pivot, start, (d, e_squared))[0][1]
