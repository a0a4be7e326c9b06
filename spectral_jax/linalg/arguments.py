"""Tolerances as people type them, or as a program traces them."""

from __future__ import annotations

import math
from typing import Any

import jax

from spectral_jax._options import check_number


def tolerance(name: str, value: Any) -> Any:
    """``value``, which must be finite and not negative, else ``ValueError``.

    A traced number passes: it has no value yet, and a comparison with NaN is never met.
    """
    if not isinstance(value, jax.core.Tracer):
        wanted = "choose a finite number, 0 or above"
        check_number(wanted, lambda size: 0 <= size < math.inf, **{name: value})
    return value
