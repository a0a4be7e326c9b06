"""linalg: operators and what is made of them, against the same expressions of matrices."""

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax.linalg.compose import deflate, fold, project, shift
from spectral_jax.linalg.convert import pytree_operator
from spectral_jax.linalg.operators import (
    dense_operator,
    diagonal_operator,
    function_gram,
    gram,
    low_rank_operator,
)
from spectral_jax.linalg.precision import working
from tests import draws
from tests.contract import Case, Degenerate, exempt, register

N, RANK = 6, 2


def normal(*shapes):
    """Inputs of these shapes."""

    def make(key, dtype):
        keys = jax.random.split(key, len(shapes))
        return tuple(draws.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))

    return make


def with_columns(*shapes):
    """Orthonormal columns, after inputs of these shapes; the first is made symmetric."""

    def make(key, dtype):
        a, *others, v = normal(*shapes, (N, RANK))(key, dtype)
        columns = np.linalg.qr(v)[0]
        return a + a.T, *others, columns

    return make


def tall_product(a, x):
    return a @ x


def tree_product(a, tree):
    image = working(a) @ jnp.concatenate([tree["head"][None], tree["tail"]])
    return {"head": image[0], "tail": image[1:]}


def on_tree(a):
    example = {"head": np.zeros((), a.dtype), "tail": np.zeros(N - 1, a.dtype)}
    return pytree_operator(tree_product, a, example)[0].dense()


def outside(v):
    return np.eye(N) - v @ v.T


ZERO = Degenerate((np.zeros((3, N)),), lambda matrix: not matrix.any())
NO_ROWS = Degenerate((np.zeros((0, N)),), lambda matrix: matrix.shape == (N, N))
ONE_BY_N = Degenerate((np.ones((1, N)),), lambda matrix: bool((matrix == 1).all()))

for case in (
    Case(
        name="linalg.diagonal_operator",
        function=lambda d: diagonal_operator(d).dense(),
        make_inputs=normal((N,)),
        degree=1,
        oracle=np.diag,
        degenerate={"empty": Degenerate((np.zeros(0),), lambda a: a.shape == (0, 0))},
    ),
    Case(
        name="linalg.low_rank_operator",
        function=lambda v, values: low_rank_operator(v, values).dense(),
        make_inputs=normal((N, RANK), (RANK,)),
        degree=1,
        units=(0, 1),
        oracle=lambda v, values: v * values @ v.T,
        degenerate={"rank 0": Degenerate((np.zeros((N, 0)), np.zeros(0)), lambda a: not a.any())},
    ),
    Case(
        name="linalg.gram",
        function=lambda a: gram(a).dense(),
        make_inputs=normal((9, N)),
        degree=2,
        oracle=lambda a: a.T @ a,
        degenerate={"zero": ZERO, "no rows": NO_ROWS, "1 x n": ONE_BY_N},
    ),
    Case(
        name="linalg.function_gram",
        function=lambda a: function_gram(tall_product, a, N).dense(),
        make_inputs=normal((9, N)),
        degree=2,
        oracle=lambda a: a.T @ a,
        degenerate={"zero": ZERO, "1 x n": ONE_BY_N},
    ),
    Case(
        name="linalg.shift",
        function=lambda a, mu: shift(dense_operator(a), mu).dense(),
        make_inputs=normal((N, N), ()),
        degree=1,
        oracle=lambda a, mu: a + mu * np.eye(N),
    ),
    Case(
        name="linalg.fold",
        function=lambda a, sigma: fold(dense_operator(a), sigma).dense(),
        make_inputs=normal((N, N), ()),
        degree=2,
        oracle=lambda a, sigma: (a - sigma * np.eye(N)) @ (a - sigma * np.eye(N)),
    ),
    Case(
        name="linalg.deflate",
        function=lambda a, values, v: deflate(dense_operator(a), v, values).dense(),
        make_inputs=with_columns((N, N), (RANK,)),
        degree=1,
        units=(1, 1, 0),
        oracle=lambda a, values, v: a - v * values @ v.T,
    ),
    Case(
        name="linalg.project",
        function=lambda a, v: project(dense_operator(a), v).dense(),
        make_inputs=with_columns((N, N)),
        degree=1,
        units=(1, 0),
        oracle=lambda a, v: outside(v) @ a @ outside(v),
    ),
    Case(
        name="linalg.pytree_operator",
        function=on_tree,
        make_inputs=normal((N, N)),
        degree=1,
        oracle=lambda a: a,
    ),
):
    register(case)

exempt("linalg.from_scipy", "takes a host object, not arrays; tests/test_operators.py")
exempt("linalg.to_scipy", "returns a host object, not arrays; tests/test_operators.py")
