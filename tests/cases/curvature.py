"""curvature: operators of losses, against the same matrices written out."""

import jax.numpy as jnp
import numpy as np

from spectral_jax.curvature import (
    SigmoidCrossEntropy,
    SquaredError,
    empirical_fisher,
    fisher,
    ggn,
    hessian,
    item_shares,
    logit_jacobian,
    objective,
    stored,
)
from spectral_jax.linalg.precision import working
from tests.cases.operators import normal
from tests.contract import Case, Degenerate, exempt, register

SQUARED, SIGMOID = SquaredError(), SigmoidCrossEntropy()
N, D, C = 4, 3, 1
LINEAR = normal((D, C), (N, D), (N, C))


def linear(w, x):
    return x @ w


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def squared_rows(w, x, y):
    residual = 2 * (x @ w - y)
    return np.einsum("ni,nj,nc->ij", x, x, residual**2) / N


ZERO = Degenerate(
    (np.zeros((D, C)), np.zeros((N, D)), np.zeros((N, C))), lambda matrix: not matrix.any()
)
# The units of w, x and y in which a linear model's outputs have those of its targets.
UNITS = (0, 1, 1)

OF_SQUARES = {
    "ggn": (
        lambda w, x, y: ggn(linear, SQUARED, working(w), (x, y), micro_batch=3),
        lambda w, x, y: 2 / N * x.T @ x,
        2,
    ),
    "hessian": (
        lambda w, x, y: hessian(objective(linear, SQUARED), working(w), (x, y), micro_batch=3),
        lambda w, x, y: 2 / N * x.T @ x,
        2,
    ),
    "stored": (
        lambda w, x, y: stored(ggn(linear, SQUARED, working(w), (x, y), micro_batch=3)),
        lambda w, x, y: 2 / N * x.T @ x,
        2,
    ),
    "empirical_fisher": (
        lambda w, x, y: empirical_fisher(linear, SQUARED, working(w), (x, y)),
        squared_rows,
        4,
    ),
}
for name, (operator, matrix, degree) in OF_SQUARES.items():
    register(
        Case(
            name=f"curvature.{name}",
            function=lambda w, x, y, operator=operator: operator(w, x, y).dense(),
            make_inputs=LINEAR,
            oracle=matrix,
            degree=degree,
            units=UNITS,
            degenerate={"zero": ZERO},
        )
    )
register(
    Case(
        name="curvature.fisher",
        function=lambda w, x, y: fisher(linear, SIGMOID, working(w), (x, working(y) * 0)).dense(),
        make_inputs=LINEAR,
        oracle=lambda w, x, y: x.T @ (sigmoid(x @ w) * sigmoid(-x @ w) * x) / N,
        unscaled="a sigmoid has a scale of its own",
        degenerate={"zero": ZERO},
    )
)
register(
    Case(
        name="curvature.logit_jacobian",
        function=lambda w, x: (
            logit_jacobian(linear, working(w), x, micro_batch=3) @ working(w)[:, 0]
        ),
        make_inputs=normal((D, C), (N, D)),
        oracle=lambda w, x: (x @ w)[:, 0],
        degree=2,
    )
)
register(
    Case(
        name="curvature.objective",
        function=lambda w, x, y: objective(linear, SQUARED)(working(w), (x, y)),
        make_inputs=LINEAR,
        oracle=lambda w, x, y: ((x @ w - y) ** 2)[:, 0],
        degree=2,
        units=UNITS,
    )
)
register(
    Case(
        name="curvature.item_shares",
        function=lambda outputs, weight: item_shares(SQUARED, outputs, outputs, jnp.abs(weight)),
        make_inputs=normal((4, 2), (4,)),
        oracle=lambda outputs, weight: np.abs(weight) / np.sum(np.abs(weight)),
        degree=0,
        degenerate={
            "no weight": Degenerate(
                (np.ones((4, 2)), np.zeros(4)), lambda s: bool(np.isnan(s).all()), False
            ),
            "one item": Degenerate((np.ones((1, 2)), np.ones(1)), lambda s: bool(s == 1)),
        },
    )
)
exempt("curvature.check", "tries products on the host: tests/test_curvature_check.py")
exempt("curvature.stream", "reads batches on the host: tests/test_curvature_check.py")
