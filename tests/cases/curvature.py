"""curvature: operators of losses, against the same matrices written out."""

import jax.numpy as jnp
import numpy as np

from spectral_jax.curvature import SquaredError, item_shares
from tests.cases.operators import normal
from tests.contract import Case, Degenerate, register

LOSS = SquaredError()


def shares(outputs, weight):
    return item_shares(LOSS, outputs, outputs, jnp.abs(weight))


register(
    Case(
        name="curvature.item_shares",
        function=shares,
        make_inputs=normal((4, 2), (4,)),
        oracle=lambda outputs, weight: np.abs(weight) / np.sum(np.abs(weight)),
        degree=0,
        degenerate={
            "no weight": Degenerate(
                (jnp.ones((4, 2)), jnp.zeros(4)), lambda s: bool(jnp.isnan(s).all()), False
            ),
            "one item": Degenerate((jnp.ones((1, 2)), jnp.ones(1)), lambda s: bool(s == 1)),
        },
    )
)
