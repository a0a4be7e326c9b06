"""Intervals, tests and sample sizes over seeds: Student, Welch, Holm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from scipy import special  # scipy.stats, which has the same, takes a second to import

LEVEL = 0.025  # one-sided, of a direction: both together make 5 %
REACH = 3.24  # standard errors: so far from zero, an effect is told at 5 % with a power of 90 %

Name = TypeVar("Name", str, tuple[str, str])


class Estimate(NamedTuple):
    """A mean over replications and how well it is known.

    Attributes:
        mean: of the finite samples.
        error: its standard error; NaN where a single sample leaves it unknown, 0 where all agree.
        freedom: degrees of freedom of ``error``; infinite where it is exact.
        n: finite samples.
        lost: samples without a number.
        items: test items whose choice is part of ``error``; 0 where it is not.
    """

    mean: float
    error: float
    freedom: float
    n: int
    lost: int = 0
    items: int = 0


def estimate(samples: Float[np.ndarray, " seeds"]) -> Estimate:
    """Mean and standard error of the finite samples; the others are counted as lost."""
    samples = np.asarray(samples, float)
    finite = samples[np.isfinite(samples)]
    count = len(finite)
    mean = float(np.mean(finite)) if count else math.nan
    error = _deviation(finite) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(mean, error, count - 1, count, len(samples) - count)


def _deviation(samples: Float[np.ndarray, " n"]) -> float:
    """Their standard deviation; of equal ones 0, though their mean is rounded."""
    return float(np.std(samples, ddof=1)) if np.ptp(samples) else 0.0


def crossed(samples: Float[np.ndarray, "seeds items"]) -> Estimate:
    """Mean over seeds and test items, as it would vary with other seeds and another test set.

    Every seed is tested on the same items, so a test set that happens to favour one method favours
    it in all seeds, and an interval over seeds alone does not see it. The variance is that of two
    crossed random effects: of the seeds' means, plus of the items' means, less what both count
    twice. A bootstrap over seeds and items (Owen 2007, "The pigeonhole bootstrap") estimates the
    same, but is too narrow at few seeds. Never less than the error over seeds alone.
    """
    samples = np.asarray(samples, float)
    kept = samples[np.isfinite(samples).all(axis=1)]
    n, items = kept.shape
    seeds = estimate(kept.mean(axis=1) if n else np.empty(0))._replace(
        lost=len(samples) - n, items=items
    )
    if n < 2 or items < 2:
        return seeds
    by_item = kept.mean(axis=0)
    rest = kept - kept.mean(axis=1, keepdims=True) - by_item + kept.mean()
    twice = np.sum(rest**2) / ((n - 1) * (items - 1)) / (n * items)
    of_seeds, of_items = seeds.error**2, float(np.var(by_item, ddof=1)) / items
    error = math.sqrt(max(of_seeds, of_seeds + of_items - twice))
    parts = of_seeds**2 / (n - 1) + of_items**2 / (items - 1)
    freedom = (of_seeds + of_items) ** 2 / parts if parts else seeds.freedom
    return seeds._replace(error=error, freedom=freedom)


def against(ours: Estimate, value: float, spread: float, reference_n: int) -> Estimate:
    """Ours minus a reference that has an error of its own (Welch).

    Args:
        spread: standard deviation of the reference over its ``reference_n`` replications; 0 for a
            number that is known exactly.
    """
    reference = spread / math.sqrt(reference_n) if spread else 0.0
    error = math.hypot(ours.error, reference)
    freedom = ours.freedom
    if reference and error:  # Welch and Satterthwaite's; NaN stays NaN
        parts = ours.error**4 / max(ours.freedom, 1) + reference**4 / (reference_n - 1)
        freedom = error**4 / parts
    return ours._replace(mean=ours.mean - value, error=error, freedom=freedom)


def interval(one: Estimate, level: float) -> tuple[float, float]:
    """Student's two-sided interval; NaN where a single sample has none."""
    half = float(special.stdtrit(one.freedom, (1 + level) / 2)) * one.error
    return one.mean - half, one.mean + half


def p_above(one: Estimate, bound: float = 0.0) -> float:
    """One-sided p-value of "the true mean is above ``bound``"; 1 where it cannot be tested."""
    if not math.isfinite(one.error):
        return 1.0
    if one.error == 0:
        return 0.0 if one.mean > bound else 1.0
    return float(special.stdtr(one.freedom, (bound - one.mean) / one.error))


def p_direction(one: Estimate) -> float:
    """The smaller of the two one-sided p-values: the mean is off zero, to whichever side."""
    return min(p_above(one), p_above(one._replace(mean=-one.mean)))


def within(one: Estimate, bound: float) -> bool:
    """Whether two one-sided tests at 5 % say that the mean lies between ``-bound`` and ``bound``.

    The same as: the 90 % interval lies inside.
    """
    low, high = interval(one, 0.90)
    return -bound < low and high < bound


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's step-down adjustment: the i-th smallest of m is multiplied by m - i, never falling."""
    adjusted: dict[Name, float] = {}
    largest = 0.0
    ordered = sorted(p_values, key=lambda name: (p_values[name], name))
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def seeds_needed(deviation: float, smallest_effect: float) -> int:
    """Seeds that tell an effect of that size from none: 5 % two-sided at a power of 90 %.

    ``(3.24 sd / d)^2``, with 3.24 the sum of the normal quantiles of .975 and .9; at least 2.
    """
    return max(2, math.ceil((REACH * deviation / smallest_effect) ** 2))
