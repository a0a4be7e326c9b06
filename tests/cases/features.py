"""features: one pass over rows, against the whole of them in NumPy and float64."""

from functools import partial

import numpy as np

from spectral_jax import features
from spectral_jax.features import Head
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, exempt, register

N, P, C = 12, 4, 3
LABELS = np.arange(N) % C
NO_SQUARES = "gram64 in float32 has no derivative: features.covariance is differentiated by gram"
COUNTS = np.arange(N) % 4


def table(key, dtype):
    return (3 + draws.normal(key, (N, P), dtype),)


def table_and_outputs(key, dtype):
    return (*table(key, dtype), draws.normal(key, (N, 2), dtype))


def table_and_head(key, dtype):
    return (*table(key, dtype), draws.normal(key, (P, 2), dtype))


def eigenvalues(key, dtype):
    return (0.2 + draws.uniform(key, (2 * P,), dtype),)


def streamed(x, **options):
    """In two batches of unequal size."""
    m = features.zero(P, dtype=x.dtype, **options)
    return features.update(features.update(m, x[:5]), x[5:])


def labelled(x, method="gram64"):
    m = features.zero(P, classes=C, method=method, dtype=x.dtype)
    for rows in (slice(0, 5), slice(5, N)):
        m = features.update(m, x[rows], labels=LABELS[rows])
    return m


def covariance(x):
    return np.cov(x.T, bias=True)


def class_means(x):
    return np.stack([x[LABELS == c].mean(axis=0) for c in range(C)])


def within(x):
    return covariance(x - class_means(x)[LABELS])


def spectrum_of(x):
    return np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / N


def entropy_of(x):
    q = spectrum_of(x) / spectrum_of(x).sum()
    return np.exp(-np.sum(q * np.log(q)))


def fourth_of(x):
    z = x - x.mean(axis=0)
    squares = np.sum(z * z, axis=1)
    return np.mean(squares**2), squares @ z / N


NAN = draws.changed(np.ones((N, P)), (0, 0), np.nan)

