"""A solver gives the same whether the program loops or Python does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.linalg import (
    SymmetricOperator,
    dense_operator,
    diagonal,
    drive,
    driver,
    eigsh,
    faster_driver,
    lanczos,
    logdet,
    spectral_density,
    trace,
)

N, KEY = 12, jax.random.key(0)
START = jnp.arange(1.0, N + 1)
SOLVERS = {
    "eigsh": partial(eigsh, k=2, which="LA"),
    "eigsh, lobpcg": partial(eigsh, k=1, v0=START, method="lobpcg"),
    "lanczos": lambda op: lanczos(op, START, 5),
    "spectral_density": partial(spectral_density, key=KEY, probes=2, steps=4),
    "logdet": partial(logdet, key=KEY, probes=2, steps=4),
    "trace": partial(trace, key=KEY, matvecs=6),
    "diagonal": partial(diagonal, key=KEY, matvecs=6),
}


@pytest.fixture(scope="module")
def matrix():
    a = jax.random.normal(KEY, (N, N))
    return a @ a.T / N + jnp.diag(START)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", SOLVERS)
def test_the_host_finds_what_the_program_finds(name, matrix):
    solver = SOLVERS[name]
    compiled, host = (
        drive(solver, dense_operator(matrix), driver=by) for by in ("compiled", "host")
    )
    pairs = zip(jax.tree.leaves(host), jax.tree.leaves(compiled), strict=True)
    for ours, theirs in pairs:
        if name.startswith("eigsh"):  # a vector is determined up to its sign, and to `tol`
            np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-3, atol=1e-3)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_product_stays_a_program_of_its_own(matrix):
    """It is traced as it is compiled, and then no more, however many products there are."""
    traced = []

    def product(a, x):
        traced.append(type(x))
        return a @ x

    drive(SOLVERS["lanczos"], SymmetricOperator(product, matrix, N), driver="host")
    assert len(traced) == 1 and issubclass(traced[0], jax.core.Tracer)


@pytest.mark.parametrize(
    ("loop", "alone", "faster"),
    [(9.0, 1.0, "host"), (1.0, 0.9, "compiled"), (0.01, 0.001, "compiled")],
)
def test_the_probe_takes_what_was_faster(loop, alone, faster, matrix, monkeypatch):
    """Unless a product is so short that a step from Python would cost more than it saves."""
    times = iter((loop, alone))
    monkeypatch.setattr(driver, "_seconds", lambda products, **counts: next(times))
    assert faster_driver(dense_operator(matrix)) == faster


def test_auto_does_what_the_probe_found(matrix, monkeypatch):
    """Only the host's loop is handed numbers: the program's own loop has tracers alone."""
    seen = []

    def product(a, x):
        jax.debug.callback(lambda: seen.append(1))
        return a @ x

    op = SymmetricOperator(product, matrix, N)
    asked = []
    monkeypatch.setattr(driver, "faster_driver", lambda op: asked.append(op) or "host")
    found = drive(SOLVERS["trace"], op)
    jax.effects_barrier()
    assert asked == [op] and seen
    by_host = drive(SOLVERS["trace"], op, driver="host")
    jax.tree.map(np.testing.assert_array_equal, found, by_host)


def test_an_unknown_driver_is_named(matrix):
    with pytest.raises(ValueError, match="driver='gpu': choose 'auto', 'compiled' or 'host'"):
        drive(eigsh, dense_operator(matrix), driver="gpu")
