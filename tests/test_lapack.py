"""On a CPU no batched LAPACK call waits on a thread pool whose threads may all be waiting."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.linalg import (
    eigh,
    eigvalsh,
    lapack,
    randomized_svd,
    spectral_norm,
    svd,
    svdvals,
)
from spectral_jax.linalg.lapack import after, each, in_turn
from spectral_jax.prune import Policy, prune_spectra
from spectral_jax.weights import map_by_shape

pytestmark = [
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="about CPUs"),
    pytest.mark.usefixtures("quick_compilation"),  # calls are read off what is not compiled yet
]


def batches(program, *args):
    """How many matrices each LAPACK call of the program for a CPU takes at once."""
    text = jax.jit(program).lower(*args).as_text()
    calls = re.findall(r"lapack_\w+.*?: \(tensor<([\dx]+)xf\d+>", text)
    assert calls
    return {math.prod(int(n) for n in shape.split("x")[:-2]) for shape in calls}


def machine(monkeypatch, threads, release):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(lapack.os, "sched_getaffinity", lambda _: range(threads))
    monkeypatch.setattr(lapack.jaxlib, "__version__", release)


@pytest.mark.parametrize(
    "threads, release, pays",
    [(2, "0.10.2", False), (64, "0.10.2", True), (2, "0.11.1", False), (64, "0.11.1", False)],
)
def test_splitting_pays_with_many_threads_where_jaxlib_splits(threads, release, pays, monkeypatch):
    machine(monkeypatch, threads, release)
    assert lapack.splitting_pays() == pays


def test_fewer_threads_that_are_asked_for_count_not_the_cores(monkeypatch):
    machine(monkeypatch, 64, "0.10.2")
    monkeypatch.setenv("NPROC", "2")
    assert lapack.cpu_threads() == 2 and not lapack.splitting_pays()


@pytest.fixture(params=[2, 64], ids="{} threads".format)
def splits(request, monkeypatch):
    """Whether batches are to be split with these threads."""
    machine(monkeypatch, request.param, "0.10.2")
    jax.clear_caches()
    yield request.param == 64
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


def slope(function):
    return jax.grad(lambda a: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(a))))


DIFFERENTIABLE = {"eigvalsh": eigvalsh, "svdvals": svdvals, "eigh": eigh, "svd": svd}


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, "spectral_norm"])
def test_derivatives_are_of_one_matrix_at_a_time_unless_splitting_pays(splits, name):
    function = {**DIFFERENTIABLE, "spectral_norm": spectral_norm}[name]
    stack = jnp.zeros((5, 3, 6, 6))
    expected = {15} if splits else {1}
    assert batches(slope(function), stack) == expected
    assert batches(jax.vmap(slope(function)), stack) == expected
    assert batches(jax.vmap(jax.vmap(jax.jacfwd(slope(function)))), stack) == expected


def test_a_batch_of_randomised_decompositions_takes_one_matrix_at_a_time(splits):
    keys, stack = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 3, 8, 6))
    over_seeds = jax.vmap(partial(randomized_svd, rank=2), in_axes=(0, None))
    together = {1, 4} if splits else {1}
    assert batches(over_seeds, keys, stack[0, 0]) <= together
    nested = jax.vmap(jax.vmap(partial(randomized_svd, rank=2), in_axes=(None, 0)))
    assert batches(nested, keys, stack) <= ({1, 12} if splits else {1})


def test_in_turn_is_vmap(splits):
    def both(a, x):
        return {"product": a @ x["vector"], "values": jnp.linalg.eigvalsh(a + a.T)}

    a = jax.random.normal(jax.random.key(0), (3, 4, 4))
    x = {"vector": jnp.arange(4.0)}
    found = jax.jit(jax.vmap(in_turn(both), in_axes=(0, None)))(a, x)
    expected = jax.vmap(both, in_axes=(0, None))(a, x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.slow
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


def in_a_chain(program, *args):
    """Whether of two Cholesky decompositions one waits for the other in the compiled program."""
    text = jax.jit(program).lower(*args).compile().as_text()
    lines = {m[1]: m[0] for m in re.finditer(r"^ *(?:ROOT )?%(\S+) = .*$", text, re.MULTILINE)}
    calls = [line for line in lines.values() if "potrf" in line]
    assert len(calls) == 2

    def sources(line):
        operands = re.findall(r"%([\w.\-]+)", line.split("=", 1)[1])
        return {line}.union(*(sources(lines[name]) for name in operands if name in lines))

    return calls[0] in sources(calls[1]) or calls[1] in sources(calls[0])


def test_after_survives_the_compiler():
    def program(a, b, wait):
        first = jnp.linalg.cholesky(a)
        return first, jnp.linalg.cholesky(wait(first[0, 0], b))

    matrix = jnp.eye(3)
    assert in_a_chain(partial(program, wait=after), matrix, matrix)
    assert not in_a_chain(partial(program, wait=lambda _, b: b), matrix, matrix)


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool", "complex64"])
def test_one_shape_waits_for_the_other_whatever_is_made_of_it(dtype):
    shapes = {"a": jnp.eye(3), "b": jnp.eye(4), "c": jnp.eye(3)}
    found = partial(map_by_shape, function=lambda w: jnp.linalg.cholesky(w).astype(dtype))
    assert in_a_chain(found, shapes)
