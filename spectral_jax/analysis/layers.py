"""A network's tensors, one at a time, to the spectrum of each layer.

Nothing is kept but the eigenvalues, so that the memory needed is that of the largest layer.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from spectral_jax import weights
from spectral_jax._door.source import SQUARED_IN_FLOAT64, Source, in_a_unit
from spectral_jax._door.source import Arrays as Arrays  # its former home, for code that has it

ENTRIES = 2**22  # of a matrix that are held in float64 at a time: 32 MB


class Layer(NamedTuple):
    """A layer and its eigenvalues, ascending, pooled over its slices; none if it is not finite.

    They are those of the weights over ``unit``, which is 1 unless float64 cannot hold the squares.
    """

    view: weights.View
    eigenvalues: np.ndarray
    windowed: np.ndarray | None
    finite: bool
    unit: float

    @property
    def possible_rank(self) -> int:
        """How many eigenvalues can be above 0: of a product of factors fewer than there are."""
        rank = math.prod(self.view.shape[:-2]) * min(self.view.shape[-2:])
        return rank if self.view.rank is None else self.view.rank


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
    """The array on the host, in float32 where it has fewer bits (bfloat16), in float64 if more."""
    array = np.asarray(array)
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
