"""What the eigensolvers share: the problem, orthonormal bases, and the verdict on an answer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, Int

from spectral_jax.linalg.operators import SymmetricOperator, transposed_product
from spectral_jax.linalg.precision import power_of_two, working
from spectral_jax.linalg.scale import holds_digits


class EigResult(NamedTuple):
    """Eigenpairs, best first (``SA`` ascending, ``LA`` descending), and how far to trust them.

    ``residuals[i] = ||A v_i - values_i v_i||``: an eigenvalue of ``A`` lies that close to
    ``values[i]``. ``converged`` is per pair; ``matvecs`` counts every product with the operator.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "n k"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    matvecs: Int[Array, ""]


class Search(NamedTuple):
    """What every method needs to know of the problem; ``sign * values`` ascend."""

    op: SymmetricOperator
    k: int
    sign: int
    fixed: Array
    tol: float
    max_matvecs: int

    @property
    def free_dimension(self) -> int:
        """Dimension of the space that is searched."""
        return self.op.size - self.fixed.shape[1]

    def allowed(self, values: Array, scale: Array) -> Array:
        """The error to live with; ``scale`` is the largest ``||A q||``, ``q`` unit."""
        floor = 10 * jnp.finfo(values.dtype).eps * scale
        return jnp.maximum(self.tol * jnp.abs(values), floor)

    def converged(self, values: Array, residuals: Array, scale: Array) -> Array:
        """Whether each pair is good enough."""
        # An overflow would allow an infinite residual.
        return jnp.isfinite(residuals) & (residuals <= self.allowed(values, scale))

    def certify(self, vectors: Array, scale: Array, spent: Array) -> EigResult:
        """Rayleigh quotients and residuals from fresh products, which have not drifted."""
        vectors = unit_rows(vectors.T).T
        images = self.op @ vectors
        values = jnp.sum(vectors * images, axis=0)
        residuals = jnp.linalg.norm(images - values * vectors, axis=0)
        # A vanished column (nothing found) must not pass as an eigenpair of residual zero.
        exists = jnp.sum(vectors**2, axis=0) > 0.5
        converged = exists & self.converged(values, residuals, scale)
        return EigResult(values, vectors, residuals, converged, spent + self.k)


def restored(result: EigResult, factor: Array) -> EigResult:
    """What was found for ``factor * op``, of ``op``; NaN and not converged on an overflow.

    Nor is it where the products of ``op`` are so small that they lost digits, unseen by residuals.
    """
    values, residuals = (x / factor for x in (result.values, result.residuals))
    known = jnp.isfinite(values) & jnp.isfinite(residuals)
    values = jnp.where(known, values, jnp.nan)
    converged = result.converged & known & holds_digits(factor)
    return result._replace(values=values, residuals=residuals, converged=converged)


def orthogonalise(x: Array, basis: Array) -> Array:
    """``x`` (``[n]`` or ``[n, k]``) minus its part along orthonormal columns; see ``off_rows``."""
    return off_rows(x.T, basis.T).T


def outside(x: Array, basis: Array) -> Array:
    """``x`` (``[n]`` or ``[n, k]``) minus its part along orthonormal columns, once."""
    return x - mm(basis, transposed_product(basis, x))


def off_rows(x: Array, basis: Array) -> Array:
    """``x`` (``[n]`` or ``[k, n]``) minus its part along orthonormal rows, twice for precision.

    Zero rows in the basis are harmless. Blocks of vectors are rows inside the solvers: a CPU
    multiplies a narrow block of columns ten times slower.
    """
    for _ in range(2):
        x = x - mm(mm(x, basis.T), basis)
    return x


def off_rows_checked(x: Array, basis: Array) -> tuple[Array, Array]:
    """``x`` (``[n]``) minus its part along orthonormal rows, and the coordinates of that part.

    One pass does where ``x`` keeps half of its length, and where it does not ("twice is enough",
    Daniel et al. 1976) more follow.
    """
    coordinates = mm(basis, x)
    rest = x - mm(coordinates, basis)
    return jax.lax.cond(
        jnp.linalg.norm(rest) < 0.5 * jnp.linalg.norm(x),
        lambda: (off_rows(rest, basis), coordinates + mm(basis, rest)),
        lambda: (rest, coordinates),
    )


def orthonormal_rows(x: Array, basis: Array) -> Array:
    """Orthonormal rows for the part of ``x`` outside ``basis``; dependent rows become zero.

    The whitening by the Gram matrix's eigenvectors is the SVQB of Stathopoulos & Wu 2002.
    """
    x = off_rows(unit_rows(x), basis)
    # What is left of a unit vector that lay in the basis is rounding, and no direction.
    lost = jnp.sum(x**2, axis=1, keepdims=True) <= (100 * jnp.finfo(x.dtype).eps) ** 2
    x = unit_rows(off_rows(jnp.where(lost, 0, unit_rows(x)), basis))
    if x.shape[0] == 1:
        return x
    for _ in range(2):
        x = mm(whitener(x, 10 * float(jnp.finfo(x.dtype).eps) * x.shape[0]), x)
    return x


def whitener(x: Array, floor: float) -> Array:
    """``T`` such that ``T x`` has orthonormal rows, but for zero ones in place of directions whose
    eigenvalue of the Gram matrix ``x x^T`` is not above ``floor``."""
    values, rotation = jnp.linalg.eigh(inner_rows(x, x))
    independent = values > floor
    scale = jnp.where(independent, jnp.where(independent, values, 1) ** -0.5, 0)
    return (rotation * scale).T


def inner_rows(x: Array, y: Array) -> Array:
    """``x y^T`` of blocks of few rows, by sums: a thin product adds one term after the other on a
    CPU, and of a vector that is constant over a layer it gets four digits."""
    return jnp.sum(x[:, None] * y[None], axis=-1)


def best_pairs(gram: Array, valid: Array, k: int) -> tuple[Array, Array]:
    """Smallest eigenpairs of a projected matrix, empty (zero) basis vectors out of the running."""
    most = jnp.max(jnp.sum(jnp.abs(gram), axis=0))
    ceiling = jnp.where(most > 0, 2 * most, 1)
    values, coordinates = jnp.linalg.eigh(gram + jnp.diag(jnp.where(valid, 0, ceiling)))
    return values[:k], jnp.where(valid[:, None], coordinates[:, :k], 0)


def generic_vectors(n: int, k: int, dtype: jnp.dtype, *, stream: int | Int[Array, ""] = 0) -> Array:
    """``k`` fixed vectors with entries scattered over ``[-1, 1)``: a start that favours nothing.

    An integer hash of the position (the finaliser of MurmurHash3) rather than ``jax.random``: the
    generator would take longer to compile than the solver that starts from it.
    """
    x = jnp.arange(n * k, dtype=jnp.uint32)
    x += jnp.uint32(0x9E3779B9) * jnp.asarray(stream + 1).astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    x = (x ^ (x >> 16)) >> 8
    return (x.astype(jnp.int32).astype(dtype) / 2**23 - 1).reshape(n, k)


def unit(x: Array) -> Array:
    """Columns of any size scaled to length one; zero columns stay zero."""
    x = working(x, "x")
    x = x / power_of_two(jnp.max(jnp.abs(x), axis=0, initial=0))
    squares = jnp.sum(x**2, axis=0)
    # The root is kept away from 0, where it has no slope.
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def unit_rows(x: Array) -> Array:
    """Rows of an ordinary size scaled to length one; zero rows stay zero."""
    squares = jnp.sum(x**2, axis=1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def mm(a: Array, b: Array) -> Array:
    """Matrix product at full precision on every backend."""
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
