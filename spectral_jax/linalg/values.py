"""Eigenvalues and singular values of batches of matrices, without the vectors."""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax.linalg.decompositions import eigh, from_unit_size, svd, to_unit_size
from spectral_jax.linalg.lapack import each_leading, joining_batches, splitting_pays
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.subspace import mm
from spectral_jax.linalg.tridiagonal import tridiagonal_eigvals

# A random matrix squarer than 1.5 : 1 has singular values that come close to 0 (the hard edge),
# and a Gram matrix, which squares them, loses those below sqrt(eps) of the largest.
GRAM_ASPECT = 1.5
# `auto` trusts the Gram matrix up to this ratio of the largest to the smallest singular value: the
# error of the smallest is then at most 32 times that of LAPACK's.
GRAM_CONDITION = 32.0
# From this size on, forming half of the symmetric Gram matrix in strips takes less time than all.
STRIPED_GRAM = 128


@partial(jax.jit, static_argnames="method")
def eigvalsh(
    a: Float[Array, "*batch n n"], *, method: Literal["auto", "lapack", "tridiagonal"] = "auto"
) -> Float[Array, "*batch n"]:
    """Eigenvalues of symmetric matrices ``[..., n, n]``, ascending ``[..., n]``.

    Args:
      a: only its symmetric part ``(a + a^T) / 2`` counts.
      method: ``tridiagonal`` is Householder reduction (LAPACK's, on a CPU) and bisection of all
        eigenvalues of the batch at once; ``lapack`` is ``jnp.linalg.eigvalsh``, which computes the
        vectors too. ``auto`` picks ``tridiagonal`` on a CPU, ``lapack`` elsewhere (not measured
        there): docs/method-selection.md.

    The absolute error is a few ``eps max|values|`` for either method, at any scale of which the
    dtype has normal numbers (1e-37 to 1e38 in float32): XLA on a CPU takes smaller ones for 0. NaN
    or inf in a matrix gives NaN for that matrix only; an empty matrix has no values. Half types and
    integers are computed in float32.
    Works under ``jit``, ``vmap`` (which joins the batch) and on sharded batches. Derivatives are
    ``d values_i = v_i^T da v_i`` with vectors from `eigh`: exact at simple values, and at repeated
    ones finite, for one choice of basis; second derivatives likewise.
    Raises ``ValueError`` for matrices that are not square, complex ones or an unknown method.
    Sources: Golub & Van Loan, Matrix Computations, sections 8.3 and 8.4.

    >>> [round(float(x), 4) for x in eigvalsh(jnp.array([[2.0, 1.0], [1.0, 2.0]]))]
    [1.0, 3.0]
    """
    a = working(a)
    _check(a, method, ("auto", "lapack", "tridiagonal"))
    if a.shape[-2] != a.shape[-1]:
        raise ValueError(f"a has shape {a.shape}: pass square matrices [..., n, n]")
    return _eigvalsh(method, a)


