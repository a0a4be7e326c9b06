"""Every solver from every start: what ``eigsh(method="auto")`` should pick."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.fiedler.sizes import CAP, TOLERANCE, Net, Size, initial
from benchmarks.harness import Table, interleaved, one_core, say
from spectral_jax import graphs
from spectral_jax.linalg import eigsh

SOLVERS: dict[str, dict[str, Any]] = {
    "lobpcg, Jacobi": {"method": "lobpcg"},
    "lobpcg": {"method": "lobpcg", "preconditioner": None},
    "lanczos": {"method": "lanczos", "preconditioner": None},
}
MOVE = 0.05  # relative noise on the weights before a warm start


def methods(size: Size) -> Table:
    """Matvecs and times of the solvers behind ``eigsh``."""
    rows = []
    with one_core():
        for net in size.nets:
            for laplacian in size.laplacians:
                say(f"methods: {net}, {laplacian}")
                for k in size.ks:
                    starts = [start for start in size.starts if k == 1 or start != "none"]
                    rows += [_row(net, laplacian, k, start) for start in starts]
    note = (
        f"`linalg.eigsh` in float32, relative residual {TOLERANCE:g}, at most {CAP} matvecs, one "
        "core: matvecs and the median of three times; ! did not converge. Starts: none; the "
        "guesses of `graphs` (layer quotient, weakest node); warm: the solution, after "
        f"the weights moved by {MOVE:.0%} of noise, and those guesses. `auto` as `graphs` calls "
        "it, with a Jacobi preconditioner for k = 1 on L alone; the last column is its time over "
        "that of the best solver that converged."
    )
    header = ("net", "Laplacian", "k", "start", *SOLVERS, "auto takes", "over the best")
    return Table('Solvers, for `method="auto"`', note, rows, header)


def _row(net: Net, laplacian: str, k: int, start: str) -> tuple[str, ...]:
    calls = _calls(net, laplacian, k, start)
    times = interleaved(calls, repeats=3)
    found = {name: call() for name, call in calls.items()}
    sound = {name: bool(result.converged.all()) for name, result in found.items()}
    cells = [
        f"{found[name].matvecs}{'' if sound[name] else '!'}, {1e3 * times[name].median:.3g} ms"
        for name in SOLVERS
    ]
    taken = _auto(laplacian, k, start)
    best = min((times[name].median for name in SOLVERS if sound[name]), default=np.nan)
    return (str(net), laplacian, str(k), start, *cells, taken, f"{times[taken].median / best:.2f}")


def _calls(net: Net, laplacian: str, k: int, start: str):
    normalised = laplacian == "normalised"
    blocks = tuple(map(jnp.asarray, initial(net)))
    # Empty columns stand where a solution would be, so that warm and cold share compiled code.
    known = jnp.zeros((sum(graphs.widths(blocks)), k))
    if start == "warm":
        known = graphs.fiedler_pairs(blocks, k, normalised=normalised, tol=TOLERANCE).vectors
        blocks = _moved(blocks)
    degree = graphs.degrees(blocks)
    null = jnp.sqrt(degree) if normalised else jnp.ones_like(degree)
    common = {
        "v0": None if start == "none" else jnp.append(known, _guesses(blocks, normalised), axis=1),
        "deflate": (null / jnp.linalg.norm(null))[:, None],
        "preconditioner": jnp.ones_like(degree) if normalised else 1 / degree,
        "tol": TOLERANCE,
        "max_matvecs": CAP,
    }
    operator = graphs.laplacian(blocks, normalised=normalised)
    return {
        name: partial(eigsh, operator, k, **common | options) for name, options in SOLVERS.items()
    }


def _auto(laplacian: str, k: int, start: str) -> str:
    """What ``method="auto"`` takes, with the preconditioner that ``graphs`` passes."""
    if k > 1:
        return "lanczos"
    if laplacian == "L":
        return "lobpcg, Jacobi"
    return "lanczos" if start == "none" else "lobpcg"


def _guesses(blocks, normalised: bool) -> jax.Array:
    """The start block of ``graphs.fiedler``: layer quotient, weakest node."""
    quotient = graphs.layer_quotient(blocks, normalised=normalised).vector
    indicator = jnp.zeros_like(quotient).at[jnp.argmin(graphs.degrees(blocks))].set(1)
    return jnp.column_stack([quotient, indicator])


def _moved(blocks) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(1), len(blocks))
    return tuple(
        block * (1 + MOVE * jax.random.normal(key, block.shape))
        for block, key in zip(blocks, keys, strict=True)
    )
