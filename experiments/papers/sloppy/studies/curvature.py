"""Does the curvature of a network mirror the spectrum of its inputs, and where does training go?

The complete spectra of the Gauss-Newton matrix (of these losses the Fisher matrix, its expectation
over classes taken exactly), of the Fisher matrix at the given labels and of the logits' Jacobian,
and both ends of the Hessian's, before and after training, beside that of the inputs. And which part
of the way from start to end lies in the leading eigenvectors of the Gauss-Newton matrix.

Results: arm ``<network>`` of protocol ``curvature``, one seed per network; arrays
``<network>-<seed>`` hold the spectra, largest first, and their floors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.papers.networks import Bench, Model, opened
from experiments.papers.paper import trained
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import capacity, curvature, linalg

Tree = Any
Arrays = dict[str, np.ndarray]
STAGES = ("start", "end")
LOSS = curvature.SoftmaxCrossEntropy()
MATVECS = 800
LEAST_DECADES = 3.0  # what an "exponentially large range" is at least, declared beforehand


def measure(
    run: Run, *, runs: Mapping[str, str], networks: Mapping[str, Mapping[str, int]]
) -> Results:
    """Every seed of every network that was trained; a seed that is done is not measured again.

    networks: by arm, how many ``examples`` the matrices are means over, how many ``vectors`` span
      the leading subspaces, and how many eigenvalues of the Hessian (``ends``) at either end.
    """
    found = []
    for arm, peer in trained(run, runs).items():
        if arm not in networks:
            continue
        bench, rows = opened(peer), []
        for seed in bench.seeds:
            stored = run.load_array(f"{arm}-{seed}")
            if stored is None:
                stored = spectra(bench, seed, **networks[arm])
                run.save_array(f"{arm}-{seed}", **stored)
                run.log(f"curvature: {arm}, seed {seed} is measured")
            rows.append(numbers(stored))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        found.append(of_arrays("curvature", arm, columns, first_seed=bench.seeds.start))
    return merge(found)


def spectra(bench: Bench, seed: int, *, examples: int, vectors: int, ends: int) -> Arrays:
    """The spectra of one network at both stages, with floors, and its subspaces in numbers."""
    stages = {"start": bench.start(seed), "end": bench.end(seed)}
    data = bench.examples(examples)
    kept: Arrays = _input(data[0])
    leading = {}
    for stage, params in stages.items():
        full = curvature.ggn_spectrum(bench.model, LOSS, params, data, vectors=vectors)
        leading[stage] = jnp.asarray(full.vectors)
        kept |= _told(f"{stage}/ggn", full.values, full.floor)
        given = curvature.empirical_fisher_spectrum(bench.model, LOSS, params, data)
        kept |= _told(f"{stage}/fisher", given.values, given.floor)
        kept |= _told(f"{stage}/logits", *_logits(bench, params, data))
        kept |= hessian(stage, bench.model, params, data, ends)
    flat = {stage: ravel_pytree(params)[0] for stage, params in stages.items()}
    return kept | subspaces(leading, flat["end"], flat["start"])


def numbers(stored: Arrays) -> dict[str, float]:
    """What is told of the spectra of one network."""
    found = {name: float(value) for name, value in stored.items() if name.startswith("subspace/")}
    for name in ("input", *(f"{stage}/{kind}" for stage in STAGES for kind in ("ggn", "fisher"))):
        found |= _summary(name, stored[name], stored[f"{name}/floor"])
    for stage in STAGES:
        top, bottom = stored[f"{stage}/hessian"], stored[f"{stage}/hessian/bottom"]
        negative = -np.nansum(np.minimum(bottom, 0))
        found[f"{stage}/hessian/negative share"] = float(negative / np.nansum(top))
        found[f"{stage}/hessian over ggn"] = float(np.nanmax(top) / stored[f"{stage}/ggn"].max())
    return found


def _summary(name: str, values: np.ndarray, floor: np.ndarray) -> dict[str, float]:
    """The sloppiness of a spectrum, as numbers with a name."""
    told = capacity.sloppiness(values, floor=float(floor))._asdict()
    told["decades beyond"] = told["decades"] - LEAST_DECADES
    return {f"{name}/{what}": float(value) for what, value in told.items()}


def _told(name: str, values: jax.Array, floor: jax.Array) -> Arrays:
    return {name: np.asarray(values), f"{name}/floor": np.asarray(floor)}


def _input(x: jax.Array) -> Arrays:
    """The uncentred second moments of the inputs."""
    rows = np.asarray(x).reshape(len(x), -1)
    state = linalg.moments.update(linalg.moments.zero(rows.shape[1]), rows)
    return _told("input", *linalg.moments.eigenvalues(state, centred=False))


def _logits(bench: Bench, params: Tree, data: tuple) -> tuple[jax.Array, jax.Array]:
    """Of ``J^T J / n`` of all logits, which is half the Gauss-Newton matrix of squared error."""
    targets = jnp.zeros_like(bench.model(params, data[0]))
    loss = curvature.SquaredError()
    full = curvature.ggn_spectrum(bench.model, loss, params, (data[0], targets))
    return full.values / 2, full.floor / 2


def hessian(stage: str, model: Model, params: Tree, data: tuple, ends: int) -> Arrays:
    """Both ends of the Hessian's spectrum, from one Krylov space."""
    op = curvature.hessian(curvature.objective(model, LOSS), params, data)
    pairs = linalg.eigsh(op, 2 * ends, which="BE", max_matvecs=MATVECS)
    # A pair that has not converged is no eigenvalue.
    values = np.where(np.asarray(pairs.converged), np.asarray(pairs.values), np.nan)
    bottom, top = -np.sort(-values.reshape(2, ends))
    return {f"{stage}/hessian": top, f"{stage}/hessian/bottom": bottom}


def subspaces(leading: Mapping[str, jax.Array], end: jax.Array, start: jax.Array) -> Arrays:
    """Displacement in, and overlap of, the leading subspaces; and what chance would give.

    A random direction has a share ``k / P`` in any subspace of ``k`` dimensions.
    """
    found = {}
    for stage, vectors in leading.items():
        shares = curvature.displacement(vectors, end, start)
        found[f"displacement/{stage}"] = np.asarray(shares)
        found[f"subspace/displacement/{stage}"] = np.asarray(shares[-1])
        found[f"subspace/displacement beyond half/{stage}"] = np.asarray(shares[-1] - 0.5)
    both = curvature.overlap(leading["start"], leading["end"])
    chance = leading["start"].shape[1] / leading["start"].shape[0]
    found["subspace/overlap beyond chance"] = np.asarray(both - chance)
    return found | {"subspace/overlap": np.asarray(both), "subspace/chance": np.asarray(chance)}
