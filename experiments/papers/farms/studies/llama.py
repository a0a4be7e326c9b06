"""The sparsity of LLaMA's blocks, from the exponents that the authors ship; needs no weights."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.report.results import Results, of_arrays
from experiments.runs import Run
from spectral_jax import optim

# Block means of the shipped FARMS exponents of LLaMA-7B, 10 windows per axis.
SHIPPED = (
    2.7110, 2.9730, 3.1361, 3.3717, 3.4407, 3.1842, 3.2480, 3.2418, 3.1282, 2.9487, 3.0588, 2.9800,
    2.9582, 3.1312, 3.2705, 3.2832, 3.6961, 3.7878, 3.9470, 3.7765, 3.7392, 4.0945, 4.0432, 4.1338,
    3.8568, 4.3575, 4.3146, 4.4912, 4.2850, 4.4868, 4.1064, 3.8798,
)  # fmt: skip


def measure(run: Run) -> Results:
    """Least and greatest sparsity of a block at a sparsity of .8 with an epsilon of .2."""
    ratios = allocation(SHIPPED, 0.8, 0.2)
    return of_arrays("llama", "llama-7b", {"least": [ratios.min()], "greatest": [ratios.max()]})


def allocation(means: Any, sparsity: float, epsilon: float) -> np.ndarray:
    """Sparsity per block from block means, all blocks of one size as in LLaMA."""
    alpha = jnp.asarray(means, jnp.float32)
    found = optim.alpha_pruning(alpha, jnp.ones(len(alpha)), sparsity, epsilon=epsilon)
    return np.asarray(found.ratios)
