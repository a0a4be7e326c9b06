"""features: neural collapse, LiDAR, ridge probes and alignment, of all rows at once in float64."""

from itertools import permutations

import numpy as np

from spectral_jax import features
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, register

# Classes of different size, and one that no row has.
LABELS = np.array([0, 1, 2, 4] * 4 + [0, 0, 1], np.int32)
PRESENT = np.array([0, 1, 2, 4])
N, CLASSES, P, C = len(LABELS), 5, 6, len(PRESENT)
# Powers of two: the squares that float32 cannot have are those of the features alone.
BIAS = np.array([0.5, -0.5, 0.0, 0.25, -0.25])


def table(key, dtype):
    """Means of length about one, and a tenth of it within classes."""
    means, noise = draws.normal(key, (2, N, P), dtype)
    return ((means[LABELS] + noise / 10).astype(dtype),)


def table_and_head(key, dtype):
    x, kernel = draws.normal(key, (2, N, P), dtype)
    return (*table(key, dtype), kernel[:CLASSES].T.copy(), x[0])


def collapse(x, kernel, ood, **options):
    return features.neural_collapse(
        x, labels=LABELS, classes=CLASSES, head=features.Head(kernel), ood=ood, **options
    )


def groups(x):
    means = np.stack([x[LABELS == c].mean(axis=0) for c in PRESENT])
    off = x - means[np.searchsorted(PRESENT, LABELS)]
    return means, off


def unit(a):
    return a / np.linalg.norm(a)


def cosine(a, b):
    return unit(a) @ unit(b)


def by_the_book(x, kernel, ood):
    """The field's definitions, pair by pair, in the order of `NeuralCollapse`."""
    means, off = groups(x)
    m, w = means - means.mean(axis=0), kernel.T[PRESENT]
    within, between = off.T @ off / N, m.T @ m / C
    variance = [np.sum(off[LABELS == c] ** 2) / np.sum(LABELS == c) for c in PRESENT]
    lengths = np.linalg.norm(m, axis=1)
    pairs = list(permutations(range(C), 2))
    cosines = np.array([cosine(m[i], m[j]) for i, j in pairs])
    chords = np.array([np.linalg.norm(unit(m[i]) - unit(m[j])) for i, j in pairs])
    apart = np.array([np.linalg.norm(m[i] - m[j]) for i, j in pairs])
    mean_variances = np.array([(variance[i] + variance[j]) / 2 for i, j in pairs])
    matches = np.array([cosine(a, b) for a, b in zip(w, m, strict=True)])
    etf = unit(np.eye(C) - 1 / C)
    nc1 = np.trace(within @ np.linalg.pinv(between, 1e-10)) / C
    return (
        nc1,
        nc1,  # the class means have full rank
        np.trace(within) / np.trace(between),
        np.mean(mean_variances / apart**2),
        np.linalg.norm(unit(m @ m.T) - etf),
        np.std(lengths) / np.mean(lengths),
        np.std(cosines),
        np.mean(np.abs(cosines + 1 / (C - 1))),
        np.var(-np.log(chords)),
        np.mean(-np.log(chords)) + np.log(2 * C / (C - 1)) / 2,
        np.linalg.norm(unit(w @ m.T) - etf),
        np.linalg.norm(unit(w) - unit(m)),
        np.mean(matches),
        np.var(matches),
        np.mean([abs(cosine(a, ood)) for a in means]),
    )


def numbers(found):
    return tuple(
        getattr(found, name)
        for name in (
            "nc1 nc1_svd nc1_quotient nc1_cdnv nc2 nc2_equinorm nc2_equiangular nc2_max_angle "
            "gnc2 gnc2_energy nc3 nc3_difference nc3_cosine unc3 nc5"
        ).split()
    )


def agreement(x, kernel):
    """Of the first twelve rows, of which one has no weight."""
    m = features.of(x, labels=LABELS, classes=CLASSES)
    return features.collapse_agreement(
        m,
        x[:12],
        head=features.Head(kernel, BIAS.astype(kernel.dtype)),
        labels=LABELS[:12],
        weights=np.arange(12) % 3,
    )


def agreement_by_the_book(x, kernel):
    means, _ = groups(x)
    near = PRESENT[np.linalg.norm(x[:12, None] - means, axis=2).argmin(axis=1)]
    said = (x[:12] @ kernel + BIAS).argmax(axis=1)
    w = np.arange(12) % 3
    hits = (near == said, near == LABELS[:12], said == LABELS[:12])
    return (*(w @ hit / w.sum() for hit in hits), float(w.sum()))


def lidar_by_the_book(x):
    means, off = groups(x)
    m = means - means.mean(axis=0)
    within = off.T @ off / N
    within += 1e-4 * np.trace(within) / P * np.eye(P)
    values = np.linalg.eigvals(np.linalg.solve(within, m.T @ m / C)).real
    shares = np.sort(values)[: -P + C - 2 : -1] / values.sum()  # C - 1 of them are not 0
    return np.exp(-np.sum(shares * np.log(shares)))


