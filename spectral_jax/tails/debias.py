"""An exponent read against that of noise of the same shape."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax.linalg.precision import working
from spectral_jax.tails.null import null_alpha


def null_zscore(
    alpha: Float[Array, "*batch"], shape: tuple[int, ...], *, fraction: float = 0.5
) -> Float[Array, "*batch"]:
    """How many standard deviations ``alpha`` lies above the exponent of noise of that ``shape``.

    ``NullAlpha.zscore``: with ``s = mean - 1``, ``(1 / s - 1 / (alpha - 1)) s^2 / deviation``.
    Heavy tails make it negative. It tests for noise and does not measure training: any structure at
    all moves a large matrix by many deviations. Beyond 3 lie .3 % of Gaussian matrices of 64 rows
    and columns, 1 % of 20 and 2 % of 10 (measured): for small ones the deviation is too low.

    ``alpha`` is that of ``hill_alpha`` with the same ``fraction``; ``shape`` and errors are those
    of ``null_alpha``. NaN where ``alpha`` is. Works under ``jit``, ``vmap`` and ``grad``.

    >>> alpha = null_alpha((64, 64)).mean
    >>> round(abs(float(null_zscore(jnp.array(alpha), (64, 64)))), 3)
    0.0
    """
    alpha = working(alpha, "alpha")
    zscore = null_alpha(shape, fraction=fraction).zscore(alpha)
    return jnp.where(jnp.isfinite(alpha), zscore, jnp.nan)


def debiased_alpha(
    alpha: Float[Array, "*batch"],
    shape: tuple[int, ...],
    *,
    fraction: float = 0.5,
    form: Literal["difference", "ratio"] = "difference",
) -> Float[Array, "*batch"]:
    """Take out of ``alpha``, as ``hill_alpha`` gives it, what is due to the shape alone.

    ``difference`` is ``alpha - null.mean``, 0 for noise; ``ratio`` is
    ``(alpha - 1) / (null.mean - 1)``, 1 for noise. The ratio is the better calibrated of the two:
    its spread over noise is close to ``3 / min(m, n)`` for every aspect ratio (2.8 to 3.3 from 1
    to 8), where that of the difference grows with the aspect ratio as ``null.mean - 1`` does.

    ``fraction`` is that of ``hill_alpha``; ``shape`` and errors are those of ``null_alpha``, and
    ``ValueError`` for an unknown ``form``. Works under ``jit``, ``vmap`` and ``grad``.

    >>> mean = null_alpha((64, 128)).mean
    >>> float(debiased_alpha(jnp.array(mean), (64, 128), form="ratio"))
    1.0
    """
    check_choice(("difference", "ratio"), form=form)
    alpha = working(alpha, "alpha")
    mean = null_alpha(shape, fraction=fraction).mean
    return alpha - mean if form == "difference" else (alpha - 1) / (mean - 1)
