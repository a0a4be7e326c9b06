"""Lanczos quadrature and trace estimates beside matfree and curvlinops, on one operator."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import wasserstein_distance

from benchmarks.harness import (
    NOTHING,
    Table,
    Target,
    Timing,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from spectral_jax.linalg import SymmetricOperator
from spectral_jax.linalg.density import spectral_density
from spectral_jax.linalg.trace import trace


class Size(NamedTuple):
    grid: tuple[int, int]
    probes: int
    steps: int
    matvecs: int
    seeds: int
    repeats: int


FULL = Size(grid=(400, 250), probes=10, steps=100, matvecs=60, seeds=10, repeats=2)
SMOKE = Size(grid=(12, 10), probes=2, steps=5, matvecs=10, seeds=2, repeats=1)
SPEEDUP = Target(">=", 1.5)
SAME_PROBES, OTHER_PROBES = 1.01, 1.25  # ratio of errors; the second allows for luck
Rows = list[tuple[str, ...]]
Rules = tuple[Any, Any]


def density(size: Size) -> Table:
    """The rules of a spectral density: time, and distance from the true spectrum."""
    rows = []
    with one_core():
        for name, reorthogonalise, peers in (
            ("basis kept and reorthogonalised", True, _full_peers(size)),
            ("bare recurrence, no basis", False, _bare_peers(size)),
        ):
            rows += _density_rows(size, name, reorthogonalise, peers)
        rows.append(row(f"{size.probes * size.steps} products alone", _products(size)))
    n, vectors = size.grid[0] * size.grid[1], size.probes * size.steps
    traffic = 4 * n * vectors * size.steps / 1e9
    note = (
        f"The 5-point Laplacian of a {size.grid[0]} x {size.grid[1]} grid (n = {n}, spectrum in "
        f"closed form), float32, {size.probes} probes x {size.steps} steps, from the key to nodes "
        "and weights. The error is the Wasserstein-1 distance of the averaged rules from the true "
        "spectrum, in units of its width (8), mean over two seeds, and mostly the luck of the "
        "probes: matfree is given the same ones, curvlinops draws its own. Physical bound with a "
        f"basis: two reads of its filled part a step, {traffic:.0f} GB in all "
        f"({4 * traffic:.0f} GB for matfree, which reads all of it "
        "four times a step). curvlinops (`fast_lanczos`) does not reorthogonalise: its peer is "
        "`reorthogonalise=False`, which has the same memory; there a step is one stencil and a few "
        "vector operations of 0.4 MB for either library, and the products alone, which nothing "
        "saves, are given: they bound what a better recurrence could win."
    )
    return Table("Spectral density, one core", note, rows)


def _products(size: Size) -> Timing:
    """As many products as the rules take, and nothing else."""
    op, number = laplacian(size.grid), size.probes * size.steps

    @jax.jit
    def products(x):
        # By its norm, 8: nothing overflows.
        return jax.lax.fori_loop(0, number, lambda _, x: 0.125 * (op @ x), x)

    x = jnp.ones(op.size, jnp.float32)
    return interleaved({"products": lambda: products(x)}, repeats=size.repeats)["products"]


def traces(size: Size) -> Table:
    """XTrace: time and error, where matfree is as good."""
    op, exact = laplacian(size.grid), float(jnp.sum(jnp.asarray(spectrum(size.grid))))
    ours = jax.jit(partial(trace, matvecs=size.matvecs))
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: ours(op, jax.random.key(0)).value}
    if _installed("matfree"):
        theirs = _matfree_xtrace(size)
        calls["matfree"] = lambda: theirs(op, jax.random.key(0))
    with one_core():
        times = interleaved(calls, repeats=size.repeats)
    keys = [jax.random.key(seed) for seed in range(size.seeds)]
    error = {"ours": _rms([ours(op, key).value / exact - 1 for key in keys])}
    if "matfree" not in times:
        rows = [row("XTrace", with_first(times["ours"]), "not installed")]
    else:
        error["matfree"] = _rms([theirs(op, key) / exact - 1 for key in keys])
        said = {name: f"{with_first(times[name])}, error {error[name]:.1e}" for name in times}
        rows = [row("XTrace", *said.values(), ratio_text(times["matfree"], times["ours"]))]
    note = (
        f"The same operator, {size.matvecs} products, float32. Error: relative, root mean square "
        f"over {size.seeds} seeds. No target: matfree is as good, and this shows it."
    )
    return Table("Trace, one core", note, rows)


def _density_rows(size: Size, name: str, reorthogonalise: bool, peers: dict[str, Any]) -> Rows:
    ours = jax.jit(
        partial(
            spectral_density,
            probes=size.probes,
            steps=size.steps,
            reorthogonalise=reorthogonalise,
        )
    )
    op = laplacian(size.grid)
    solvers = {"ours": lambda seed: ours(op, jax.random.key(seed))[:2]}
    solvers |= {peer: solve for peer, solve in peers.items() if solve is not None}
    times = interleaved(
        {p: partial(solve, 0) for p, solve in solvers.items()}, repeats=size.repeats
    )
    errors = {p: [_distance(size, *solve(seed)) for seed in (0, 1)] for p, solve in solvers.items()}
    rows = []
    for peer in peers:
        what = f"{name}: {peer}"
        if peer not in times:
            rows.append(row(what, _said("ours", times, errors), "not installed", target=SPEEDUP))
            continue
        ratio = ratio_of(times[peer], times["ours"])
        said = [_said(p, times, errors) for p in ("ours", peer)]
        rows.append(row(what, *said, ratio_text(times[peer], times["ours"]), SPEEDUP, ratio))
        excess = float(np.mean(errors["ours"]) / np.mean(errors[peer]))
        limit = Target("<=", SAME_PROBES if peer == "matfree" else OTHER_PROBES)
        rows.append(row(f"{what}, error", NOTHING, NOTHING, f"{excess:.2f}", limit, excess))
    return rows


def _said(peer: str, times: dict[str, Any], errors: dict[str, list[float]]) -> str:
    return f"{with_first(times[peer])}, error {np.mean(errors[peer]):.1e}"


def _distance(size: Size, nodes: Any, weights: Any) -> float:
    nodes, weights = np.asarray(nodes, float).ravel(), np.asarray(weights, float).ravel()
    return wasserstein_distance(nodes, spectrum(size.grid), np.maximum(weights, 0)) / 8


def _rms(errors: list[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


# The operator


def laplacian(grid: tuple[int, int]) -> SymmetricOperator:
    return SymmetricOperator(partial(_apply, grid), jnp.ones((), jnp.float32), grid[0] * grid[1])


def _apply(grid: tuple[int, int], scale: jax.Array, x: jax.Array) -> jax.Array:
    # Of five ways to write the stencil, the fastest in XLA: for all who run on JAX alike.
    x = x.reshape(grid)
    row, column = jnp.zeros_like(x[:1]), jnp.zeros_like(x[:, :1])
    above, below = jnp.concatenate([row, x[:-1]]), jnp.concatenate([x[1:], row])
    left = jnp.concatenate([column, x[:, :-1]], axis=1)
    right = jnp.concatenate([x[:, 1:], column], axis=1)
    return (scale * (4 * x - above - below - left - right)).reshape(-1)


def spectrum(grid: tuple[int, int]) -> np.ndarray:
    rows, columns = (2 - 2 * np.cos(np.pi * np.arange(1, m + 1) / (m + 1)) for m in grid)
    return np.sort(np.add.outer(rows, columns).ravel())


# Peers: a seed in, nodes and weights of all probes out


def _full_peers(size: Size) -> dict[str, Any]:
    return {"matfree": _matfree_rules(size, "full")}


def _bare_peers(size: Size) -> dict[str, Any]:
    return {"matfree": _matfree_rules(size, "none"), "curvlinops": _curvlinops_rules(size)}


def _matfree_rules(size: Size, reortho: str) -> Callable[[int], Rules] | None:
    if not _installed("matfree"):
        return None
    from matfree import decomp

    tridiagonalise, op = decomp.tridiag_sym(size.steps, reortho=reortho), laplacian(size.grid)

    # One probe after another is its faster way here, too.
    @jax.jit
    def rules(op, key):
        def rule(start):
            nodes, vectors = jnp.linalg.eigh(tridiagonalise(lambda x: op @ x, start).J_small)
            return nodes, vectors[0] ** 2

        return jax.lax.map(rule, jax.random.normal(key, (op.size, size.probes)).T)

    return lambda seed: rules(op, jax.random.key(seed))


def _curvlinops_rules(size: Size) -> Callable[[int], Rules] | None:
    if not (_installed("torch") and _installed("curvlinops")):
        return None
    import torch
    from curvlinops._torch_base import PyTorchLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.set_num_threads(1)

    class Laplacian(PyTorchLinearOperator):
        SELF_ADJOINT = True
        device, dtype = torch.device("cpu"), torch.float32

        def _matmat(self, X):
            x = X[0].reshape(size.grid)
            p = torch.nn.functional.pad(x, (1, 1, 1, 1))
            image = 4 * x - p[:-2, 1:-1] - p[2:, 1:-1] - p[1:-1, :-2] - p[1:-1, 2:]
            return [image.reshape(-1, 1)]

    operator = Laplacian([(size.grid[0] * size.grid[1],)], [(size.grid[0] * size.grid[1],)])

    def rules(seed):
        torch.manual_seed(seed)
        found = [fast_lanczos(operator, size.steps) for _ in range(size.probes)]
        return np.stack([f[0] for f in found]), np.stack([f[1][0] ** 2 for f in found])

    return rules


def _matfree_xtrace(size: Size) -> Callable[..., jax.Array]:
    from matfree import stochtrace

    like = jnp.ones(size.grid[0] * size.grid[1])
    sampler = stochtrace.sampler_normal(like, num=size.matvecs // 2)
    estimate = stochtrace.estimator_leave_one_out(stochtrace.leave_one_out_xtrace(), sampler)
    return jax.jit(lambda op, key: estimate(lambda x: op @ x, key))


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