@partial(jax.jit, static_argnames="method")
def svdvals(
    a: Float[Array, "*batch m n"], *, method: Literal["auto", "lapack", "gram"] = "auto"
) -> Float[Array, "*batch k"]:
    """Singular values of matrices ``[..., m, n]``, descending ``[..., min(m, n)]``.

    Args:
      method: ``lapack`` is ``jnp.linalg.svd``. ``gram`` is ``sqrt(eigvalsh(a^T a))`` on the short
        side: fastest, but the absolute error of ``s`` is about ``eps max(s)^2 / s``, so that
        values below ``sqrt(k eps) max(s)``, ``k = min(m, n)``, are noise and come back as NaN.
        ``auto`` uses ``gram`` where the shape is elongated (1.5 or more) and checks it: if any
        matrix of the batch has ``min(s) < max(s) / 32``, the batch goes to ``lapack``. Measured:
        docs/method-selection.md.

    ``lapack`` has an absolute error of a few ``eps max(s)``, ``auto`` at worst 32 times that, at
    the smallest values only, at any scale of which the dtype has normal numbers (1e-37 to 1e38 in
    float32): XLA on a CPU takes smaller ones for 0. NaN or inf in a matrix gives NaN for that
    matrix only; an empty matrix has no values. Half types and integers are computed in float32.
    Works under ``jit``, ``vmap`` (which joins the batch) and on sharded batches. Derivatives are
    ``d s_i = u_i^T da v_i`` with vectors from `svd`: exact at simple values, and at repeated or
    zero ones finite, for one choice of basis; second derivatives likewise.
    Raises ``ValueError`` for ``method="gram"`` on a matrix of aspect ratio below 1.5 (whose
    smallest values it would lose), complex matrices or an unknown method.
    Sources: Golub & Van Loan, Matrix Computations, section 8.6.

    >>> [round(float(x), 4) for x in svdvals(jnp.array([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]))]
    [4.0, 3.0]
    """
    a = working(a)
    _check(a, method, ("auto", "lapack", "gram"))
    m, n = a.shape[-2:]
    if method == "gram" and not _elongated(a):
        raise ValueError(
            f"method='gram' would lose the smallest singular values of {m} x {n} matrices "
            f"(aspect ratio below {GRAM_ASPECT}): use 'auto' or 'lapack'"
        )
    return _svdvals(method, a if m >= n else jnp.swapaxes(a, -2, -1))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _eigvalsh(method: str, a: Array) -> Array:
    return joining_batches(partial(_eigvalsh_by, method))(a)


@_eigvalsh.defjvp
def _eigvalsh_jvp(method, primals, tangents):
    # Hellmann-Feynman: the vectors may be held constant to first order. `eigh` has a derivative of
    # its own, which makes second derivatives right.
    values, vectors = eigh(*primals)
    return values, jnp.sum(vectors * mm(*tangents, vectors), axis=-2)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _svdvals(method: str, a: Array) -> Array:
    gram = method != "lapack" and _elongated(a)
    return joining_batches(partial(_by_gram, method) if gram else _by_svd)(a)


@_svdvals.defjvp
def _svdvals_jvp(method, primals, tangents):
    u, values, vt = svd(*primals)
    return values, jnp.sum(u * mm(*tangents, jnp.swapaxes(vt, -2, -1)), axis=-2)


def spectral_norm(a: Float[Array, "*batch m n"]) -> Float[Array, "*batch"]:
    """The largest singular value of matrices ``[..., m, n]``, ``jnp.linalg.norm(a, 2)`` of each.

    0 for an empty matrix. Accuracy, dtypes and errors are those of `svdvals`, and so is that it
    works under ``jit``, ``vmap`` and ``grad``. The derivative is ``u_1^T da v_1``: at a repeated
    largest value one element of the generalised gradient.

    >>> round(float(spectral_norm(jnp.array([[3.0, 0.0], [4.0, 0.0]]))), 4)
    5.0
    """
    values = svdvals(a)
    return jnp.max(values, axis=-1, initial=0) if values.size == 0 else values[..., 0]


def _eigvalsh_by(method: str, a: Array) -> Array:
    if a.size == 0:
        return jnp.zeros(a.shape[:-1], a.dtype)
    lapack = partial(_scaled, jnp.linalg.eigvalsh)
    if method == "auto":
        return jax.lax.platform_dependent(a, cpu=_by_bisection, default=lapack)
    return (lapack if method == "lapack" else _by_bisection)(a)


def _by_bisection(a: Array) -> Array:
    def reduced(a):
        unit, scale = to_unit_size(a)
        return *_tridiagonal((unit + jnp.swapaxes(unit, -2, -1)) / 2), scale

    if a.shape[-1] == 1:
        return jnp.where(jnp.isfinite(a), a, jnp.nan)[..., 0]
    diagonal, off_diagonal, scale = each_leading(reduced, a)
    return from_unit_size(tridiagonal_eigvals(diagonal, off_diagonal), scale)


def _tridiagonal(symmetric: Array) -> tuple[Array, Array]:
    """Diagonal and off-diagonal by Householder reduction; reads the lower triangle alone."""
    _, diagonal, off_diagonal, _ = jax.lax.linalg.tridiagonal(symmetric)
    return diagonal, off_diagonal


