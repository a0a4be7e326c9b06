"""Counts and tolerances as people type them, checked in one way at every boundary."""

import math
import operator
from typing import Any

import jax


def count(name: str, value: Any, *, least: int = 1, most: int | None = None, why: str = "") -> int:
    """``value`` as an ``int`` within ``least .. most``, else ``ValueError``; ``why`` is the limit.

    ``True`` is an ``int`` to Python, and no count; NumPy's integers are.

    >>> count("k", 3, most=5)
    3
    """
    limits = f"at least {least}" if most is None else f"{least} <= {name} <= {most}"
    advice = f"choose {limits}{why and f' ({why})'}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} is not an integer: {advice}") from None
    if isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not a number: {advice}")
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name}={number}: {advice}")
    return number


def tolerance(name: str, value: Any) -> Any:
    """``value``, which must be finite and not negative, else ``ValueError``.

    A traced number passes: it has no value yet, and a comparison with NaN is never met.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}: choose a finite number, 0 or above")
    return value
