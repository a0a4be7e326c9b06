"""One side of the comparison: a process that times calls of the tree on its path, on request.

Run as a script with PYTHONPATH set to a tree of either revision, so only names that both have are
used. It prints the names of its calls, then answers each name on stdin with seconds of wall clock
and of processor per call.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax import graphs, linalg, rmt, tails
from spectral_jax.analysis import analyse
from spectral_jax.analysis.layers import Arrays
from spectral_jax.optim import (
    Policy,
    fiedler_decay,
    prune_spectra,
    spectral_penalty,
    temp_balance,
    truncate,
)

KEY = jax.random.key(0)
SLICE = 0.15  # seconds that one answer takes, about


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(KEY, seed), shape)


def updating(transformation, params) -> Callable[[], object]:
    """Updates after the first, as in the middle of training."""
    step = jax.jit(transformation.update)
    updates = jax.tree.map(lambda x: 0.01 * x, params)
    states: list[object] = []

    def call() -> object:
        if not states:
            states.append(step(updates, transformation.init(params), params)[1])
        return step(updates, states[0], params)

    return call


def calls(n: int) -> dict[str, Callable[[], object]]:
    """What is compared; sizes go with ``n``, which is 1000 for a measurement."""
    symmetric = normal(1, n, n)
    op = linalg.dense_operator((symmetric + symmetric.T) / 2)
    widths = (784, n // 2, n // 2, n // 2, 10)
    kernels = [normal(i, *s) / s[0] ** 0.5 for i, s in enumerate(pairwise(widths))]
    params = {f"layer{i}": {"kernel": w, "bias": w[0]} for i, w in enumerate(kernels)}
    spectra = jnp.sort(normal(7, 12, n) ** 2, axis=-1)
    matrix, windows = normal(5, 2 * n, n), normal(9, 64, n // 2, n // 4)
    convolutions = {f"c{i}/kernel": np.asarray(normal(20 + i, 3, 3, 64, 64)) for i in range(10)}
    pruned = jax.jit(lambda p: prune_spectra(p, Policy()))
    cut = jax.jit(lambda w: truncate(w, 20))
    fiedler, balance = fiedler_decay(1e-2), dict(metric="hill", min_eigenvalues=10)
    return {
        "svdvals, batch": lambda: linalg.svdvals(windows),
        "eigsh, 1 pair": lambda: linalg.eigsh(op, 1, which="LA"),
        "eigsh, 5 pairs": lambda: linalg.eigsh(op, 5, which="LA"),
        "eigsh, lobpcg": lambda: linalg.eigsh(op, 1, which="LA", method="lobpcg"),
        "randomized_svd, rank 20": lambda: linalg.randomized_svd(KEY, matrix, 20),
        "spectral_density": lambda: linalg.spectral_density(op, KEY, probes=4, steps=40),
        "spectral_density, bare": lambda: linalg.spectral_density(
            op, KEY, probes=4, steps=40, reorthogonalise=False
        ),
        "lanczos, 40 steps": lambda: linalg.lanczos(op, matrix[0], 40),
        "trace": lambda: linalg.trace(op, KEY, matvecs=60),
        "fiedler": lambda: graphs.fiedler(kernels, normalised=False),
        "fiedler, normalised": lambda: graphs.fiedler(kernels, normalised=True),
        "fiedler_decay, update alone": updating(fiedler, params),
        "l1, update alone": updating(spectral_penalty("l1", 1e-2), params),
        "temp_balance, update": updating(
            temp_balance("tb_sigmoid", refresh_every=1, **balance), params
        ),
        "hill_alpha": lambda: tails.hill_alpha(spectra),
        "power_law_fit": lambda: tails.power_law_fit(spectra),
        "farms_alphas": lambda: tails.farms_alphas([matrix], window=100, samples=9),
        "fit_marchenko_pastur": lambda: rmt.fit_marchenko_pastur(spectra, (n, n)),
        "fit, by density": lambda: rmt.fit_marchenko_pastur(spectra, (n, n), method="density"),
        "prune_spectra": lambda: pruned(params),
        "truncate": lambda: cut(matrix),
        "analyze_layers": lambda: analyse(Arrays(convolutions)).rows,
    }


def seconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def serve(n: int, names: Sequence[str]) -> None:
    known = calls(n)
    chosen = {name: known[name] for name in names or known}
    repeats = {}
    for name, call in chosen.items():
        seconds(call, 1)  # compiles
        repeats[name] = max(1, int(SLICE / max(seconds(call, 1)[0], 1e-5)))
    print(json.dumps(list(chosen)), flush=True)
    for line in sys.stdin:
        name = line.strip()
        print(json.dumps(seconds(chosen[name], repeats[name])), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
