"""features: the diagonalised map and richness, against dense n x n operators."""

import itertools

import numpy as np

from spectral_jax.features import Head, diagonalize, of, richness
from tests import draws
from tests.contract import IN_TURN, Case, Degenerate, register

N, P, C = 9, 4, 2
LABELS = np.arange(N) % 3
ONE_HOT = np.eye(3)[LABELS]
CENTRE = np.eye(N) - 1 / N


def with_kernel(key, dtype):
    drawn = draws.normal(key, (N + C, P), dtype)
    return 1 + drawn[:N], drawn[N:].T


def with_bias(key, dtype):
    x, kernel = with_kernel(key, dtype)
    return x, kernel, 1 + x[0, :C]


def projection(columns):
    basis, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    basis = basis[:, sizes > 1e-10 * sizes[0]]
    return basis @ basis.T


def cosine(a, b):
    return np.vdot(a, b) / np.sqrt(np.vdot(a, a) * np.vdot(b, b))


def literal(x, kernel, bias):
    outputs = x @ kernel + bias
    richness = 1 - cosine(CENTRE @ x @ x.T @ CENTRE, CENTRE @ projection(outputs) @ CENTRE)
    return richness, np.linalg.svd(outputs / np.sqrt(N), compute_uv=False)


def centred_first(x, kernel):
    return 1 - cosine(CENTRE @ x @ x.T @ CENTRE, projection(CENTRE @ x @ kernel))


def corrected(x, kernel):
    """``||S||^2`` from all quadruples of different rows, the overlap by an adjusted R^2."""
    pairs = [
        ((x[i] - x[j]) @ (x[k] - x[m])) ** 2 / 4
        for i, j, k, m in itertools.permutations(range(N), 4)
    ]
    rows = CENTRE @ x
    explained = np.sum((projection(rows @ kernel) @ rows) ** 2)
    total = np.sum(rows**2)
    adjusted = 1 - (1 - explained / total) * (N - 1) / (N - 1 - C)
    return 1 - adjusted * total / (N - 1) / np.sqrt(np.mean(pairs) * C)


def eigenfunctions(x):
    functions, sizes, _ = np.linalg.svd(x / np.sqrt(N), full_matrices=False)
    return sizes**2, functions


def centred_map(x, kernel):
    values, functions = eigenfunctions(CENTRE @ x)
    shares = [
        np.sum(functions * (projection(CENTRE @ columns) @ functions), axis=0)
        for columns in (ONE_HOT, x @ kernel)
    ]
    return values, shares[0], np.cumsum(shares[0]) / 2, shares[1], np.cumsum(shares[1]) / C


def plain_map(x, kernel, bias):
    values, functions = eigenfunctions(x)
    shares = [
        np.cumsum(np.sum(functions * (projection(columns) @ functions), axis=0)) / rank
        for columns, rank in ((ONE_HOT, 3), (x @ kernel + bias, C))
    ]
    return values, *shares


def undefined(found):
    return bool(np.isnan(found.value) & found.degenerate)


FULL = np.vander(np.linspace(-1, 1, N), P)
NOTHING = {
    "zero": Degenerate((np.zeros((N, P)), FULL[:P, :C], np.ones(C)), undefined),
    "constant features": Degenerate((np.full((N, P), 0.1), FULL[:P, :C], np.ones(C)), undefined),
    "zero head": Degenerate((FULL, np.zeros((P, C)), np.ones(C)), undefined),
    "dead feature": Degenerate(
        (draws.changed(FULL, (slice(None), 1), 0), FULL[:P, :C], np.ones(C)),
        lambda found: bool(np.isfinite(found.value) & ~found.degenerate),
    ),
    "NaN": Degenerate(
        (draws.changed(FULL, (0, 0), np.nan), FULL[:P, :C], np.ones(C)),
        undefined,
        finite_gradient=False,
    ),
}

register(
    Case(
        name="features.richness",
        function=lambda x, kernel, bias: richness(x, head=Head(kernel, bias)),
        make_inputs=with_bias,
        oracle=literal,
        select=lambda found: (found.value, found.singular_values),
        degree=(0, 2),
        units=(1, 1, 2),
        gathered=IN_TURN,
        degenerate=NOTHING,
    )
)
register(
    Case(
        name="features.richness: of moments, centred first",
        function=lambda x, kernel: richness(of(x), head=Head(kernel), order="centre-first"),
        make_inputs=with_kernel,
        oracle=centred_first,
        select=lambda found: found.value,
        degree=0,
        gathered=IN_TURN,
        differentiable=False,  # gram64 in float32; of rows: features.richness
        degenerate={
            name: declared._replace(inputs=declared.inputs[:2])
            for name, declared in NOTHING.items()
        },
    )
)
register(
    Case(
        name="features.richness: corrected",
        function=lambda x, kernel: richness(
            x, outputs=x @ kernel, order="centre-first", corrected=True
        ),
        make_inputs=with_kernel,
        oracle=corrected,
        select=lambda found: found.value,
        degree=0,
        units=(1, 0),
        gathered=IN_TURN,
        exact_dtype="the product of features and kernel is the case's own",
        degenerate={
            "three rows": Degenerate((FULL[:3], FULL[:P, :C]), undefined),
        },
    )
)
register(
    Case(
        name="features.diagonalize",
        function=lambda x, kernel: diagonalize(x, head=Head(kernel), labels=LABELS, classes=3),
        make_inputs=with_kernel,
        oracle=centred_map,
        select=lambda found: (
            found.eigenvalues,
            found.quality,
            found.cumulative_quality,
            found.utilisation,
            found.cumulative_utilisation,
        ),
        degree=(2, 0, 0, 0, 0),
        gathered=IN_TURN,
        tolerance={"float32": 1e-5, "float64": 1e-10},
        differentiable=False,
        degenerate={
            "rank one": Degenerate(
                (np.outer(FULL[:, 0], np.ones(P)), FULL[:P, :C]),
                lambda found: int(np.isfinite(found.quality).sum()) == 1,
            ),
            "constant": Degenerate(
                (np.full((N, P), 0.1), FULL[:P, :C]),
                lambda found: bool(np.isnan(found.quality).all()),
            ),
            "NaN": Degenerate(
                (np.full((N, P), np.nan), FULL[:P, :C]),
                lambda found: bool(np.isnan(found.cumulative_utilisation).all()),
            ),
        },
    )
)
register(
    Case(
        name="features.diagonalize: of sums, not centred",
        function=lambda x, kernel, bias: diagonalize(
            x,
            outputs=x @ kernel + bias,
            targets=ONE_HOT.astype(x.dtype),
            centred=False,
        ),
        make_inputs=with_bias,
        oracle=plain_map,
        select=lambda found: (
            found.eigenvalues,
            found.cumulative_quality,
            found.cumulative_utilisation,
        ),
        degree=(2, 0, 0),
        units=(1, 0, 1),
        gathered=IN_TURN,
        exact_dtype="the product of features and kernel is the case's own",
        tolerance={"float32": 1e-5, "float64": 1e-10},
        differentiable=False,
    )
)
