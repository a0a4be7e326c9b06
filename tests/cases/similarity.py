"""features: how alike representations are, against the n x n kernels in float64."""

import jax
import numpy as np

from spectral_jax.features import cka, kernel_distance, layers, procrustes
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
exempt("features.layers.zero", "begins the state of every case of features.cross")
exempt("features.layers.update", "sums every case of features.cka")
exempt("features.layers.of", "sums every case of features.cka")
exempt("features.layers.psum", "needs a mapped axis: tests/test_similarity.py")
exempt("features.layers.decay", "tests/test_similarity.py")
