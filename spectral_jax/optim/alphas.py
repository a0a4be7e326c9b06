"""What steers a layer: tail exponents of its weights, and the controls to hold them against.

Each factory returns a metric, ``matrix -> alpha``; a matrix is ``[m, n]``, or ``[positions, m, n]``
for a convolution, whose positions are pooled. Metrics hold under ``jit`` and ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax import tails
from spectral_jax.linalg import svdvals
from spectral_jax.linalg.precision import power_of_two, working

Metric = Callable[[Float[Array, "*positions m n"]], Float[Array, ""]]


def hill(*, fraction: float = 0.5) -> Metric:
    """The Hill exponent of the whole spectrum, biased by the shape (TempBalance)."""

    def metric(matrix):
        return tails.hill_alpha(jnp.ravel(svdvals(_unit(matrix))) ** 2, fraction=fraction)

    return metric


def farms(
    *, window: int = 100, samples: int = 9, cols_per_row: float = 1.0, fraction: float = 0.5
) -> Metric:
    """The Hill exponent of windows of one aspect ratio (FARMS; defaults of its CIFAR protocol)."""

    def metric(matrix):
        # Not pooled: that would sort, which the fit does again; a sort is slow to compile.
        eigenvalues = tails.farms_eigenvalues(
            _unit(matrix), window=window, samples=samples, cols_per_row=cols_per_row, pooled=False
        )
        return tails.hill_alpha(jnp.ravel(eigenvalues), fraction=fraction)

    return metric


def debiased(
    *, fraction: float = 0.5, form: Literal["difference", "ratio"] = "difference"
) -> Metric:
    """``hill`` less what noise of that shape has: no shape bias, and no windows either.

    The ``ratio`` stays positive, which the maps ``sqrt`` and ``log2`` want.
    """
    plain = hill(fraction=fraction)

    def metric(matrix):
        return tails.debiased_alpha(plain(matrix), matrix.shape, fraction=fraction, form=form)

    return metric


def shape_only(*, fraction: float = 0.5) -> Metric:
    """The expected exponent of noise of that shape: a control that never saw the weights."""

    def metric(matrix):
        expected = tails.null_alpha(matrix.shape, fraction=fraction).mean
        return jnp.asarray(expected, working(matrix, "matrix").dtype)

    return metric


def _unit(matrix: Array) -> Array:
    """An exponent has no scale, but the squares of its eigenvalues may overflow, or be lost."""
    matrix = working(matrix, "matrix")
    return matrix / power_of_two(jnp.max(jnp.abs(matrix), initial=0))


METRICS: dict[str, Callable[..., Metric]] = {
    "hill": hill,
    "farms": farms,
    "debiased": debiased,
    "shape_only": shape_only,
}
