"""The one interval every figure and table of the house uses: Student's t over seeds."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import stats


class Interval(NamedTuple):
    """Mean, half width of its 95 % interval, and how many finite samples made them."""

    mean: Float[np.ndarray, "..."]
    half_width: Float[np.ndarray, "..."]
    samples: Int[np.ndarray, "..."]


def t_interval(samples: Num[np.ndarray, "... s"]) -> Interval:
    r"""Mean and 95 % Student interval over the last axis, non-finite samples left out.

    ``mean ± t_{0.975, n-1} · sd / sqrt(n)`` with the unbiased standard deviation ``sd``.

    Args:
        samples: [..., s], one entry per seed; NaN and infinity mean "this seed has no number".

    Returns:
        Interval of arrays [...]. ``half_width`` is NaN where fewer than two samples are finite
        (``samples`` says so), and ``mean`` is NaN where none is.
    """
    samples = np.asarray(samples, dtype=float)
    finite = np.isfinite(samples)
    count = finite.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(finite, samples, 0.0).sum(axis=-1) / count
        squares = np.where(finite, samples - mean[..., None], 0.0) ** 2
        error = np.sqrt(squares.sum(axis=-1) / (count - 1) / count)
        half_width = np.where(count > 1, stats.t.ppf(0.975, count - 1) * error, np.nan)
    return Interval(mean, half_width, count)
