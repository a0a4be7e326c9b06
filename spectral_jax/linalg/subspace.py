"""What the eigensolvers share: the problem, Gram-Schmidt, and the verdict on an answer.

Inside the solvers blocks of vectors are rows ``[k, n]``, because a CPU multiplies a narrow block of
columns ten times slower; public results have vectors in columns.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spectral_jax.linalg.operators import SymmetricOperator, transposed_product
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.scale import holds_digits

GENERIC_PART = 0.1  # of a start, see `mixed_start`


class EigResult(NamedTuple):
    """Eigenpairs, best first (``SA`` ascending, ``LA`` descending), and how far to trust them.

    For ``BE`` the ``k // 2`` smallest come first, ascending; then the others, descending.

    ``residuals[i] = ||A v_i - values_i v_i||``: an eigenvalue of ``A`` lies that close to
    ``values[i]``. ``converged`` is per pair; ``matvecs`` counts every product with the operator.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "n k"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    matvecs: Int[Array, ""]


class Search(NamedTuple):
    """What every method needs to know of the problem.

    ``ends`` are the ends of the spectrum to look at, one or both: a sign, 1 for the smallest and -1
    for the largest eigenvalues, and how many. Methods look for the smallest of ``sign * op``.
    ``fixed`` ``[n, d]`` are the orthonormal columns to keep out of the search. ``copies``: whether
    copies of repeated eigenvalues are to be looked for.
    """

    op: SymmetricOperator
    ends: tuple[tuple[int, int], ...]
    fixed: Array
    tol: float
    max_matvecs: int
    copies: bool

    @property
    def k(self) -> int:
        """How many pairs are wanted, of both ends together."""
        return sum(count for _, count in self.ends)

    @property
    def sign(self) -> int:
        """The sign of the only end, for methods that know one end."""
        ((sign, _),) = self.ends
        return sign

    def by_end(self, values: Array) -> list[tuple[int, Array]]:
        """The sign of each end, and the wanted values there times it, ascending."""
        parts, first = [], 0
        for sign, count in self.ends:
            parts.append((sign, sign * values[first : first + count]))
            first += count
        return parts

    @property
    def free_dimension(self) -> int:
        """Dimension of the space that is searched: all but the fixed directions."""
        return self.op.size - self.fixed.shape[1]

    def allowed(self, values: Array, scale: Array) -> Array:
        """The largest residual to accept: ``tol |value|``, but no less than rounding can give.

        ``scale`` is the largest ``||A q||`` of a unit vector ``q`` seen so far, a lower bound of
        the norm. A product is wrong by about ``eps`` times that, so that an eigenvalue 0, of which
        no residual is a small fraction, could never converge without the floor.
        """
        floor = 10 * jnp.finfo(values.dtype).eps * scale
        return jnp.maximum(self.tol * jnp.abs(values), floor)

    def converged(self, values: Array, residuals: Array, scale: Array) -> Array:
        """Whether each pair is good enough."""
        # Where products overflow, `allowed` is infinite too, and inf <= inf would pass.
        return jnp.isfinite(residuals) & (residuals <= self.allowed(values, scale))

    def certify(self, vectors: Array, scale: Array, spent: Array) -> EigResult:
        """Rayleigh quotients and residuals of given vectors, from one more product each.

        The images that a solver carries along are linear combinations of old products, whose
        rounding errors add up over many steps; residuals from them may look better than they are.
        """
        vectors = unit_rows(vectors.T).T
        images = self.op @ vectors
        values = jnp.sum(vectors * images, axis=0)
        residuals = jnp.linalg.norm(images - values * vectors, axis=0)
        # A vanished column (nothing found) must not pass as an eigenpair of residual zero.
        exists = jnp.sum(vectors**2, axis=0) > 0.5
        converged = exists & self.converged(values, residuals, scale)
        return EigResult(values, vectors, residuals, converged, spent + self.k)


