"""Eigenvalues and singular values without vectors, under contract: the oracle is LAPACK."""

from functools import partial

import numpy as np

from spectral_jax.linalg.decompositions import eigh, svd
from spectral_jax.linalg.values import eigvalsh, spectral_norm, svdvals
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, register

BATCH, N = 8, 6


def matrices(m, n):
    return lambda key, dtype: (draws.normal(key, (BATCH, m, n), dtype),)


def symmetric_part_spectrum(a):
    return np.linalg.eigvalsh((a + np.swapaxes(a, -2, -1)) / 2)


def singular_values(a):
    return np.linalg.svd(a, compute_uv=False)


def one_nan(m, n):
    return draws.changed(np.broadcast_to(np.eye(m, n), (BATCH, m, n)), (2, 1, 0), np.nan)


def nan_in_its_row_only(values):
    return bool((np.isnan(values) == (np.arange(BATCH) == 2)[:, None]).all())


def degenerate(m, n):
    """All of these have finite gradients, except through NaN."""
    ones = np.ones((BATCH, m, n))
    return {
        "zero": Degenerate((0 * ones,), lambda s: bool((s == 0).all())),
        "rank one": Degenerate(
            (ones,), lambda s: bool(np.allclose(np.sort(s)[:, -1], (m * n) ** 0.5, rtol=1e-6))
        ),
        "repeated": Degenerate(
            (np.broadcast_to(np.eye(m, n), ones.shape),),
            lambda s: bool(np.allclose(s, 1, rtol=1e-6)),
        ),
        "empty batch": Degenerate((ones[:0],), lambda s: s.shape == (0, min(m, n))),
        "empty matrix": Degenerate((ones[:, :0, :0],), lambda s: s.shape == (BATCH, 0)),
        "NaN": Degenerate((one_nan(m, n),), nan_in_its_row_only, False),
    }


for method in ("auto", "lapack"):
    register(
        Case(
            name=f"linalg.eigvalsh: {method}",
            function=partial(eigvalsh, method=method),
            gathered=IN_TURN if method == "auto" else "",
            make_inputs=matrices(N, N),
            degree=1,
            oracle=symmetric_part_spectrum,
            degenerate=degenerate(N, N),
            leading=True,
        )
    )
for name, m, n in (("square", N, N), ("tall", 3 * N, N)):
    register(
        Case(
            name=f"linalg.svdvals: {name}",
            function=svdvals,
            gathered=IN_TURN,
            make_inputs=matrices(m, n),
            degree=1,
            oracle=singular_values,
            degenerate=degenerate(m, n),
            leading=True,
        )
    )
register(
    Case(
        name="linalg.svdvals: gram, wide",
        function=partial(svdvals, method="gram"),
        gathered=IN_TURN,
        make_inputs=matrices(N, 5 * N),
        degree=1,
        oracle=singular_values,
        leading=True,
    )
)


def of_both(left, right):
    """``sum_i (i + 1) x_i y_i^T`` of columns: determined, though the signs of pairs are not."""
    weights = np.arange(1, left.shape[-1] + 1).astype(left.dtype)
    return (left * weights) @ right.swapaxes(-2, -1)


def eigh_oracle(a):
    values, vectors = np.linalg.eigh((a + np.swapaxes(a, -2, -1)) / 2)
    return values, of_both(vectors, vectors)


def svd_oracle(a):
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    return s, of_both(u, vt.swapaxes(-2, -1))


def on_values(cases, values):
    """Declarations about values, of results that have vectors too."""
    return {
        name: case._replace(holds=lambda found, holds=case.holds: holds(values(found)))
        for name, case in cases.items()
    }


register(
    Case(
        name="linalg.eigh",
        function=eigh,
        gathered=IN_TURN,
        make_inputs=matrices(N, N),
        degree=(1, 0),
        oracle=eigh_oracle,
        select=lambda found: (found.values, of_both(found.vectors, found.vectors)),
        gradient_tolerance=1e-5,
        degenerate=on_values(degenerate(N, N), lambda found: found.values),
        leading=True,
    )
)
register(
    Case(
        name="linalg.svd",
        function=svd,
        gathered=IN_TURN,
        make_inputs=matrices(N + 3, N),
        degree=(1, 0),
        oracle=svd_oracle,
        select=lambda found: (found.s, of_both(found.u, found.vt.swapaxes(-2, -1))),
        gradient_tolerance=1e-5,
        degenerate=on_values(degenerate(N + 3, N), lambda found: found.s),
        leading=True,
    )
)
register(
    Case(
        name="linalg.spectral_norm",
        function=spectral_norm,
        gathered=IN_TURN,
        make_inputs=matrices(N, N + 2),
        degree=1,
        oracle=lambda a: np.linalg.norm(a, 2, axis=(-2, -1)),
        degenerate={
            "zero": Degenerate((np.zeros((BATCH, N, N)),), lambda norm: not norm.any()),
            "empty matrix": Degenerate((np.zeros((BATCH, 0, 0)),), lambda norm: not norm.any()),
            "NaN": Degenerate(
                (one_nan(N, N),),
                lambda norm: bool((np.isnan(norm) == (np.arange(BATCH) == 2)).all()),
                False,
            ),
        },
        leading=True,
    )
)
