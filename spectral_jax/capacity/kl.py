"""The relative entropy of two coins, and its inverse: from an error seen to one that holds.

Every bound of this room ends here. Of an empirical risk ``q`` it says ``kl(q || p) <= c``, and the
largest ``p`` that this allows is the bound on the true risk.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax.linalg.precision import working

Side = Literal["upper", "lower"]


def binary_kl(q: Float[ArrayLike, "..."], p: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """``kl(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p))`` in nats, with ``0 log 0 = 0``.

    Takes probabilities of shapes that broadcast. Infinite where ``p`` is 0 or 1 and ``q`` is not,
    NaN outside [0, 1]. Accurate for ``p`` near ``q`` too, where the two terms cancel. Works under
    ``jit``, ``vmap`` and, for probabilities other than 0 and 1, ``grad``. Half precision and
    integers are read as float32; raises ``ValueError`` for complex numbers.

    >>> round(float(binary_kl(0.1, 0.2)), 4)
    0.0367
    """
    q, p = _alike(q, "q", p, "p")
    heads, tails = _terms(q, p, 1 - q, 1 - p, p - q)
    possible = (q >= 0) & (q <= 1) & (p >= 0) & (p <= 1)
    return jnp.where(possible, heads + tails, jnp.nan)


@partial(jax.jit, static_argnames=("side", "paper_compat"))
def kl_inverse(
    q: Float[ArrayLike, "..."],
    c: Float[ArrayLike, "..."],
    *,
    side: Side = "upper",
    paper_compat: Literal["newton5"] | None = None,
) -> Float[Array, "..."]:
    """The largest (``side="lower"``: the smallest) ``p`` in [0, 1] with ``kl(q || p) <= c``.

    By bisection of ``|p - q|``, of which the *outer* end is returned and rounded outwards: the
    result is never on the optimistic side of the exact inverse, and beyond it by a few ``eps``.
    (The code of arXiv 2007.12911 returns the middle of its last interval.)

    Args:
      q: empirical risk, a probability; ``q = 0`` gives ``1 - exp(-c)``.
      c: in nats, at least 0, of a shape that broadcasts with ``q``. 0 gives ``q``, infinity 1 (0).
      side: which of the two solutions.
      paper_compat: ``"newton5"``, with ``side="upper"`` only, is what the code of arXiv 2110.14163
        does: five Newton steps from ``q + sqrt(c / 2)``, and 1 where that starts above 1. It is 1
        where the inverse is .924 (q .6, c .405), may end on either side of it, and divides by zero
        at ``q = 0`` (NaN). Not a bound.

    NaN where ``q`` is outside [0, 1], ``c < 0`` or either is NaN. Works under ``jit``, ``vmap`` and
    ``grad`` (by the implicit function theorem; the slope in ``c`` is infinite at ``c = 0``, that in
    ``q`` is finite but huge at ``q = 0``). Half precision and integers are read as float32; raises
    ``ValueError`` for complex numbers and an unknown option.
    Source: Langford & Caruana 2001; Seeger 2002.

    >>> round(float(kl_inverse(0.1, 0.1)), 4), round(float(kl_inverse(0.1, 0.1, side="lower")), 4)
    (0.2824, 0.0166)
    """
    check_choice(get_args(Side), side=side)
    check_choice(("newton5", None), paper_compat=paper_compat)
    q, c = _alike(q, "q", c, "c")
    if paper_compat == "newton5":
        if side == "lower":
            raise ValueError("paper_compat='newton5' has side='upper' only: drop one of the two")
        return _five_newton_steps(q, c)
    possible = (q >= 0) & (q <= 1) & (c >= 0)
    p = _inverse(jnp.where(possible, q, 0), jnp.where(possible, c, 0), side)
    return jnp.where(possible, p, jnp.nan)


def _alike(a: ArrayLike, a_name: str, b: ArrayLike, b_name: str) -> list[Array]:
    """Both in one working dtype and one shape."""
    first, second = working(a, a_name), working(b, b_name)
    dtype = jnp.promote_types(first.dtype, second.dtype)
    return list(jnp.broadcast_arrays(first.astype(dtype), second.astype(dtype)))


def _terms(q: Array, p: Array, rest: Array, left: Array, gap: Array) -> tuple[Array, Array]:
    """The summands of ``kl(q || p)``; ``rest = 1 - q``, ``left = 1 - p``, ``gap = p - q``."""
    # Where a weight is 0 its term is 0, not 0 log 0; a divisor of 1 keeps NaN out of derivatives.
    heads = -q * _log_ratio(jnp.where(q > 0, q, 1), p, gap)
    tails = -rest * _log_ratio(jnp.where(rest > 0, rest, 1), left, -gap)
    return jnp.where(q > 0, heads, 0), jnp.where(rest > 0, tails, 0)


def _log_ratio(x: Array, y: Array, gap: Array) -> Array:
    """``log(y / x)``, where ``gap = y - x`` is known too.

    Near ``y = x`` the quotient has lost the digits of which the difference of the two terms of kl
    consists, and ``log1p(gap / x)`` has them; near ``y = 0`` it is the other way round.
    """
    near = y > x / 2
    return jnp.where(near, jnp.log1p(jnp.where(near, gap / x, 0)), jnp.log(y / x))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _inverse(q: Array, c: Array, side: Side) -> Array:
    if side == "upper":
        return jnp.minimum(jnp.nextafter(q + _gap(q, 1 - q, c), jnp.where(c > 0, jnp.inf, q)), 1)
    # kl(q || p) = kl(1 - q || 1 - p): the same search, in the other direction.
    return jnp.maximum(jnp.nextafter(q - _gap(1 - q, q, c), jnp.where(c > 0, -jnp.inf, q)), 0)


def _gap(q: Array, rest: Array, c: Array) -> Array:
    """The upper end of a bracket of the ``gap`` with ``kl(q || q + gap) = c``."""
    eps = float(jnp.finfo(q.dtype).eps)
    c = jnp.minimum(c, float(jnp.finfo(q.dtype).max))  # for 0 times infinity is no end

    def halve(_, bracket):
        low, high = bracket
        middle = low + (high - low) / 2
        heads, tails = _terms(q, q + middle, rest, rest - middle, middle)
        # Beyond doubt: the sum of the terms, which cancel, exceeds `c` by more than their rounding.
        beyond = heads + tails - 4 * eps * (jnp.abs(heads) + jnp.abs(tails)) >= c
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    # kl is at least 2 gap^2 and, for gap > 0, at least gap^2 / (2 (q + gap)): two ends that the gap
    # cannot pass. The second has the size of the gap also where that is tiny.
    end = jnp.minimum(jnp.sqrt(c / 2), jnp.sqrt(2 * q) * jnp.sqrt(c) + 2 * c)
    bracket = jnp.zeros_like(q), jnp.minimum(end, rest)
    steps = jnp.finfo(q.dtype).nmant + 8
    return jax.lax.fori_loop(0, steps, halve, bracket)[1]


@_inverse.defjvp
def _slope(side, primals, tangents):
    """``dp = (dc - (dkl/dq) dq) / (dkl/dp)``, from ``kl(q || p) = c``."""
    q, c = primals
    p = _inverse(q, c, side)
    smallest = float(jnp.finfo(q.dtype).tiny)

    def log(x):
        return jnp.log(jnp.maximum(x, smallest))

    # At c = 0 the inverse is q itself and its slope in c infinite: a number that times 0 is 0.
    infinite = jnp.where(c > 0, 0, float(jnp.finfo(q.dtype).max))
    by_c = jnp.where(p == q, infinite, p * (1 - p) / (p - q))
    along = (log(q) - log(p) + log(1 - p) - log(1 - q)) * by_c
    return p, jnp.where(p == q, 1, -along) * tangents[0] + by_c * tangents[1]


def _five_newton_steps(q: Array, c: Array) -> Array:
    """What the notebook of arXiv 2110.14163 computes, its faults included."""
    start = q + jnp.sqrt(c / 2)
    p = start
    for _ in range(5):
        value = q * jnp.log(q / p) + (1 - q) * jnp.log((1 - q) / (1 - p))
        p = p - (value - c) / ((1 - q) / (1 - p) - q / p)
    return jnp.where(start > 1, 1, p)
