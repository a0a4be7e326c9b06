"""Options of public functions that are plain numbers, refused in one way wherever they are not."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

# Not numbers.Real and numbers.Integral: asking an abstract class takes six times as long.
REAL = int, float, np.integer, np.floating
WHOLE = int, np.integer


def check_number(wanted: str, accepts: Callable[[Any], bool], **options: Any) -> None:
    """Raise ``ValueError`` for an option that is no number or that ``accepts`` does not take.

    Comparisons refuse NaN by themselves; ``True`` is no number, though Python counts it as 1.

    >>> check_number("choose above 0", lambda x: x > 0, tol=-1.0)
    Traceback (most recent call last):
    ValueError: tol=-1.0: choose above 0
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, REAL) or not accepts(value):
            raise ValueError(f"{name}={value!r}: {wanted}")


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


def check_count(**options: Any) -> None:
    """Raise ``ValueError`` for an option that is no whole number from 1 up; see ``count``."""
    for name, value in options.items():
        count(name, value)


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 1 up, as the sides of a shape are."""
    return isinstance(value, WHOLE) and not isinstance(value, bool) and int(value) >= 1
