"""The Hill estimator: a tail exponent from the largest eigenvalues, whatever their number."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectral_jax._options import check_number
from spectral_jax.tails.null import rational
from spectral_jax.tails.support import (
    FitStatus,
    check_floor,
    kth_largest,
    number,
    spectra,
    support,
)

# A tail whose logarithms lie less than 64 eps above that of its threshold, on average, is one value
# that repeats, with rounding.
REPEATED = 64.0


class HillFit(NamedTuple):
    """A power law ``density ~ lam^-alpha`` from ``xmin`` on, and how far to trust it."""

    alpha: Float[Array, "*batch"]
    """NaN unless ``status`` is ``OK`` or ``RANK_DEFICIENT``."""
    tail: Int[Array, "*batch"]
    """Eigenvalues in the tail, ``xmin`` included."""
    xmin: Float[Array, "*batch"]
    """The smallest eigenvalue of the tail, in the unit of the eigenvalues."""
    status: Int[Array, "*batch"]
    """A ``FitStatus``."""
    standard_error: Float[Array, "*batch"]
    """``(alpha - 1) / sqrt(tail)``, that of independent samples. Eigenvalues repel: over random
    matrices the spread is far smaller, ``null_alpha(shape).deviation``."""


def hill_alpha(
    eigenvalues: Float[Array, "*batch N"], *, fraction: float = 0.5, floor: float | None = None
) -> Float[Array, "*batch"]:
    """Exponent of the top ``fraction`` of a spectrum: ``alpha`` of ``hill_fit``, NaN without a fit.

    Small for heavy tails. Of noise it is 2.12 for a square matrix and grows with the aspect ratio:
    read it against ``null_alpha(shape)``. ``eigenvalues``, ``fraction``, ``floor`` and the
    ``ValueError`` for them are those of ``hill_fit``. Works under ``jit``, ``vmap`` and ``grad``.

    >>> round(float(hill_alpha(2.0 ** jnp.arange(8))), 6)
    1.961797
    """
    return _alpha(_checked(eigenvalues, fraction, floor), fraction, floor)


def hill_fit(
    eigenvalues: Float[Array, "*batch N"], *, fraction: float = 0.5, floor: float | None = None
) -> HillFit:
    """Fit a power law to the top ``n = ceil(fraction N)`` of ``N`` eigenvalues, in any order.

    ``alpha = 1 + n / sum_{j >= i} ln(lam_j / lam_i)`` with ``i = N - n`` and ``lam`` ascending.
    ``fraction = 1/2`` is the ``median`` rule (``xmin_mid``, ``xmin_pos = 2``) of the released FARMS
    and TempBalance code, and ``1 / xmin_pos`` in general (read as a ratio of integers up to 1000).
    As there, the tail includes ``lam_i`` itself, so that one of its ``n`` terms is zero; the
    classical Hill estimator has ``k`` terms relative to the next lower value,
    ``1 + k / sum_{j > N - k} ln(lam_j / lam_{N-k})``, which is ``1 + (alpha - 1) (n - 1) / n`` with
    ``k = n - 1``.

    Args:
      fraction: share of the eigenvalues in the tail.
      eigenvalues: squared singular values, in any unit. Zeros and negative values are not part of
        a spectrum, so that spectra of many lengths may be padded with zeros to one.
      floor: eigenvalues up to ``floor max(eigenvalues)`` are left out too. The default,
        ``(16 eps)^2``, is where squares of singular values become rounding: if more than half the
        directions of a matrix are dead, a fit of the rounding says 1.03 where that of the spectrum
        says 3.4. ``0`` keeps them, as the released code does.

    Linear in ``N``: nothing is sorted. Scale-free. Works under ``jit``, ``vmap`` and ``grad``
    (exact unless values tie at ``xmin``); half precision and integers are read as float32. Raises
    ``ValueError`` for a fraction out of ``0 < fraction <= 1``, a floor out of ``0 <= floor < 1``
    and complex numbers.
    Sources: Hill 1975; arXiv 2506.06280 for the median rule.

    >>> fit = hill_fit(2.0 ** jnp.arange(8))
    >>> int(fit.tail), float(fit.xmin), FitStatus(int(fit.status)).name
    (4, 16.0, 'OK')
    """
    return _fit(_checked(eigenvalues, fraction, floor), fraction, floor)


def _checked(eigenvalues: Array, fraction: float, floor: float | None) -> Array:
    check_number("choose above 0 and at most 1", lambda f: 0 < f <= 1, fraction=fraction)
    check_floor(floor)
    return spectra(eigenvalues)


@partial(jax.jit, static_argnames=("fraction", "floor"))
def _alpha(eigenvalues: Array, fraction: float, floor: float | None) -> Array:
    """Of a fit the exponent alone: Python takes two microseconds for each array it is handed."""
    return _fit(eigenvalues, fraction, floor).alpha


@partial(jax.jit, static_argnames=("fraction", "floor"))
def _fit(eigenvalues: Array, fraction: float, floor: float | None) -> HillFit:
    found = support(eigenvalues, floor)
    values = found.kept
    share = rational(fraction)
    count = number(found.keep, values.dtype)
    # ceil(fraction * count) in integers: in floating point 0.07 * 100 is more than 7.
    tail = -(-count * share.numerator // share.denominator)
    xmin = kth_largest(values, tail)
    base = jnp.where(xmin > 0, xmin, 1)[..., None]
    excess = jnp.sum(jnp.log(jnp.where(values > base, values, base) / base), axis=-1)
    lost = number(found.values > 0, values.dtype) - count
    terms = tail.astype(excess.dtype)
    status = _status(terms, excess, 100 * lost >= jnp.maximum(count, 1), found.finite)
    # Divide by 1 where there is no fit: inf or NaN in the branch not taken would reach derivatives.
    exists = status < FitStatus.TOO_FEW
    rate = jnp.where(exists, terms / jnp.where(exists, excess, 1), jnp.nan)
    error = rate / jnp.sqrt(jnp.maximum(terms, 1))
    return HillFit(1 + rate, tail, xmin * found.unit, status, error)


def _status(terms: Array, excess: Array, deficient: Array, finite: Array) -> Array:
    repeated = excess <= REPEATED * float(jnp.finfo(excess.dtype).eps) * terms
    status = jnp.where(deficient, int(FitStatus.RANK_DEFICIENT), int(FitStatus.OK))
    status = jnp.where(repeated, int(FitStatus.DEGENERATE), status)
    status = jnp.where(terms < 2, int(FitStatus.TOO_FEW), status)
    return jnp.where(finite, status, int(FitStatus.NOT_FINITE)).astype(jnp.int32)
