"""curvature: Kronecker factors of a deep linear network, which are its exact curvature."""

import jax
import numpy as np

from spectral_jax.curvature import SquaredError, ekfac, kfac
from spectral_jax.linalg.precision import working
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, register

N, INPUTS, HIDDEN, OUTPUTS = 6, 4, 3, 2
LOSS = SquaredError()


def deep(kernels, x):
    first, last = kernels
    return (x @ first) @ last


def network_and_data(key, dtype):
    shapes = {"first": (INPUTS, HIDDEN), "last": (HIDDEN, OUTPUTS), "x": (N, INPUTS)}
    keys = jax.random.split(key, len(shapes))
    return tuple(draws.normal(k, s, dtype) for k, s in zip(keys, shapes.values(), strict=True))


def problem(first, last, x):
    # The squared error has the same curvature for all targets.
    kernels = working(first), working(last)
    return deep, LOSS, kernels, (x, np.zeros((N, OUTPUTS), kernels[0].dtype))


def gauss_newton(first, last, x):
    """``E[x x^T] (x) 2 V V^T`` and ``E[h h^T] (x) 2 I`` for ``h = x W`` and outputs ``h V``."""
    size = INPUTS * HIDDEN
    matrix = np.zeros((size + HIDDEN * OUTPUTS,) * 2)
    matrix[:size, :size] = np.kron(x.T @ x / N, 2 * last @ last.T)
    hidden = x @ first
    matrix[size:, size:] = np.kron(hidden.T @ hidden / N, 2 * np.eye(OUTPUTS))
    return matrix


def degenerate(key=0):
    first, last, x = network_and_data(jax.random.key(key), np.float32)
    return {
        "zero inputs": Degenerate((first, last, 0 * x), lambda c: not np.any(c)),
        "NaN": Degenerate(
            (first, last, np.nan * x), lambda c: bool(np.isnan(np.diagonal(c)).all()), False
        ),
    }


register(
    Case(
        name="curvature.kfac",
        function=lambda *given: kfac(*problem(*given), micro_batch=4).dense(),
        make_inputs=network_and_data,
        oracle=gauss_newton,
        degree=4,
        degenerate=degenerate(),
    )
)
register(
    Case(
        name="curvature.ekfac",
        function=lambda *given: ekfac(kfac(*problem(*given)), *problem(*given)).dense(),
        make_inputs=network_and_data,
        oracle=gauss_newton,
        degree=4,
        # The basis of equal eigenvalues, of which the last layer has pairs, has no derivative.
        differentiable=False,
        gathered=IN_TURN,
        degenerate=degenerate(),
    )
)
