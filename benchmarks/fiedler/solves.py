"""One solve: is the value right, how many matvecs, and how long beside other solvers."""

import importlib.util
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.fiedler import peers
from benchmarks.fiedler.sizes import SEED, TOLERANCE, Net, Size, initial, training_data
from benchmarks.fiedler.training import trained
from benchmarks.harness import (
    NOTHING,
    Table,
    Target,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from spectral_jax import graphs
from spectral_jax.linalg import generic_vectors

DENSE_LIMIT = 5000  # nodes up to which the oracle is dense
COLD_LIMITS = (45, 40)  # matvecs: first net, second net
Rows = list[tuple[str, ...]]


def accuracy(size: Size) -> Table:
    """The value against a float64 oracle, and the matvecs it took."""
    rows = []
    for net, limit in zip(size.nets[:2], COLD_LIMITS, strict=False):
        for laplacian in size.laplacians:
            rows += _cold_rows(net, laplacian, limit)
    rows += [_warm_row(size, laplacian) for laplacian in size.laplacians]
    note = (
        f"`graphs.fiedler` in float32 at its default tolerance (relative residual {TOLERANCE:g}) "
        f"on torch-style initial weights, seed {SEED}; trained on {training_data(size)[1]}. Peer "
        "of a value: the same weights in float64, by dense `scipy.linalg.eigh` up to "
        f"{DENSE_LIMIT} nodes, above by ARPACK at a relative residual of 1e-10. Peer of matvecs: "
        "SciPy `eigsh` (`SA`, k = 1) on the deflated operator in float32 at the same tolerance, "
        "from a generic start (cold) or from the same old vector (warm)."
    )
    return Table("Accuracy and matvecs", note, rows)


def speed(size: Size) -> Table:
    """A solve from the weights on, against other solvers on the same graph."""
    net, rows = size.nets[0], []
    with one_core():
        for dtype in size.dtypes:
            rows.append(_product_row(net, dtype, size))
            for tol in size.tolerances:
                rows.append(_scipy_row(net, "L", dtype, tol, size, Target(">=", 2)))
        for other in size.nets[:2]:
            for laplacian in size.laplacians:
                if (other, laplacian) != (net, "L"):
                    rows.append(_scipy_row(other, laplacian, "float32", TOLERANCE, size))
        rows += _networkx_rows(net, size)
        rows += _context_rows(net, size)
    note = (
        "From the weights to the pair, jitted: magnitudes, degrees, components and diagnostics "
        "included on our side, magnitudes and degrees on SciPy's. All stop at the same relative "
        "residual, `||L v - lambda v|| <= tol lambda`, which is ARPACK's own rule; what was "
        "reached is given. networkx has float64 only, and its ARPACK call waits for the eigenvalue "
        "0 too; `solver` is its private function on a ready sparse Laplacian, `call` is "
        '`algebraic_connectivity(graph, method="lanczos")` on a ready graph, which builds the '
        "Laplacian. JAX's LOBPCG and matfree's Lanczos take a ready operator and run a fixed "
        "course. Rows without a target are for context."
    )
    return Table("Time of a solve, one core", note, rows)


@cache
def solver(laplacian: str, tol: float = TOLERANCE):
    """``graphs.fiedler``, compiled; kept, so that rows share compiled code."""
    return jax.jit(partial(graphs.fiedler, normalised=laplacian == "normalised", tol=tol))


def oracle(net: Net, laplacian: str) -> float:
    """The value from the same weights in float64."""
    if sum(graphs.widths(initial(net))) <= DENSE_LIMIT:
        return peers.dense_oracle(initial(net), laplacian)
    return peers.scipy_eigsh(initial(net), laplacian, "float64", 1e-10).value


def _cold_rows(net: Net, laplacian: str, limit: int) -> Rows:
    found, exact = solver(laplacian)(initial(net)), oracle(net, laplacian)
    error = abs(float(found.value) - exact) / exact
    value = f"{float(found.value):.6f}, relative error {error:.1e}"
    matvecs = int(found.matvecs)
    peer = peers.scipy_eigsh(initial(net), laplacian, "float32", TOLERANCE)
    name = f"{net}, {laplacian}"
    return [
        row(f"{name}: value", value, f"{exact:.6f}", target=Target("<=", 1e-5), value=error),
        row(
            f"{name}: matvecs, cold",
            matvecs,
            peer.matvecs,
            f"{peer.matvecs / matvecs:.2f}",
            Target("<=", limit),
            matvecs,
        ),
    ]


def _warm_row(size: Size, laplacian: str) -> tuple[str, ...]:
    net, blocks = size.nets[0], trained(size)
    state = solver(laplacian)(initial(net)).state
    matvecs = int(solver(laplacian)(blocks, state=state).matvecs)
    peer = peers.scipy_eigsh(blocks, laplacian, "float32", TOLERANCE, v0=np.asarray(state))
    return row(
        f"{net}, {laplacian}: matvecs, warm after {size.warm_steps} SGD steps",
        matvecs,
        peer.matvecs,
        f"{peer.matvecs / matvecs:.2f}",
        Target("<=", 20),
        matvecs,
    )


def _product_row(net: Net, dtype: str, size: Size) -> tuple[str, ...]:
    with jax.enable_x64(dtype == "float64"):
        operator = graphs.laplacian(_as(dtype, initial(net)), normalised=False)
        x = generic_vectors(operator.size, 1, operator.dtype)[:, 0]
        peer, y = peers.NumpyLaplacian(initial(net), "L", dtype), np.asarray(x)
        product = jax.jit(lambda operator, x: operator @ x)
        calls = {"ours": lambda: product(operator, x), "peer": lambda: peer(y)}
        times = interleaved(calls, repeats=10 * size.repeats)
    ratio = ratio_text(times["peer"], times["ours"])
    return row(f"{net}, L, {dtype}: one product, NumPy", times["ours"], times["peer"], ratio)


def _scipy_row(net: Net, laplacian: str, dtype: str, tol: float, size: Size, target=None):
    peer = partial(peers.scipy_eigsh, initial(net), laplacian, dtype, tol)
    ours, found, times = _against(net, laplacian, dtype, tol, {"peer": peer}, size.repeats)
    answer, residual = peer(), float(found.residual / found.value)
    return row(
        f"{net}, {laplacian}, {dtype}, tol {tol:g}: SciPy eigsh",
        f"{with_first(ours)}, {found.matvecs} matvecs, residual {residual:.0e}",
        f"{times['peer']}, {answer.matvecs} matvecs, residual {answer.residual:.0e}",
        ratio_text(times["peer"], ours),
        target,
        ratio_of(times["peer"], ours),
    )


def _networkx_rows(net: Net, size: Size) -> Rows:
    if importlib.util.find_spec("networkx") is None:
        return [row(f"{net}: networkx", NOTHING, "not installed")]
    matrix = peers.NumpyLaplacian(initial(net), "L", "float64").sparse()
    calls = {
        "solver": partial(peers.networkx_solver, matrix, tol=TOLERANCE),
        "call": partial(peers.networkx_call, peers.networkx_graph(matrix), tol=TOLERANCE),
    }
    return [_networkx_row(net, name, call, size) for name, call in calls.items()]


def _networkx_row(net: Net, name: str, call, size: Size) -> tuple[str, ...]:
    """Each call with ours alone: after seconds of another no cache holds a weight."""
    repeats = min(size.repeats, size.rounds)
    ours, found, times = _against(net, "L", "float32", TOLERANCE, {name: call}, repeats)
    return row(
        f"{net}, L, tol {TOLERANCE:g}: networkx lanczos, {name}",
        f"{ours}, value {found.value:.5f}",
        f"{times[name]}, value {call():.5f}",
        ratio_text(times[name], ours),
        Target(">=", 20),
        ratio_of(times[name], ours),
    )


def _context_rows(net: Net, size: Size) -> Rows:
    """Other solvers a reader may think of."""
    operator = graphs.laplacian(_as("float32", initial(net)), normalised=False)
    value = float(solver("L")(initial(net)).value)
    jacobi = partial(peers.scipy_lobpcg, initial(net), "L", "float32", TOLERANCE, value=value)
    calls = {
        "SciPy lobpcg, Jacobi": jacobi,
        "JAX lobpcg_standard": partial(peers.jax_lobpcg, operator),
    }
    if importlib.util.find_spec("matfree") is not None:
        steps = min(40, operator.size - 1)
        calls[f"matfree, {steps} Lanczos steps"] = partial(peers.matfree_lanczos(steps), operator)
    ours, found, times = _against(net, "L", "float32", TOLERANCE, calls, size.repeats)
    return [
        row(
            f"{net}, L, float32: {name}",
            f"{ours}, value {found.value:.5f}",
            f"{times[name]}, value {float(call()[0]):.5f}",
            ratio_text(times[name], ours),
        )
        for name, call in calls.items()
    ]


def _against(net: Net, laplacian: str, dtype: str, tol: float, calls: dict[str, Any], repeats: int):
    """Our time and result, and the times of the others, interleaved."""
    with jax.enable_x64(dtype == "float64"):
        blocks = _as(dtype, initial(net))
        ours = partial(solver(laplacian, tol), blocks)
        times = interleaved({"ours": ours, **calls}, repeats=repeats)
        found = jax.tree.map(np.asarray, ours())
    return times.pop("ours"), found, times


def _as(dtype: str, blocks) -> list[jax.Array]:
    return [jnp.asarray(block, dtype) for block in blocks]
