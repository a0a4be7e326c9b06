"""optim: watched curvature of a quadratic, in closed form."""

import jax
import numpy as np

from spectral_jax.optim import watch
from tests import draws
from tests.contract import Case, Degenerate, register

N = 6
SLANT = np.linspace(0.5, 1.5, N)


def quadratic(w, a):
    return w @ a @ w / 2


def matrix_and_weights(key, dtype):
    noise = draws.normal(key, (N, N), dtype) / 4
    weights = draws.normal(jax.random.fold_in(key, 1), (N,), dtype)
    return 2 * np.eye(N, dtype=dtype) + noise + noise.T, weights


def readings(a, w):
    """What a watch sees that may use all N products, for an update that is no gradient."""
    what = ("lambda_max", "critical_sharpness")
    tx = watch(quadratic, every=1, what=what, matvecs=N)
    update = -w * np.asarray(SLANT, w.dtype)
    seen = tx.update(update, tx.init(w), w, batch=a)[1].seen
    return tuple(seen[name] for name in what)


def expected(a, w):
    update = -w * SLANT
    return np.linalg.eigvalsh(a)[-1], update @ a @ update / -(update @ a @ w)


register(
    Case(
        name="optim.watch",
        function=readings,
        make_inputs=matrix_and_weights,
        oracle=expected,
        select=lambda seen: tuple(reading.value for reading in seen),
        # The critical step is where a difference of two losses is zero: it has half their digits.
        tolerance={"float32": 1e-4, "float64": 1e-9},
        differentiable=False,
        degree=(1, 0),
        units=(1, 0),
        exact_dtype="integers are no weights; half types: tests/test_watch.py",
        degenerate={
            "flat": Degenerate(
                (np.zeros((N, N)), np.ones(N)),
                lambda seen: (
                    seen[0].value == 0 and np.isnan(seen[1].value).all() and not seen[1].converged
                ),
            ),
            "NaN": Degenerate(
                (np.eye(N), np.full(N, np.nan)),
                lambda seen: bool(np.isnan(seen[1].value)) and not seen[1].converged,
            ),
        },
    )
)
