"""graphs: the Laplacian of a network and its Fiedler pairs, against dense matrices."""

import jax
import numpy as np
from scipy.sparse.csgraph import connected_components

from spectral_jax import graphs
from spectral_jax.linalg.precision import working
from tests import draws
from tests.contract import Case, Degenerate, exempt, register

# A layer, a layer with a unit-by-unit skip beside it, and an edge past both.
EDGES = ((0, 1), (1, 2), (1, 2), (0, 2))
SIZES = (4, 3, 3)


def blocks(key, dtype):
    keys = jax.random.split(key, 4)
    shapes = ((4, 3), (3, 3), (3,), (4, 3))
    draw = draws.normal
    return (tuple(draw(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)),)


def blocks_in_pieces(key, dtype):
    """Most weights are 0: the network falls apart, otherwise for each key."""
    (weights,) = blocks(key, dtype)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(weights))
    kept = [draws.bernoulli(k, 0.2, w.shape) for k, w in zip(keys, weights, strict=True)]
    return (tuple(np.where(k, w, 0) for k, w in zip(kept, weights, strict=True)),)


def blocks_and_vector(key, dtype):
    vector = draws.normal(jax.random.fold_in(key, 1), (sum(SIZES),), dtype)
    return *blocks(key, dtype), vector


def blocks_and_unit_vector(key, dtype):
    w, vector = blocks_and_vector(key, dtype)
    return w, vector / np.linalg.norm(vector)


def dense_laplacian(weights, edges=None, *, normalised, np=np):
    """``D - A`` from the full adjacency matrix, written without a look at the library's."""
    edges = [(i, i + 1) for i in range(len(weights))] if edges is None else edges
    sizes = {}
    for w, (source, target) in zip(weights, edges, strict=True):
        sizes |= {source: w.shape[0], target: w.shape[-1]}
    start = {group: sum(sizes[g] for g in sizes if g < group) for group in sizes}
    total = sum(sizes.values())
    adjacency = np.zeros((total, total))
    for w, (source, target) in zip(weights, edges, strict=True):
        magnitude = np.abs(w) if w.ndim == 2 else np.diag(np.abs(w))
        above, below = (total - start[g] - sizes[g] for g in (source, target))
        placed = np.pad(magnitude, ((start[source], above), (start[target], below)))
        adjacency = adjacency + placed + placed.T
    degree = adjacency.sum(axis=1)
    laplacian = np.diag(degree) - adjacency
    if not normalised:
        return laplacian
    scale = 1 / np.sqrt(degree)
    return scale[:, None] * laplacian * scale[None, :]


def connectivity(weights, edges=None, *, normalised, k=1):
    """The ``k`` values after the first, ``lambda_2`` up or ``nu_2`` up."""
    return np.linalg.eigvalsh(dense_laplacian(weights, edges, normalised=normalised))[1 : k + 1]


def in_largest_component(weights):
    """By SciPy's search; of components of one size, the one with the first node."""
    _, labels = connected_components(dense_laplacian(weights, EDGES, normalised=False) != 0)
    return labels == np.bincount(labels).argmax()


def expected_quotient(weights, normalised):
    group = np.repeat(np.arange(len(SIZES)), SIZES)
    laplacian = dense_laplacian(weights, EDGES, normalised=False)
    amount = np.diag(laplacian) if normalised else np.ones(sum(SIZES))
    member = (group[:, None] == np.arange(len(SIZES))).astype(float)
    merged = member.T @ laplacian @ member
    scale = 1 / np.sqrt(member.T @ amount)
    return np.linalg.eigvalsh(scale[:, None] * merged * scale[None, :])[1]


def expected_rayleigh(weights, vector, normalised):
    laplacian = dense_laplacian(weights, EDGES, normalised=False)
    mass = np.diag(laplacian) if normalised else np.ones(len(vector))
    return vector @ laplacian @ vector / np.sum(mass * vector**2)


def expected_residual(weights, vector):
    laplacian = dense_laplacian(weights, EDGES, normalised=False)
    value = vector @ laplacian @ vector / (vector @ vector)
    return np.array([value]), np.linalg.norm(laplacian @ vector - value * vector, keepdims=True)


NO_EDGES = (jax.tree.map(np.zeros_like, blocks(jax.random.key(0), "float32")[0]),)
ONES = (jax.tree.map(np.ones_like, blocks(jax.random.key(0), "float32")[0]),)
ONES_VALUE = connectivity(ONES[0], EDGES, normalised=False)[0]
NAN = (tuple(draws.changed(w, (0,) * w.ndim, np.nan) for w in ONES[0]),)

