"""Intervals by leaving out blocks of the data in turn."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import stdtrit

from spectral_jax._options import check_number
from spectral_jax.linalg.precision import unit_of, working


class Interval(NamedTuple):
    """A number, and where it would lie with other rows of the same kind."""

    value: Any
    low: Any
    high: Any
    standard_error: Any


def interval(value: Any, without: Any, *, level: float = 0.95) -> Interval:
    """From a number and what it is ``without`` each of ``B`` blocks in turn, ``[B]``.

    The standard error is ``sqrt((B - 1) / B sum (t_b - mean t)^2)``, and the interval ``value -+``
    its multiple by Student's law of ``B - 1`` degrees of freedom. It holds for smooth functions of
    moments; a count moves in steps, and the largest of many nearly equal eigenvalues is biased as
    well. If neighbours are alike, as in time, blocks have to be longer than their memory.

    Args:
      value, without: arrays or floats, or pytrees of them, of which each leaf has its interval.
      level: the share of intervals that hold what they are to hold.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for a level outside (0, 1) or
    fewer than two blocks.
    Source: Efron & Stein 1981; Kunsch 1989 (blocks).

    >>> import numpy as np
    >>> found = interval(2.0, np.array([1.5, 2.0, 2.5]))
    >>> round(float(found.standard_error), 4), round(float(found.high), 4)
    (0.5774, 4.4841)
    """
    check_number("choose above 0 and below 1", lambda x: 0 < x < 1, level=level)
    blocks = len(jax.tree.leaves(without)[0])
    if blocks < 2:
        raise ValueError(f"without has {blocks} blocks: a jackknife leaves out one of at least two")
    reach = float(stdtrit(blocks - 1, (1 + level) / 2))
    value, without = jax.tree.map(_computed, value), jax.tree.map(_computed, without)
    error = jax.tree.map(_standard_error, without)
    low = jax.tree.map(lambda v, e: v - reach * e, value, error)
    return Interval(value, low, jax.tree.map(lambda v, e: v + reach * e, value, error), error)


def _computed(x: Any) -> Any:
    """Numbers of the host keep their float64."""
    return x if isinstance(x, float | np.ndarray) else working(x)


def _standard_error(t: Any) -> Any:
    apart = t - t.mean(0)
    unit = 1.0 if isinstance(t, np.ndarray) else unit_of(apart)
    return (len(t) - 1) ** 0.5 * unit * ((apart / unit) ** 2).mean(0) ** 0.5
