"""On a CPU no batched LAPACK call waits on a thread pool whose threads may all be waiting."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from spectral_jax.linalg import eigvalsh, lapack, svdvals
from spectral_jax.linalg.lapack import after, each
from spectral_jax.optim import Policy, prune_spectra

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="about CPUs")


def batches(program, *args):
    """How many matrices each LAPACK call of the program for a CPU takes at once."""
    text = jax.jit(program).lower(*args).as_text()
    calls = re.findall(r"lapack_\w+.*?: \(tensor<([\dx]+)xf\d+>", text)
    assert calls
    return {math.prod(int(n) for n in shape.split("x")[:-2]) for shape in calls}


@pytest.fixture(
    params=[(2, "0.10.2"), (64, "0.10.2"), (64, "0.11.1")], ids="{0[0]} threads, {0[1]}".format
)
def splits(request, monkeypatch):
    """Whether batches are to be split with these threads and this jaxlib."""
    threads, release = request.param
    monkeypatch.setattr(lapack.os, "sched_getaffinity", lambda _: range(threads))
    monkeypatch.setattr(lapack.jaxlib, "__version__", release)
    jax.clear_caches()
    yield threads == 64 and release == "0.10.2"
    jax.clear_caches()


@pytest.mark.parametrize(
    "values, shape",
    [(eigvalsh, (6, 6)), (svdvals, (6, 6)), (svdvals, (12, 6)), (svdvals, (280, 140))],
)
def test_values_are_of_one_matrix_at_a_time_unless_splitting_pays(splits, values, shape):
    stack = jnp.zeros((5, 3, *shape))
    expected = {15} if splits else {1}
    assert batches(values, stack) == expected
    assert batches(jax.vmap(values), stack) == expected
    assert batches(jax.vmap(jax.vmap(values)), stack) == expected


@pytest.mark.parametrize("shape", [(6, 6), (12, 6), (280, 140)])
def test_threads_do_not_change_the_values(splits, shape):
    stack = jax.random.normal(jax.random.key(0), (3, *shape))
    expected = jnp.linalg.svd(stack, compute_uv=False)
    assert jnp.allclose(svdvals(stack), expected, rtol=1e-5, atol=2e-6)


def test_pruning_decomposes_one_matrix_at_a_time_however_many_threads(splits):
    params = {"first": jnp.zeros((30, 24)), "second": jnp.zeros((40, 40))}
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    assert batches(jax.vmap(lambda p: prune_spectra(p, Policy()).params), seeds) == {1}


def test_each_is_the_function_of_the_stack():
    stack = jax.random.normal(jax.random.key(0), (4, 5, 3))
    svd = partial(jnp.linalg.svd, full_matrices=False)
    for split in (None, True, False):
        for got, expected in zip(each(svd, stack, split=split), svd(stack), strict=True):
            assert jnp.array_equal(got, expected)


@pytest.mark.parametrize("known", [0.0, -1.0, jnp.nan, jnp.inf])
def test_after_leaves_x_as_it_is(known):
    x = jnp.array([1.0, -jnp.inf, jnp.nan])
    assert jnp.array_equal(after(jnp.asarray(known), x), x, equal_nan=True)


def test_after_survives_the_compiler():
    def program(a, b):
        first = jnp.linalg.cholesky(a)
        return first, jnp.linalg.cholesky(after(first[0, 0], b))

    matrix = jnp.eye(3)
    text = jax.jit(program).lower(matrix, matrix).compile().as_text()
    lines = {m[1]: m[0] for m in re.finditer(r"^ *(?:ROOT )?%(\S+) = .*$", text, re.MULTILINE)}
    calls = [line for line in lines.values() if "potrf" in line]
    assert len(calls) == 2

    def sources(line):
        operands = re.findall(r"%([\w.\-]+)", line.split("=", 1)[1])
        return {line}.union(*(sources(lines[name]) for name in operands if name in lines))

    assert calls[0] in sources(calls[1]) or calls[1] in sources(calls[0])
