"""Tolerances as people type them, or as a program traces them."""

from __future__ import annotations

import math
from typing import Any

import jax

from spectral_jax._options import check_number


def tolerance(name: str, value: Any, *, traced: bool = False) -> Any:
    """``value``, which must be finite and not negative, else ``ValueError``.

    traced: an array passes, for it may have no value yet; a comparison with NaN is never met.
    """
    if not (traced and isinstance(value, jax.Array)):
        wanted = "choose a finite number, 0 or above"
        check_number(wanted, lambda size: 0 <= size < math.inf, **{name: value})
    return value