for normalised in (False, True):
    kind = "normalised" if normalised else "combinatorial"
    options = dict(normalised=normalised, edges=EDGES)

    register(
        Case(
            name=f"graphs.laplacian: {kind}",
            function=lambda w, options=options: graphs.laplacian(w, **options).dense(),
            make_inputs=blocks,
            degree=1 - normalised,
            oracle=lambda w, n=normalised: dense_laplacian(w, EDGES, normalised=n),
            # The largest value, so that a node without edges is not taken for a component.
            degenerate={
                "no edges": Degenerate(
                    NO_EDGES, lambda a, top=2 * normalised: (a == top * np.eye(10)).all()
                )
            },
        )
    )
    register(
        Case(
            name=f"graphs.rayleigh_quotient: {kind}",
            function=lambda w, v, options=options: graphs.rayleigh_quotient(w, v, **options),
            make_inputs=blocks_and_vector,
            degree=1 - normalised,
            units=(1, 0),
            oracle=lambda w, v, n=normalised: expected_rayleigh(w, v, n),
            degenerate={
                "zero vector": Degenerate((*ONES, np.zeros(10)), lambda value: value == 0),
                "no edges": Degenerate((*NO_EDGES, np.ones(10)), lambda value: value == 0),
            },
        )
    )
    register(
        Case(
            name=f"graphs.layer_quotient: {kind}",
            function=lambda w, options=options: graphs.layer_quotient(w, **options).value,
            make_inputs=blocks,
            degree=1 - normalised,
            oracle=lambda w, n=normalised: expected_quotient(w, n),
        )
    )

register(
    Case(
        name="graphs.degrees",
        function=lambda w: graphs.degrees(w, edges=EDGES),
        make_inputs=blocks,
        degree=1,
        oracle=lambda w: np.diag(dense_laplacian(w, EDGES, normalised=False)),
        degenerate={"no edges": Degenerate(NO_EDGES, lambda d: not d.any())},
    )
)
register(
    Case(
        name="graphs.by_group",
        function=lambda x: graphs.by_group(x, SIZES),
        make_inputs=lambda key, dtype: (draws.normal(key, (10,), dtype),),
        degree=1,
        exact_dtype="slices keep the dtype of their vector",
        oracle=lambda x: np.split(x, (4, 7)),
    )
)
register(
    Case(
        name="graphs.largest_component",
        function=lambda w: graphs.largest_component(w, edges=EDGES).astype(working(w[0]).dtype),
        make_inputs=blocks_in_pieces,
        degree=0,
        oracle=in_largest_component,
        differentiable=False,
        degenerate={"no edges": Degenerate(NO_EDGES, lambda mask: mask.sum() == 1)},
    )
)
register(
    Case(
        name="graphs.fiedler",
        function=lambda w: graphs.fiedler(w, normalised=True, edges=EDGES),
        make_inputs=blocks,
        degree=0,
        oracle=lambda w: connectivity(w, EDGES, normalised=True)[0],
        select=lambda result: result.value,
        # The default tolerance is a residual of 1e-3, whose square bounds the error of the value.
        tolerance={"float32": 1e-5, "float64": 1e-5},
        differentiable=False,
        degenerate={
            "no edges": Degenerate(NO_EDGES, lambda r: r.value == 0 and not r.vector.any()),
            "NaN": Degenerate(NAN, lambda r: np.isnan(r.value) and not r.converged),
        },
    )
)
register(
    Case(
        name="graphs.fiedler_value",
        function=lambda w: graphs.fiedler_value(w, edges=EDGES),
        make_inputs=blocks,
        degree=1,
        oracle=lambda w: connectivity(w, EDGES, normalised=False)[0],
        degenerate={
            "no edges": Degenerate(NO_EDGES, lambda value: value == 0),
            "repeated": Degenerate(ONES, lambda value: np.isclose(value, ONES_VALUE, rtol=1e-6)),
            "NaN": Degenerate(NAN, lambda value: bool(np.isnan(value)), finite_gradient=False),
        },
    )
)
register(
    Case(
        name="graphs.fiedler_pairs",
        function=lambda w: graphs.fiedler_pairs(w, 3, normalised=True, edges=EDGES),
        make_inputs=blocks,
        degree=0,
        oracle=lambda w: connectivity(w, EDGES, normalised=True, k=3),
        select=lambda result: result.values,
    )
)

register(
    Case(
        name="graphs.pair_residuals",
        function=lambda w, v: graphs.pair_residuals(w, v[:, None], edges=EDGES),
        make_inputs=blocks_and_unit_vector,
        degree=1,
        units=(1, 0),
        oracle=expected_residual,
        differentiable=False,
    )
)

exempt("graphs.chain", "returns no arrays; tests/test_graphs.py")
exempt("graphs.widths", "returns no arrays; tests/test_graphs.py")
