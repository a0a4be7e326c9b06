"""Gaussian inputs whose variances fall geometrically, labelled by a random network.

Of arXiv 2110.14163 (grasp-lyrl/sloppy@40a8f55): there the rate of the fall sets the inputs' norm as
well, over two orders of magnitude. Here the norm is fixed, so that the rate is all that differs.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

HIDDEN = 50  # units of the labelling network


class Problem(NamedTuple):
    """Inputs and their classes; examples of one key are the same for every rate."""

    x: Float[Array, "n d"]
    y: Int[Array, " n"]


def variances(rate: float, features: int, *, norm: float = 1.0) -> Float[Array, " d"]:
    """Variances proportional to ``exp(-2 rate j)``, ``j = 1 .. d``, whose sum is ``norm``.

    Raises ``ValueError`` for a negative rate, no feature, or a norm that is not above 0.

    >>> variances(0.0, 4)
    Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    if not (rate >= 0 and features >= 1 and norm > 0):
        raise ValueError(
            f"rate={rate}, features={features}, norm={norm}: choose at least 0, at least 1, above 0"
        )
    falling = jnp.exp(-2.0 * rate * jnp.arange(features))
    return norm * falling / jnp.sum(falling)


def decades(rate: float, features: int) -> float:
    """Powers of ten between the largest and the smallest variance: ``2 rate (d - 1) / ln 10``."""
    return 2 * rate * (features - 1) / math.log(10)


def effective_rank(rate: float, features: int) -> float:
    """The sum of the variances over the largest: ``d`` for rate 0, less for any other."""
    values = variances(rate, features)
    return float(jnp.sum(values) / values[0])


@partial(jax.jit, static_argnames=("count", "features", "classes"))
def problem(
    key: PRNGKeyArray,
    seen: Float[Array, " d"],
    labelled: Float[Array, " d"],
    *,
    count: int,
    features: int = 200,
    classes: int = 10,
) -> Problem:
    """Draw ``x_j = seen_j z_j`` and ``y = argmax tanh(u W1) W2`` with ``u_j = labelled_j z_j``.

    ``z``, ``W1`` (over ``sqrt(d)``) and ``W2`` (over ``sqrt(50)``) are standard normal. With equal
    scales the label depends on the input as the network sees it; with others the spectrum of the
    inputs and that of what the label depends on can be set apart.

    Args:
        seen, labelled: standard deviations [d] of the inputs and of what the labels are made from.
    """
    noise, first, second = jax.random.split(key, 3)
    z = jax.random.normal(noise, (count, features))
    into = jax.random.normal(first, (features, HIDDEN)) / math.sqrt(features)
    out = jax.random.normal(second, (HIDDEN, classes)) / math.sqrt(HIDDEN)
    logits = jnp.tanh((z * labelled) @ into) @ out
    return Problem(z * seen, jnp.argmax(logits, axis=-1))
