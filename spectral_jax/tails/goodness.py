"""Could a power law have made this spectrum? A p-value by bootstrap."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from spectral_jax._options import check_count
from spectral_jax.linalg.arguments import check_key
from spectral_jax.tails.power_law import PowerLawFit, Rule, power_law_fit, xmin_value
from spectral_jax.tails.support import FitStatus, Support, check_floor, spectra, support

ELEMENTS = 2**18  # eigenvalues, over all draws, that are fitted together: bounds the memory


class Goodness(NamedTuple):
    """The share of synthetic spectra that fit worse than the real one, with its standard error.

    The error is that of the finite number of draws, with one more success and one more failure
    counted so that it is never 0. ``distances`` are the ``ks`` of the draws; ``status``, a
    ``FitStatus``, is that of the fit under test. Where there was none the rest is NaN.
    """

    p_value: Float[Array, ""]
    standard_error: Float[Array, ""]
    distances: Float[Array, " draws"]
    status: Int[Array, ""]


def goodness_of_fit(
    key: PRNGKeyArray,
    eigenvalues: Float[Array, " N"],
    fit: PowerLawFit,
    *,
    draws: int = 200,
    xmin: Rule | float | Float[Array, ""] = "ks",
    floor: float | None = None,
) -> Goodness:
    """Test a power-law ``fit`` of ``eigenvalues`` against ``draws`` spectra made from it.

    A draw has as many values as the spectrum: each comes from the fitted law with probability
    ``tail / N``, and is otherwise one of the eigenvalues below ``xmin``, at random. It is fitted
    anew, ``xmin`` included, and ``p`` is the share of draws with ``ks`` at least that of the fit:
    a small ``p`` rules the power law out; a large one says little when the tail is short.
    To tell ``p`` to within ``e`` takes ``1 / (4 e^2)`` draws; the default of 200 gives .035. Draws
    are independent values, whereas eigenvalues repel each other and are spaced more evenly: a
    matrix' spectrum can fit better than any draw, with ``p`` near 1.

    ``xmin`` and ``floor`` are those with which `power_law_fit` made ``fit``. ``draws`` searches,
    several at a time for small ``N``. Works under ``jit`` and ``vmap``; no gradient. Raises
    ``ValueError`` if ``draws`` is below 1, for several spectra, for what is no key, and as
    `power_law_fit` does.
    Source: Clauset, Shalizi & Newman 2009, section 4.1 (arXiv 0706.1062).

    >>> x = jax.random.exponential(jax.random.key(0), (500,))
    >>> fit = power_law_fit(x, xmin=0.1)
    >>> float(goodness_of_fit(jax.random.key(1), x, fit, draws=50, xmin=0.1).p_value)
    0.0
    """
    check_count(draws=draws)
    check_floor(floor)
    check_key(key, draws="spectra are drawn from the fit")
    eigenvalues = spectra(eigenvalues)
    if eigenvalues.ndim > 1 or jnp.ndim(fit.alpha):
        raise ValueError(
            f"eigenvalues has shape {eigenvalues.shape}, fit {jnp.shape(fit.alpha)}: pass one "
            "spectrum and its fit, and use jax.vmap for more"
        )
    if isinstance(xmin, str):
        return _bootstrap(key, eigenvalues, fit, None, draws=draws, rule=xmin, floor=floor)
    value = xmin_value(xmin, eigenvalues.dtype)
    return _bootstrap(key, eigenvalues, fit, value, draws=draws, rule=None, floor=floor)


@partial(jax.jit, static_argnames=("draws", "rule", "floor"))
def _bootstrap(key, eigenvalues, fit, value, *, draws, rule, floor) -> Goodness:
    found = support(eigenvalues, floor)
    sample = _sampler(found, fit)
    start = rule if value is None else value / found.unit
    together = max(1, min(draws, ELEMENTS // len(eigenvalues)))

    # A draw has no rounding errors to leave out, however far its values lie below the largest.
    def distance(key):
        return power_law_fit(sample(key), xmin=start, floor=0.0).ks

    distances = jax.lax.map(distance, jax.random.split(key, draws), batch_size=together)
    worse = jnp.sum(distances >= fit.ks).astype(distances.dtype)
    # Laplace's rule of succession: with no draw worse, the plain error would be 0 however many
    # draws there are.
    cautious = (worse + 1) / (draws + 2)
    error = jnp.sqrt(cautious * (1 - cautious) / draws)
    fitted = fit.status <= FitStatus.BOUNDARY

    def number(value):
        return jnp.where(fitted, value, jnp.nan)

    return Goodness(number(worse / draws), number(error), number(distances), fit.status)


def _sampler(found: Support, fit: PowerLawFit):
    """A function from a key to a draw, in units of the spectrum; a tail that overflows is cut."""
    values = jnp.sort(found.kept)
    n, most = len(values), float(jnp.finfo(values.dtype).max)
    count = jnp.sum(found.keep)
    below = jnp.maximum(count - fit.tail, 0)
    share = fit.tail.astype(values.dtype) / jnp.maximum(count, 1).astype(values.dtype)
    xmin = fit.xmin / found.unit

    def sample(key):
        # All random numbers in one call: each call to the generator takes long to compile.
        which, height, rest = jax.random.uniform(key, (3, n), values.dtype)
        tail = jnp.minimum(xmin * (1 - height) ** (-1 / (fit.alpha - 1)), most)
        place = jnp.minimum(jnp.floor(rest * below.astype(values.dtype)).astype(int), below - 1)
        body = values[jnp.clip(n - count + place, 0, n - 1)]
        drawn = jnp.where(which < share, tail, body)
        return jnp.where(jnp.arange(n) < count, drawn, 0)

    return sample
