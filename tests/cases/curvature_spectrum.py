"""curvature: complete spectra, against the matrices written out."""

import numpy as np

from spectral_jax.curvature import (
    SquaredError,
    displacement,
    empirical_fisher_spectrum,
    ggn_blocks,
    ggn_spectrum,
    overlap,
)
from spectral_jax.linalg.precision import working
from tests import draws
from tests.cases.operators import normal
from tests.contract import IN_TURN, Case, Degenerate, register

SQUARED = SquaredError()
N, D, C = 3, 4, 2
LINEAR = normal((D, C), (N, D), (N, C))
ZERO = (np.zeros((D, C)), np.zeros((N, D)), np.zeros((N, C)))


def linear(w, x):
    return x @ w


def halves(parts, x):
    return x[:, :2] @ parts["first"] + x[:, 2:] @ parts["second"]


def orthonormal(key, dtype):
    pair = draws.normal(key, (2, 6, 2), dtype)
    return tuple(np.linalg.qr(pair)[0])


def doubled(x, c):
    """The eigenvalues of ``(2/n) X^T X`` for each of ``c`` outputs, descending."""
    return np.repeat(np.linalg.eigvalsh(2 / len(x) * x @ x.T)[::-1], c)


for name, function, matrix, degree in (
    ("ggn_spectrum", ggn_spectrum, lambda w, x, y: doubled(x, C), 2),
    (
        "empirical_fisher_spectrum",
        empirical_fisher_spectrum,
        lambda w, x, y: np.linalg.eigvalsh(4 / N * (x @ x.T) * ((x @ w - y) @ (x @ w - y).T))[::-1],
        4,
    ),
):
    register(
        Case(
            name=f"curvature.{name}",
            function=lambda w, x, y, function=function: function(
                linear, SQUARED, working(w), (x, y)
            ),
            make_inputs=LINEAR,
            oracle=matrix,
            select=lambda spectrum: spectrum.values,
            degree=degree,
            units=(0, 1, 1),
            differentiable=False,
            gathered=IN_TURN,
            degenerate={
                "zero": Degenerate(ZERO, lambda s: bool(s.exact) and not s.values.any()),
                "NaN": Degenerate(
                    (ZERO[0], ZERO[1] * np.nan, ZERO[2]),
                    lambda s: not s.exact and bool(np.isnan(s.values).all()),
                ),
            },
        )
    )
register(
    Case(
        name="curvature.ggn_blocks",
        function=lambda w, x, y: ggn_blocks(
            halves, SQUARED, {"first": working(w)[:2], "second": working(w)[2:]}, (x, y)
        ),
        make_inputs=LINEAR,
        oracle=lambda w, x, y: [doubled(x[:, :2], C)[:4], doubled(x[:, 2:], C)[:4]],
        select=lambda blocks: [spectrum.values for spectrum in blocks.spectra.values()],
        degree=2,
        units=(0, 1, 1),
        differentiable=False,
        gathered=IN_TURN,
        degenerate={"zero": Degenerate(ZERO, lambda b: bool(np.isnan(b.outside)))},
    )
)
register(
    Case(
        name="curvature.overlap",
        function=overlap,
        make_inputs=orthonormal,
        oracle=lambda a, b: np.sum((a.T @ b) ** 2) / a.shape[1],
        degree=4,
        degenerate={"zero": Degenerate((np.zeros((3, 1)),) * 2, lambda share: bool(share == 0))},
    )
)
register(
    Case(
        name="curvature.displacement",
        function=displacement,
        make_inputs=normal((6, 2), (6,), (6,)),
        oracle=lambda u, w, w0: np.cumsum((u.T @ (w - w0)) ** 2) / np.sum((w - w0) ** 2),
        degree=0,
        units=(0, 1, 1),
        degenerate={
            "not moved": Degenerate(
                (np.eye(3), np.ones(3), np.ones(3)),
                lambda shares: bool(np.isnan(shares).all()),
                False,
            )
        },
    )
)
