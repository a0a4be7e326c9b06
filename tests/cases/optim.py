"""optim: what a penalty adds to the updates, against dense eigenvectors."""

import jax
import numpy as np

from spectral_jax.optim import fiedler_decay, spectral_penalty
from tests import draws
from tests.cases.graphs import dense_laplacian
from tests.contract import Case, Degenerate, exempt, register

STRENGTH = 0.5
RATE = 0.1


def network(key, dtype):
    """Parameters of a 4-3-2 network, and updates that wait for the penalty."""
    arrays = [
        draws.normal(k, shape, dtype)
        for k, shape in zip(jax.random.split(key, 4), [(4, 3), (3, 2)] * 2, strict=True)
    ]
    params, updates = (
        {"0": {"kernel": a}, "1": {"kernel": b}} for a, b in (arrays[:2], arrays[2:])
    )
    return params, updates


def added_by(transformation):
    return lambda params, updates: transformation.update(
        updates, transformation.init(params), params
    )[0]


def slopes(params):
    """``d lambda_2 / d|W_ij| = (v_i - v_j)^2``."""
    kernels = [layer["kernel"] for layer in params.values()]
    v = np.linalg.eigh(dense_laplacian(kernels, normalised=False))[1][:, 1]
    parts = np.split(v, (4, 7))
    pairs = zip(parts, parts[1:], strict=False)
    return {
        name: {"kernel": (x[:, None] - y[None, :]) ** 2}
        for name, (x, y) in zip(params, pairs, strict=True)
    }


def expected_penalty(params, updates):
    return jax.tree.map(
        lambda p, u, c: u + STRENGTH * c * np.sign(p), params, updates, slopes(params)
    )


def expected_spectral_norm(params, updates):
    def slope(w):
        u, s, vt = np.linalg.svd(w)
        return s[0] * np.outer(u[:, 0], vt[0])

    return jax.tree.map(lambda p, u: u + STRENGTH * slope(p), params, updates)


def expected_proximal(params, updates):
    def shrink(p, u):
        return np.sign(p + u) * np.maximum(np.abs(p + u) - RATE * STRENGTH, 0) - p

    return jax.tree.map(shrink, params, updates)


ZEROS = tuple(jax.tree.map(np.zeros_like, tree) for tree in network(jax.random.key(0), "float32"))


HALVES = "integers are no weights; half types: tests/test_optim_numbers.py"


def untouched(updates):
    return not any(leaf.any() for leaf in jax.tree.leaves(updates))


register(
    Case(
        name="optim.fiedler_decay",
        function=added_by(fiedler_decay(STRENGTH, tol=1e-6)),
        make_inputs=network,
        oracle=expected_penalty,
        # The gap is 0.02 here, and a vector is right to 10 eps ||L|| / gap.
        tolerance={"float32": 5e-4, "float64": 1e-6},
        differentiable=False,
        degree=0,
        units=(1, 0),
        exact_dtype=HALVES,
        degenerate={"no weights": Degenerate(ZEROS, untouched)},
    )
)
register(
    Case(
        name="optim.spectral_penalty",
        function=added_by(spectral_penalty("l1", STRENGTH, mode="proximal", learning_rate=RATE)),
        make_inputs=network,
        oracle=expected_proximal,
        differentiable=False,
        unscaled="the threshold is bound",
        exact_dtype=HALVES,
        degenerate={"no weights": Degenerate(ZEROS, untouched)},
    )
)

register(
    Case(
        name="optim.spectral_penalty: spectral_norm",
        function=added_by(
            spectral_penalty("spectral_norm", STRENGTH, tol=1e-12, max_iterations=500)
        ),
        make_inputs=network,
        oracle=expected_spectral_norm,
        # A singular vector is right to the residual of s_1^2 over its gap, 0.4 of it at least here.
        tolerance={"float32": 1e-5, "float64": 1e-10},
        differentiable=False,
        degree=1,
        exact_dtype=HALVES,
        degenerate={"no weights": Degenerate(ZEROS, untouched)},
    )
)

exempt("optim.check_penalty", "runs programs of its own, on the host; tests/test_trying.py")
exempt("optim.regulariser", "makes a penalty of a function; tests/test_prototypes.py")
for schedule in ("every", "on_residual", "epoch_start_and_every_100"):
    exempt(f"optim.{schedule}", "returns a schedule, no arrays; tests/test_optim.py")
exempt("optim.metrics", "reads the states of optimisers; tests/test_optim_metrics.py")
for name in ("log_spaced", "probe", "when"):
    exempt(f"optim.{name}", "says what a loop is to measure, and when; tests/test_probe.py")
