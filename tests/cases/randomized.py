"""linalg: the randomised SVD, against dense LAPACK where its space holds everything."""

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax.linalg.randomized import randomized_svd
from tests.contract import IN_TURN, Case, Degenerate, register

M, N, RANK = 14, 9, 3


def matrix(key, dtype):
    return (jax.random.normal(key, (M, N), dtype),)


register(
    Case(
        name="linalg.randomized_svd",
        function=lambda a: randomized_svd(jax.random.key(7), a, RANK, power_iterations=1),
        gathered=IN_TURN,
        make_inputs=matrix,
        degree=1,
        oracle=lambda a: np.linalg.svd(a)[1][:RANK],
        select=lambda result: result.s,
        degenerate={
            "zero": Degenerate((jnp.zeros((M, N)),), lambda r: not r.s.any() and r.rank == 0),
            "repeated": Degenerate((jnp.eye(M, N),), lambda r: bool(jnp.allclose(r.s, 1))),
            "NaN": Degenerate(
                (jnp.eye(M, N).at[2, 3].set(jnp.nan),),
                lambda r: bool(jnp.isnan(r.s).all()) and not r.converged,
                False,
            ),
        },
    )
)
