"""The magnitude of an operator, read off products that a solver makes anyway.

The squares inside a solver (lengths, residuals, Gram matrices) leave the range of float32 for
operators below 1e-19 or above 1e19: they become 0 or infinity. Every solver therefore works on
``factor * op``, of ordinary magnitude, and divides its results by ``factor``, a power of two, so
that neither step rounds anything. ``factor = 0`` stands for "not known yet".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from spectral_jax.linalg.operators import SymmetricOperator
from spectral_jax.linalg.precision import unit_of

# Products with one start can show an operator smaller than it is, never larger: the start may be
# nearly an eigenvector of an eigenvalue near 0. So the largest entry seen is scaled to 2^-12, not
# to 1. In float32 that leaves room for squares of an operator 1e21 times as large as it looked,
# while a residual at the rounding level of the visible part can still be squared. More headroom
# would hurt derivatives, which pass through the scaled numbers and grow by the same factor.
HEADROOM = 2.0**12


def factor_of(images: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The factor for an operator whose products with unit vectors are ``images``."""
    size = unit_of(images)
    # The inverse of a larger number is subnormal, and XLA on a CPU replaces subnormals by 0.
    most = 2.0 ** -jnp.finfo(size.dtype).minexp
    return 1 / (HEADROOM * jnp.minimum(size, most / HEADROOM))


def holds_digits(factor: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether products of the operator keep their digits.

    Not if its entries come near the smallest normal number: XLA on a CPU replaces addends below
    that by 0, so that a product loses digits and no residual shows it.
    """
    span = jnp.finfo(factor.dtype)
    return factor <= float(span.eps) / (float(span.tiny) * HEADROOM)


def known_factor(
    op: SymmetricOperator, images: Float[Array, "s n"], generic: Float[Array, " n"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """``factor_of(images)``, and how many further products that took.

    Usually 0. Images that are all zero, as those of a start in the null space, say nothing of the
    operator's size; then one product with the vector ``generic`` does.
    """
    size = jnp.max(jnp.abs(images))
    return factor_of(_size_seen(op, generic, size)), (size == 0).astype(jnp.int32)


def seen(
    op: SymmetricOperator, factor: Float[Array, ""], x: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """``op @ x``, not scaled yet, and the factor: the one given, or found here if that is 0.

    The caller multiplies, within an expression that reads the image anyway: a step of Lanczos costs
    as many passes over its vectors as it makes, and scaling here would be one more.
    """
    image = op @ x
    return image, jax.lax.cond(factor == 0, lambda: factor_of(image), lambda: factor)


@custom_vmap
def _size_seen(op: SymmetricOperator, generic: Array, size: Array) -> Array:
    return jax.lax.cond(size == 0, lambda: jnp.max(jnp.abs(op @ generic)), lambda: size)


@_size_seen.def_vmap
def _sizes_seen(axis_size, in_batched, op, generic, sizes):
    """The same for a batch, by a ``cond`` on one predicate for all of it.

    Plain ``vmap`` turns a ``cond`` into a ``select`` that runs both branches, and would make the
    product for every operator of the batch.
    """
    sizes = jnp.broadcast_to(sizes, axis_size)
    axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched[:2])

    def products():
        images = jax.vmap(lambda op, x: op @ x, in_axes=axes, axis_size=axis_size)(op, generic)
        return jnp.where(sizes == 0, jnp.max(jnp.abs(images), axis=1), sizes)

    return jax.lax.cond(jnp.any(sizes == 0), products, lambda: sizes), True