def mixed_start(block: Array, fixed: Array) -> Array:
    """A unit vector outside the rows ``fixed`` from columns to start with: their sum, and a tenth
    of a generic vector, since Lanczos never finds a vector of which its start has no part at all.
    """
    n, dtype = block.shape[0], block.dtype
    generic = unit_rows(generic_vectors(n, 1, dtype, stream=2).T)[0]
    mixed = unit_rows(jnp.sum(unit_rows(block.T), axis=0)[None])[0] + GENERIC_PART * generic
    return unit_rows(off_rows(mixed, fixed)[None])[0]


def restored(result: EigResult, factor: Array) -> EigResult:
    """The result for ``op`` from that for ``factor * op``.

    Values that overflow in the unit of ``op`` become NaN and ``converged = False``. An operator so
    small that its products lost digits to underflow (`holds_digits`) is not converged either,
    although its residuals look good.
    """
    values, residuals = (x / factor for x in (result.values, result.residuals))
    known = jnp.isfinite(values) & jnp.isfinite(residuals)
    values = jnp.where(known, values, jnp.nan)
    converged = result.converged & known & holds_digits(factor)
    return result._replace(values=values, residuals=residuals, converged=converged)


def orthogonalise(x: Array, basis: Array) -> Array:
    """``x`` (``[n]`` or ``[n, k]``) minus its part along orthonormal columns; see `off_rows`."""
    return off_rows(x.T, basis.T).T


def outside(x: Array, basis: Array) -> Array:
    """``x`` (``[n]`` or ``[n, k]``) minus its part along orthonormal columns: one projection.

    Enough where the result only has to be accurate relative to ``x``; see `off_rows` for more.
    """
    return x - mm(basis, transposed_product(basis, x))


def off_rows(x: Array, basis: Array) -> Array:
    """``x`` (``[n]`` or ``[k, n]``) minus its part along orthonormal rows.

    Two passes of classical Gram-Schmidt. One pass leaves an error of ``eps ||x||``, which is large
    beside a remainder that is short: a vector nearly inside the basis would come out far from
    orthogonal to it. The second pass brings that to ``eps`` of the remainder ("twice is enough":
    Kahan, in Parlett, The Symmetric Eigenvalue Problem, 1980). Zero rows in the basis are harmless.
    """
    for _ in range(2):
        x = x - mm(mm(x, basis.T), basis)
    return x


def off_rows_checked(x: Array, basis: Array) -> tuple[Array, Array]:
    """``x`` (``[n]``) minus its part along orthonormal rows, and the coordinates of that part.

    Classical Gram-Schmidt, with the second and third pass only where the first left less than half
    of ``x``: what a pass leaves behind is ``eps`` relative to ``x``, and so at most ``2 eps``
    relative to a remainder of half the length (criterion of Daniel, Gragg, Kaufman & Stewart 1976).
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

    The rows are then orthonormalised among each other by whitening with the eigenvectors of their
    Gram matrix (SVQB, Stathopoulos & Wu 2002), twice: the Gram matrix squares the condition number,
    so that after one round rows that were nearly dependent are orthogonal to a few digits only.
    Dependence shows as a small eigenvalue, where QR would divide by a small pivot.
    """
    x = off_rows(unit_rows(x), basis)
    # What is left of a unit vector that lay inside the basis is rounding error. Scaled up to a unit
    # vector it would be a random direction that only looks new.
    lost = jnp.sum(x**2, axis=1, keepdims=True) <= (100 * jnp.finfo(x.dtype).eps) ** 2
    x = unit_rows(off_rows(jnp.where(lost, 0, unit_rows(x)), basis))
    if x.shape[0] == 1:
        return x
    for _ in range(2):
        x = mm(whitener(x, 10 * float(jnp.finfo(x.dtype).eps) * x.shape[0]), x)
    return x


