"""The dtype and the scale in which spectra are computed, for every boundary of the library."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

WORKING = (jnp.float32, jnp.float64)


def working(x: ArrayLike, name: str = "a") -> Float[Array, "*shape"]:
    """``x`` in the dtype in which spectra are computed, under the ``name`` errors call it by.

    float32 and float64 stay. bfloat16, float16 and float8 become float32, for no LAPACK is narrower
    and an eigenvalue rounded at every step would not have the digits of its matrix. Integers and
    booleans become the default float, those of 64 bits too, which JAX would cut to 32 unseen.

    Works under ``jit``, ``vmap`` and ``grad`` (which comes back in the dtype of ``x``). Raises
    ``ValueError`` for complex numbers, which would lose their imaginary part, and for what is no
    array.

    >>> working(jnp.ones(2, jnp.bfloat16)).dtype, working(jnp.arange(2)).dtype
    (dtype('float32'), dtype('float32'))
    """
    if not isinstance(x, jax.Array):  # asarray of an Array costs as much as a small program
        try:
            x = jnp.asarray(_of_the_host(x))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name} is no array of numbers: {error}") from None
    if x.dtype in WORKING:
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{name} is a random key: pass an array of numbers in its place")
    if jnp.iscomplexobj(x):
        raise ValueError(
            f"{name} has the complex dtype {x.dtype}: pass real matrices (the real and the "
            "imaginary part apart, or [[re, -im], [im, re]], which has each singular value twice)"
        )
    return x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else float)


def _of_the_host(x: ArrayLike) -> ArrayLike:
    """As JAX can read it: whole numbers of 64 bits as floats, and no objects or words."""
    if isinstance(x, int) and not isinstance(x, bool):
        return np.asarray(x, jnp.result_type(float))
    if not isinstance(x, np.ndarray | np.generic):
        return x
    if x.dtype.kind in "OSUMm":
        raise ValueError(f"its dtype is {x.dtype}")
    wide = x.dtype.kind in "iu" and x.dtype.itemsize == 8
    return x.astype(jnp.result_type(float)) if wide else x


def power_of_two(size: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The power of two next above a ``size`` (a largest magnitude, a norm), to divide by exactly.

    ``x / power_of_two(max|x|)`` rounds nothing and lies within [1/2, 1), so that squares, products
    and their sums neither underflow nor overflow. 1 where ``size`` is 0, infinite or NaN. Near the
    dtype's largest number the quotient may reach 4: a larger divisor would have a subnormal
    inverse, which XLA on a CPU takes for 0.

    Works under ``jit`` and ``vmap``; a constant to ``grad``, as a choice of unit is.

    >>> power_of_two(jnp.array([0.75, 1.0, 5e30, 0.0])).tolist()
    [1.0, 2.0, 5.070602400912918e+30, 1.0]
    """
    size = jax.lax.stop_gradient(size)
    usable = (size > 0) & jnp.isfinite(size)
    # A floating-point number with its fraction bits cleared is the power of two below it. The mask
    # for the exponent bits is the bit pattern of infinity. frexp and ldexp would do the same in
    # fifty operations, which takes as long as a whole fit of a small layer.
    bits = jnp.dtype(f"int{8 * size.dtype.itemsize}")
    exponent = np.asarray(np.inf, size.dtype).view(bits)
    below = jax.lax.bitcast_convert_type(size, bits) & exponent
    above = 2 * jax.lax.bitcast_convert_type(below, size.dtype)
    smallest = float(jnp.finfo(size.dtype).tiny)
    return jnp.where(usable, jnp.clip(above, smallest, 1 / smallest), 1)


def unit_of(
    x: Float[Array, "..."], axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False
) -> Float[Array, "..."]:
    """The `power_of_two` next above the largest magnitude of ``x``, along ``axis`` if given.

    1 where ``x`` is empty, zero, or holds NaN or inf.

    >>> float(unit_of(jnp.array([3.0, -5.0]))), unit_of(jnp.zeros((0, 2)), axis=0).tolist()
    (8.0, [1.0, 1.0])
    """
    return power_of_two(jnp.max(jnp.abs(x), axis=axis, keepdims=keepdims, initial=0))
