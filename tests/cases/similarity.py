"""features: how alike representations are, against the n x n kernels in float64."""

import jax
import numpy as np
from scipy.linalg import sqrtm

from spectral_jax.features import (
    Reference,
    bures,
    cca,
    cka,
    drift,
    kernel_distance,
    layers,
    of,
    procrustes,
)
from spectral_jax.linalg.precision import working
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, exempt, register

N, P, Q = 9, 4, 3
ZEROS = np.zeros((N, Q))


def alike(key, dtype):
    """Two representations of which the second is a part of the first, and noise."""
    one, other = jax.random.split(key)
    x = draws.normal(one, (N, P), dtype)
    return 2 + x, x[:, :Q] ** 2 + x[:, :Q] + draws.normal(other, (N, Q), dtype)


def kernels(*layers):
    return [x @ x.T for x in layers]


def unbiased_hsic(k, other):
    """Song et al. 2012, equation 5, as it stands there."""
    n = len(k)
    k, other = (matrix - np.diag(np.diagonal(matrix)) for matrix in (k, other))
    alone = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return ((k * other).sum() + alone - 2 / (n - 2) * (k @ other).sum()) / (n * (n - 3))


def unbiased(x, y):
    k, other = kernels(x, y)
    own = unbiased_hsic(k, k) * unbiased_hsic(other, other)
    return unbiased_hsic(k, other) / np.sqrt(own)


def biased(x, y):
    k, other = kernels(x - x.mean(0), y - y.mean(0))
    return (k * other).sum() / (np.linalg.norm(k) * np.linalg.norm(other))


def moved(x, y):
    k, other = kernels(x, y)
    return 1 - (k * other).sum() / (np.linalg.norm(k) * np.linalg.norm(other))


def rotated(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), np.pad(y / np.linalg.norm(y), ((0, 0), (0, P - Q)))
    u, _, vt = np.linalg.svd(y.T @ x)
    return np.linalg.norm(x - y @ u @ vt) ** 2


def bases(x, y):
    """The cosines between the spans of the centred columns."""
    q, r = (np.linalg.qr(a - a.mean(0))[0] for a in (x, y))
    return np.linalg.svd(q.T @ r, compute_uv=False)


def two_batches(key, dtype):
    one, other = jax.random.split(key)
    return draws.normal(one, (N, Q), dtype), 1 + 2 * draws.normal(other, (N + 1, Q), dtype)


def frechet(a, b):
    covariances = [np.cov(x.T, bias=True) for x in (a, b)]
    root = sqrtm(covariances[0])
    shared = np.trace(sqrtm(root @ covariances[1] @ root)).real
    shape = np.sqrt(np.trace(sum(covariances)) - 2 * shared)
    location = np.linalg.norm(a.mean(0) - b.mean(0))
    return np.hypot(location, shape), location, shape


def drifted(a, b):
    """Beside a null of the distances 0, 1 and 2 times those of batches of 3 rows and of N."""
    unit = np.max(abs(working(a)))
    null = unit * np.arange(3, dtype=unit.dtype) * np.asarray([[9.0], [0.25]], unit.dtype)
    reference = Reference(of(a), null, (3, N))
    return drift(reference, b, level=0.5)


def in_two_parts(x, y):
    first, second = layers.of([x[:2], y[:2]]), layers.of([x[2:], y[2:]])
    return cka(layers.merge(first, second), unbiased=False).value[0, 1]


