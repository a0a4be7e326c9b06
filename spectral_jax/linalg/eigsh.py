"""A few extreme eigenpairs of a symmetric operator: LOBPCG and thick-restart Lanczos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax._options import count
from spectral_jax.linalg.arguments import tolerance
from spectral_jax.linalg.lobpcg import lobpcg
from spectral_jax.linalg.operators import SymmetricOperator, check_operator
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.scale import factor_of
from spectral_jax.linalg.subspace import (
    EigResult,
    Search,
    generic_vectors,
    mm,
    orthogonalise,
    unit,
)
from spectral_jax.linalg.thick_restart import least_vectors, thick_restart
from spectral_jax.linalg.two_pass import BESIDES, two_pass


@partial(
    jax.jit,
    static_argnames="k which tol max_matvecs method probe_steps memory copies".split(),
)
def eigsh(
    op: SymmetricOperator,
    k: int = 1,
    *,
    which: Literal["SA", "LA", "BE"] = "SA",
    v0: Float[Array, "n s"] | Float[Array, " n"] | None = None,
    v0_images: Float[Array, "n s"] | Float[Array, " n"] | None = None,
    deflate: Float[Array, "n d"] | None = None,
    preconditioner: Float[Array, " n"] | SymmetricOperator | None = None,
    tol: float | None = None,
    max_matvecs: int = 1000,
    method: Literal["auto", "lobpcg", "lanczos"] = "auto",
    probe_steps: int = 8,
    memory: int | None = None,
    copies: bool = True,
) -> EigResult:
    """The ``k`` smallest (``SA``) or largest (``LA``) eigenpairs of ``op``, from products alone.

    ``BE`` is both ends: the ``k // 2`` smallest, then the ``k - k // 2`` largest, best first each,
    from one Krylov space, which serves both.

    A pair has converged when ``||A v - value v|| <= tol |value|``, or when that residual is at the
    rounding floor of the dtype (which is how an eigenvalue 0 converges). An eigenvalue of ``A``
    then lies within the residual of ``value``; the error of ``value`` is about the residual's
    square over the gap to the next eigenvalue.

    Args:
      k: how many pairs, at least 2 for ``BE``; memory and time of a step grow with it.
      v0: start vector or block ``[n, s]``, for instance the previous solution; a fixed
        pseudo-random one if None.
      v0_images: ``op @ v0``, where it is known for less than a product each; ``lobpcg`` only.
      deflate: orthonormal columns ``[n, d]`` to keep out of the search: known eigenvectors of
        ``op``.
      preconditioner: an approximate inverse of ``op`` to multiply residuals with, positive
        definite: a diagonal ``[n]`` (such as ``1 / diag(A)``) or an operator; ``lobpcg`` only.
      tol: the largest relative residual; ``sqrt(eps)`` of the dtype if None (3e-4 in float32),
        which leaves the value an error near ``eps`` where the gap is of the value's size.
      max_matvecs: cap; on reaching it the best pairs so far come back with ``converged = False``.
      method: ``lobpcg`` can use a start block and a preconditioner, and knows one end; ``lanczos``
        gets more from each product where neither is there. ``auto`` picks ``lobpcg`` for one pair
        with a preconditioner or a start, else ``lanczos`` (measured: benchmarks/RESULTS.md).
      probe_steps: how long ``lobpcg`` looks past an answer that came from ``v0``, which may be an
        eigenvector but not the wanted one: steps from a generic vector in the complement of the
        answer (at most 24). If they see a better value, the search goes on from there.
        From a wrong eigenvector as start, 6 steps let no wrong pair pass for 480 network
        Laplacians; 3 are enough for a start with a part in the wanted vector (0 of 480).
      memory: bytes for the vectors of ``lanczos``; 64 MiB if None, or what ``2 k + 21`` vectors
        take. Where those do not fit, no basis is kept: the recurrence runs twice, the second time
        to add up the wanted vectors, in ``k + 5`` vectors of memory and up to 1000 steps. That is
        for few pairs of a very large operator. Lost are half the products, and orthogonality beyond
        that of vectors with these residuals; what the recurrence finds again for want of it counts
        once (``two_pass.py``). So do repeated eigenvalues: where the look at the end shows that one
        was missed, only the best pair of its end comes back converged; ``deflate`` it to find more.
      copies: one Krylov space holds one vector of a repeated eigenvalue. For ``k > 1`` ``lanczos``
        therefore ends with a look for further copies, with a chance of 1e-4 to overlook one. False
        leaves it out, as ARPACK does, and saves up to a third of the products. For operators whose
        eigenvalues do not repeat: where one does, what is reported as the third smallest may be
        the fourth, converged.

    Works under ``jit`` (static: all but the arrays), ``vmap`` and on sharded operators. NaN in the
    operator gives NaN values and ``converged = False``. The operator may have any scale from 1e-30
    to 1e30 in float32 (1e-290 to 1e300 in float64): beyond, its products lose digits to underflow
    or overflow, and pairs do not converge.

    Reverse-mode derivatives with respect to ``op.data`` are exact at a converged pair: ``d values =
    v^T dA v``, and for ``vectors`` a linear system per pair, solved by conjugate gradients; none
    flows to ``v0``, ``deflate`` or ``preconditioner``. At a repeated eigenvalue the derivative of
    ``values`` is one finite element of the generalised gradient. That of its single vectors does
    not exist: the terms between values within ``tol`` of each other are set to 0, which is right
    for functions of the whole eigenspace. Where ``k`` cuts through an eigenspace, the vectors have
    no derivative that is right.

    Raises ``ValueError`` for an impossible ``k``, ``which``, ``method``, ``tol`` or start block,
    and for ``max_matvecs`` that are not enough to start and to certify (``k + 2`` for ``lanczos``,
    ``3 k`` without a basis), and ``memory`` that does not hold the vectors wanted.
    Sources: Knyazev 2001 (LOBPCG), in the orthogonal basis of Hetmaniuk & Lehoucq 2006;
    Wu & Simon 2000 (thick-restart Lanczos).

    >>> from spectral_jax.linalg import dense_operator
    >>> result = eigsh(dense_operator(jnp.diag(jnp.arange(1.0, 9.0))), 2)
    >>> [round(float(x), 4) for x in result.values], result.converged.tolist()
    ([1.0, 2.0], [True, True])
    """
    check_operator(op)
    inputs = dict(v0=v0, v0_images=v0_images, deflate=deflate)
    v0, v0_images, deflate = (
        x if x is None else working(x, name).astype(op.dtype) for name, x in inputs.items()
    )
    k, chosen = _check(op, k, which, v0, v0_images, deflate, preconditioner, method)
    if memory is not None:
        if method == "lobpcg" or preconditioner is not None:
            raise ValueError("memory is set, but lobpcg has no basis to fit: use method='lanczos'")
        chosen = _fitting(op, k, deflate, count("memory", memory))
    max_matvecs = count("max_matvecs", max_matvecs, least=_least(k, chosen, v0, v0_images))
    probe_steps = count("probe_steps", probe_steps)
    tol = float(jnp.finfo(op.dtype).eps) ** 0.5 if tol is None else tolerance("tol", tol)
    # The default start has a part in every eigenvector, and needs no probe.
    probe = probe_steps if v0 is not None else 0
    options = _Options(_ends(k, which), tol, max_matvecs, chosen, probe, memory, bool(copies))
    start = None if v0 is None else (v0, v0_images)
    return _compiled_pairs(options, op, start, deflate, preconditioner)


class _Options(NamedTuple):
    """What is static under ``jit``; ``ends`` are those of `Search`."""

    ends: tuple[tuple[int, int], ...]
    tol: float
    max_matvecs: int
    method: str
    probe_steps: int
    memory: int | None
    copies: bool


def _ends(k: int, which: str) -> tuple[tuple[int, int], ...]:
    """The ends of the spectrum that are wanted, and how many pairs of each: see `Search`."""
    if which == "BE":
        return (1, k // 2), (-1, k - k // 2)
    return ((1 if which == "SA" else -1, k),)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pairs(options, op, start, deflate, preconditioner) -> EigResult:
    ends, tol, max_matvecs, method, probe_steps, memory, copies = options
    fixed = jnp.zeros((op.size, 0), op.dtype) if deflate is None else deflate
    search = Search(op, ends, fixed, tol, max_matvecs, copies)
    block, images = _start_block(op, search.k, start)
    if method == "lobpcg":
        precondition = _as_function(preconditioner)
        return lobpcg(search, block, images, precondition, probe_steps=probe_steps)
    if method == "two-pass":
        return two_pass(search, block)
    return thick_restart(search, block, memory)


def _start_block(op: SymmetricOperator, k: int, start) -> tuple[Array, Array | None]:
    """At least ``k`` columns to start from, and the products with them, if all are known.

    A caller's start with fewer columns is filled up with pseudo-random ones.
    """
    noise = generic_vectors(op.size, k, op.dtype)
    if start is None:
        return noise, None
    v0, images = jax.tree.map(lambda x: x.reshape(op.size, -1), start)
    if images is None:
        v0 = unit(v0)
    if v0.shape[1] >= k:
        return v0, images
    return jnp.concatenate([v0, noise[:, : k - v0.shape[1]]], axis=1), None


def _pairs_forward(options, *arguments):
    op, start, deflate, preconditioner = custom_vjp_primal_tree_values(arguments)
    # The vectors are kept as results of `_pairs`, which has this derivative rule itself. That makes
    # second derivatives right: they go through how the vectors move.
    result = _pairs(options, op, start, deflate, preconditioner)
    return result, (op, start, deflate, preconditioner, result.values, result.vectors)


def _pairs_backward(options, saved, cotangent: EigResult):
    """``A_bar = sum_j z_j v_j^T``, ``z_j = values_bar_j v_j - (A - values_j)^+ vectors_bar_j``.

    ``x_bar`` is the derivative of the result by ``x``, and ``^+`` the pseudoinverse: a unit vector
    does not move along itself. ``A_bar`` is ``n x n`` and never formed: pulling ``z_j`` back
    through the product ``op @ v_j`` gives the derivative by ``op.data``.
    """
    op, start, deflate, preconditioner, values, vectors = saved
    adjoint = jnp.zeros_like(vectors)
    if not isinstance(cotangent.values, SymbolicZero):
        adjoint += cotangent.values * vectors
    if not isinstance(cotangent.vectors, SymbolicZero):
        adjoint += _vector_adjoint(options, op, deflate, values, vectors, cotangent.vectors)
    _, pull_back = jax.vjp(lambda data: dataclasses.replace(op, data=data) @ vectors, op.data)
    op_bar = dataclasses.replace(op, data=pull_back(adjoint)[0])
    return op_bar, *jax.tree.map(jnp.zeros_like, (start, deflate, preconditioner))


def _vector_adjoint(options, op, deflate, values, vectors, cotangent) -> Array:
    """Solve ``(A - values_j) z_j = -cotangent_j`` in the complement of the ``j``-th vector.

    In the span of the eigenvectors at hand ``A - values_j`` is diagonal: divide. In the complement
    of them all it is definite, because only larger eigenvalues are left (smaller, for a pair of the
    upper end), as conjugate gradients need.
    """
    fixed = jnp.zeros((op.size, 0), op.dtype) if deflate is None else deflate
    factor = factor_of(op @ unit(generic_vectors(op.size, 1, op.dtype)[:, 0]))
    op, values = factor * op, factor * values
    size = unit_of(cotangent, axis=0)
    cotangent = cotangent / size
    known = jnp.concatenate([fixed, vectors], axis=1)
    # Gaps of the known values (rows) to the wanted ones (columns). The fixed vectors come without
    # values: take their Rayleigh quotients.
    apart = jnp.concatenate([jnp.sum(fixed * (op @ fixed), axis=0), values])[:, None] - values
    # Vectors of one eigenspace may be rotated among each other at will: a gap that is nothing but
    # rounding would be divided by. Set these terms to 0, by an infinite gap.
    determined = jnp.abs(apart) > options.tol * jnp.max(jnp.abs(values))
    parts = mm(known.T, cotangent) / jnp.where(determined, apart, jnp.inf)

    def beyond(sign, value, right):
        def shifted(z):
            return sign * orthogonalise(op @ z - value * z, known)

        return jax.scipy.sparse.linalg.cg(
            shifted, right, tol=options.tol, maxiter=options.max_matvecs
        )[0]

    signs = jnp.asarray([sign for sign, count in options.ends for _ in range(count)], values.dtype)
    right = -signs * orthogonalise(cotangent, known)
    solution = jax.vmap(beyond, in_axes=(0, 0, 1), out_axes=1)(signs, values, right)
    solution -= mm(known, parts)
    return factor * (solution * size)


_pairs.defvjp(_pairs_forward, _pairs_backward, symbolic_zeros=True)
_compiled_pairs = jax.jit(_pairs, static_argnums=0)


def _least(k: int, method: str, v0, v0_images) -> int:
    """The least ``max_matvecs`` that give an answer: products with the start, and to certify."""
    if method == "two-pass":
        return 3 * k
    if method == "lanczos":
        return k + 2
    columns = 0 if v0 is None else v0.size // v0.shape[0]
    return k + (max(k, columns) if v0_images is None else 0)


def _fitting(op, k: int, deflate, memory: int) -> str:
    """The Lanczos that fits into so many bytes: with a basis, or in two passes without."""
    row = op.size * jnp.dtype(op.dtype).itemsize
    free = op.size - (0 if deflate is None else deflate.shape[1])
    if memory >= row * least_vectors(k, free):
        return "lanczos"
    if memory < (least := row * (k + BESIDES)):
        raise ValueError(
            f"memory={memory}: {k} pairs of {op.size} numbers take {least} bytes without a basis, "
            f"{row * least_vectors(k, free)} with one"
        )
    return "two-pass"


def _check(op, k, which, v0, v0_images, deflate, preconditioner, method) -> tuple[int, str]:
    n = op.size
    if deflate is not None and (deflate.ndim != 2 or deflate.shape[0] != n):
        raise ValueError(f"deflate has shape {deflate.shape}: pass orthonormal columns [{n}, d]")
    free = n - (0 if deflate is None else deflate.shape[1])
    if which not in ("SA", "LA", "BE"):
        raise ValueError(
            f"which={which!r}: choose 'SA' (smallest), 'LA' (largest) or 'BE' (both ends)"
        )
    least = 2 if which == "BE" else 1
    k = count("k", k, least=least, most=free, why=f"n = {n} less the deflated directions")
    check_choice(("auto", "lobpcg", "lanczos"), method=method)
    if v0 is not None and (v0.ndim not in (1, 2) or v0.shape[0] != n):
        raise ValueError(f"v0 has shape {v0.shape}: pass [n] or [n, s] with n = {n}")
    if v0_images is not None and (v0 is None or v0_images.shape != v0.shape):
        shape = None if v0 is None else v0.shape
        raise ValueError(f"v0_images has shape {v0_images.shape}, v0 {shape}: pass op @ v0")
    if preconditioner is not None and method == "lanczos":
        raise ValueError("preconditioner is set but method='lanczos' cannot use it: use 'lobpcg'")
    if v0_images is not None and method == "lanczos":
        raise ValueError("v0_images is set but method='lanczos' cannot use it: use 'lobpcg'")
    if which == "BE" and method == "lobpcg":
        raise ValueError("which='BE' but method='lobpcg' knows one end: use 'lanczos'")
    if method == "auto":
        informed = v0 is not None or preconditioner is not None
        # Two ends are at least two pairs.
        method = "lobpcg" if k == 1 and informed else "lanczos"
    return k, method


def _as_function(preconditioner) -> Callable[[Array], Array]:
    """The preconditioner as a function of a block of row vectors ``[k, n]``."""
    if preconditioner is None:
        return lambda r: r
    if isinstance(preconditioner, SymmetricOperator):
        return lambda r: (preconditioner @ r.T).T
    return lambda r: preconditioner * r
