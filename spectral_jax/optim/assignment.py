"""From the tail exponents of all layers to the scale of each layer's learning rate.

Each map takes ``alpha`` of shape ``[..., layers]`` to scales of the same shape, which multiply the
learning rate (or weight decay) of their layer. In all of them a heavier tail (smaller alpha) stands
for a better trained layer and gives a smaller scale. If all alphas are equal, all scales are 1. A
NaN alpha, of a layer on which the metric could not decide, is left out of every minimum, maximum
and mean, and its scale is 1.

The maps hold under ``jit``, ``vmap`` and ``grad``. Sources: TempBalance (arXiv 2312.00359);
``tb_sigmoid`` from arXiv 2410.12178.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spectral_jax._transforms.hyperparameters import concrete
from spectral_jax.linalg.precision import power_of_two, working

Assignment = Callable[[Float[Array, "*batch layers"]], Float[Array, "*batch layers"]]


def linear_map(
    alpha: Float[Array, "*batch layers"], *, low: float = 0.5, high: float = 1.5
) -> Float[Array, "*batch layers"]:
    """``low + (high - low) (alpha - min) / (max - min)``, TempBalance's map.

    With other ``low`` and ``high`` it is that of AlphaDecay, and of AlphaPruning (``1 - epsilon``
    and ``1 + epsilon``). Raises ``ValueError`` unless ``0 <= low <= high``.

    >>> [round(float(x), 4) for x in linear_map(jnp.array([2.0, 3.0, 4.0, 6.0]))]
    [0.5, 0.75, 1.0, 1.5]
    """
    _check_range(low, high)
    alpha, known = _known(alpha)
    return _where_unequal(alpha, known, low + (high - low) * _unit_interval(alpha, known))


def sqrt_map(alpha: Float[Array, "*batch layers"]) -> Float[Array, "*batch layers"]:
    """``sqrt(alpha) / mean sqrt(alpha)``; an alpha that is not positive counts as unknown."""
    alpha, known = _known(alpha)
    return _share(alpha, known & (alpha > 0), jnp.sqrt)


def log2_map(alpha: Float[Array, "*batch layers"]) -> Float[Array, "*batch layers"]:
    """``log2(alpha) / mean log2(alpha)``; an alpha of 1 or less counts as unknown."""
    alpha, known = _known(alpha)
    return _share(alpha, known & (alpha > 1), jnp.log2)


def step_map(
    alpha: Float[Array, "*batch layers"], *, low: float = 0.5, high: float = 1.5
) -> Float[Array, "*batch layers"]:
    """``low + (high - low) rank / n`` by the order of the alphas, with ranks ``0 .. n - 1``.

    Equal alphas share their mean rank. ``high`` is never reached, as in the published map.
    Raises ``ValueError`` unless ``0 <= low <= high``.

    >>> [round(float(x), 3) for x in step_map(jnp.array([4.0, 2.0, 6.0, 3.0]))]
    [1.0, 0.5, 1.25, 0.75]
    """
    _check_range(low, high)
    alpha, known = _known(alpha)
    ours, theirs = alpha[..., :, None], alpha[..., None, :]
    below = jnp.sum((theirs < ours) & known[..., None, :], axis=-1)
    ties = jnp.sum((theirs == ours) & known[..., None, :], axis=-1)
    rank = below.astype(alpha.dtype) + (ties.astype(alpha.dtype) - 1) / 2
    return _where_unequal(alpha, known, low + (high - low) * rank / _count(known, alpha.dtype))


def tb_sigmoid(
    alpha: Float[Array, "*batch layers"],
    *,
    tau: float = 10.0,
    s_min: float = 0.5,
    s_max: float = 0.5,
) -> Float[Array, "*batch layers"]:
    """``10^(s (sigmoid(tau (alpha - mean)) - 1/2))``, ``s_max`` above the mean, ``s_min`` below.

    Args:
      tau: how sharply scales part at the mean.
      s_min, s_max: scales lie between ``10^(-s_min / 2)`` and ``10^(s_max / 2)``.

    Source: arXiv 2410.12178.

    >>> scale = tb_sigmoid(jnp.array([2.0, 3.0, 4.0, 6.0]), tau=1.0, s_min=0.25, s_max=0.5)
    >>> [round(float(x), 4) for x in scale]
    [0.8166, 0.902, 1.0742, 1.5934]
    """
    alpha, known = _known(alpha)
    deviation = _deviation(alpha, known)
    strength = jnp.where(deviation > 0, s_max, s_min).astype(alpha.dtype)
    ten = jnp.asarray(10, alpha.dtype)
    return _where_unequal(alpha, known, ten ** (strength * (jax.nn.sigmoid(tau * deviation) - 0.5)))


def llr_sigmoid(alpha: Float[Array, "*batch layers"]) -> Float[Array, "*batch layers"]:
    """``2 / (1 + exp(-4 z))``, where ``z`` is alpha less its mean, over its standard deviation."""
    alpha, known = _known(alpha)
    deviation, _ = _scaled_down(_deviation(alpha, known), known)
    variance = _mean(deviation**2, known)
    spread = jnp.sqrt(jnp.where(variance > 0, variance, 1))
    return _where_unequal(alpha, known, 2 * jax.nn.sigmoid(4 * deviation / spread))


ASSIGNMENTS: dict[str, Callable[..., Array]] = {
    "linear": linear_map,
    "sqrt": sqrt_map,
    "log2": log2_map,
    "step": step_map,
    "tb_sigmoid": tb_sigmoid,
    "llr_sigmoid": llr_sigmoid,
}


def _known(alpha: Array) -> tuple[Array, Bool[Array, "*batch layers"]]:
    """The exponents in float32 or float64, and which of them are finite."""
    alpha = working(alpha, "alpha")
    return alpha, jnp.isfinite(alpha)


def _share(alpha: Array, known: Array, function: Callable[[Any], Array]) -> Array:
    values = function(jnp.where(known, alpha, 2))
    return _where_unequal(alpha, known, values / _mean(values, known))


def _unit_interval(alpha: Array, known: Array) -> Array:
    """``(alpha - min) / (max - min)`` over the known ones; 0 where that is 0/0."""
    alpha, _ = _scaled_down(alpha, known)
    low, high = _extremes(alpha, known)
    apart = high > low
    width = jnp.where(apart, high - low, 1)
    return jnp.where(known & apart, (alpha - jnp.where(apart, low, 0)) / width, 0)


def _where_unequal(
    alpha: Array, known: Bool[Array, "*batch layers"], scale: Float[Array, "*batch layers"]
) -> Array:
    """The scale of known layers; 1 for the others, and for all if the known alphas are equal."""
    low, high = _extremes(alpha, known)
    return jnp.where(known & (high > low), scale, 1).astype(alpha.dtype)


def _extremes(alpha: Array, known: Array) -> tuple[Array, Array]:
    low = jnp.min(alpha, axis=-1, where=known, initial=jnp.inf, keepdims=True)
    high = jnp.max(alpha, axis=-1, where=known, initial=-jnp.inf, keepdims=True)
    return low, high


def _deviation(alpha: Array, known: Array) -> Array:
    alpha = jnp.where(known, alpha, 0)
    return jnp.where(known, alpha - _mean(alpha, known), 0)


def _mean(values: Array, known: Array) -> Array:
    values, unit = _scaled_down(values, known)
    total = jnp.sum(values, axis=-1, where=known, keepdims=True)
    return total / _count(known, values.dtype) * unit


def _scaled_down(values: Array, known: Array) -> tuple[Array, Array]:
    """Values divided by a unit so that sums and differences cannot overflow, and that unit."""
    largest = jnp.max(jnp.abs(values), axis=-1, where=known, initial=0, keepdims=True)
    unit = power_of_two(largest)
    return values / unit, unit


def _count(known: Array, dtype: Any) -> Array:
    """How many are known; 1 if none, so that nothing is divided by zero."""
    count = jnp.sum(known, axis=-1, keepdims=True)
    return jnp.maximum(count, 1).astype(dtype)


def _check_range(low: float, high: float) -> None:
    if concrete(low, high) and not 0 <= low <= high:
        raise ValueError(f"low={low}, high={high}: choose 0 <= low <= high")
