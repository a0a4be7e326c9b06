"""Power-law tails: maximum likelihood, with the start of the tail found by an exact KS search."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number
from spectral_jax.linalg.carries import start_beside
from spectral_jax.linalg.precision import working
from spectral_jax.tails.support import FitStatus, check_floor, spectra, support

Rule = Literal["ks", "peak", "median"]
Compat = Literal["peak_log10", "weightwatcher"]

MIN_VALUES = 5  # eigenvalues that a search for xmin takes at least
# A candidate for xmin is first judged at this many points of its tail, for as many candidates at
# once; then 16 candidates at a time are measured at every point. So no array of the search is
# larger than 512 x 512 or 16 x N.
POINTS = 512
BATCH = 16


class PowerLawFit(NamedTuple):
    """A fit of ``p(x) = (alpha - 1) / xmin (x / xmin)^-alpha`` to the eigenvalues from ``xmin`` on.

    There are ``tail`` of them, the largest is ``xmax``, and ``ks`` is the largest distance between
    their distribution function and the fitted one (Kolmogorov-Smirnov). ``standard_error`` is that
    of ``alpha``, ``(alpha - 1) / sqrt(tail)``, for independent values and a given ``xmin``.
    ``status`` is a ``FitStatus``. ``xmin`` and ``xmax`` have the unit of the eigenvalues.
    """

    alpha: Float[Array, "*batch"]
    xmin: Float[Array, "*batch"]
    xmax: Float[Array, "*batch"]
    tail: Int[Array, "*batch"]
    ks: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]
    status: Int[Array, "*batch"]


def power_law_fit(
    eigenvalues: Float[Array, "*batch N"],
    *,
    xmin: Rule | float | Float[Array, ""] = "ks",
    floor: float | None = None,
    paper_compat: Compat | None = None,
) -> PowerLawFit:
    """Fit a power law to the upper tail of spectra ``[..., N]``, in any order.

    With ``n`` values ``x_0 <= .. <= x_{n-1}`` from ``xmin`` on,
    ``alpha = 1 + n / sum_j ln(x_j / xmin)`` and
    ``ks = max_j |1 - (x_j / xmin)^(1 - alpha) - j/n|``. The tail begins

    ``"ks"``
        at the eigenvalue with the smallest ``ks``, of all but the largest;
    ``"peak"``
        at the best of those in ``[0.95, 1.5] x``, ``x`` the left edge of the fullest of 100 bins of
        ``log10`` eigenvalues (noisy: over draws of one Gaussian matrix ``alpha`` is 4.7 +- 1.3);
    ``"median"``
        at the median, so that ``alpha`` is `hill_alpha`'s;
    a number
        there; ``alpha`` is then differentiable with respect to it, too.

    Both searches are exact, by branch and bound: a candidate's distance at 512 points of its tail
    is a lower bound of its distance; in the order of these bounds candidates are measured at every
    point, until the next bound is above the best distance. This takes ``O(512 N)`` as a rule and
    ``O(N^2)`` at worst (nearly equal distances for all candidates), and memory ``O(16 N)``.
    In float32 a distance carries an error of some ``1e-6 alpha``: closer candidates may swap.
    Equal eigenvalues are one candidate.

    Args:
      floor: eigenvalues up to ``floor max(eigenvalues)`` are left out, as in `hill_fit`.
      paper_compat: what published numbers need. ``"peak_log10"`` compares eigenvalues with
        ``log10(0.95 x)`` at the lower end of the peak, as WeightWatcher and the FARMS code do (a
        logarithm against a linear scale, so nearly always no limit). ``"weightwatcher"`` fits fewer
        than 20 eigenvalues as version 0.7.7 does: ``alpha = 1 + (n - 1) / sum``, at the smallest
        ``ks`` among tails of at least 8, or on the whole. (It penalises short tails, too, but then
        overrides that choice.)

    ``status`` says why there is no fit, and NaN stands for it. Works under ``jit``, ``vmap`` and
    ``grad``, with the tail held fixed (``alpha``, ``standard_error``, ``ks``). Scale-free, but for
    ``"peak_log10"``; half precision and integers are read as float32. Raises ``ValueError`` for an
    unknown rule or ``paper_compat``, an ``xmin`` that is not one finite number above 0, a floor out
    of ``0 <= floor < 1`` and complex numbers.
    Sources: arXiv 0706.1062; for the peak rule arXiv 2410.10912.

    >>> fit = power_law_fit(2.0 ** jnp.arange(8))
    >>> round(float(fit.alpha), 4), float(fit.xmin), round(float(fit.ks), 4)
    (1.4122, 1.0, 0.2006)
    >>> FitStatus(int(power_law_fit(jnp.ones(8)).status)).name
    'DEGENERATE'
    """
    check_choice(("peak_log10", "weightwatcher", None), paper_compat=paper_compat)
    if paper_compat == "peak_log10" and not (isinstance(xmin, str) and xmin == "peak"):
        raise ValueError(f"paper_compat='peak_log10' with xmin={xmin!r}: it is about xmin='peak'")
    check_floor(floor)
    eigenvalues = spectra(eigenvalues)
    if isinstance(xmin, str):
        if xmin not in ("ks", "peak", "median"):
            raise ValueError(f"xmin={xmin!r}: choose 'ks', 'peak', 'median' or a number")
        return _from_rule(eigenvalues, xmin, floor, paper_compat)
    return _from_value(eigenvalues, xmin_value(xmin, eigenvalues.dtype), floor, paper_compat)


def xmin_value(xmin: ArrayLike, dtype: jnp.dtype) -> Float[Array, ""]:
    """A given start of the tail. Python numbers are checked; a traced array has no value yet, and
    one that is not a positive number shows in the status."""
    if isinstance(xmin, int | float):
        check_number("choose a finite number above 0", lambda x: 0 < x < math.inf, xmin=xmin)
    value = working(xmin, "xmin").astype(dtype)
    if value.ndim:
        raise ValueError(f"xmin has shape {value.shape}: pass one number for all spectra")
    return value


@partial(jax.jit, static_argnames=("rule", "floor", "compat"))
def _from_rule(eigenvalues, rule: Rule, floor: float | None, compat: Compat | None) -> PowerLawFit:
    def fit(values):
        spectrum = _spectrum(values, floor, compat)
        start, edge = _start(jax.lax.stop_gradient(spectrum), rule, compat)
        return _fit(spectrum, start, spectrum.logs[jnp.minimum(start, len(values) - 1)], edge)

    return _over_batch(fit, eigenvalues)


@partial(jax.jit, static_argnames=("floor", "compat"))
def _from_value(eigenvalues, xmin, floor: float | None, compat: Compat | None) -> PowerLawFit:
    usable = jnp.isfinite(xmin) & (xmin > 0)
    xmin = jnp.where(usable, xmin, 1)

    def fit(values):
        spectrum = _spectrum(values, floor, compat)
        relative = xmin / spectrum.unit
        below = jnp.sum(spectrum.values < relative)
        spectrum = spectrum._replace(finite=spectrum.finite & usable)
        start = jnp.maximum(below, spectrum.first)
        return _fit(spectrum, start, jnp.log(relative / spectrum.scale), jnp.asarray(False))

    return _over_batch(fit, eigenvalues)


def _over_batch(fit: Callable[[Array], PowerLawFit], eigenvalues: Array) -> PowerLawFit:
    *batch, n = eigenvalues.shape
    if not batch:
        return fit(eigenvalues)
    fits = jax.vmap(fit)(eigenvalues.reshape(-1, n))
    return PowerLawFit(*(field.reshape(batch) for field in fits))


class _Spectrum(NamedTuple):
    """A sorted spectrum with what every fit to one of its tails needs.

    ``values`` ascend and are divided by ``unit``; ``scale`` is the largest, ``logs[i] =
    ln(values[i] / scale)``, and ``excess[i] = sum_{j >= i} (logs[j] - logs[i])``, which gives the
    exponent of the tail from ``i`` on. Entries before ``first`` take no part; they have the
    logarithm of the first that does. ``small``: WeightWatcher's rule for few values applies.
    """

    values: Float[Array, " N"]
    logs: Float[Array, " N"]
    excess: Float[Array, " N"]
    unit: Float[Array, ""]
    scale: Float[Array, ""]
    first: Int[Array, ""]
    finite: Bool[Array, ""]
    deficient: Bool[Array, ""]
    small: Bool[Array, ""]

    def rate(self, count: Array, excess: Array) -> Array:
        """``alpha - 1``; 0 where the tail has no spread."""
        flat = excess <= 4 * float(jnp.finfo(excess.dtype).eps) * count
        weight = count - self.small.astype(count.dtype)
        return jnp.where(flat, 0, weight / jnp.where(flat, 1, excess))


def _spectrum(eigenvalues: Array, floor: float | None, compat: Compat | None) -> _Spectrum:
    n = len(eigenvalues)
    found = support(eigenvalues, floor)
    values = jnp.sort(found.kept)
    first = n - jnp.sum(found.keep)
    largest = jax.lax.stop_gradient(values[-1])
    scale = jnp.where(largest > 0, largest, 1)
    bottom = jnp.where(largest > 0, values[jnp.minimum(first, n - 1)], scale)
    logs = jnp.log(jnp.where(jnp.arange(n) < first, bottom, values) / scale)
    # excess as a sum of gaps between neighbours, each times the number of values above it. Nothing
    # is negative, so that nothing cancels; the sum of all logs less n times one would lose digits.
    above = jnp.arange(n - 1, 0, -1).astype(logs.dtype)
    gaps = jnp.append(jnp.diff(logs) * above, jnp.zeros_like(logs[:1]))
    return _Spectrum(
        values=values,
        logs=logs,
        excess=jax.lax.cumsum(gaps, reverse=True),
        unit=found.unit,
        scale=scale,
        first=first,
        finite=found.finite,
        deficient=jnp.any((found.values > 0) & ~found.keep),
        small=jnp.asarray(compat == "weightwatcher") & (n - first < 20),
    )


def _fit(spectrum: _Spectrum, start: Array, log_xmin: Array, edge: Array) -> PowerLawFit:
    """The fit to the values from index ``start`` on; ``xmin`` is at or below the first."""
    # Sums are known from each value on; the threshold may lie below the first of the tail, by the
    # same distance for all of them.
    n, logs = len(spectrum.values), spectrum.logs
    tail = n - start
    at = jnp.minimum(start, n - 1)
    count = tail.astype(logs.dtype)
    excess = spectrum.excess[at] + count * (logs[at] - log_xmin)
    rate = spectrum.rate(count, excess)
    status = _status(spectrum, tail, rate, edge)
    deviations = _deviations(rate, log_xmin, start, logs, jnp.arange(n), n)
    exists = status <= FitStatus.BOUNDARY

    def number(value):
        return jnp.where(exists, value, jnp.nan)

    return PowerLawFit(
        alpha=number(1 + rate),
        xmin=number(jnp.exp(log_xmin) * spectrum.scale * spectrum.unit),
        xmax=number(spectrum.values[-1] * spectrum.unit),
        tail=jnp.where(exists, tail, 0),
        ks=number(jnp.max(deviations)),
        standard_error=number(rate / jnp.sqrt(jnp.maximum(count, 1))),
        status=status,
    )


def _status(spectrum: _Spectrum, tail: Array, rate: Array, edge: Array) -> Int[Array, ""]:
    rounding = 4 * float(jnp.finfo(rate.dtype).eps)
    verdicts = (  # the first that holds
        (FitStatus.NOT_FINITE, ~spectrum.finite),
        (FitStatus.TOO_FEW, len(spectrum.values) - spectrum.first < MIN_VALUES),
        (FitStatus.DEGENERATE, -spectrum.logs[0] <= rounding),
        (FitStatus.NO_TAIL, tail < 2),
        (FitStatus.DEGENERATE, rate <= 0),
        (FitStatus.BOUNDARY, edge | (tail < MIN_VALUES)),
        (FitStatus.RANK_DEFICIENT, spectrum.deficient),
    )
    return jnp.select([holds for _, holds in verdicts], [int(s) for s, _ in verdicts], 0)


def _deviations(rate, log_xmin, start, logs, index, n: int) -> Array:
    """``|F(x_j) - j/n|`` at the values of ``index``, of the tails from ``start`` on; 0 below."""
    count = jnp.maximum(n - start, 1).astype(logs.dtype)
    model = 1 - jnp.exp(-rate * jnp.maximum(logs - log_xmin, 0))
    empirical = (index - start).astype(logs.dtype) / count
    return jnp.where(index >= start, jnp.abs(model - empirical), 0)


# The search for xmin


def _start(spectrum: _Spectrum, rule: Rule, compat: Compat | None) -> tuple[Array, Array]:
    """Index of the first value of the tail, ``N`` if there is none; and whether the best candidate
    of ``"peak"`` lies at an edge of its range, so that a better one may lie beyond."""
    n = len(spectrum.values)
    if rule == "median":
        return n - (n - spectrum.first + 1) // 2, jnp.asarray(False)
    index = jnp.arange(n)
    distinct = jnp.append(True, spectrum.values[1:] > spectrum.values[:-1])
    # The largest value alone is no tail; equal values are one candidate, the first.
    allowed = distinct & (index >= spectrum.first) & (index < n - 1)
    if rule == "peak":
        allowed &= _peak(spectrum, compat)
    count = (n - index).astype(spectrum.logs.dtype)
    rate = spectrum.rate(count, spectrum.excess)
    long = (count >= 8) | (index == spectrum.first)
    candidates = allowed & (rate > 0) & (~spectrum.small | long)
    best = _search(spectrum.logs, rate, candidates)
    if rule == "ks":
        return best, jnp.asarray(False)
    edges = jnp.argmax(candidates), n - 1 - jnp.argmax(candidates[::-1])
    return best, (best == edges[0]) | (best == edges[1])


def _peak(spectrum: _Spectrum, compat: Compat | None) -> Bool[Array, " N"]:
    """Candidates of the rule ``"peak"``: values around the mode of their logarithms."""
    logs, n = spectrum.logs, len(spectrum.logs)
    weights = (jnp.arange(n) >= spectrum.first).astype(logs.dtype)
    # Values that are left out share the logarithm of the first that is not: weight 0.
    counts, edges = jnp.histogram(logs, bins=100, range=(logs[0], logs[-1]), weights=weights)
    mode = edges[jnp.argmax(counts)]
    below = logs <= mode + math.log(1.5)
    if compat == "peak_log10":
        absolute = mode + jnp.log(spectrum.scale) + jnp.log(spectrum.unit)
        limit = (absolute + math.log(0.95)) / math.log(10)
        return below & (spectrum.values * spectrum.unit >= limit)
    return below & (logs >= mode + math.log(0.95))


def _search(logs: Array, rate: Array, candidates: Array) -> Int[Array, ""]:
    """The first candidate with the smallest distance; ``N`` if there is none."""
    n = len(logs)
    bound = _lower_bounds(logs, rate, candidates)
    if n <= POINTS:  # nothing was left out
        return jnp.where(jnp.isfinite(bound).any(), jnp.argmin(bound), n)
    index = jnp.arange(n)[:, None]

    def promising(state):
        bound, least, _ = state
        following = jnp.min(bound)
        return jnp.isfinite(following) & (following <= least)

    def measure(state):
        bound, least, winner = state
        # Not a sort of all bounds, which takes a hundred times as long.
        smallest, batch = jax.lax.top_k(-bound, BATCH)
        distances = _deviations(rate[batch], logs[batch], batch, logs[:, None], index, n).max(0)
        distances = jnp.append(jnp.where(jnp.isfinite(smallest), distances, jnp.inf), least)
        least = jnp.min(distances)
        # Of equal distances the one with the longest tail.
        winner = jnp.min(jnp.where(distances == least, jnp.append(batch, winner), n))
        return bound.at[batch].set(jnp.inf), least, winner

    nothing = bound, *start_beside(logs, (jnp.full((), jnp.inf, logs.dtype), jnp.asarray(n)))
    return jax.lax.while_loop(promising, measure, nothing)[2]


def _lower_bounds(logs: Array, rate: Array, candidates: Array) -> Float[Array, " N"]:
    """Each candidate's largest distance at ``POINTS`` points of its tail; infinite for the others.

    With no more values than points this is the distance itself.
    """
    n = len(logs)
    points = block = min(n, POINTS)

    def bound(number, found):
        begin = number * block
        start = jnp.minimum(begin + jnp.arange(block), n - 1)
        stride = (n - begin + points - 1) // points
        index = jnp.minimum(begin + stride * jnp.arange(points), n - 1)
        distances = _deviations(
            rate[start], logs[start], start, logs[index][:, None], index[:, None], n
        ).max(0)
        return jax.lax.dynamic_update_slice(found, distances, (begin,))

    # Zeros that a spectrum is padded with come first: blocks without candidates are skipped.
    first, last = jnp.argmax(candidates), n - 1 - jnp.argmax(candidates[::-1])
    blocks = -(-n // block)
    nothing = start_beside(logs, jnp.zeros(blocks * block, logs.dtype))
    found = jax.lax.fori_loop(first // block, last // block + 1, bound, nothing)
    return jnp.where(candidates, found[:n], jnp.inf)
