"""Convolutions: LeNet-5 split while it trains, with the gates of arXiv 2310.03165 and without.

A convolution is split as a matrix ``[window x in, out]`` into one of its window and a 1 x 1 one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np

from experiments.papers.rmt_svd.networks import (
    Tree,
    assess,
    in_factors,
    in_turn,
    leaf,
    trainer_of,
    trial,
)
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.program import TrainState
from spectral_jax import prune
from spectral_jax.prune import Policy

CONVOLUTIONS, DENSE = ("convs/0/kernel", "convs/1/kernel"), ("dense/0/kernel", "dense/1/kernel")
LAYERS = (*CONVOLUTIONS, *DENSE)
# Arm -> policy of the convolutions, policy of the dense layers; None: not cut.
ARMS: dict[str, tuple[Policy, Policy] | None] = {
    "dense": None,
    "split": (Policy(keep_below=0.45), Policy(keep_below=0.45)),
    "split, gates as published": (Policy(keep_below=0.45, gate=0.6),
                                  Policy(keep_below=0.45, gate=0.05)),
    "MP edge": (Policy(), Policy()),
}  # fmt: skip


def measure(
    run: Run, *, rate: float, before: int, after: int, seeds: int, **options: Any
) -> Results:
    """Every arm, cut at the same trained network; a finished arm is not trained again."""
    trainer = trainer_of(**options)
    drawn = trainer.start([trial(seed, rate) for seed in range(seeds)])
    found = run.restore_checkpoint(drawn)
    trunk = found[1] if found else trainer.train(drawn, epochs=before)
    if not found:
        run.save_checkpoint(before, trunk)
    results = []
    for name, policies in ARMS.items():
        file = name.replace(",", "").replace(" ", "-")
        numbers = run.load_array(file)
        if numbers is None:
            state, numbers = cut_at(trunk, policies)
            state = trainer.train(state, epochs=after)
            numbers |= assess(trainer, state)
            run.save_array(file, **numbers)
            run.log(f"cnn: {name} is trained")
        results.append(of_arrays("cnn", name, numbers))
    return merge(results)


def cut_at(
    state: TrainState, policies: tuple[Policy, Policy] | None
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """The state after the split of those layers whose gate is open, and what it then costs."""
    total = sum(kernel[0].size for kernel in jax.tree.leaves(state.params))
    if policies is None:
        return state, {"parameters": np.full(len(state.key), total)}
    pruned = in_turn(_pruning(policies), state.params)
    rows = {layer: pruned.report[layer] for layer in LAYERS}
    # Trials share shapes: a layer is split where all of them were pruned.
    ranks = {
        layer: np.asarray(row.rank)
        for layer, row in rows.items()
        if np.all(np.asarray(row.status) == prune.PruneStatus.PRUNED)
    }
    sizes = {layer: leaf(state.params, layer)[0].size for layer in ranks}
    state, costs = in_factors(state, pruned.params, ranks)
    numbers = {f"rank/{layer}": np.asarray(row.rank) for layer, row in rows.items()}
    numbers |= {f"ks/{layer}": np.asarray(row.ks) for layer, row in rows.items()}
    saved = [sizes[layer] - cost for layer, cost in costs.items()]
    return state, {**numbers, "parameters": total - sum(saved, np.zeros(len(state.key), int))}


@cache
def _pruning(policies: tuple[Policy, Policy]) -> Any:
    of_convolutions, of_dense = policies
    chosen = {**dict.fromkeys(CONVOLUTIONS, of_convolutions), **dict.fromkeys(DENSE, of_dense)}

    def cut(params: Tree) -> prune.Pruning:
        return prune.prune_spectra(params, chosen)

    return cut
