"""Tail exponents that `temp_balance` steers layers by, and controls to compare them with.

Each function here returns a metric, ``matrix -> alpha``. A matrix is ``[m, n]``, or
``[positions, m, n]`` for a convolution: the eigenvalues of all positions are fitted together.
``fraction`` is the share of the largest eigenvalues that the Hill estimator takes for the tail.
Metrics hold under ``jit`` and ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax import tails
from spectral_jax.linalg import svdvals
from spectral_jax.linalg.precision import unit_of, working

Metric = Callable[[Float[Array, "*positions m n"]], Float[Array, ""]]


def hill(*, fraction: float = 0.5) -> Metric:
    """The Hill exponent of the whole spectrum, which TempBalance uses.

    It depends on the shape as well as on training: noise in a long matrix has a larger exponent
    than noise in a square one.
    """

    def metric(matrix):
        return tails.hill_alpha(jnp.ravel(svdvals(_unit(matrix))) ** 2, fraction=fraction)

    return metric


def farms(
    *, window: int = 100, samples: int = 9, cols_per_row: float = 1.0, fraction: float = 0.5
) -> Metric:
    """The Hill exponent of windows of one aspect ratio: FARMS, which removes the bias by shape.

    Args:
      window: rows of a window.
      samples: windows along each side of the matrix.
      cols_per_row: columns of a window over its rows.

    Defaults are those of the CIFAR experiments of arXiv 2506.06280.
    """

    def metric(matrix):
        # Pooling would sort, which the fit does not need and which is slow to compile.
        eigenvalues = tails.farms_eigenvalues(
            _unit(matrix), window=window, samples=samples, cols_per_row=cols_per_row, pooled=False
        )
        return tails.hill_alpha(jnp.ravel(eigenvalues), fraction=fraction)

    return metric


def debiased(
    *, fraction: float = 0.5, form: Literal["difference", "ratio"] = "difference"
) -> Metric:
    """The Hill exponent relative to that of noise of the same shape: no bias, and no windows.

    ``form`` is their ``"difference"`` or ``"ratio"``. The ratio is positive, as the maps ``sqrt``
    and ``log2`` require.
    """
    plain = hill(fraction=fraction)

    def metric(matrix):
        return tails.debiased_alpha(plain(matrix), matrix.shape, fraction=fraction, form=form)

    return metric


def shape_only(*, fraction: float = 0.5) -> Metric:
    """The expected Hill exponent of noise of that shape: a control that ignores the weights."""

    def metric(matrix):
        expected = tails.null_alpha(matrix.shape, fraction=fraction).mean
        return jnp.asarray(expected, working(matrix, "matrix").dtype)

    return metric


def _unit(matrix: Array) -> Array:
    """The matrix near unit size: the same exponent, and no eigenvalue over- or underflows."""
    matrix = working(matrix, "matrix")
    return matrix / unit_of(matrix)


METRICS: dict[str, Callable[..., Metric]] = {
    "hill": hill,
    "farms": farms,
    "debiased": debiased,
    "shape_only": shape_only,
}
