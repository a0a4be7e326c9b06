"""The bulk of a spectrum: variance of the noise, its edge, and the eigenvalues beyond it.

docs/random-matrices.md has the model, the choice of a method and what zeros do.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number
from spectral_jax.laws import marchenko_pastur_edges, rational
from spectral_jax.linalg.arguments import check_key
from spectral_jax.rmt._edge import check_beta, check_compat, edge_factor, sizes
from spectral_jax.rmt._gamma import gamma_fit
from spectral_jax.rmt._law import marchenko_pastur_cdf
from spectral_jax.rmt._spectrum import Spectrum, ordered, rounding, spectra
from spectral_jax.rmt._variance import simple_variance

Method = Literal["bema", "bema_gamma", "trace", "clip", "median", "density"]
METHODS = get_args(Method)
Plotting = Literal["(k-1/2)/p", "k/p", "(k-1)/p"]

# How far below k / p a plotting position lies, in units of 1 / (2 p), the grid of `half_steps`.
BEFORE = {"k/p": 0, "(k-1/2)/p": 1, "(k-1)/p": 2}


class MPStatus(IntEnum):
    """What became of a fit. Up to ``BOUNDARY`` there is one; beyond, variance and edges are NaN."""

    OK = 0
    NOT_CONVERGED = 1
    """Clipping still moved the variance after 30 rounds."""
    BOUNDARY = 2
    """``bema_gamma``: ``theta`` is at an end of [0.1, 50]. At the upper one the noise has columns
    of practically equal variance, so that ``bema`` is the better fit."""
    TOO_FEW = 3
    """Fewer than two eigenvalues in the window of order statistics: rank 0, or a tiny layer."""
    NOT_FINITE = 4
    """NaN or inf among the eigenvalues, or values whose edge overflows."""


class MPFit(NamedTuple):
    """A Marchenko-Pastur bulk, and the eigenvalues beyond it."""

    variance: Float[Array, "*batch"]
    """Of the entries of the noise, in the squared unit of the weights."""
    edge: Float[Array, "*batch"]
    """Noise alone has an eigenvalue above it with probability ``beta`` (`noise_edge`)."""
    bulk_edge: Float[Array, "*batch"]
    """``variance (1 + sqrt(g))^2``, where the bulk of an infinite matrix ends."""
    threshold: Float[Array, "*batch"]
    """``sqrt(n edge)``: the edge for singular values."""
    spikes: Int[Array, "*batch"]
    """Eigenvalues above ``edge``. Where there is no fit, nothing is known to be noise and all
    ``rank`` eigenvalues count."""
    rank: Int[Array, "*batch"]
    """Eigenvalues that are not exact zeros."""
    ks: Float[Array, "*batch"]
    """Largest distance between empirical and fitted cdf over the window of the fit (Kolmogorov-
    Smirnov), between 0 and 1."""
    theta: Float[Array, "*batch"]
    """``bema_gamma``: the column variances have a relative variance of ``1 / theta``. Infinite for
    all other methods, which take them to be equal."""
    status: Int[Array, "*batch"]
    """An ``MPStatus``."""


def fit_marchenko_pastur(
    eigenvalues: Float[Array, "*batch p"],
    shape: tuple[int, int],
    *,
    method: Method = "bema",
    trim: float = 0.2,
    beta: float = 0.1,
    plotting: Plotting = "(k-1/2)/p",
    floor: float | None = None,
    paper_compat: Collection[str] = (),
    key: PRNGKeyArray | None = None,
    assume_sorted: bool = False,
) -> MPFit:
    """Fit a Marchenko-Pastur bulk to the eigenvalues of ``W^T W / n``, that is ``s^2 / n``.

    ``W`` has the ``shape``, ``p, n = sorted(shape)``, and ``p`` eigenvalues ``l``. Let ``q_k`` be
    the quantiles of the law of ratio ``p / n`` and variance 1 at the ``plotting`` positions, and
    the window the ranks ``ceil(trim p) <= k <= floor((1 - trim) p)`` in ascending order. The
    variance of the noise is, by ``method``,

    ``"bema"``
        ``sum q_k l_k / sum q_k^2`` over the window: the slope of eigenvalues against quantiles;
    ``"bema_gamma"``
        the same for noise whose columns have variances from a Gamma law of mean 1 and variance
        ``1 / theta``; ``theta`` and the edge by simulation (`gamma_fit`), which takes a ``key``;
    ``"trace"``
        the mean of all eigenvalues, spikes included;
    ``"clip"``
        the mean of those below the bulk's edge for that mean, 30 times over from the trace;
    ``"median"``
        the median over that of the law;
    ``"density"``
        that of the closest smoothed density of singular values.

    Spikes take the upper ranks, so that the noise is compared with quantiles that are too low: 10
    among 100 raise BEMA's variance by a tenth, 10 among 200 by half of that; ``"density"`` is least
    disturbed (-3 % and -2 %).

    **Exact zeros**, as after a truncation, are no part of the bulk: of ``rank`` others the ``k``-th
    keeps its place ``p - rank + k`` among all, and the window is that of the ``rank``. This is
    right where the smallest values were dropped. Where whole rows are dead, drop those, and pass
    the shape of the rest.

    Args:
      eigenvalues: ``[..., p]`` in any order.
      trim: share of the eigenvalues left out at either end of the window, where spikes and the
        rounding near 0 are; 0.2 as in the paper.
      beta: false positives of the edge, see `noise_edge`.
      plotting: at which probability the ``k``-th of ``p`` eigenvalues is expected. ``k/p`` is the
        paper's, with a bias of the variance of -4 % at 50 x 50 and -0.5 % at 300 x 500;
        ``(k-1)/p`` is that of the authors' R code, with the opposite bias; ``(k-1/2)/p`` has none.
      floor: eigenvalues up to this share of the largest count as zero; by default ``(16 eps)^2``,
        the rounding of squares of an SVD. Eigenvalues of a Gram matrix need ``16 eps``.
      paper_compat: ``"tw_quartic_over_3"`` as in `noise_edge`; for ``"cdf_zero_above_edge"`` the
        cdf of ``ks`` is 0 above the bulk, as in the code of arXiv 2303.08986: ``ks`` then jumps
        when a value of the window lies there, which is what keeps that paper's last layer whole.
      key: for ``bema_gamma``.
      assume_sorted: the eigenvalues ascend, as `eigvalsh` gives them, and are not sorted again,
        which is most of the time of a fit on a CPU. Wrong numbers if they do not.

    A sort and two dot products, but for ``bema_gamma`` (750 eigenvalue problems) and ``density``.
    Works at any scale and under ``jit``, ``vmap`` and ``grad``; gradients of ``bema_gamma`` and
    ``density`` hold what they search for fixed. Half precision and integers are read as float32.
    Raises ``ValueError`` for eigenvalues that do not fit the shape or are complex, an unknown
    option, ``trim`` out of [0, 1/2), ``floor`` out of [0, 1) and ``beta`` out of (0, 1). Warns if
    ``beta > 1/2``.
    Sources: arXiv 2006.00436 (BEMA), 2303.08986.

    >>> w = jax.random.normal(jax.random.key(0), (200, 300))
    >>> fit = fit_marchenko_pastur(jnp.linalg.svd(w, compute_uv=False) ** 2 / 300, w.shape)
    >>> abs(float(fit.variance) - 1) < 0.02, int(fit.spikes), float(fit.ks) < 0.02
    (True, 0, True)
    """
    p, n = sizes(shape)
    eigenvalues = spectra(eigenvalues, shape, "eigenvalues")
    check_choice(METHODS, method=method)
    check_choice(BEFORE, plotting=plotting)
    check_number("choose at least 0 and below 1/2", lambda share: 0 <= share < 0.5, trim=trim)
    if floor is not None:
        check_number("choose at least 0 and below 1", lambda share: 0 <= share < 1, floor=floor)
    if method == "bema_gamma":
        check_key(key, draws="method='bema_gamma' simulates")
    check_compat(paper_compat)
    check_beta(beta)
    compat = tuple(paper_compat)
    options = _Options((p, n), method, trim, beta, BEFORE[plotting], compat, floor, assume_sorted)
    return _fit(eigenvalues, key, options)


def follows_marchenko_pastur(fit: MPFit, *, gof_cutoff: float) -> Bool[Array, "*batch"]:
    """Whether there is a fit, and its ``ks`` is at most ``gof_cutoff``: the gate of RMT pruning.

    A layer whose bulk does not follow the law has no noise that could be cut off safely. A cutoff
    of 1 lets every fit pass. Works under ``jit`` and ``vmap``. Raises ``ValueError`` for one
    outside [0, 1].
    Source: arXiv 2303.08986.

    >>> fit = fit_marchenko_pastur(jnp.linspace(0.01, 4, 100), (100, 100))
    >>> bool(follows_marchenko_pastur(fit, gof_cutoff=1.0))
    True
    """
    check_number("choose between 0 and 1", lambda c: 0 <= c <= 1, gof_cutoff=gof_cutoff)
    return (fit.status <= MPStatus.BOUNDARY) & (fit.ks <= gof_cutoff)


class _Options(NamedTuple):
    """What is static under ``jit``; ``before`` is a value of ``BEFORE``."""

    shape: tuple[int, int]
    method: Method
    trim: float
    beta: float
    before: int
    compat: tuple[str, ...]
    floor: float | None
    assume_sorted: bool


class _Bulk(NamedTuple):
    """What is fitted, in units of the spectrum: ``factor`` is the edge of noise of variance 1,
    ``shares`` the fitted cdf at every eigenvalue."""

    variance: Array
    theta: Array
    factor: Array | float
    shares: Array
    status: Array


@partial(jax.jit, static_argnames="options")
def _fit(eigenvalues: Array, key: Array | None, options: _Options) -> MPFit:
    p = options.shape[0]
    dtype = eigenvalues.dtype
    floor = rounding(dtype) ** 2 if options.floor is None else options.floor
    spectrum = ordered(eigenvalues, floor, assume_sorted=options.assume_sorted)
    window = _window(spectrum, options.trim)
    positions = (2 * jnp.arange(1, p + 1) - options.before).astype(dtype) / (2 * p)
    if options.method == "bema_gamma":
        bulk = _simulated(key, spectrum, window, positions, options)
    else:
        bulk = _by_formula(spectrum, window, options)
    few = jnp.sum(window, axis=-1) < 2
    # NOT_FINITE overrules TOO_FEW, which overrules what the method says of itself.
    status = jnp.where(few, int(MPStatus.TOO_FEW), bulk.status)
    finite = spectrum.finite & jnp.isfinite(bulk.variance * bulk.factor * spectrum.unit)
    status = jnp.where(finite, status, int(MPStatus.NOT_FINITE)).astype(jnp.int32)
    distance = jnp.where(window, jnp.abs(positions - bulk.shares), 0)
    return _result(spectrum, bulk._replace(status=status), jnp.max(distance, axis=-1), options)


def _by_formula(spectrum: Spectrum, window: Array, options: _Options) -> _Bulk:
    variance, settled = simple_variance(
        options.method, spectrum, window, options.shape, before=options.before
    )
    factor = edge_factor(options.shape, options.beta, options.compat)
    theta = jnp.full_like(variance, jnp.inf)
    status = jnp.where(settled, int(MPStatus.OK), int(MPStatus.NOT_CONVERGED)).astype(jnp.int32)
    return _Bulk(variance, theta, factor, _shares(spectrum, variance, options), status)


def _simulated(key, spectrum: Spectrum, window: Array, positions: Array, options) -> _Bulk:
    fit = gamma_fit(key, spectrum, window, positions, options.shape, options.beta)
    status = jnp.where(fit.boundary, int(MPStatus.BOUNDARY), int(MPStatus.OK)).astype(jnp.int32)
    return _Bulk(fit.variance, fit.theta, fit.edge, fit.shares, status)


def _result(spectrum: Spectrum, bulk: _Bulk, ks: Array, options: _Options) -> MPFit:
    (p, n), unit = options.shape, spectrum.unit
    exists = bulk.status <= MPStatus.BOUNDARY
    edge = bulk.variance * bulk.factor
    above = jnp.sum(spectrum.values > edge[..., None], axis=-1).astype(jnp.int32)

    def number(value):
        return jnp.where(exists, value, jnp.nan)

    return MPFit(
        variance=number(bulk.variance * unit),
        edge=number(edge * unit),
        bulk_edge=number(bulk.variance * unit * marchenko_pastur_edges(p / n)[1]),
        # The root of each factor: their product may overflow. No root of NaN or 0, whose slope is
        # not finite and would spoil derivatives of the other fits of a batch.
        threshold=number(jnp.sqrt(n * jnp.where(exists, edge, 1)) * jnp.sqrt(unit)),
        spikes=jnp.where(exists, above, spectrum.rank),
        rank=spectrum.rank,
        ks=number(ks),
        theta=number(bulk.theta),
        status=bulk.status,
    )


def _window(spectrum: Spectrum, trim: float) -> Bool[Array, "*batch p"]:
    """Which ranks take part in the fit.

    Rounded up and down in integers: in floating point ``0.07 * 100`` is more than 7, and the window
    would begin one rank too late.
    """
    share, rank = rational(trim), spectrum.rank[..., None]
    below = share.numerator * rank
    first = -(-below // share.denominator)
    last = (rank * share.denominator - below) // share.denominator
    return (spectrum.place >= jnp.maximum(first, 1)) & (spectrum.place <= last)


def _shares(spectrum: Spectrum, variance: Array, options: _Options) -> Float[Array, "*batch p"]:
    """The fitted cdf at every value."""
    ratio = options.shape[0] / options.shape[1]
    scale = jnp.where(variance > 0, variance, 1)[..., None]
    scaled = spectrum.values / scale
    shares = marchenko_pastur_cdf(scaled, ratio)
    if "cdf_zero_above_edge" not in options.compat:
        return shares
    return jnp.where(scaled > marchenko_pastur_edges(ratio)[1], 0, shares)
