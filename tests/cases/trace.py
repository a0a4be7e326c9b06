"""linalg: trace and diagonal estimates, against NumPy where they are exact."""

import jax
import numpy as np

from spectral_jax.linalg import dense_operator
from spectral_jax.linalg.trace import diagonal, trace
from tests import draws
from tests.contract import Case, Degenerate, register

N, RANK = 24, 3
KEY = jax.random.key(0)


def low_rank(key, dtype):
    factor = draws.normal(key, (N, RANK), dtype)
    return (factor @ factor.T,)


def full_rank(key, dtype):
    a = draws.normal(key, (N, N), dtype)
    return ((a + a.T) / 2,)


EXACT = {"trace": (trace, "xtrace", np.trace), "diagonal": (diagonal, "xdiag", np.diagonal)}
for name, (estimator, method, truth) in EXACT.items():
    register(
        Case(
            name=f"linalg.{name}",
            function=lambda a, f=estimator, m=method: f(
                dense_operator(a), KEY, matvecs=2 * RANK + 4, method=m
            ),
            make_inputs=low_rank,
            degree=1,
            oracle=truth,
            select=lambda result: result.value,
            tolerance={"float32": 1e-4, "float64": 1e-11},
            differentiable=False,
            degenerate={
                "zero": Degenerate(
                    (np.zeros((N, N)),), lambda r: not r.value.any() | r.standard_error.any()
                ),
                "NaN": Degenerate(
                    (np.full((N, N), np.nan),), lambda r: bool(np.isnan(r.value).all())
                ),
            },
        )
    )
register(
    Case(
        name="linalg.trace: all products",
        function=lambda a: trace(dense_operator(a), KEY, matvecs=N),
        make_inputs=full_rank,
        degree=1,
        oracle=np.trace,
        select=lambda result: result.value,
    )
)
register(
    Case(
        name="linalg.diagonal: all products",
        function=lambda a: diagonal(dense_operator(a), KEY, matvecs=N),
        make_inputs=full_rank,
        degree=1,
        oracle=np.diagonal,
        select=lambda result: result.value,
    )
)
register(
    Case(
        name="linalg.diagonal: hutchinson",
        function=lambda a: diagonal(dense_operator(a), KEY, matvecs=5, method="hutchinson"),
        degree=1,
        # Signs see a diagonal matrix exactly.
        make_inputs=lambda key, dtype: (np.diag(draws.normal(key, (N,), dtype)),),
        oracle=np.diagonal,
        select=lambda result: result.value,
    )
)
