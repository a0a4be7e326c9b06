"""Options of public functions that are plain numbers, refused in one way wherever they are not."""

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


def check_count(**options: Any) -> None:
    """Raise ``ValueError`` for an option that is no whole number from 1 up.

    >>> check_count(rank=True)
    Traceback (most recent call last):
    ValueError: rank=True: choose a whole number, at least 1
    """
    for name, value in options.items():
        if not is_count(value):
            raise ValueError(f"{name}={value!r}: choose a whole number, at least 1")


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 1 up, as the sides of a shape are."""
    return isinstance(value, WHOLE) and not isinstance(value, bool) and int(value) >= 1
