"""What stands for an array is taken as one, and what does not is refused under its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.graphs import fiedler, pair_residuals
from spectral_jax.linalg import (
    dense_operator,
    diagonal_operator,
    eigh,
    eigsh,
    eigvalsh,
    gram,
    lanczos,
    low_rank_operator,
    spectral_norm,
    svd,
    svdvals,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
MATRIX = [[2.0, 1.0], [1.0, 3.0]]
LARGEST = (5 + 5**0.5) / 2
SYMMETRIC = dense_operator(jnp.array(MATRIX))
PAIR = [jnp.array([[1.0]])]

# By function and argument: a nested list, and the number that comes of it.
NESTED = {
    "eigvalsh a": (lambda a: eigvalsh(a)[-1], MATRIX, LARGEST),
    "eigh a": (lambda a: eigh(a).values[-1], MATRIX, LARGEST),
    "svdvals a": (lambda a: svdvals(a)[0], MATRIX, LARGEST),
    "svd a": (lambda a: svd(a).s[0], MATRIX, LARGEST),
    "spectral_norm a": (spectral_norm, MATRIX, LARGEST),
    "dense_operator a": (lambda a: dense_operator(a).dense()[1, 1], MATRIX, 3.0),
    "gram a": (lambda a: gram(a).dense()[1, 1], MATRIX, 10.0),
    "diagonal_operator diagonal": (lambda d: diagonal_operator(d).dense()[1, 1], [1, 2], 2.0),
    "low_rank_operator values": (
        lambda values: low_rank_operator(jnp.eye(2), values).dense()[1, 1],
        [1.0, 2.0],
        2.0,
    ),
    "eigsh v0": (lambda v0: eigsh(SYMMETRIC, which="LA", v0=v0).values[0], [1.0, 2.0], LARGEST),
    "fiedler state": (lambda state: fiedler(PAIR, state=state).value, [1.0, -1.0], 2.0),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_lists_are_arrays(name):
    function, nested, expected = NESTED[name]
    np.testing.assert_allclose(function(nested), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NESTED)
def test_a_tree_is_no_array(name):
    function, argument = NESTED[name][0], name.split()[1]
    with pytest.raises(ValueError, match=f"^{argument} is no array of numbers"):
        function({"kernel": MATRIX})


@pytest.mark.parametrize("name", NESTED)
def test_a_random_key_in_the_place_of_an_array_is_refused(name):
    function, argument = NESTED[name][0], name.split()[1]
    with pytest.raises(ValueError, match=f"^{argument} is a random key"):
        function(jax.random.key(0))


WRONG_SHAPES = {
    "lanczos v0": lambda v0: lanczos(SYMMETRIC, v0, 1),
    "eigsh v0": lambda v0: eigsh(SYMMETRIC, v0=v0),
    "eigsh deflate": lambda deflate: eigsh(SYMMETRIC, deflate=deflate),
    "fiedler state": lambda state: fiedler(PAIR, state=state),
    "pair_residuals vectors": lambda vectors: pair_residuals(PAIR, vectors),
}


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_vectors_of_another_size_are_refused(name):
    for shape in ((), (3,), (3, 2)):
        with pytest.raises(ValueError, match=f"^{name.split()[1]} ha(s|ve) shape"):
            WRONG_SHAPES[name](jnp.ones(shape))


@pytest.mark.parametrize("argument", ["v0", "state"])
def test_a_start_that_is_complex_is_refused(argument):
    function = NESTED[{"v0": "eigsh v0", "state": "fiedler state"}[argument]][0]
    with pytest.raises(ValueError, match=f"^{argument} has the complex dtype"):
        function(jnp.ones(2, complex))