register(
    Case(
        name="features.of",
        function=lambda x, y: features.cross(features.of(x, outputs=y, weights=COUNTS), "outputs"),
        make_inputs=table_and_outputs,
        oracle=lambda x, y: np.cov(x.T, y.T, fweights=COUNTS, bias=True)[P:, :P],
        degree=2,
        differentiable=False,  # NO_SQUARES
    )
)
register(
    Case(
        name="features.covariance",
        function=lambda x: features.covariance(streamed(x, method="gram")),
        make_inputs=table,
        oracle=covariance,
        degree=2,
        degenerate={
            "zero": Degenerate((np.zeros((N, P)),), lambda s: not s.any()),
            "NaN": Degenerate(
                (NAN,), lambda s: bool(np.isnan(s[0]).all() and not s[1:, 1:].any()), False
            ),
        },
    )
)
register(
    Case(
        name="features.update: blocks",
        function=lambda x: features.mean(streamed(x, blocks=4)),
        make_inputs=table,
        oracle=lambda x: x.mean(axis=0),
        degree=1,
        differentiable=False,  # NO_SQUARES
    )
)
register(
    Case(
        name="features.merge",
        function=lambda x: features.covariance(
            features.merge(streamed(x, method="qr"), streamed(x[:6], method="qr")), centred=False
        ),
        make_inputs=table,
        oracle=lambda x: (x.T @ x + x[:6].T @ x[:6]) / (N + 6),
        degree=2,
        differentiable=False,  # a triangular factor of fewer rows than columns has no derivative
    )
)
register(
    Case(
        name="features.decay",
        function=lambda x: features.mean(
            features.update(features.decay(features.of(x[:4]), 0.25), x[4:])
        ),
        make_inputs=table,
        oracle=lambda x: (0.25 * x[:4].sum(0) + x[4:].sum(0)) / (0.25 * 4 + N - 4),
        degree=1,
        differentiable=False,  # NO_SQUARES
    )
)
register(
    Case(
        name="features.within",
        function=lambda x: features.within(labelled(x, "gram")),
        make_inputs=table,
        oracle=within,
        degree=2,
        degenerate={"zero": Degenerate((np.zeros((N, P)),), lambda s: not s.any())},
    )
)
register(
    Case(
        name="features.class_sums",
        function=lambda x: features.class_sums(labelled(x)),
        make_inputs=table,
        oracle=lambda x: (
            class_means(x),
            np.bincount(LABELS, np.sum((x - class_means(x)[LABELS]) ** 2, axis=1)),
        ),
        select=lambda found: (found.mean, found.spread),
        degree=(1, 2),
        differentiable=False,  # NO_SQUARES
        degenerate={
            "NaN": Degenerate((NAN,), lambda found: bool(np.isnan(found.spread[0]))),
        },
    )
)
register(
    Case(
        name="features.cross",
        function=lambda x: features.cross(labelled(x), "targets"),
        make_inputs=table,
        oracle=lambda x: np.eye(C)[LABELS].T @ (x - x.mean(axis=0)) / N,
        degree=1,
        differentiable=False,  # NO_SQUARES
    )
)
register(
    Case(
        name="features.gram",
        function=lambda x, kernel: features.gram(
            streamed(x, method="gram"), Head(kernel, kernel[0]), centred=False
        ),
        make_inputs=table_and_head,
        oracle=lambda x, kernel: (x @ kernel + kernel[0]).T @ (x @ kernel + kernel[0]) / N,
        unscaled="a head has a bias in the unit of its outputs, not of its kernel",
    )
)
register(
    Case(
        name="features.eigenvalues",
        function=lambda x: features.eigenvalues(streamed(x)),
        make_inputs=table,
        oracle=spectrum_of,
        select=lambda found: found.values,
        gathered=IN_TURN,
        degree=2,
        differentiable=False,  # NO_SQUARES
    )
)
register(
    Case(
        name="features.factor",
        function=lambda x: features.factor(streamed(x, method="gram")),
        make_inputs=table,
        oracle=covariance,
        select=lambda r: r.T @ r,
        tolerance={"float32": 3e-5, "float64": 1e-11},
        gathered=IN_TURN,
        degree=2,
        differentiable=False,  # what is selected here is NumPy's; features.gram has the derivative
        degenerate={"zero": Degenerate((np.zeros((N, P)),), lambda r: not r.any())},
    )
)
register(
    Case(
        name="features.fourth",
        function=lambda x: features.fourth(streamed(x, fourth=True, method="gram")),
        make_inputs=table,
        oracle=fourth_of,
        degree=(4, 3),
    )
)
register(
    Case(
        name="features.spectrum",
        function=partial(features.spectrum),
        make_inputs=table,
        oracle=lambda x: (spectrum_of(x), spectrum_of(x)[0] / spectrum_of(x).sum()),
        select=lambda found: (found.values, found.top_share),
        gathered=IN_TURN,
        degree=(2, 0),
        differentiable=False,  # NO_SQUARES
        degenerate={
            "zero": Degenerate(
                (np.zeros((N, P)),), lambda found: int(found.rank) == 0 == float(found.top_share)
            ),
            "few rows": Degenerate((np.eye(P),), lambda found: bool(found.few_rows)),
            "NaN": Degenerate(
                (NAN,), lambda found: bool(np.isnan(found.top_share) & np.isnan(found.floor))
            ),
        },
    )
)
register(
    Case(
        name="features.effective_dimension",
        function=lambda x: features.effective_dimension(streamed(x, method="gram")),
        make_inputs=table,
        oracle=entropy_of,
        gathered=IN_TURN,
        degree=0,
        tolerance={"float32": 3e-5, "float64": 1e-11},
        degenerate={
            "zero": Degenerate((np.zeros((N, P)),), lambda found: float(found) == 0),
            "one row": Degenerate((np.ones((1, P)),), lambda found: float(found) == 0),
            "NaN": Degenerate((NAN,), lambda found: bool(np.isnan(found)), False),
        },
    )
)
register(
    Case(
        name="features.effective_dimension: of values",
        function=lambda v: (
            features.effective_dimension(v, kind="participation", drop=1),
            features.effective_dimension(v, kind="stable_rank"),
            features.effective_dimension(v, kind="rankme"),
            features.effective_dimension(v, kind="rankme_log"),
            features.effective_dimension(v, kind="rankme_eigenvalues", eps=0.01),
            features.effective_dimension(v, kind="renyi", order=3.0),
        ),
        make_inputs=eigenvalues,
        oracle=lambda v: dimensions_of(v),
        degree=0,
    )
)
register(
    Case(
        name="features.alpha_req",
        function=lambda v: features.alpha_req(v, first=2, last=6),
        make_inputs=eigenvalues,
        oracle=lambda v: law_of(v),
        select=lambda found: (found.alpha, found.r_squared),
        tolerance={"float32": 2e-5, "float64": 1e-11},
        degree=0,
        degenerate={
            "zero": Degenerate(
                (np.zeros(2 * P),),
                lambda found: bool(np.isnan(found.alpha)) and int(found.last) == 0,
                finite_gradient=False,
            ),
        },
    )
)
register(
    Case(
        name="features.unit_activity",
        function=features.unit_activity,
        make_inputs=table,
        oracle=lambda x: np.sqrt(np.mean(x * x, 0)) / np.mean(np.sqrt(np.mean(x * x, 0))),
        select=lambda found: found.score,
        degree=0,
        differentiable=False,  # NO_SQUARES
        degenerate={
            "zero": Degenerate(
                (np.zeros((N, P)),), lambda found: bool(found.dead.all() & found.dormant.all())
            ),
            "constant": Degenerate(
                (np.ones((N, P)),), lambda found: bool(found.constant.all() & ~found.dead.any())
            ),
            "NaN": Degenerate(
                (NAN,), lambda found: bool(np.isnan(found.score[0]) & ~found.dormant.any())
            ),
        },
    )
)


def dimensions_of(v):
    q, s, rest = v / v.sum(), np.sqrt(v) / np.sqrt(v).sum(), np.sort(v)[:-1]
    me, shifted = np.exp(-np.sum(s * np.log(s))), q + 0.01
    return (
        rest.sum() ** 2 / np.sum(rest**2),
        v.sum() / v.max(),
        me,
        np.log(me) / np.log(len(v)),
        np.exp(-np.sum(shifted * np.log(shifted))),
        np.sum(q**3) ** -0.5,
    )


def law_of(v):
    x, y = np.log(np.arange(2, 7)), np.log(np.sort(v)[::-1][1:6])
    return -np.polyfit(x, y, 1)[0], np.corrcoef(x, y)[0, 1] ** 2


exempt("features.zero", "begins the moments of every case of features")
exempt("features.mean", "in the case of features.decay")
exempt("features.mean_beside", "in the case of features.gram")
exempt("features.as_moments", "in the case of features.spectrum")
exempt("features.pooled", "in the case of features.update: blocks")
exempt("features.unitless", "in the case of features.effective_dimension")
exempt("features.effective_rows", "counts weights, not data: tests/test_features.py")
exempt("features.jackknife", "takes a function: tests/test_features.py")
exempt("features.psum", "needs a mapped axis: tests/test_features.py")
