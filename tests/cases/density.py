"""linalg: Lanczos quadrature, against LAPACK where every rule is exact."""

import jax
import numpy as np

from spectral_jax.linalg import dense_operator
from spectral_jax.linalg.density import logdet, spectral_density
from tests import draws
from tests.contract import Case, Degenerate, register

N = 12
KEY = jax.random.key(0)
TWO = np.eye(N)[:, :2]


def positive(key, dtype):
    a = draws.normal(key, (N, N), dtype) / N**0.5
    return (a @ a.T + np.eye(N, dtype=dtype),)


def two_blocks(key, dtype):
    """Positive, with the first two coordinate axes decoupled from the others."""
    (a,) = positive(key, dtype)
    a[:2, 2:] = a[2:, :2] = 0
    return (a,)


def multiple_of_the_identity(key, dtype):
    return ((1 + draws.uniform(key, (), dtype)) * np.eye(N, dtype=dtype),)


register(
    Case(
        name="linalg.spectral_density",
        function=lambda a: spectral_density(dense_operator(a), KEY, probes=2, steps=N),
        make_inputs=positive,
        degree=1,
        # With all steps the nodes of every probe are the eigenvalues.
        oracle=lambda a: np.stack([np.linalg.eigvalsh(a)] * 2),
        select=lambda density: density.nodes,
        tolerance={"float32": 1e-5, "float64": 1e-10},
        differentiable=False,
        degenerate={
            "zero": Degenerate(
                (np.zeros((N, N)),), lambda d: not d.nodes.any() and (d.rank == 1).all()
            ),
            "identity": Degenerate(
                (np.eye(N),), lambda d: bool((np.abs(d.nodes - 1) < 1e-14).all())
            ),
            "NaN": Degenerate((np.full((N, N), np.nan),), lambda d: bool(np.isnan(d.nodes).all())),
        },
    )
)
register(
    Case(
        name="linalg.spectral_density: deflated",
        function=lambda a: spectral_density(
            dense_operator(a), KEY, probes=2, steps=N, deflate=TWO.astype(a.dtype)
        ),
        make_inputs=two_blocks,
        degree=1,
        # The deflated directions are invariant: the nodes are all eigenvalues, and nothing couples.
        oracle=lambda a: (np.stack([np.linalg.eigvalsh(a)] * 2), 0.0),
        select=lambda density: (density.nodes, density.coupling),
        tolerance={"float32": 1e-5, "float64": 1e-10},
        differentiable=False,
    )
)
register(
    Case(
        name="linalg.logdet",
        function=lambda a: logdet(dense_operator(a), KEY, probes=2, steps=3),
        unscaled="log(s^n det A) is a sum: tests/test_density.py",
        # One step is exact here, whatever the probe.
        make_inputs=multiple_of_the_identity,
        oracle=lambda a: np.linalg.slogdet(a)[1],
        select=lambda result: result.value,
        tolerance={"float32": 1e-5, "float64": 1e-11},
        differentiable=False,
        degenerate={
            "zero": Degenerate((np.zeros((N, N)),), lambda r: bool(np.isnan(r.value))),
            "indefinite": Degenerate(
                (np.diag(np.array([-1.0] + [1.0] * (N - 1))),),
                lambda r: bool(np.isnan(r.value)),
            ),
        },
    )
)
