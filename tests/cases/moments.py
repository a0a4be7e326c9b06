"""linalg.moments: sums of batches, against the whole table in float64."""

import numpy as np
from scipy import stats

from spectral_jax.linalg import interval, moments
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, exempt, register

N, P = 9, 4


def table(key, dtype):
    return (3 + draws.normal(key, (N, P), dtype),)


def state_of(x, method="gram64"):
    """In two batches of unequal size."""
    state = moments.zero(P, method=method, dtype=x.dtype)
    return moments.update(moments.update(state, x[:2]), x[2:])


def covariance(x):
    return np.cov(x.T, bias=True)


def spectrum(x):
    return np.linalg.svd(x, compute_uv=False) ** 2 / len(x)


def unread(x):
    """The last row has weight 0."""
    state = moments.zero(P, dtype=x.dtype)
    return moments.second(moments.update(state, x, weights=np.arange(N - 1, -1, -1)))


def number_and_replicates(key, dtype):
    return draws.normal(key, (), dtype), draws.normal(key, (5,), dtype)


def interval_by_scipy(value, without):
    error = np.sqrt(4 / 5 * np.sum((without - without.mean()) ** 2))
    reach = stats.t(4).ppf(0.975) * error
    return value, value - reach, value + reach, error


register(
    Case(
        name="linalg.moments.update",
        function=unread,
        make_inputs=table,
        oracle=lambda x: (x.T * np.arange(N - 1, -1, -1)) @ x / (N * (N - 1) / 2),
        degree=2,
        degenerate={
            "NaN of no weight": Degenerate(
                (draws.changed(np.ones((N, P)), -1, np.nan),), lambda m: bool((m == 1).all())
            ),
            "NaN": Degenerate(
                (draws.changed(np.ones((N, P)), (0, 0), np.nan),),
                lambda m: bool(np.isnan(m[0]).all() & (m[1:, 1:] == 1).all()),
            ),
        },
        differentiable=False,  # gram64 in float32; for gram: linalg.moments.second
    )
)
register(
    Case(
        name="linalg.moments.second",
        function=lambda x: moments.second(state_of(x, "gram"), centred=True),
        make_inputs=table,
        oracle=covariance,
        degree=2,
        degenerate={
            "zero": Degenerate((np.zeros((N, P)),), lambda m: not m.any()),
            "constant": Degenerate((np.ones((N, P)),), lambda m: not m.any()),
        },
    )
)
register(
    Case(
        name="linalg.moments.merge",
        function=lambda x: moments.second(
            moments.merge(state_of(x[:4], "qr"), state_of(x[4:], "qr")), centred=True
        ),
        make_inputs=table,
        oracle=covariance,
        degree=2,
        # The derivative of a triangular factor exists for full rank only.
        differentiable=False,
    )
)
register(
    Case(
        name="linalg.moments.decay",
        function=lambda x: moments.mean(
            moments.update(moments.decay(state_of(x[:4]), 0.25), x[4:])
        ),
        make_inputs=table,
        oracle=lambda x: (0.25 * x[:4].sum(0) + x[4:].sum(0)) / (0.25 * 4 + 5),
        degree=1,
        differentiable=False,
    )
)
register(
    Case(
        name="linalg.moments.eigenvalues",
        function=lambda x: moments.eigenvalues(state_of(x)),
        make_inputs=table,
        oracle=spectrum,
        select=lambda found: found.values,
        gathered=IN_TURN,
        degree=2,
        differentiable=False,
        degenerate={
            "rank one": Degenerate(
                (np.ones((N, P)),), lambda found: int((found.values > found.floor).sum()) == 1
            ),
            "empty": Degenerate(
                (np.zeros((0, P)),), lambda found: not found.values.any() and found.floor == 0
            ),
            "NaN": Degenerate(
                (np.full((N, P), np.nan),), lambda found: bool(np.isnan(found.floor))
            ),
        },
    )
)
exempt("linalg.moments.zero", "begins the state of every case of linalg.moments")
exempt("linalg.moments.mean", "in the case of linalg.moments.decay")
exempt("linalg.moments.psum", "needs a mapped axis: tests/test_moments.py")
exempt("linalg.moments.leave_one_out", "takes a list of states: tests/test_moments.py")
exempt("linalg.moments.effective_rows", "counts weights, not data: tests/test_moments.py")
for name, by in {
    "cross": "of",
    "factor": "factor",
    "fourth": "fourth",
    "groups": "class_sums",
    "part": "covariance",
    "unitless": "effective_dimension",
    "within": "within",
}.items():
    exempt(f"linalg.moments.{name}", f"in the case of features.{by}")
exempt("linalg.moments.exactly", "takes a function: in the cases of features.cross and gram")
exempt("linalg.moments.resolution", "a part of the floor of linalg.moments.eigenvalues")
register(
    Case(
        name="linalg.interval",
        function=interval,
        make_inputs=lambda key, dtype: (
            draws.normal(key, (), dtype),
            draws.normal(key, (5,), dtype),
        ),
        oracle=interval_by_scipy,
        degree=1,
        degenerate={
            "equal": Degenerate(
                (1.0, np.ones(5)), lambda found: float(found.high) == 1 == float(found.low), False
            ),
            "NaN": Degenerate(
                (1.0, draws.changed(np.ones(5), 0, np.nan)),
                lambda found: bool(np.isnan(found.high)),
                False,
            ),
        },
    )
)
