"""Class means about a centre."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spectral_jax._choices import check_choice
from spectral_jax.features.moments import FeatureMoments, class_sums, effective_rows
from spectral_jax.linalg.subspace import mm

Centre = Literal["classes", "sample"]
CENTRES = get_args(Centre)


class Classes(NamedTuple):
    """Rows of classes that no example has are 0."""

    weight: Float[Array, " c"]
    here: Bool[Array, " c"]
    """Which classes have examples."""
    number: Float[Array, ""]
    """How many have."""
    single: Bool[Array, " c"]
    """Which weigh no more than the average example does."""
    each: Float[Array, " c"]
    """``1 / number`` of a class that has examples: to take means over classes."""
    share: Float[Array, " c"]
    """What each counts in ``S_B = sum share m m^T``; sums to 1."""
    mean: Float[Array, "c p"]
    centred: Float[Array, "c p"]
    """``m``: the means less the centre, which is ``sum share mean``."""
    variance: Float[Array, " c"]
    """The mean squared distance to the class mean."""


def classes_about(m: FeatureMoments, centre: Centre) -> Classes:
    """The classes of ``m``, each counting alike (``"classes"``) or by its weight (``"sample"``)."""
    weight, mean, spread, _ = class_sums(m)
    variance = spread / jnp.where(weight == 0, 1, weight)
    return classes_of(weight, mean, variance, effective_rows(m), centre)


def classes_of(
    weight: Array, mean: Array, variance: Array, effective: Array, centre: Centre
) -> Classes:
    """The same of what was summed; ``effective`` is the number of rows."""
    check_choice(CENTRES, centre=centre)
    here = weight != 0
    one = here.astype(weight.dtype)
    number = jnp.sum(one)
    each = jnp.where(number > 0, one / number, jnp.nan)  # XLA may make 0 of 0 / 0
    total = jnp.sum(weight)
    share = each if centre == "classes" else weight / total
    return Classes(
        weight=weight,
        here=here,
        number=number,
        single=here & (weight < 1.5 * total / effective),
        each=each,
        share=share,
        mean=mean,
        centred=one[:, None] * (mean - mm(share, mean)),
        variance=variance,
    )
