"""The magnitude of an operator, which products that are made anyway tell.

The squares inside a solver (lengths, residuals, Gram matrices) leave the range of float32 for
operators below 1e-19 or above 1e19. Every solver therefore works on ``factor * op``, of ordinary
magnitude, and divides what it found; the factor is a power of two, so that neither rounds anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from spectral_jax.linalg.operators import SymmetricOperator
from spectral_jax.linalg.precision import power_of_two

# A start can be nearly an eigenvector of an eigenvalue near 0: seen through it an operator is
# smaller than it is, never larger. So what is seen becomes 2^-12: in float32 squares hold for an
# operator 1e21 times as large, and for a residual that is rounding of one as large. No more, as
# the derivative by a number relative to a magnitude is as large as that.
HEADROOM = 2.0**12


def factor_of(images: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The factor for an operator whose products with unit vectors are ``images``."""
    size = power_of_two(jnp.max(jnp.abs(images)))
    # Of a larger one the inverse would be subnormal, which XLA on a CPU takes for 0.
    most = 2.0 ** -jnp.finfo(size.dtype).minexp
    return 1 / (HEADROOM * jnp.minimum(size, most / HEADROOM))


def holds_digits(factor: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether products of the operator keep their digits: below, addends are taken for 0 (XLA)."""
    span = jnp.finfo(factor.dtype)
    return factor <= float(span.eps) / (float(span.tiny) * HEADROOM)


def known_factor(
    op: SymmetricOperator, images: Float[Array, "s n"], generic: Float[Array, " n"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """``factor_of(images)``, and how many products that took.

    None, but for images that vanish, as those of a start in the null space: one, with ``generic``.
    """
    size = jnp.max(jnp.abs(images))
    return factor_of(_size_seen(op, generic, size)), (size == 0).astype(jnp.int32)


def seen(
    op: SymmetricOperator, factor: Float[Array, ""], x: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """``op @ x``, and the factor to multiply it by, which the first product finds, given 0 for it.

    Multiplying is left to what reads the image anyway: passes over vectors are what a step costs.
    """
    image = op @ x
    return image, jax.lax.cond(factor == 0, lambda: factor_of(image), lambda: factor)


@custom_vmap
def _size_seen(op: SymmetricOperator, generic: Array, size: Array) -> Array:
    return jax.lax.cond(size == 0, lambda: jnp.max(jnp.abs(op @ generic)), lambda: size)


@_size_seen.def_vmap
def _sizes_seen(axis_size, in_batched, op, generic, sizes):
    """A ``cond`` on one predicate for the batch: under plain ``vmap`` the product would be made."""
    sizes = jnp.broadcast_to(sizes, axis_size)
    axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched[:2])

    def products():
        images = jax.vmap(lambda op, x: op @ x, in_axes=axes, axis_size=axis_size)(op, generic)
        return jnp.where(sizes == 0, jnp.max(jnp.abs(images), axis=1), sizes)

    return jax.lax.cond(jnp.any(sizes == 0), products, lambda: sizes), True
