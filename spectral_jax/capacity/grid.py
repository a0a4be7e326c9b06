"""Scales of a prior that may be chosen after the data were seen, at a known price."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax._options import check_number, count
from spectral_jax.linalg.precision import working


class ScaleGrid(NamedTuple):
    """Prior variances ``c exp(-j / b)``, ``j = 1, 2, ...``, among which one may be chosen late.

    Weight ``6 / (pi j)^2`` for each, so that all of them hold at once with ``log(pi^2 j^2 / 6)``
    more nats for the ``j``-th. ``b`` and ``c`` are fixed before the data are seen. arXiv 1703.11008
    has ``b = 100``, ``c = 0.1``; 2110.14163 has ``b = 10``, ``c = 0.05`` in the Hessian's basis.

    >>> grid = ScaleGrid(b=10, c=0.05)
    >>> round(1 / grid.variance(37), 6), round(grid.penalty(37), 6)
    (808.946087, 7.71954)
    """

    b: float
    c: float

    def variance(self, j: int) -> float:
        """The ``j``-th variance."""
        check_grid(self)
        return self.c * math.exp(-count("j", j) / self.b)

    def penalty(self, j: int) -> float:
        """What its choice costs, in nats."""
        return math.log(math.pi**2 * count("j", j) ** 2 / 6)

    def relaxed_penalty(self, log_variance: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The `penalty` between the points of the grid: with it a variance is learnt.

        Equal to it at a point. Beyond the first variance it is that of the first and has no slope,
        so that nothing there leads back to the grid: keep ``log_variance`` below. Works under
        ``jit``, ``vmap`` and ``grad``. What was learnt is then rounded to a point, `certify` with
        ``grid=``.

        >>> grid = ScaleGrid(b=10, c=0.05)
        >>> round(float(grid.relaxed_penalty(math.log(grid.variance(37)))), 4)
        7.7195
        """
        check_grid(self)
        log_variance = working(log_variance, "log_variance")
        place = jnp.maximum(self.b * (math.log(self.c) - log_variance), 1)
        return math.log(math.pi**2 / 6) + 2 * jnp.log(place)

    def neighbours(self, variance: float) -> tuple[int, ...]:
        """The grid points on either side of a variance that was learnt, one where there is one.

        Warns where the variance lies above the first point: enlarge ``c``, before looking at data.
        """
        check_grid(self)
        check_number("choose above 0", lambda x: 0 < x < math.inf, variance=variance)
        place = self.b * math.log(self.c / variance)
        if place < 1:
            warnings.warn(
                f"a prior variance of {variance:.3g} is beyond the grid's first, "
                f"{self.variance(1):.3g}: enlarge c",
                stacklevel=3,
            )
            return (1,)
        return tuple(sorted({math.floor(place), math.ceil(place)}))


def check_grid(grid: ScaleGrid) -> None:
    """``ValueError`` for one whose points are no variances, each below the last."""
    if not isinstance(grid, ScaleGrid):
        raise ValueError(f"grid={grid!r}: pass ScaleGrid(b, c)")
    check_number("choose above 0", lambda x: 0 < x < math.inf, b=grid.b, c=grid.c)
