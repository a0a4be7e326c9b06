"""Fig. 5: how many singular values of the first layer a trained network needs, and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as datasets
from experiments.papers.paper import trained
from experiments.papers.rmt_svd.networks import in_turn
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import prune, rmt
from spectral_jax.prune import surgery

LAYER = "layers/0/kernel"
RANKS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 95)
RULES: dict[str, dict[str, Any]] = {
    "MP edge": {},
    "MP edge, as released": {
        "trim": 0.25, "beta": 0.1,
        "paper_compat": ("tw_quartic_over_3", "cdf_zero_above_edge"), "plotting": "(k-1)/p",
    },
}  # fmt: skip


def measure(run: Run, *, runs: Mapping[str, str], dataset: str) -> Results:
    """Per arm: accuracy by rank and with all values, what each rule keeps, and dead classes.

    Results: protocol ``ranks`` for MNIST, ``ranks/<dataset>`` for other data.
    """
    found = datasets.load(dataset, preprocessing="unit")
    x = (jnp.asarray(found.test_x, jnp.float32) - found.shift) * found.scale
    data = x.reshape(len(x), -1), jnp.asarray(found.test_y)
    results = []
    for arm, of_arm in trained(run, runs).items():
        params = of_arm.array("parameters")
        numbers = _numbers({name: jnp.asarray(leaf) for name, leaf in params.items()}, data,
                           relu=arm == "relu-logits")  # fmt: skip
        protocol = "ranks" if dataset == "mnist" else f"ranks/{dataset}"
        results.append(of_arrays(protocol, arm, numbers))
    return merge(results)


def _numbers(
    params: Mapping[str, jax.Array], data: tuple[jax.Array, jax.Array], *, relu: bool
) -> dict[str, np.ndarray]:
    wanted = jnp.array([*RANKS, 10_000])
    hits, dead = map(np.asarray, jax.block_until_ready(_by_rank(params, data, wanted, relu)))
    w = params[LAYER]
    fits = {rule: in_turn(partial(_fit, **options), w) for rule, options in RULES.items()}
    ranks = {f"rank/{rule}": np.asarray(fit.spikes) for rule, fit in fits.items()}
    ranks["rank/Gavish-Donoho"] = np.asarray(in_turn(_above_threshold, w))
    by_rank = dict(zip(RANKS, hits, strict=False))
    initial = 1 / (3 * w.shape[1])  # of U(-1/sqrt(m), 1/sqrt(m))
    at_edge = [np.interp(rank, RANKS, curve[:-1])
               for rank, curve in zip(ranks["rank/MP edge"], hits.T, strict=True)]  # fmt: skip
    return {
        "test/accuracy": hits[-1],
        "dead_classes": dead[-1],
        **{f"accuracy/{rank}": values for rank, values in by_rank.items()},
        "accuracy/MP edge": np.array(at_edge),
        **ranks,
        "ks": np.asarray(fits["MP edge"].ks),
        "variance ratio": np.asarray(fits["MP edge"].variance) / initial,
        "inputs": np.full(len(w), w.shape[1]),
    }


@partial(jax.jit, static_argnums=3)
def _by_rank(
    params: Mapping[str, jax.Array], data: tuple[jax.Array, jax.Array], ranks: jax.Array, relu: bool
) -> tuple[jax.Array, jax.Array]:
    """Test accuracy and dead classes, ``[ranks, seeds]``."""
    x, y = data

    def one(seed: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w = seed[LAYER]
        found = surgery.spectrum(w)
        # x W = (x W V) V^T for the vectors V of the short side, or with U before W.
        tall = w.shape[0] >= w.shape[1]
        left, right = (w @ found.vectors, found.vectors.T) if tall else (found.vectors, None)
        right = found.vectors.T @ w if right is None else right
        most = min(len(found.values), max(RANKS))
        inner, tail = x @ left[:, :most], right[:most]
        whole = x @ w

        def at(rank: jax.Array) -> tuple[jax.Array, jax.Array]:
            cut = (inner * (jnp.arange(most) < rank)) @ tail
            hidden = jnp.where(rank > most, whole, cut) + seed["layers/0/bias"]
            logits = jax.nn.relu(hidden) @ seed["layers/1/kernel"] + seed["layers/1/bias"]
            logits = jax.nn.relu(logits) if relu else logits
            hits = jnp.mean(jnp.argmax(logits, axis=-1) == y)
            return hits, prune.dead_classes(logits).sum()

        return jax.lax.map(at, ranks)

    accuracy, dead = jax.lax.map(one, dict(params))
    return accuracy.T, dead.T


def _fit(w: jax.Array, **options: Any) -> rmt.MPFit:
    m, n = w.shape
    eigenvalues = jnp.linalg.svd(w, compute_uv=False) ** 2 / max(m, n)
    return rmt.fit_marchenko_pastur(eigenvalues, (m, n), **options)


def _above_threshold(w: jax.Array) -> jax.Array:
    m, n = w.shape
    values = jnp.linalg.svd(w, compute_uv=False)
    return jnp.sum(values > rmt.hard_threshold((m, n), singular_values=values))
