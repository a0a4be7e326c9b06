"""FARMS exponents of all layers of a network: few programs, whatever the number of shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.tails.hill import hill_alpha
from spectral_jax.tails.power_law import Rule, power_law_fit
from spectral_jax.tails.windows import CHUNK, Method, farms_eigenvalues, farms_windows, squares
from spectral_jax.weights import map_by_shape

# Spectra are padded with zeros to 512 eigenvalues, or 4 times that, or 16 times, ...: a fit
# compiles once for each length, and layers have many.
SHORTEST = 512


def farms_alphas(
    matrices: Sequence[Float[Array, "..."]],
    *,
    window: int,
    cols_per_row: float = 1.0,
    samples: int | None = None,
    xmin: Rule = "median",
    paper_compat: Literal["peak_log10"] | None = None,
) -> Float[np.ndarray, " layers"]:
    """Tail exponent of the pooled windows of each matrix ``[m, n]`` or stack ``[positions, m, n]``.

    Args:
      window, cols_per_row, samples: the grid of ``farms_windows``.
      xmin: where the tail begins. ``"median"`` is ``hill_alpha`` of the eigenvalues of the windows'
        Gram matrices; ``"peak"`` and ``"ks"`` are the searches of ``power_law_fit`` among their
        squared singular values.
      paper_compat: that of ``power_law_fit``.

    NaN where a spectrum has no exponent, as where the matrix holds NaN or inf; half precision and
    integers are read as float32, at any scale.

    Windows of one size are decomposed together, whatever layers they are from, 2^24 entries at a
    time, and spectra are padded with zeros to few lengths: a ResNet-32, of 31 kernels in six
    shapes, takes seven compilations. Not for use inside ``jit``: there, ``farms_eigenvalues``.
    Raises ``ValueError`` if there is no matrix, and as ``farms_windows`` and ``power_law_fit``.

    >>> noise = jax.random.normal(jax.random.key(0), (128, 256))
    >>> bool(abs(farms_alphas([noise, noise.T], window=64, samples=4) - 2.15).max() < 0.1)
    True
    """
    if not len(matrices):
        raise ValueError("matrices is empty: pass at least one")
    grid = _Grid(window, cols_per_row, samples)
    # "peak_log10" compares eigenvalues with logarithms, so that their unit matters.
    absolute = paper_compat is not None
    spectra = _spectra(matrices, grid, "gram" if xmin == "median" else "svd", absolute=absolute)
    alphas = np.zeros(len(spectra))
    for members in _groups((_length(values), values.dtype) for values in spectra).values():
        length = _length(spectra[members[0]])
        padded = np.zeros((len(members), length), spectra[members[0]].dtype)
        for row, i in zip(padded, members, strict=True):
            row[-len(spectra[i]) :] = spectra[i]
        alphas[members] = _exponents(padded, xmin, paper_compat)
    return alphas


class _Grid(NamedTuple):
    window: int
    cols_per_row: float
    samples: int | None


def _spectra(
    matrices: Sequence[Array], grid: _Grid, method: Method, *, absolute: bool
) -> list[np.ndarray]:
    """The eigenvalues of all windows of each matrix, in no order.

    If not ``absolute`` each matrix is scaled by a power of two, so that squares do not underflow.
    """
    layers = [working(w, f"matrices[{i}]") for i, w in enumerate(matrices)]
    spectra: dict[int, np.ndarray] = {}
    for batch in _batches(layers, grid):
        found = _decomposed([layers[i] for i in batch], grid, method, absolute)
        spectra |= zip(batch, map(np.asarray, found), strict=True)
    return [spectra[i] for i in range(len(layers))]


def _batches(layers: Sequence[Array], grid: _Grid) -> Iterator[list[int]]:
    """Layers with windows of one size and dtype, not more than ``CHUNK`` entries of them."""
    cut = [_cut_shape(w.shape, grid) for w in layers]
    alike = zip(cut, layers, strict=True)
    for members in _groups((shape[-2:], w.dtype) for shape, w in alike).values():
        batch: list[int] = []
        entries = 0
        for i in members:
            if batch and entries + prod(cut[i]) > CHUNK:
                yield batch
                batch, entries = [], 0
            batch.append(i)
            entries += prod(cut[i])
        yield batch


@lru_cache
def _cut_shape(shape: tuple[int, ...], grid: _Grid) -> tuple[int, ...]:
    layer = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(partial(farms_windows, **grid._asdict()), layer).shape


@partial(jax.jit, static_argnames=("grid", "method", "absolute"))
def _decomposed(layers: list[Array], grid: _Grid, method: Method, absolute: bool) -> list[Array]:
    """The eigenvalues of all windows of each layer; their windows are of one size."""
    if not absolute:
        layers = [w / unit_of(w) for w in layers]
    # A single layer may have more windows than a chunk holds: that function cuts them in parts.
    if len(layers) == 1:
        values = farms_eigenvalues(layers[0], **grid._asdict(), method=method, pooled=False)
        return [values.ravel()]
    cut = map_by_shape(dict(enumerate(layers)), partial(farms_windows, **grid._asdict()))
    windows = [each.reshape(-1, *each.shape[-2:]) for each in cut.values()]
    values = squares(jnp.concatenate(windows), method)
    ends = np.cumsum([len(each) for each in windows])[:-1]
    return [part.ravel() for part in jnp.split(values, ends)]


@partial(jax.jit, static_argnames=("xmin", "paper_compat"))
def _exponents(spectra: Array, xmin: Rule, paper_compat) -> Array:
    if xmin == "median":
        return hill_alpha(spectra)
    # One after another: under `vmap` every search would take as many turns as the longest.
    search = partial(power_law_fit, xmin=xmin, paper_compat=paper_compat)
    return jax.lax.map(lambda spectrum: search(spectrum).alpha, spectra)


def _length(spectrum: np.ndarray) -> int:
    length = SHORTEST
    while length < len(spectrum):
        length *= 4
    return length


def _groups(keys: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    """Where each key occurs, in the order of their first occurrence."""
    places = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return places