def _by_svd(a: Array) -> Array:
    if a.size == 0:
        return jnp.zeros((*a.shape[:-2], a.shape[-1]), a.dtype)
    return each_leading(partial(_scaled, partial(jnp.linalg.svd, compute_uv=False)), a)


def _scaled(function, a: Array) -> Array:
    unit, scale = to_unit_size(a)
    return from_unit_size(function(unit), scale)


def _by_gram(method: str, a: Array) -> Array:
    if a.size == 0:
        return jnp.zeros((*a.shape[:-2], a.shape[-1]), a.dtype)
    squares = jax.lax.platform_dependent(
        a, cpu=_gram_eigvals, default=lambda a: jnp.linalg.eigvalsh(_gram(a))
    )
    # Rounding leaves small eigenvalues of a Gram matrix with either sign.
    values = jnp.sqrt(jnp.maximum(squares, 0))[..., ::-1]
    # Matrices whose squares may have left the range of the dtype are found out here, by their
    # largest value. Scaling all of them beforehand would take as long as the product at n = 128.
    # NaN is not trusted either: its comparisons are False.
    span = jnp.finfo(a.dtype)
    largest = squares[..., -1]
    trusted = (largest > float(span.tiny) ** 0.5) & (largest < float(span.max) ** 0.5)
    if method == "auto":
        trusted &= GRAM_CONDITION * values[..., -1] >= values[..., 0]
    values = jax.lax.cond(jnp.all(trusted), lambda a: values, partial(_doubted, values, trusted), a)
    if method == "gram":
        floor = (a.shape[-1] * float(jnp.finfo(a.dtype).eps)) ** 0.5
        return jnp.where(values > floor * values[..., :1], values, jnp.nan)
    return values


def _gram_eigvals(a: Array) -> Array:
    if a.shape[-1] == 1:
        return _gram(a)[..., 0]
    if a.shape[-1] >= STRIPED_GRAM and not splitting_pays():
        return tridiagonal_eigvals(*each_leading(lambda w: _tridiagonal(_lower_gram(w)), a))
    return tridiagonal_eigvals(*each_leading(_tridiagonal, _gram(a)))


def _gram(a: Array) -> Array:
    return mm(jnp.swapaxes(a, -2, -1), a)


def _lower_gram(a: Array) -> Array:
    """The lower triangle of ``a^T a``, in four strips of rows up to the diagonal block.

    5/8 of the flops of the whole product; what lies right of the diagonal block is zero.
    """
    n = a.shape[-1]
    strips = [slice(start, min(start + -(-n // 4), n)) for start in range(0, n, -(-n // 4))]
    products = [mm(jnp.swapaxes(a[..., rows], -2, -1), a[..., : rows.stop]) for rows in strips]
    pad = [(0, 0)] * (a.ndim - 1)
    return jnp.concatenate([jnp.pad(p, [*pad, (0, n - p.shape[-1])]) for p in products], axis=-2)


def _doubted(values: Array, trusted: Array, a: Array) -> Array:
    """Values by SVD, where the Gram matrix cannot be trusted.

    Except if all such matrices of the batch are zero or hold NaN or inf: their values are known to
    be 0 or NaN, and the batch need not pay for an SVD.
    """
    scale = jnp.max(jnp.abs(a), axis=(-2, -1))
    hopeless = ~((scale > 0) & jnp.isfinite(scale))
    known = jnp.where((scale == 0)[..., None], 0, jnp.nan).astype(a.dtype)
    settled = jnp.where(hopeless[..., None], known, values)
    return jax.lax.cond(jnp.all(trusted | hopeless), lambda a: settled, _by_svd, a)


def _elongated(a: Array) -> bool:
    """Whether the Gram route is safe: an aspect ratio of 1.5, or a single row or column, whose
    Gram matrix is its squared length."""
    short, long = sorted(a.shape[-2:])
    return short <= 1 or long >= GRAM_ASPECT * short


def _check(a: Array, method: str, known: tuple[str, ...]) -> None:
    if a.ndim < 2:
        raise ValueError(f"a has shape {a.shape}: pass matrices, [..., m, n]")
    check_choice(known, method=method)
