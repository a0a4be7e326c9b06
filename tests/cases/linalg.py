"""linalg: eigenpairs of symmetric operators, against dense LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax.linalg import dense_operator, eigsh, lanczos, unit
from tests import draws
from tests.contract import Case, Degenerate, exempt, register

N = 24


def symmetric(key, dtype):
    a = draws.normal(key, (N, N), dtype)
    return ((a + a.T) / 2,)


def matrix_and_vector(key, dtype):
    return *symmetric(key, dtype), draws.normal(jax.random.fold_in(key, 1), (N,), dtype)


def pairs(which, k):
    def oracle(a):
        values, vectors = np.linalg.eigh(a)
        if which == "BE":
            ends = [*range(k // 2), *range(-1, k // 2 - k - 1, -1)]
            values, vectors = values[ends], vectors[:, ends]
        if which == "LA":
            values, vectors = values[::-1], vectors[:, ::-1]
        return values[:k], vectors[:, :k] @ vectors[:, :k].T

    return oracle


def values_and_projector(result):
    """What is determined: not the signs of vectors."""
    return result.values, result.vectors @ result.vectors.T


NAN = draws.changed(np.eye(N), ([2, 3], [3, 2]), np.nan)
EIGSH_DEGENERATE = {
    "zero": Degenerate(
        (np.zeros((N, N)),), lambda r: r.converged.all() and not r.values.any(), False
    ),
    "identity": Degenerate(
        (np.eye(N),), lambda r: r.converged.all() and np.allclose(r.values, 1, rtol=1e-12), False
    ),
    "NaN": Degenerate(
        (NAN,), lambda r: bool(np.isnan(r.values).all()) and not r.converged.any(), False
    ),
}

register(
    Case(
        name="linalg.eigsh: one pair",
        function=lambda a: eigsh(dense_operator(a), 1, v0=np.ones(N, a.dtype)),
        make_inputs=symmetric,
        degree=1,
        oracle=lambda a: pairs("SA", 1)(a)[0],
        select=lambda result: result.values,
        tolerance={"float32": 1e-5, "float64": 1e-11},
        degenerate=EIGSH_DEGENERATE,
    )
)
register(
    Case(
        name="linalg.eigsh: several pairs",
        function=lambda a: eigsh(dense_operator(a), 3, which="LA"),
        make_inputs=symmetric,
        degree=(1, 0),
        oracle=pairs("LA", 3),
        select=values_and_projector,
        tolerance={"float32": 1e-4, "float64": 1e-6},
        differentiable=False,
        degenerate=EIGSH_DEGENERATE,
    )
)
register(
    Case(
        name="linalg.eigsh: both ends",
        function=lambda a: eigsh(dense_operator(a), 3, which="BE"),
        make_inputs=symmetric,
        degree=(1, 0),
        oracle=pairs("BE", 3),
        select=values_and_projector,
        tolerance={"float32": 1e-4, "float64": 1e-6},
        differentiable=False,
    )
)
register(
    Case(
        name="linalg.lanczos",
        function=lambda a, v: lanczos(dense_operator(a), v, N),
        make_inputs=matrix_and_vector,
        degree=(1, 0),
        # All the way to the end T is similar to A, and the first vector is the start.
        oracle=lambda a, v: (np.linalg.eigvalsh(a), v / np.linalg.norm(v)),
        select=lambda t: (spectrum(t), t.basis[:, 0]),
        degenerate={
            "zero": Degenerate((np.zeros((N, N)), np.ones(N)), lambda t: t.rank == 1, False),
            "no start": Degenerate((np.eye(N), np.zeros(N)), lambda t: t.rank == 0, False),
        },
    )
)
register(
    Case(
        name="linalg.dense_operator",
        function=lambda a: dense_operator(a).dense(),
        make_inputs=lambda key, dtype: (draws.normal(key, (N, N), dtype),),
        degree=1,
        oracle=lambda a: a,
    )
)
register(
    Case(
        name="linalg.unit",
        function=unit,
        make_inputs=lambda key, dtype: (draws.normal(key, (5, 3), dtype),),
        degree=0,
        oracle=lambda x: x / np.linalg.norm(x, axis=0),
        degenerate={"zero": Degenerate((np.zeros((5, 3)),), lambda x: not x.any())},
    )
)


def spectrum(t):
    """Eigenvalues of the tridiagonal matrix."""
    return jnp.linalg.eigvalsh(jnp.diag(t.alpha) + jnp.diag(t.beta, 1) + jnp.diag(t.beta, -1))


exempt("linalg.generic_vectors", "takes no arrays; tests/test_linalg.py")
exempt("linalg.fast_convolutions", "a function of functions; tests/test_convolutions.py")
