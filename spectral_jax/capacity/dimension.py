"""How many directions of a spectrum count: at a sample size, a ridge, or by spread alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax._options import check_number, count
from spectral_jax.capacity.sloppiness import sloppiness
from spectral_jax.capacity.spectrum import InputSpectrum, jackknife
from spectral_jax.linalg.jackknife import Interval
from spectral_jax.linalg.precision import power_of_two, working
from spectral_jax.linalg.spread import Resolved, known, resolved, spread


class Dimension(NamedTuple):
    """A number of directions, and what it could be if all below the floor counted."""

    value: Float[Array, ""]
    """From the eigenvalues above the floor."""
    at_most: Float[Array, ""]
    """If every value below the floor were as large as the floor. The same: the floor hides
    nothing that matters here."""


class DataDimension(NamedTuple):
    """What the data's spectrum says of a model's size. ``str`` of it is a paragraph."""

    determined: Interval
    """Directions of the input that ``n`` examples determine: `effective_dimension`."""
    spread: Interval
    """Directions that carry the variance: ``Spread.participation``."""
    ninety: Interval
    """Directions that carry nine tenths of it."""
    n: int
    p: int
    decades: float
    r_squared: float
    """These two as in `Sloppiness`."""
    at_most: float
    """``determined`` if every value below the floor counted too."""
    sizes: tuple[int, int]
    """The model sizes it speaks for, as widths of a first layer: from ``ninety``, below which
    variance is dropped, to ``determined``, above which rows determine nothing."""
    says: str
    cannot_know: str

    def __str__(self) -> str:
        return f"{self.says}\n{self.cannot_know}"


def effective_dimension(
    spectrum: Resolved | Float[ArrayLike, " k"],
    *,
    n: int,
    epsilon: ArrayLike,
    floor: ArrayLike | None = None,
) -> Dimension:
    """``p(n, epsilon) = #{lambda_i > epsilon / (2 (n - 1))}``: the directions that data determine.

    With a prior of precision ``epsilon``, the posterior along an eigenvector of a *mean* loss of
    curvature ``lambda`` has the precision ``epsilon + 2 (n - 1) lambda``: the second term, which
    comes from the data, is the larger one for these.

    Args:
      spectrum: of a Hessian, Gauss-Newton matrix or input correlation, with its floor; or an array.
      n: examples, at least 2.
      epsilon: the prior's precision, in the unit of the eigenvalues.
      floor: of an array, see `sloppiness`.

    Works under ``jit`` and ``vmap``; a count has no derivative. Raises ``ValueError`` for fewer
    than two examples or an ``epsilon`` below 0; NaN for an array below 0.
    Source: arXiv 2110.14163, with the factor 2 of an exact second-order expansion.

    >>> float(effective_dimension(10.0 ** -jnp.arange(6.0), n=1001, epsilon=1.0).value)
    4.0
    """
    n = count("n", n, least=2)
    epsilon = _number("choose at least 0", lambda e: e >= 0, epsilon=epsilon)
    values, least = resolved(spectrum, floor)
    threshold = epsilon / (2.0 * (n - 1))
    hidden = jnp.where(least > threshold, jnp.sum(values <= least), 0)
    value = known(jnp.sum(values > jnp.maximum(threshold, least)), values)
    value = jnp.where(jnp.isnan(threshold), jnp.nan, value)
    return Dimension(value, value + known(hidden, values))


def n_effective(
    spectrum: Resolved | Float[ArrayLike, " k"], *, alpha: ArrayLike, floor: ArrayLike | None = None
) -> Dimension:
    """``N_eff = sum lambda / (lambda + alpha)``: the parameters that a ridge ``alpha`` leaves free.

    ``alpha`` has the unit of the eigenvalues. Works under ``jit``, ``vmap`` and ``grad``. Raises
    ``ValueError`` for an ``alpha`` not above 0; NaN for an array that is not.
    Source: MacKay 1992; Maddox, Benton & Wilson 2020 (arXiv 2003.02139).

    >>> round(float(n_effective(10.0 ** -jnp.arange(6.0), alpha=1e-3).value), 5)
    3.499
    """
    alpha = _number("choose above 0", lambda a: a > 0, alpha=alpha)
    values, least = resolved(spectrum, floor)
    # In units in which the square of a sum, which a derivative has, does not underflow.
    unit = power_of_two(jnp.maximum(jnp.max(values, initial=0), alpha))
    above, values, least, alpha = values > least, values / unit, least / unit, alpha / unit
    kept = jnp.where(above, values, 1)
    value = known(jnp.sum(jnp.where(above, kept / (kept + alpha), 0)), values)
    value = jnp.where(jnp.isnan(alpha), jnp.nan, value)
    return Dimension(value, value + jnp.sum(jnp.where(above, 0, least / (least + alpha))))


def data_dimension(spectrum: InputSpectrum, *, noise: float | None = None) -> DataDimension:
    """Look at the data's spectrum before choosing the model's size.

    Counts the directions with ``(n - 1) lambda > noise``, along which ridge regression trusts the
    rows more than its prior (`effective_dimension` at ``epsilon = 2 noise``), and those that carry
    the variance, with jackknife intervals, and says what this means and what it does not.

    Args:
      noise: the variance of a label's noise over the squared size of the weights that are expected;
        the mean eigenvalue by default: a signal as strong as its noise.

    Not for use under ``jit``. Raises ``ValueError`` for a spectrum without blocks or with one
    without which there is none, of rank 0, or a ``noise`` not above 0.

    >>> import numpy as np
    >>> from spectral_jax.capacity import input_spectrum
    >>> table = np.random.default_rng(0).normal(size=(500, 20)) * 0.5 ** np.arange(20)
    >>> found = data_dimension(input_spectrum(table))
    >>> round(found.determined.value), round(found.ninety.value), found.p
    (7, 2, 20)
    """
    if spectrum.rank == 0:
        raise ValueError("the spectrum has rank 0: all columns are constant, or zero")
    if jnp.isnan(spectrum.replicates).any():
        raise ValueError(
            "without one block of rows two columns have no row in common, so that no interval is "
            "known: shuffle the rows, leave a column out, or choose missing='rows'"
        )
    mean = float(jnp.sum(spectrum.values)) / spectrum.p
    if noise is None:
        noise = mean
    noise = np.asarray(noise).item()
    check_number("choose a finite number above 0", lambda x: 0 < x < math.inf, noise=noise)

    def determined(s):
        return effective_dimension(s, n=s.n, epsilon=2 * noise).value

    counted = _whole(jackknife(spectrum, determined), spectrum.rank)
    carried = _whole(jackknife(spectrum, _ninety), spectrum.rank)
    summary = sloppiness(spectrum)
    most = effective_dimension(spectrum, n=spectrum.n, epsilon=2 * noise).at_most
    low, high = sorted((round(carried.value), round(counted.value)))
    result = DataDimension(
        determined=counted,
        spread=jackknife(spectrum, lambda s: spread(s).participation),
        ninety=carried,
        n=spectrum.n,
        p=spectrum.p,
        decades=float(summary.decades),
        r_squared=float(summary.r_squared),
        at_most=float(most),
        sizes=(low, high),
        says="",
        cannot_know=CANNOT_KNOW,
    )
    return result._replace(says=_words(result))


# From where on an even fall is called sloppy. The digits of scikit-learn have 5.6 and 0.9.
SLOPPY_DECADES, SLOPPY_FIT = 3.0, 0.8
CANNOT_KNOW = (
    "What a spectrum of inputs cannot know: which directions the labels depend on (a tiny one may "
    "decide), whether that dependence is linear, and how a deeper network would change its inputs. "
    "It bounds what a linear first layer can use of these rows, not what the task needs."
)


def _words(found: DataDimension) -> str:
    sloppy = found.decades >= SLOPPY_DECADES and found.r_squared >= SLOPPY_FIT
    fall = "evenly: the data are sloppy" if sloppy else "unevenly"
    hidden = found.at_most > found.determined.value
    more = f", or {found.at_most:.0f} with those that rounding hides," * hidden
    return (
        f"{found.n} rows determine about {found.determined.value:.0f} "
        f"({found.determined.low:.0f} to {found.determined.high:.0f}){more} of {found.p} "
        f"directions, and "
        f"{found.ninety.value:.0f} of them carry nine tenths of the variance. A first layer of "
        f"fewer than {found.ninety.value:.0f} units must drop some of that. What more than "
        f"{found.determined.value:.0f} units could add, these rows do not determine: there the "
        f"prior decides, that is initialisation and weight decay. The eigenvalues fall over "
        f"{found.decades:.1f} decades, {fall} (R^2 of a straight line in the logarithm: "
        f"{found.r_squared:.2f})."
    )


def _ninety(spectrum: Resolved) -> Array:
    """How many of the largest values make nine tenths of the sum."""
    values = jnp.where(spectrum.values > spectrum.floor, spectrum.values, 0)
    return jnp.sum(jnp.cumsum(values) < 0.9 * jnp.sum(values)) + 1


def _whole(interval: Interval, most: int) -> Interval:
    """Of a count: at least half a direction either way, within 1 and the rank."""
    low = max(1.0, float(math.floor(min(interval.low, interval.value - 0.5))))
    high = min(float(most), float(math.ceil(max(interval.high, interval.value + 0.5))))
    return interval._replace(low=min(low, interval.value), high=max(high, interval.value))


def _number(wanted: str, accepts: Callable[[Any], bool], **option: Any) -> Any:
    """A checked Python number, or an array in a working dtype, NaN where it is not accepted."""
    ((name, value),) = option.items()
    if isinstance(value, jax.Array | np.ndarray):
        value = working(value, name)
        return jnp.where(accepts(value), value, jnp.nan)
    check_number(wanted, accepts, **option)
    return value
