"""Operators relative to their own magnitude, which products that are made anyway tell.

The squares inside a solver (lengths, residuals, Gram matrices) leave the range of float32 for
operators below 1e-19 or above 1e19. Every solver therefore works on ``op / magnitude`` and
multiplies what it found; the magnitude is a power of two, so that neither rounds anything.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectral_jax.linalg.operators import SymmetricOperator
from spectral_jax.linalg.precision import power_of_two

# A start can be nearly an eigenvector of an eigenvalue near 0: seen through it an operator is
# smaller than it is, never larger. So what is seen becomes 2^-12: in float32 squares hold for an
# operator 1e21 times as large, and for a residual that is rounding of one as large. No more, as
# the derivative by a number relative to a magnitude is as large as that.
HEADROOM = 2.0**12


def magnitude_of(images: Float[Array, "*shape"]) -> Float[Array, ""]:
    """What to divide an operator by whose products with unit vectors are ``images``."""
    size = power_of_two(jnp.max(jnp.abs(images)))
    # Of a larger one the inverse would be subnormal, which XLA on a CPU takes for 0.
    return HEADROOM * jnp.minimum(size, 2.0 ** -jnp.finfo(size.dtype).minexp / HEADROOM)


def known_magnitude(
    op: SymmetricOperator, images: Float[Array, "n s"], generic: Float[Array, " n"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """``magnitude_of(images)``, and how many products that took.

    None, but for images that vanish, as those of a start in the null space: one, with ``generic``.
    """

    def one_more(state):
        return jnp.max(jnp.abs(op @ generic)), state[1] + 1

    start = jnp.max(jnp.abs(images)), jnp.zeros((), jnp.int32)
    size, products = jax.lax.while_loop(lambda s: (s[0] == 0) & (s[1] == 0), one_more, start)
    return magnitude_of(size), products


def seen(
    op: SymmetricOperator, magnitude: Float[Array, ""], x: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """``op @ x / magnitude`` and the magnitude, which the first product finds, given 0 for it."""
    image = op @ x
    magnitude = jnp.where(magnitude == 0, magnitude_of(image), magnitude)
    return image / magnitude, magnitude


def relative(op: SymmetricOperator, magnitude: Float[Array, ""]) -> SymmetricOperator:
    """``op / magnitude``."""
    return op * (1 / magnitude)
