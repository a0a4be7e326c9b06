"""tails: windows and exponents of spectra, against NumPy loops and textbook sums."""

from functools import partial

import numpy as np

from spectral_jax.tails import (
    FitStatus,
    debiased_alpha,
    farms_eigenvalues,
    farms_windows,
    hill_alpha,
    hill_fit,
    null_zscore,
    spectral_metrics,
)
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, exempt, register

BATCH, N = 8, 21
STACK = (BATCH, 10, 14)


def spectra(key, dtype):
    return (np.exp(draws.normal(key, (BATCH, N), dtype)),)


def stacks(key, dtype):
    return (draws.normal(key, STACK, dtype),)


def undecided(status):
    return lambda fit: bool(np.isnan(fit.alpha).all()) and bool((fit.status == status).all())


def hill(lam):
    ascending = np.sort(lam, axis=-1)
    tail = ascending[..., ascending.shape[-1] // 2 :]
    return 1 + tail.shape[-1] / np.log(tail / tail[..., :1]).sum(-1)


def four_corners(w):
    """Windows of 4 x 4 at the corners and between: 3 per axis."""
    starts = [(i, j) for i in (0, 3, 6) for j in (0, 5, 10)]
    return np.stack([w[..., i : i + 4, j : j + 4] for i, j in starts], axis=-3)


def squared(windows):
    return np.sort(np.linalg.svd(windows, compute_uv=False).ravel() ** 2)


def metrics(lam):
    p = lam / lam.sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1)
    alpha, top = hill(lam), lam.max(-1)
    median_of_square_noise = 4 * np.sin(np.pi / 4 - 0.7390851332151607 / 2) ** 2
    return (
        alpha,
        lam.sum(-1),
        np.log10(lam.sum(-1)),
        top,
        np.log10(top),
        lam.sum(-1) / top,
        entropy / np.log(N),
        np.exp(entropy),
        4 / median_of_square_noise * np.median(lam, axis=-1) / top,
        alpha * np.log10(top),
        np.log10((lam ** alpha[:, None]).sum(-1)),
    )


NOT_FINITE = (np.nan, np.inf, -np.inf)
DEGENERATE = {
    "zero": Degenerate((np.zeros((BATCH, N)),), undecided(FitStatus.TOO_FEW)),
    "repeated": Degenerate((np.ones((BATCH, N)),), undecided(FitStatus.DEGENERATE)),
    "one value": Degenerate((np.ones((BATCH, 1)),), undecided(FitStatus.TOO_FEW)),
    "no values": Degenerate((np.ones((BATCH, 0)),), undecided(FitStatus.TOO_FEW)),
    **{
        f"one {value}": Degenerate(
            (draws.changed(np.arange(1.0, N + 1), 3, value),),
            undecided(FitStatus.NOT_FINITE),
            False,
        )
        for value in NOT_FINITE
    },
}

register(
    Case(
        name="tails.hill_fit",
        function=hill_fit,
        make_inputs=spectra,
        oracle=hill,
        select=lambda fit: fit.alpha,
        degree=0,
        degenerate=DEGENERATE,
        leading=True,
    )
)
register(
    Case(
        name="tails.hill_fit: where the tail begins",
        function=hill_fit,
        make_inputs=spectra,
        oracle=lambda lam: np.sort(lam, axis=-1)[:, N // 2],
        select=lambda fit: fit.xmin,
        degree=1,
        leading=True,
    )
)
register(
    Case(
        name="tails.hill_alpha",
        function=hill_alpha,
        make_inputs=spectra,
        oracle=hill,
        degree=0,
        degenerate={
            "zero": Degenerate((np.zeros(N),), lambda a: bool(np.isnan(a))),
            **{
                f"one {value}": Degenerate(
                    (draws.changed(np.arange(1.0, N + 1), 3, value),),
                    lambda a: bool(np.isnan(a)),
                    False,
                )
                for value in NOT_FINITE
            },
        },
        leading=True,
    )
)
register(
    Case(
        name="tails.farms_windows",
        function=partial(farms_windows, window=4, samples=3),
        make_inputs=stacks,
        oracle=four_corners,
        degree=1,
        leading=True,
    )
)
register(
    Case(
        name="tails.farms_eigenvalues",
        function=partial(farms_eigenvalues, window=4, samples=3),
        gathered=IN_TURN,
        make_inputs=stacks,
        oracle=lambda w: squared(four_corners(w)),
        tolerance={"float32": 1e-5, "float64": 1e-12},
        degree=2,
        degenerate={"zero": Degenerate((np.zeros(STACK),), lambda lam: not lam.any())},
    )
)
register(
    Case(
        name="tails.farms_eigenvalues: gram",
        function=partial(farms_eigenvalues, window=4, samples=3, method="gram"),
        gathered=IN_TURN,
        make_inputs=stacks,
        oracle=lambda w: squared(four_corners(w)),
        degree=2,
        degenerate={
            "zero": Degenerate((np.zeros(STACK),), lambda lam: not lam.any()),
            **{
                f"one {value}": Degenerate(
                    (draws.changed(np.ones(STACK), (0, 0, 0), value),),
                    # The corner lies in one of the nine windows of its matrix.
                    lambda lam: int(np.isnan(lam).sum()) == 4,
                    False,
                )
                for value in NOT_FINITE
            },
        },
    )
)
register(
    Case(
        name="tails.spectral_metrics",
        function=partial(spectral_metrics, shape=(N, N)),
        make_inputs=spectra,
        oracle=metrics,
        select=lambda result: tuple(
            v for k, v in result._asdict().items() if k not in ("matrix_rank", "status")
        ),
        unscaled="logarithms shift: tests/test_tails.py",
        degenerate={
            "zero": Degenerate(
                (np.zeros((BATCH, N)),),
                lambda m: bool((m.status == FitStatus.TOO_FEW).all() and (m.norm == 0).all()),
                False,
            ),
            **{
                f"one {value}": Degenerate(
                    (draws.changed(np.arange(1.0, N + 1), 3, value),),
                    lambda m: bool(
                        (m.status == FitStatus.NOT_FINITE) & np.isnan(m.norm + m.mp_softrank)
                    ),
                    False,
                )
                for value in NOT_FINITE
            },
        },
        leading=True,
    )
)
# Of noise of 32 x 64; tests/test_tails.py holds the closed forms behind them against draws.
NULL_MEAN, NULL_DEVIATION = 2.808130867287249, 0.13526936915995746
register(
    Case(
        name="tails.null_zscore",
        function=partial(null_zscore, shape=(32, 64)),
        make_inputs=spectra,
        oracle=lambda a: (
            (1 / (NULL_MEAN - 1) - 1 / (a - 1)) * (NULL_MEAN - 1) ** 2 / NULL_DEVIATION
        ),
        unscaled="an exponent has no unit",
        degenerate={
            "infinite": Degenerate((np.array([np.inf]),), lambda z: bool(np.isnan(z)), False)
        },
        leading=True,
    )
)
register(
    Case(
        name="tails.debiased_alpha",
        function=partial(debiased_alpha, shape=(32, 64)),
        make_inputs=spectra,
        oracle=lambda alpha: alpha - NULL_MEAN,
        unscaled="an exponent has no unit",
        leading=True,
    )
)

for name in ("marchenko_pastur_alpha", "null_alpha"):
    exempt(f"tails.{name}", "takes and gives Python numbers; tests/test_tails.py")
exempt("tails.farms_alphas", "takes layers of many shapes, on the host; tests/test_tails.py")
exempt("tails.layer_metrics", "makes a table of names and numbers; tests/test_tails.py")
