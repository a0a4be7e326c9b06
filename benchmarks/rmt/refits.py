"""How fast all layers of a shape are fitted again, beside loops over layers."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import optimize

from benchmarks.harness import (
    NOTHING,
    Table,
    Target,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from benchmarks.rmt.null import Shape, noise_spectra
from spectral_jax import laws
from spectral_jax.rmt import fit_marchenko_pastur, noise_edge

SPEEDUP, AGREEMENT = Target(">=", 5), Target("<=", 1e-4)


class Size(NamedTuple):
    layers: tuple[tuple[int, Shape], ...]
    repeats: int


FULL = Size(layers=((48, (64, 64)), (24, (256, 1024)), (12, (768, 768))), repeats=50)
SMOKE = Size(layers=((3, (16, 24)),), repeats=1)


def refit(size: Size) -> Table:
    """All layers of a shape in one call, beside loops over layers."""
    with one_core():
        rows = [cells for count, shape in size.layers for cells in _refit(count, shape, size)]
    note = (
        "From the ascending eigenvalues of all layers of a shape to variance, edge, spikes and KS "
        "distance, in one vmapped call; the decomposition, which is the same for all, is left out. "
        "'SciPy' is a loop over layers that finds each quantile of the window by Brent's method, "
        "as the code of arXiv 2503.01922 does at every refit (which integrates the density "
        "numerically, too: here its closed form is spared that). 'NumPy' is one whose quantiles "
        "were tabulated beforehand, as no peer does. Both in float64. 'Sorting' is ours without "
        "`assume_sorted`: XLA sorts floats on a CPU slower than NumPy. What is left of ours is an "
        "arc tangent or two per value, for the KS distance, which XLA takes one at a time. "
        "Agreement: largest relative difference of an edge."
    )
    return Table("Refit of all layers of a shape", note, rows)


def _refit(count: int, shape: Shape, size: Size) -> Iterator[tuple[str, ...]]:
    spectra = jnp.sort(noise_spectra(shape, count))
    host = np.asarray(spectra, float)
    table, edge = quantiles(shape), noise_edge(shape)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: fit_marchenko_pastur(spectra, shape, assume_sorted=True),
        "sorting": lambda: fit_marchenko_pastur(spectra, shape),
        "numpy": lambda: [fit_layer(layer, shape, table, edge) for layer in host],
    }
    times = interleaved(calls, repeats=size.repeats)
    slow = interleaved({"scipy": lambda: by_root_finding(host[0], shape)}, repeats=1)["scipy"]
    what = f"{count} layers of {shape[0]} x {shape[1]}"
    yield row(
        f"{what}: NumPy loop",
        with_first(times["ours"]),
        times["numpy"],
        ratio_text(times["numpy"], times["ours"]),
        SPEEDUP,
        ratio_of(times["numpy"], times["ours"]),
    )
    yield row(
        f"{what}: NumPy loop, sorting",
        with_first(times["sorting"]),
        times["numpy"],
        ratio_text(times["numpy"], times["sorting"]),
    )
    scaled = count * slow.median / times["ours"].median
    yield row(
        f"{what}: SciPy loop",
        with_first(times["ours"]),
        f"{count} x {slow}",
        f"{scaled:.0f}",
        SPEEDUP,
        scaled,
    )
    edges = np.array([fit_layer(layer, shape, table, edge)[1] for layer in host])
    apart = np.max(np.abs(np.asarray(fit_marchenko_pastur(spectra, shape).edge) / edges - 1))
    yield row(f"{what}: agreement", f"{apart:.1e}", NOTHING, NOTHING, AGREEMENT, apart)


def quantiles(shape: Shape) -> np.ndarray:
    p, n = sorted(shape)
    return laws.marchenko_pastur_quantile((np.arange(1, p + 1) - 0.5) / p, p / n)


def fit_layer(spectrum: np.ndarray, shape: Shape, table: np.ndarray, edge: float):
    """The same estimate of one layer, in NumPy."""
    p, n = sorted(shape)
    window = slice(int(np.ceil(0.2 * p)) - 1, int(np.floor(0.8 * p)))
    values, inside = np.sort(spectrum)[window], table[window]
    variance = inside @ values / (inside @ inside)
    positions = (np.arange(1, p + 1) - 0.5)[window] / p
    ks = np.abs(positions - laws.marchenko_pastur_cdf(values / variance, p / n)).max()
    return variance, variance * edge, int((spectrum > variance * edge).sum()), ks


def by_root_finding(spectrum: np.ndarray, shape: Shape):
    """The same estimate, each quantile of the window by Brent's method."""
    p, n = sorted(shape)
    low, high = laws.marchenko_pastur_edges(p / n)
    table = np.full(p, np.nan)
    for k in range(int(np.ceil(0.2 * p)), int(np.floor(0.8 * p)) + 1):
        place = (k - 0.5) / p
        table[k - 1] = optimize.brentq(
            lambda x, place=place: laws.marchenko_pastur_cdf(x, p / n) - place, low, high
        )
    return fit_layer(spectrum, shape, table, noise_edge(shape))