def whitener(x: Array, floor: float) -> Array:
    """``T`` such that ``T x`` has orthonormal rows.

    Directions whose eigenvalue of the Gram matrix ``x x^T`` is not above ``floor`` (for unit rows:
    1 if independent, 0 if dependent) come out as zero rows.
    """
    values, rotation = jnp.linalg.eigh(inner_rows(x, x))
    independent = values > floor
    scale = jnp.where(independent, jnp.where(independent, values, 1) ** -0.5, 0)
    return (rotation * scale).T


def inner_rows(x: Array, y: Array) -> Array:
    """``x y^T`` of blocks of few rows ``[k, n]``, by elementwise products and sums.

    A matrix product of so thin a shape adds its ``n`` terms one after the other on a CPU. For a
    vector that is constant over a layer all those rounding errors have one sign, and in float32
    four digits are left; XLA's sum adds in a tree.
    """
    return jnp.sum(x[:, None] * y[None], axis=-1)


def best_pairs(gram: Array, valid: Array, k: int) -> tuple[Array, Array]:
    """The ``k`` smallest eigenpairs of a projected matrix (Rayleigh-Ritz).

    Basis vectors that are not ``valid`` are zero. They would contribute eigenvalues 0, possibly
    below the true ones: they get one above all others instead (Gershgorin), and no coordinates.
    """
    most = jnp.max(jnp.sum(jnp.abs(gram), axis=0))
    ceiling = jnp.where(most > 0, 2 * most, 1)
    values, coordinates = jnp.linalg.eigh(gram + jnp.diag(jnp.where(valid, 0, ceiling)))
    return values[:k], jnp.where(valid[:, None], coordinates[:, :k], 0)


def generic_vectors(
    n: int, k: int, dtype: DTypeLike, *, stream: int | Int[Array, ""] = 0
) -> Float[Array, "n k"]:
    """``k`` fixed pseudo-random vectors ``[n, k]`` with entries uniform in ``[-1, 1)``.

    A start for solvers that take no key: it has a part in every eigenvector, whatever the operator.
    ``stream`` numbers further sets, ``dtype`` is float32 or float64. Works under ``jit``. An
    integer hash of the position (the finaliser of MurmurHash3) rather than ``jax.random``, whose
    generator would take longer to compile than the solver.

    >>> generic_vectors(1000, 2, jnp.float32).shape
    (1000, 2)
    """
    x = jnp.arange(n * k, dtype=jnp.uint32)
    x += jnp.uint32(0x9E3779B9) * jnp.asarray(stream + 1).astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    x = (x ^ (x >> 16)) >> 8
    return (x.astype(jnp.int32).astype(dtype) / 2**23 - 1).reshape(n, k)


def unit(x: Array) -> Array:
    """Columns of any magnitude scaled to length one; zero columns stay zero.

    ``x`` is ``[n]`` or ``[n, k]``. Works under ``jit``, ``vmap`` and ``grad``. Raises
    ``ValueError`` for complex numbers.

    >>> [round(float(x), 3) for x in unit(jnp.array([3e-30, 4e-30]))]
    [0.6, 0.8]
    """
    x = working(x, "x")
    # By an exact unit first: in float32 the square of 1e-30 is 0.
    x = x / unit_of(x, axis=0)
    squares = jnp.sum(x**2, axis=0)
    # The derivative of the root at 0 is infinite, and times 0 is NaN, also where the result of the
    # root is not used: so the root of 0 must not be taken at all.
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def unit_rows(x: Array) -> Array:
    """Rows scaled to length one, zero rows stay zero; of magnitudes whose squares are numbers."""
    squares = jnp.sum(x**2, axis=1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def mm(a: Array, b: Array) -> Array:
    """Matrix product at full precision on every backend.

    By default JAX multiplies float32 in bfloat16 on a TPU and in TF32 on recent GPUs: two or three
    digits, where an orthogonalisation needs all seven.
    """
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
