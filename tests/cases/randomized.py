"""linalg: the randomised SVD, against dense LAPACK where its space holds everything."""

import jax
import numpy as np

from spectral_jax.linalg.randomized import randomized_svd
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, register

M, N, RANK = 14, 9, 3


def matrix(key, dtype):
    return (draws.normal(key, (M, N), dtype),)


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
            "zero": Degenerate((np.zeros((M, N)),), lambda r: not r.s.any() and r.rank == 0),
            "repeated": Degenerate((np.eye(M, N),), lambda r: bool(np.allclose(r.s, 1))),
            "NaN": Degenerate(
                (draws.changed(np.eye(M, N), (2, 3), np.nan),),
                lambda r: bool(np.isnan(r.s).all()) and not r.converged,
                False,
            ),
        },
    )
)
