"""Connectivity of networks as they are drawn: no data, no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from models import network
from spectral_jax import graphs, weights


def measure(run: Run, *, nets: Mapping[str, Sequence[int]], seeds: int) -> Results:
    """By name of a net, given by its widths: lambda_2, the spread of its vector, and nu_2."""
    return merge(
        of_arrays("untrained", name, connectivity(tuple(widths), seeds))
        for name, widths in nets.items()
    )


def connectivity(widths: tuple[int, ...], seeds: int) -> dict[str, jax.Array]:
    """Spectra of freshly drawn dense nets, ``[seeds]``."""
    net = network("mlp", input_shape=widths[:1], classes=widths[-1], hidden=widths[1:-1])

    @jax.jit
    def of_seed(key):
        params, _ = net.init(key)
        blocks = weights.graph_weights(params, net.layout)
        plain = graphs.fiedler(blocks, normalised=False)
        return {
            "lambda_2": plain.value,
            "participation_ratio": plain.participation_ratio,
            "nu_2": graphs.fiedler(blocks, normalised=True).value,
        }

    return jax.lax.map(of_seed, jax.vmap(jax.random.key)(jnp.arange(seeds)))
