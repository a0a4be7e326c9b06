"""A network's tensors, one at a time, to the spectrum of each layer.

Nothing is kept but the eigenvalues, so that the memory needed is that of the largest layer.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from spectral_jax import weights
from spectral_jax.analysis.text import short_names

ENTRIES = 2**22  # of a matrix that are held in float64 at a time: 32 MB
SQUARED_IN_FLOAT64 = (1e-100, 1e100)  # largest entries whose squares and their sums stay normal
SQUARED_IN_FLOAT32 = (1e-12, 1e12)


@runtime_checkable
class Source(Protocol):
    """Tensors by name: their shapes without reading them, and each on demand.

    ``tied`` maps a name to an earlier one if both stand for one array.
    """

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    @property
    def skipped(self) -> Mapping[str, str]: ...

    @property
    def tied(self) -> Mapping[str, str]: ...

    def read(self, name: str) -> Any: ...


class Layer(NamedTuple):
    """A layer and its eigenvalues, ascending, pooled over its slices; none if it is not finite.

    They are those of the weights over ``unit``, which is 1 unless float64 cannot hold the squares.
    """

    view: weights.View
    eigenvalues: np.ndarray
    windowed: np.ndarray | None
    finite: bool
    unit: float


class Arrays:
    """A mapping or a pytree of arrays as a source; an array under two names is read once."""

    def __init__(self, params: Any) -> None:
        from spectral_jax.weights import named_leaves, tied_leaves

        self.tensors = named_leaves(params)
        self.tied = tied_leaves(self.tensors)
        self.skipped: dict[str, str] = {}

    def read(self, name: str) -> Any:
        """One array."""
        return self.tensors[name]


def select(plan: weights.Plan, patterns: Sequence[str]) -> tuple[weights.View, ...]:
    """The views whose name matches any of the shell patterns; all of them for no pattern.

    A name is also what the table shows for it: without the words that all names share.
    """
    if not patterns:
        return plan.views
    shown = short_names([view.name for view in plan.views])
    views = tuple(
        view
        for view, short in zip(plan.views, shown, strict=True)
        if any(_matches(name, each) for each in patterns for name in (view.name, short))
    )
    if not views:
        known = ", ".join(view.name for view in plan.views[:3])
        raise ValueError(f"layers {' '.join(patterns)} match nothing: there is {known}, ...")
    return views


def _matches(name: str, pattern: str) -> bool:
    """As the shell does, and to the letter: in a pattern the brackets of ``h[0]`` are a choice."""
    return name == pattern or fnmatchcase(name, pattern)


def spectra(
    source: Source,
    views: Sequence[weights.View],
    *,
    windows: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[Layer]:
    """Read each view, take its spectrum, forget it; ``windows`` gives the pooled one of FARMS."""
    held: dict[str, np.ndarray] = {}
    for view in views:
        # Queries, keys and values come from one tensor, which is read once.
        held = {name: held[name] for name in view.sources if name in held}
        for name in view.sources:
            if name not in held:
                held[name] = _float(source.read(name))
        matrix = np.asarray(view.read(*(held[name] for name in view.sources)))
        matrix, unit = in_a_unit(matrix, SQUARED_IN_FLOAT64)
        if math.isnan(unit):
            yield Layer(view, np.zeros(0), None, finite=False, unit=1.0)
            continue
        windowed = None if windows is None else windows(matrix)
        yield Layer(view, eigenvalues(matrix), windowed, finite=True, unit=unit)


def in_a_unit(matrix: np.ndarray, span: tuple[float, float]) -> tuple[np.ndarray, float]:
    """The matrix over a power of two, and that power: 1 if its largest entry lies within ``span``.

    The power is NaN for a matrix that holds NaN or infinity.
    """
    # Without a copy, which |matrix| would be.
    largest = max(float(matrix.max(initial=0.0)), -float(matrix.min(initial=0.0)))
    if not math.isfinite(largest):
        return matrix, math.nan
    if largest == 0 or span[0] < largest < span[1]:
        return matrix, 1.0
    unit = math.ldexp(1.0, min(math.frexp(largest)[1], 1023))
    return matrix.astype(np.float64) / unit, unit


def eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Squared singular values of ``[m, n]`` or pooled over ``[slices, m, n]``, ascending.

    By the Gram matrix of the short side in float64: for float32 weights its error, ``eps64
    max(values)``, lies a hundredfold below what the weights' own rounding does to the smallest.
    """
    m, n = matrix.shape[-2:]
    tall = matrix if m >= n else np.swapaxes(matrix, -2, -1)
    return np.sort(np.maximum(np.linalg.eigvalsh(_gram(tall)), 0.0), axis=None)


def _gram(tall: np.ndarray) -> np.ndarray:
    """``tall^T tall`` in float64, a block of rows at a time: a copy of all of it may not fit."""
    *_, m, n = tall.shape
    together = max(1, ENTRIES // n)
    gram = _product(tall[..., :together, :])
    for start in range(together, m, together):
        gram += _product(tall[..., start : start + together, :])
    return gram


def _product(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return np.swapaxes(rows, -2, -1) @ rows  # of one array: NumPy computes half of it


def _float(array: Any) -> np.ndarray:
    """The array on the host, in float32 where it has fewer bits (bfloat16, float8)."""
    array = np.asarray(array)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
