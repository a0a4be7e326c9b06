"""The check of a tolerance, which may be a Python number or a traced array."""

from __future__ import annotations

import math
from typing import Any

import jax

from spectral_jax._options import check_number


def tolerance(name: str, value: Any, *, traced: bool = False) -> Any:
    """``value``, which must be finite and not negative, else ``ValueError``.

    With ``traced`` an array passes unchecked: under ``jit`` it has no value yet. If it is NaN no
    comparison with it holds, and the solver reports that nothing has converged.
    """
    if not (traced and isinstance(value, jax.Array)):
        wanted = "choose a finite number, 0 or above"
        check_number(wanted, lambda size: 0 <= size < math.inf, **{name: value})
    return value