register(
    Case(
        name="features.cka",
        function=cka,
        make_inputs=alike,
        oracle=unbiased,
        select=lambda found: found.value,
        degree=0,
        differentiable=False,  # gram64 in float32; for gram: the next
        degenerate={
            "constant": Degenerate(
                (np.eye(N), ZEROS + 0.1),
                lambda found: bool(np.isnan(found.value)) and found.signal[1] == 0,
            ),
            "three rows": Degenerate(
                (np.eye(3), np.eye(3)), lambda found: bool(np.isnan(found.value))
            ),
            "no rows": Degenerate(
                (np.zeros((0, P)), np.zeros((0, Q))), lambda found: bool(np.isnan(found.value))
            ),
            "NaN": Degenerate(
                (np.eye(N), np.full((N, Q), np.nan)),
                lambda found: bool(np.isnan(found.value) & np.isnan(found.signal[1])),
            ),
        },
    )
)
register(
    Case(
        name="features.cka: biased",
        function=lambda x, y: cka(x, y, unbiased=False, method="gram").value,
        make_inputs=alike,
        oracle=biased,
        degree=0,
    )
)
register(
    Case(
        name="features.kernel_distance",
        function=lambda x, y: kernel_distance(x, y, method="gram"),
        make_inputs=alike,
        oracle=moved,
        degree=0,
        degenerate={
            "all 0": Degenerate((np.eye(N), ZEROS), lambda d: bool(np.isnan(d)), False),
            "constant": Degenerate((np.ones((N, P)), ZEROS + 2), lambda d: abs(d) < 1e-14),
        },
    )
)
register(
    Case(
        name="features.procrustes",
        function=lambda x, y: procrustes(x, y, method="gram"),
        make_inputs=alike,
        oracle=rotated,
        degree=0,
        gathered=IN_TURN,
        degenerate={
            "constant": Degenerate((np.eye(N), ZEROS + 2), lambda d: bool(np.isnan(d)), False),
            "itself": Degenerate((np.eye(N), 3 * np.eye(N)), lambda d: d < 1e-14),
        },
    )
)
register(
    Case(
        name="features.layers.merge",
        function=in_two_parts,
        make_inputs=alike,
        oracle=biased,
        degree=0,
        differentiable=False,
    )
)
register(
    Case(
        name="features.cca",
        function=cca,
        make_inputs=alike,
        oracle=bases,
        select=lambda found: found.correlations,
        degree=0,
        differentiable=False,
        gathered=IN_TURN,
        degenerate={
            "too few rows": Degenerate(
                (np.eye(4), np.eye(4)), lambda found: found.forced == 3 and found.ranks[0] == 3
            ),
            "constant": Degenerate(
                (np.eye(N), ZEROS + 0.1),
                lambda found: bool(np.isnan(found.mean)) and found.ranks[1] == 0,
            ),
            "NaN": Degenerate(
                (np.eye(N), np.full((N, Q), np.nan)), lambda found: bool(np.isnan(found.mean))
            ),
        },
    )
)
register(
    Case(
        name="features.bures",
        function=bures,
        make_inputs=two_batches,
        oracle=frechet,
        degree=1,
        differentiable=False,
        gathered=IN_TURN,
        degenerate={
            "itself": Degenerate((np.eye(N), np.eye(N)), lambda found: found.distance < 1e-7),
            "constant": Degenerate((ZEROS, ZEROS + 2), lambda found: found.shape == 0),
            "no rows": Degenerate((ZEROS[:0], ZEROS[:0]), lambda found: found.distance == 0),
            "NaN": Degenerate((ZEROS, ZEROS + np.nan), lambda found: np.isnan(found.distance)),
        },
    )
)
register(
    Case(
        name="features.drift",
        function=drifted,
        make_inputs=two_batches,
        oracle=lambda a, b: (frechet(a, b)[0], 0.25 * np.max(abs(a)), 0.25),
        select=lambda found: (found.distance, found.threshold, found.p_value),
        degree=(1, 1, 0),
        differentiable=False,
        gathered=IN_TURN,
        degenerate={
            "two rows": Degenerate(
                (np.eye(N), np.ones((2, N))),
                lambda found: bool(found.alarm & np.isnan(found.threshold)),
            ),
            "NaN": Degenerate(
                (np.eye(N), np.full((N, N), np.nan)),
                lambda found: bool(found.alarm & np.isnan(found.p_value)),
            ),
        },
    )
)
exempt("features.calibrate", "draws batches at random: tests/test_drift.py")
exempt("features.save", "writes a file: tests/test_drift.py")
exempt("features.load", "reads a file: tests/test_drift.py")
exempt("features.layers.zero", "begins the state of every case of features.cross")
exempt("features.layers.update", "sums every case of features.cka")
exempt("features.layers.of", "sums every case of features.cka")
exempt("features.layers.psum", "needs a mapped axis: tests/test_similarity.py")
exempt("features.layers.jackknife", "takes a list of blocks: tests/test_similarity.py")
exempt("features.layers.decay", "tests/test_similarity.py")
