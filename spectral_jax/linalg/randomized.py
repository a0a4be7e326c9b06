"""The leading singular triplets of a matrix or operator, from products with a random block."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jaxtyping import Array, Bool, Float, Int, Key

from spectral_jax._choices import check_choice
from spectral_jax._options import count
from spectral_jax.linalg.arguments import tolerance
from spectral_jax.linalg.lapack import in_turn
from spectral_jax.linalg.operators import LinearOperator, transposed_product
from spectral_jax.linalg.orthonormal import orthonormal_basis
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.subspace import mm

PROBES = 10  # Gaussian vectors for the error estimate; what they promise: `randomized_svd`
DEFAULT_OVERSAMPLE = 10  # Halko, Martinsson & Tropp 2011 advise 5 or 10


class SVDResult(NamedTuple):
    """``A ~ u diag(s) vt``, ``s`` descending, and how far to trust it.

    ``error`` estimates ``||A - u diag(s) vt||_F``, which bounds the spectral norm. ``rank`` says
    how many triplets hold: those that ``tol`` asks for, the rest being zero; without ``tol``, those
    above rounding, ``s > max(m, n) eps s[0]``. ``converged`` is False if ``tol`` was not reached.
    """

    u: Float[Array, "m k"]
    s: Float[Array, " k"]
    vt: Float[Array, "k n"]
    error: Float[Array, ""]
    rank: Int[Array, ""]
    converged: Bool[Array, ""]


def randomized_svd(
    key: Key[Array, ""],
    a: Float[Array, "m n"] | LinearOperator,
    rank: int,
    *,
    oversample: int | None = None,
    power_iterations: int = 2,
    method: Literal["krylov", "power"] = "krylov",
    block: int | None = None,
    tol: float | None = None,
) -> SVDResult:
    """The ``rank`` leading singular triplets of ``a``: ``u [m, rank]``, ``s``, ``vt [rank, n]``.

    ``Q`` is an orthonormal basis of ``b = rank + oversample`` random combinations of the columns
    of ``a``, brought nearer to the leading singular vectors by ``q = power_iterations`` products
    with ``A A^T``; the answer is the truncated SVD of ``Q Q^T A``. Its singular values never exceed
    those of ``a``. Each vector of ``u`` has its largest entry positive.

    Args:
      power_iterations: products with ``A A^T``; each damps the part beyond ``rank`` by another
        factor ``(s_(b+1) / s_rank)^2``. 1 or 2 are usually enough (Halko, Martinsson & Tropp
        2011), but for flat spectra.
      method: ``power`` keeps the last block, ``span (A A^T)^q A Omega``; ``krylov`` keeps all
        ``q + 1`` of them. Both make ``2 q + 2`` products of ``a`` with ``b`` columns and Krylov is
        always the more accurate, at ``q + 1`` times the memory for ``Q``.
      oversample: extra columns, 10 if None; Krylov does without (``0``) when ``q >= 1``.
      block: columns of a product, instead of ``rank + oversample``; Krylov only. A smaller block
        and more iterations reach the same error with fewer columns multiplied in all (two thirds
        at a quarter of the rank), as long as ``block (q + 1) >= rank``. Not below 16 or 32 columns
        for a dense matrix, where a product takes as long for fewer; and not below the multiplicity
        of a singular value that is wanted in full.
      tol: keep the smallest rank with ``||A - u diag(s) vt||_F <= tol ||A||_F``, at most ``rank``.
        Shapes stay static: what is beyond ``result.rank`` is zero.

    ``error^2`` is the mean of ``||(A - u diag(s) vt) w||^2`` over 10 Gaussian probes ``w`` that
    took no part in the approximation: unbiased for the squared Frobenius norm, without cancellation
    down to rounding in ``A w``. Its relative standard deviation is at most ``sqrt(2 / 10)`` (the
    flatter the residual, the smaller); ``P(||.||_F > 10 error) < 2e-8``.

    Works under ``jit`` (static: all but ``key``, ``a``, ``tol``), ``vmap`` and on sharded batches.
    The reverse-mode derivative of ``s`` is ``d s_i = u_i^T dA v_i``, exact for converged triplets
    (not those of a flat spectrum after few products); none for ``u``, ``vt`` and ``error``. NaN in
    ``a`` gives NaN, ``rank = 0`` and ``converged = False``. ``u`` and ``vt`` stay orthonormal where
    ``a`` has a lower rank. If most of the spectrum is wanted, ``jnp.linalg.svd`` is faster.
    Raises ``ValueError`` for an impossible ``rank``, option or shape, and ``NotImplementedError``
    for derivatives of anything but ``s``.
    Sources: Halko, Martinsson & Tropp 2011 (algorithm 4.4, error estimate of section 4.3); Musco &
    Musco 2015 (block Krylov); Meyer, Musco & Musco 2024 (arXiv 2305.02535: why small blocks do).

    >>> a = jnp.outer(jnp.arange(4.0), jnp.ones(9))
    >>> result = randomized_svd(jax.random.key(0), a, 2)
    >>> round(float(result.s[0]), 3), int(result.rank)
    (11.225, 1)
    """
    op = a if isinstance(a, LinearOperator) else _dense(a)
    options, width = _check(op, rank, oversample, power_iterations, method, block)
    tol = tol if tol is None else tolerance("tol", tol, traced=True)
    return _compiled(options, width, key, op, tol)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(options: "_Options", width: int, key, op: LinearOperator, tol) -> SVDResult:
    draws = jax.random.normal(key, (op.shape[1], width + PROBES), op.dtype)
    return _triplets(options, op, draws, tol)


class _Options(NamedTuple):
    rank: int
    iterations: int
    method: str


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _triplets(options, op, draws, tol) -> SVDResult:
    return in_turn(partial(_found, options))(op, draws, tol)


def _found(options, op, draws, tol) -> SVDResult:
    # Sketch and probes in two products instead of one of all columns: XLA's product is up to twice
    # as slow at widths that are not powers of two.
    sketch, probes = op @ draws[:, :-PROBES], draws[:, -PROBES:]
    find = _krylov if options.method == "krylov" else _power
    u, s, vt = _project(*find(op, orthonormal_basis(sketch), options.iterations), options.rank)
    unseen = op @ probes - mm(u * s, mm(vt, probes))
    return _truncate(u, s, vt, _norm(unseen) / math.sqrt(PROBES), tol)


def _power(op: LinearOperator, q: Array, iterations: int) -> tuple[Array, Array, Array]:
    """``Q`` after subspace iteration, ``A^T Q``, and an orthonormal basis ``P`` of the latter."""

    def step(_, q):
        return orthonormal_basis(op @ orthonormal_basis(op.T @ q))

    q = jax.lax.fori_loop(0, iterations, step, q)
    image = op.T @ q
    return q, image, orthonormal_basis(image)


def _krylov(op: LinearOperator, q: Array, iterations: int) -> tuple[Array, Array, Array]:
    """The same for the whole block Krylov space, which ends where it fills the smaller side.

    Each new block is ``A`` times the newest part of the right basis, made orthogonal to all blocks
    before it; powers of ``A A^T`` themselves would soon all be parallel to the leading vector.
    """
    image = op.T @ q
    basis, images, right = q, image, orthonormal_basis(image)
    for _ in range(iterations):
        width = min(q.shape[1], min(op.shape) - basis.shape[1])
        if width == 0:
            break
        block = orthonormal_basis(op @ right[:, -image.shape[1] :][:, :width], basis)
        image = op.T @ block
        grown = (basis, block), (images, image), (right, orthonormal_basis(image, right))
        basis, images, right = (jnp.concatenate(pair, axis=1) for pair in grown)
    return basis, images, right


def _project(q: Array, image: Array, p: Array, rank: int) -> tuple[Array, Array, Array]:
    """The leading triplets of ``Q Q^T A = Q image^T = Q (P^T image)^T P^T``.

    ``P^T image`` is a small square matrix: its SVD, rotated by ``Q`` and ``P``, is that of
    ``Q Q^T A``. (An SVD of the wide ``image`` gives the same and takes longer.)
    """
    x, s, yt = jnp.linalg.svd(transposed_product(p, image))
    u, vt = mm(q, yt[:rank].T), mm(p, x[:, :rank]).T
    # Singular vectors are unique up to a sign, which another LAPACK may choose otherwise: fix it by
    # the largest entry.
    largest = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=0)[None], axis=0)[0]
    sign = jnp.where(largest < 0, -1, 1).astype(u.dtype)
    return u * sign, s[:rank], vt * sign[:, None]


def _truncate(u: Array, s: Array, vt: Array, error: Array, tol) -> SVDResult:
    """Count the triplets above rounding; or, given ``tol``, those it needs, and zero the others."""
    if tol is None:
        floor = max(len(u), vt.shape[1]) * jnp.finfo(s.dtype).eps * s[0]
        return SVDResult(u, s, vt, error, jnp.sum(s > floor), ~jnp.isnan(error))
    # In units of the largest value: squares of values of 1e-20 would underflow.
    scale = jnp.where(s[0] > 0, s[0], 1)
    squares = jnp.append(s, error) / scale
    # The squares of a Frobenius norm add up: tails[r] is the norm of what r triplets leave, the
    # singular values from r on and the estimated rest together; tails[0] is the norm of A.
    tails = scale * jnp.sqrt(jnp.cumsum(squares[::-1] ** 2)[::-1])
    allowed = jnp.asarray(tol, s.dtype) * tails[0]
    rank = jnp.sum(tails[:-1] > allowed)
    keep = jnp.isnan(error) | (jnp.arange(len(s)) < rank)
    u, s, vt = jnp.where(keep, u, 0), jnp.where(keep, s, 0), jnp.where(keep[:, None], vt, 0)
    return SVDResult(u, s, vt, tails[rank], rank, tails[-1] <= allowed)


def _triplets_forward(options, *arguments):
    op, draws, tol = custom_vjp_primal_tree_values(arguments)
    result = _triplets(options, op, draws, tol)
    return result, (op, result.u, result.vt)


def _triplets_backward(options, saved, cotangent: SVDResult):
    """``A_bar = u diag(s_bar) vt``, pulled back through ``op @ v`` to the arrays of ``op``."""
    op, u, vt = saved
    if not all(isinstance(x, SymbolicZero) for x in (cotangent.u, cotangent.vt, cotangent.error)):
        raise NotImplementedError("derivative of u, vt or error: only that of s is supported")
    if isinstance(cotangent.s, SymbolicZero):
        return None, None, None
    _, pull_back = jax.vjp(lambda data: dataclasses.replace(op, data=data) @ vt.T, op.data)
    return dataclasses.replace(op, data=pull_back(u * cotangent.s)[0]), None, None


_triplets.defvjp(_triplets_forward, _triplets_backward, symbolic_zeros=True)


def _dense(a: Array) -> LinearOperator:
    a = working(a)
    if a.ndim != 2:
        raise ValueError(f"a has shape {a.shape}: pass one matrix [m, n] (vmap for a batch)")
    return LinearOperator(mm, transposed_product, a, (a.shape[0], a.shape[1]))


def _norm(x: Array) -> Array:
    """Frobenius norm without overflow or underflow of the squares."""
    largest = jnp.max(jnp.abs(x))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(jnp.sum((x / scale) ** 2))


def _check(op, rank, oversample, power_iterations, method, block) -> tuple[_Options, int]:
    """Validated options, and how many columns a product has."""
    smaller = min(op.shape)
    rank = count("rank", rank, most=smaller, why="min(m, n)")
    iterations = count("power_iterations", power_iterations, least=0)
    check_choice(("krylov", "power"), method=method)
    if block is None:
        extra = DEFAULT_OVERSAMPLE if oversample is None else oversample
        columns = rank + count("oversample", extra, least=0)
        return _Options(rank, iterations, method), min(columns, smaller)
    if method != "krylov":
        raise ValueError(f"block={block} is of method='krylov': use oversample")
    if oversample is not None:
        raise ValueError(f"oversample={oversample} beside block={block}: they exclude each other")
    block = count("block", block)
    if min(block, smaller) * (iterations + 1) < rank:
        raise ValueError(
            f"block={block} and power_iterations={iterations} span fewer than rank={rank} "
            f"columns: choose block >= {-(-rank // (iterations + 1))} or more iterations"
        )
    return _Options(rank, iterations, method), min(block, smaller)
