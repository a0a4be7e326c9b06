"""Where a command's tensors come from, which of them it takes, and in which unit."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import numpy as np

from spectral_jax import weights
from spectral_jax._door.table import short_names

SHOW_PROGRESS_ABOVE = 3_000_000  # weights; fewer are done before a bar is drawn
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


class Arrays:
    """A mapping or a pytree of arrays as a source; an array under two names is read once."""

    def __init__(self, params: Any) -> None:
        from spectral_jax.weights import named_leaves, require_arrays, tied_leaves

        require_arrays(params)
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
    if isinstance(patterns, str):  # letter by letter, the "*" of "conv*" would match everything
        patterns = [patterns]
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