def alignment_by_the_book(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    k, t = x @ x.T, y @ y.T
    norms = np.linalg.norm(k) * np.linalg.norm(t)
    return np.sum(k * t) / norms, np.trace(k) * np.trace(t) / ((N - 1) * norms)


SHARES = np.array([1e-3, 0.1, 10.0])


def table_and_targets(key, dtype):
    return (*table(key, dtype), draws.normal(key, (N, 2), dtype))


def probe(x, y):
    """Fitted to the first twelve rows, told by the others."""
    return features.ridge_probe(
        x[:12],
        targets=y[:12],
        penalties=SHARES.astype(x.dtype),
        validation=features.of(x[12:], targets=y[12:]),
    )


def probe_by_the_book(x, y):
    (a, b), (s, t) = (x[:12], x[12:]), (y[:12], y[12:])
    off = a - a.mean(axis=0)
    covariance = off.T @ off / 12
    training, error, kernels = [], [], []
    for penalty in SHARES * np.trace(covariance) / P:
        w = np.linalg.solve(covariance + penalty * np.eye(P), off.T @ s / 12)
        bias = s.mean(axis=0) - a.mean(axis=0) @ w
        training.append(np.mean(np.sum((a @ w + bias - s) ** 2, axis=1)))
        error.append(np.mean(np.sum((b @ w + bias - t) ** 2, axis=1)))
        kernels.append(w)
    best = np.argmin(error)
    variance = np.mean(np.sum((t - t.mean(axis=0)) ** 2, axis=1))
    return np.array(training), np.array(error), 1 - error[best] / variance, kernels[best]


ONE_CLASS = np.zeros(N, int)

register(
    Case(
        name="features.neural_collapse",
        function=collapse,
        make_inputs=table_and_head,
        oracle=by_the_book,
        select=numbers,
        degree=0,
        tolerance={"float32": 2e-5, "float64": 1e-10},
        gathered=IN_TURN,
        differentiable=False,  # gram64 in float32; for gram: the next case
        degenerate={
            "NaN": Degenerate(
                (draws.changed(np.ones((N, P)), 0, np.nan), np.ones((P, CLASSES)), np.ones(P)),
                lambda found: bool(np.isnan(numbers(found)).all()),
            ),
            "means that coincide": Degenerate(
                (np.eye(N)[:, :P] * 0 + 3, np.ones((P, CLASSES)), np.ones(P)),
                lambda found: found.rank == 0 and not np.isfinite(found.nc1),
            ),
            "collapsed": Degenerate(
                (np.eye(CLASSES, P)[LABELS], np.eye(P, CLASSES), np.ones(P)),
                lambda found: bool(
                    np.abs([found.nc1, found.nc1_cdnv, found.nc2, found.gnc2]).max() < 1e-12
                ),
            ),
        },
    )
)
register(
    Case(
        name="features.neural_collapse: to be differentiated",
        function=lambda *inputs: collapse(*inputs, method="gram"),
        make_inputs=table_and_head,
        oracle=by_the_book,
        select=numbers,
        tolerance={"float32": 1e-4, "float64": 1e-10},
        gathered=IN_TURN,
    )
)
register(
    Case(
        name="features.collapse_agreement",
        function=agreement,
        make_inputs=lambda key, dtype: table_and_head(key, dtype)[:2],
        oracle=agreement_by_the_book,
        unscaled="a bias that does not scale with the features says other classes",
        differentiable=False,
    )
)
register(
    Case(
        name="features.lidar",
        function=lambda x: features.lidar(x, labels=LABELS, classes=CLASSES),
        make_inputs=table,
        oracle=lidar_by_the_book,
        select=lambda found: found.value,
        degree=0,
        gathered=IN_TURN,
        differentiable=False,
        degenerate={
            "nothing within classes": Degenerate(
                (np.eye(CLASSES, P)[LABELS],), lambda found: bool(abs(found.value - 3) < 1e-9)
            ),
            "nothing within classes far from 0": Degenerate(
                (10 + np.eye(CLASSES, P)[LABELS] / 7,),
                lambda found: bool(abs(found.value - 3) < 1e-9),
            ),
            "NaN": Degenerate((np.full((N, P), np.nan),), lambda found: np.isnan(found.value)),
        },
    )
)
register(
    Case(
        name="features.alignment",
        function=lambda x, y: features.alignment(x, targets=y),
        make_inputs=table_and_targets,
        oracle=alignment_by_the_book,
        degree=0,
        differentiable=False,
        degenerate={
            "constant": Degenerate(
                (np.ones((N, P)), np.ones((N, 2))), lambda found: np.isnan(found.value)
            ),
            "itself": Degenerate(
                (np.eye(N)[:, :P], np.eye(N)[:, :P]), lambda found: abs(found.value - 1) < 1e-12
            ),
        },
    )
)
register(
    Case(
        name="features.ridge_probe",
        function=probe,
        make_inputs=table_and_targets,
        oracle=probe_by_the_book,
        select=lambda found: (found.training, found.error, found.r2, found.head.kernel),
        degree=(2, 2, 0, 0),
        gathered=IN_TURN,
        differentiable=False,
        degenerate={
            "constant features": Degenerate(
                (np.ones((N, P)), np.eye(N)[:, :2]),
                lambda found: not found.head.kernel.any() and np.allclose(found.head.bias, 1 / 12),
            ),
        },
    )
)
