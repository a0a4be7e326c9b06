"""What to do with a singular value of signal and noise: keep it, drop it, or shrink it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax.linalg.precision import power_of_two
from spectral_jax.rmt._edge import scale_of_noise, sizes
from spectral_jax.rmt._spectrum import half_steps, ordered, rounding, spectra

Loss = Literal["frobenius", "operator", "nuclear"]


def hard_threshold(
    shape: tuple[int, int],
    *,
    noise: float | Float[Array, "*batch"] | None = None,
    singular_values: Float[Array, "*batch p"] | None = None,
) -> Any:
    """The singular value below which dropping a direction costs less than keeping it.

    With ``b = p / n``, ``p, n = sorted(shape)`` (``n`` is the *larger* side), and
    ``lam = sqrt(2 (b + 1) + 8 b / ((b + 1) + sqrt(b^2 + 14 b + 1)))``, it is
    ``lam sqrt(n) noise`` where the noise is known, else ``lam / sqrt(mu) median(s)`` with ``mu``
    the median of the Marchenko-Pastur law, which is right if most ``singular_values`` are noise.
    Asymptotically no other hard threshold has a smaller error in Frobenius norm, for any low rank.

    Args:
      shape: ``(m, n)`` of the matrix, in either order.
      noise: standard deviation of the noise in an entry, in the unit of the weights.
      singular_values: ``[..., p]``, to estimate it from. Exact zeros count as the smallest values
        of noise that were dropped: the median is that of the others, and ``mu`` the quantile at its
        place. All zero: NaN.

    Gives a Python number for one, else an array; works under ``jit``, ``vmap`` and ``grad``. Raises
    ``ValueError`` unless exactly one of ``noise`` and ``singular_values`` is given, for ``noise``
    not above 0 and values that do not fit the shape.
    Source: Gavish & Donoho, arXiv 1305.5870.

    >>> round(hard_threshold((100, 100), noise=0.1), 4)  # 4 / sqrt(3)
    2.3094
    """
    p, n = sizes(shape)
    if (noise is None) == (singular_values is None):
        raise ValueError(
            f"noise={noise}, singular_values {'not ' * (singular_values is None)}given: "
            "pass exactly one of them"
        )
    b = p / n
    best = (2 * (b + 1) + 8 * b / ((b + 1) + (b * b + 14 * b + 1) ** 0.5)) ** 0.5
    if singular_values is None:
        return best * n**0.5 * scale_of_noise(noise, "noise")
    return best * _noise_scale(spectra(singular_values, shape, "singular_values"), (p, n))


@partial(jax.jit, static_argnames="shape")
def _noise_scale(singular_values: Array, shape: tuple[int, int]) -> Float[Array, "*batch"]:
    """``sqrt(n)`` times the standard deviation of the noise, by the median."""
    p, n = shape
    spectrum = ordered(singular_values, rounding(singular_values.dtype))
    # The quantile that the median of the nonzero values has among all p; see `median_variance`.
    place = jnp.asarray(half_steps(p, n) ** 0.5, singular_values.dtype)[2 * p - spectrum.rank]
    known = spectrum.finite & (spectrum.rank > 0)
    scale = spectrum.middle() / jnp.where(known & (place > 0), place, 1)
    return jnp.where(known, scale * spectrum.unit, jnp.nan)


def optimal_shrinkage(
    singular_values: Float[Array, "*batch p"],
    shape: tuple[int, int],
    *,
    noise: float | Float[Array, "*batch"],
    loss: Loss = "frobenius",
) -> Float[Array, "*batch p"]:
    """The singular values that estimate the signal best: noise becomes 0, the others smaller.

    In units of ``sqrt(n) noise``, with ``b = p / n`` and ``p, n = sorted(shape)``: noise has
    singular values up to ``1 + sqrt(b)``. A value ``y`` above that comes from one of the signal
    alone, ``x``, with ``y^2 = (x + 1/x)(x + b/x)``: noise has made it larger, and has turned its
    left and right vectors away from those of the signal, by angles of sines
    ``s^2 = b (x^2 + 1) / (x^2 (x^2 + b))`` and ``t^2 = (x^2 + b) / (x^2 (x^2 + 1))``. With vectors
    that are partly wrong, the best value is at most ``x``. By ``loss``, the norm in which the error
    of the matrix is to be small, it is

    ``"frobenius"``
        ``x cos cos = sqrt((y^2 - b - 1)^2 - 4 b) / y``;
    ``"operator"``
        ``x sqrt((x^2 + b) / (x^2 + 1))``, the ratio of the cosines: ``x`` itself, as in Gavish and
        Donoho's formula, only for square matrices;
    ``"nuclear"``
        ``x (cos cos - s t)``, and 0 where that is negative.

    ``singular_values`` ``[..., p]`` are those of a matrix of the ``shape``, in any order. ``noise``
    is the standard deviation of the entries' noise, as ``fit.variance ** 0.5``; where it or a value
    is NaN or inf, the result is NaN, and where it is a traced 0 nothing is shrunk. Works
    at any scale and under ``jit``, ``vmap`` and ``grad`` (not at ``y = 1 + sqrt(b)``, where slopes
    are infinite). Half precision and integers are read as float32.
    Raises ``ValueError`` for an unknown ``loss``, ``noise`` not above 0 and values that do not fit
    the shape.
    Sources: arXiv 1405.7511; for the operator norm arXiv 2005.11807.

    >>> optimal_shrinkage(jnp.array([2.5, 1.9]), (2, 2), noise=0.5**0.5)
    Array([1.5, 0. ], dtype=float32)
    """
    p, n = sizes(shape)
    check_choice(get_args(Loss), loss=loss)
    singular_values = spectra(singular_values, shape, "singular_values")
    scale = jnp.asarray(n**0.5 * scale_of_noise(noise, "noise"), singular_values.dtype)[..., None]
    return _shrink(singular_values, scale, b=p / n, loss=loss)


@partial(jax.jit, static_argnames=("b", "loss"))
def _shrink(singular_values: Array, scale: Array, *, b: float, loss: Loss) -> Array:
    """The formulas of `optimal_shrinkage` as the share left of each value, in ``t = 1 / y``.

    Powers of ``y`` would overflow for a strong signal; those of ``t`` go to 0, and shares to 1.
    """
    # An exact unit near the noise: without it derivatives, of the size 1 / value^2, overflow.
    unit = power_of_two(scale)
    values, one = singular_values / unit, scale / unit
    # Values of noise get a t with which all formulas are finite: `where` differentiates both sides.
    signal = values > (1 + b**0.5) * one
    t = jnp.where(signal, one, 1) / jnp.where(signal, values, 2 + b)
    squared = t * t
    rest = 1 - (1 + b) * squared
    root = jnp.sqrt(rest**2 - 4 * b * squared**2)
    square = (rest + root) / 2  # (x / y)^2
    if loss == "frobenius":
        share = root
    elif loss == "operator":
        share = jnp.sqrt(square * (square + b * squared) / (square + squared))
    else:
        share = jnp.maximum(root - (b / square) ** 0.5 * squared, 0)
    shrunk = jnp.where(signal, singular_values * share, 0)
    known = jnp.isfinite(singular_values) & jnp.isfinite(scale) & (scale >= 0)
    return jnp.where(known, shrunk, jnp.nan)
