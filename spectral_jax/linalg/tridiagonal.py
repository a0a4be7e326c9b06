"""Eigenvalues of batches of symmetric tridiagonal matrices, by bisection on Sturm counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectral_jax.linalg.carries import start_beside


def tridiagonal_eigvals(
    diagonal: Float[Array, "*batch n"], off_diagonal: Float[Array, "*batch n-1"]
) -> Float[Array, "*batch n"]:
    """All eigenvalues, ascending, with absolute error of a few ``eps ||T||``.

    The number of eigenvalues below ``x`` is the number of negative pivots in ``T - x = L D L^T``
    (Sylvester's law of inertia; the Sturm count). Counts at ``n`` points or a few more give every
    eigenvalue its first bracket; then all of them, of every matrix, are bisected at once. A
    halving is ``n`` steps of elementwise work on ``n * batch`` numbers, and there is one for each
    bit of the dtype beyond the first ``log2 n``. LAPACK's QR iteration does less arithmetic, but
    for one matrix after the other.

    Works under ``jit`` and ``vmap``; has no useful derivative (the callers bring their own). NaN or
    inf in a matrix gives NaN for that matrix only.
    Sources: Barth, Martin & Wilkinson 1967; Demmel, Dhillon & Ren 1995 on why the count stays
    monotone in floating point.

    >>> [round(float(x), 4) for x in tridiagonal_eigvals(jnp.full(3, 2.0), jnp.full(2, -1.0))]
    [0.5858, 2.0, 3.4142]
    """
    batch, n = diagonal.shape[:-1], diagonal.shape[-1]
    # The batch is the last axis, contiguous in memory: XLA then vectorises over matrices, while the
    # recurrence over rows of one matrix cannot be vectorised.
    d = diagonal.reshape(-1, n).T
    e = jnp.pad(off_diagonal.reshape(-1, n - 1).T, ((1, 0), (0, 0)))
    bound = jnp.max(jnp.abs(d), axis=0) + 2 * jnp.max(jnp.abs(e), axis=0)
    # All eigenvalues lie within the bound (Gershgorin); divided by it, within [-1, 1].
    usable = (bound > 0) & jnp.isfinite(bound)
    scale = jnp.where(usable, bound, 1)
    values = _bisect(d / scale, (e / scale) ** 2) * scale
    values = jnp.where(usable, values, jnp.where(bound == 0, 0, jnp.nan))
    return values.T.reshape(*batch, n)


def _bisect(d: Float[Array, "n b"], e_squared: Float[Array, "n b"]) -> Float[Array, "n b"]:
    """Eigenvalues in ``[-1, 1]``; ``e_squared[i]`` couples row ``i`` to row ``i - 1``, the first 0.

    Eigenvalue ``i`` (from 0) is at least ``x`` exactly if at most ``i`` of them are below ``x``.
    """
    n, batch = d.shape
    index = jnp.arange(n, dtype=jnp.int32)[:, None]
    # Kept above 0: after a pivot 0 the next one is then -(positive / 0), infinite, which counts
    # rightly; 0 / 0 would be NaN and spoil all counts after it.
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
    """How many eigenvalues lie below each of the points ``x``: negative pivots of ``T - x``."""

    def next_pivot(carry, row):
        pivot, count = carry
        pivot = row[0] - x - row[1] / pivot
        # By the sign bit, not `< 0`: after a pivot -0 the next one is +inf and does not count, so
        # that -0 itself must; with +0 it is the other way round.
        return (pivot, count + jnp.signbit(pivot).astype(jnp.int32)), None

    start = start_beside(d, (jnp.ones_like(x), jnp.zeros(x.shape, jnp.int32)))
    return jax.lax.scan(next_pivot, start, (d, e_squared))[0][1]
