"""The successor's protocol on Fashion-MNIST: prune again and again, in place, with L1 and L2.

arXiv 2606.02608 reports 71.6, 81 and 90.5 % on the test set for arms of one deep network, and its
networks have a ReLU on the logits. Here every arm is trained with it and without.

Results: arm ``<logits>/<arm>`` of protocol ``fashion``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.rmt_svd.networks import assess, fits, in_turn, trainer_of, trial
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.program import TrainState
from spectral_jax import prune
from spectral_jax.prune import Policy

# Arm -> (pruned, L1, L2); strengths as published.
ARMS = {
    "none": (False, 0.0, 0.0),
    "MP": (True, 0.0, 0.0),
    "L1+L2": (False, 1e-6, 1e-6),
    "MP+L2": (True, 0.0, 1e-6),
    "MP+L1+L2": (True, 1e-6, 1e-6),
}
# Accuracy in percent on the training and the test set, 100 epochs of 784-3000x4-500-10.
PUBLISHED = {
    "none": (78.03, 71.64),
    "MP": (88.12, 81.22),
    "L1+L2": (87.57, 81.70),
    "MP+L1+L2": (99.82, 90.53),
    "MP+L2": (99.98, 90.16),
}
LOGITS = {"linear": False, "ReLU": True}


def measure(
    run: Run, *, epochs: int, every: int, keep: int, rate: float, seeds: int, **options: Any
) -> Results:
    """All arms in one program, cut by one event for all.

    keep: of the noise, ``max(0, 1 - epoch / keep)`` stays.
    """
    trainer = trainer_of(**options)
    kinds = list(product(LOGITS, ARMS, range(seeds)))
    state = trainer.start([_trial(logits, arm, seed, rate) for logits, arm, seed in kinds])
    pruned = jnp.array([ARMS[arm][0] for _, arm, _ in kinds])
    layers = tuple(f"layers/{i}/kernel" for i in range(len(options["hidden"])))
    begun, state = run.restore_checkpoint(state) or (0, state)
    for epoch in range(begun, epochs, every):
        state = trainer.train(state, epochs=min(every, epochs - epoch))
        reached = epoch + every
        if reached < epochs:
            now = jnp.full(len(kinds), reached)
            params = in_turn(_pruning(layers, keep), state.params, pruned, now)
            state = state._replace(params=params)
        run.save_checkpoint(reached, state)
    numbers = {**assess(trainer, state), **_sizes(state, layers)}
    run.save_array("arms", **numbers)
    arms = list(product(LOGITS, ARMS))
    by_arm = {name: np.reshape(values, (len(arms), seeds)) for name, values in numbers.items()}
    return merge(
        of_arrays(
            "fashion", f"{logits}/{arm}", {name: each[place] for name, each in by_arm.items()}
        )
        for place, (logits, arm) in enumerate(arms)
    )


def _trial(logits: str, arm: str, seed: int, rate: float) -> Trial:
    _, l1, l2 = ARMS[arm]
    return trial(seed, rate, relu=LOGITS[logits], l1=l1, l2=l2)


@cache
def _pruning(layers: tuple[str, ...], keep: int) -> Any:
    """A trial's kernels after an event, if it is one to be pruned."""
    policies = dict.fromkeys(layers, Policy(keep_below=prune.linear_keep(keep)))

    def event(params: Any, pruned: jax.Array, epoch: jax.Array) -> Any:
        cut = prune.prune_spectra(params, policies, epoch=epoch).params
        return jax.tree.map(lambda new, old: jnp.where(pruned, new, old), cut, params)

    return event


def _sizes(state: TrainState, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """What the fits say of the networks in the end."""
    report = fits(state.params, layers)
    return {
        "spikes": np.sum([np.asarray(report[layer].spikes) for layer in layers], axis=0),
        "distance from the law": np.mean([np.asarray(report[layer].ks) for layer in layers], 0),
    }
