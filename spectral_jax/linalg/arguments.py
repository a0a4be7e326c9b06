"""Checks of arguments that only JAX can make: tolerances that may be traced, and random keys."""

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


def check_key(key: Any, *, draws: str) -> None:
    """Raise ``ValueError`` for what is no random key as ``jax.random.key`` makes them.

    >>> check_key(0, draws="mode='mc' draws targets")
    Traceback (most recent call last):
    ValueError: key=0 is no random key (mode='mc' draws targets): pass key=jax.random.key(seed)
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        raise ValueError(f"key={key!r} is no random key ({draws}): pass key=jax.random.key(seed)")
