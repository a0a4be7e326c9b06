"""Two linear layers, whose D_LR has a closed form: when does a small one mean rich training?

Inputs ``x [d]``, whitened; features ``x U [h]``; outputs ``x U V [C]``, trained on ``x M`` where
``M`` has the singular values ``s``. Gradient flow keeps ``U^T U - V V^T``. If it is ``lam I``
(*balanced*), training ends with features whose covariance ``U^T U`` has the eigenvalues

    rho_k = (lam + sqrt(lam^2 + 4 s_k^2)) / 2,    and lam for all others.

Small initial weights are ``lam = 0``, where every feature is learned; with a large ``lam`` features
hardly move. For equal ``s`` D_LR goes from 0 to its lazy limit with ``lam``; for unequal ones it
does not, as the features that D_LR calls rich weigh all outputs alike.

Results: arms ``<targets>/lam=<lam>`` of protocol ``linear``, with D_LR in closed form and that of
trained networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import features

# The singular values of what is learned.
TARGETS = {"equal": (1.0, 1.0, 1.0), "unequal": (3.0, 1.0, 0.3)}
START = 1e-3  # of the weights that a balanced network does not fix


def measure(
    run: Run,
    *,
    balances: Sequence[float],
    seeds: int,
    inputs: int,
    hidden: int,
    steps: int,
    learning_rate: float,
) -> Results:
    """D_LR for every balance and seed; a seed draws the start, the targets and the inputs."""
    arms = [(targets, balance) for targets in TARGETS for balance in balances]
    starts = [
        _start(seed, TARGETS[targets], balance, inputs, hidden)
        for targets, balance in arms
        for seed in range(seeds)
    ]
    ended = _descended(learning_rate, steps, *map(np.stack, zip(*starts, strict=True)))
    measured = [_richness(first, second) for first, second in zip(*ended, strict=True)]
    found = []
    for (targets, balance), values in zip(arms, np.reshape(measured, (-1, seeds)), strict=True):
        exact = closed_form(TARGETS[targets], hidden, balance)
        numbers = {"richness": values, "closed form": np.full(seeds, exact)}
        found.append(of_arrays("linear", name(targets, balance), numbers))
    return merge(found)


def name(targets: str, balance: float) -> str:
    """The arm of these targets and balance."""
    return f"{targets}/lam={balance:g}"


def closed_form(singular: Sequence[float], hidden: int, balance: float) -> float:
    """D_LR after training.

    >>> round(closed_form((1.0, 1.0, 1.0), 8, 1.0), 3), round(closed_form((3.0, 1.0, 0.3), 8, 0), 3)
    (0.218, 0.218)
    """
    s = np.asarray(singular)
    learned = (balance + np.sqrt(balance**2 + 4 * s**2)) / 2
    others = (hidden - len(s)) * balance**2
    size = np.sqrt(len(s)) * np.sqrt(np.sum(learned**2) + others)
    return float(1 - np.sum(learned) / size)


def _start(
    seed: int, singular: Sequence[float], balance: float, inputs: int, hidden: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is learned, ``M``, and both layers of a balanced network before training."""
    rng, outputs = np.random.default_rng(seed), len(singular)
    target = _frame(rng, inputs, outputs) @ np.diag(singular) @ _frame(rng, outputs, outputs).T
    second = START * rng.normal(size=(hidden, outputs))
    values, vectors = np.linalg.eigh(balance * np.eye(hidden) + second @ second.T)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return target, _frame(rng, inputs, hidden) @ root, second


@partial(jax.jit, static_argnums=1)
@partial(jax.vmap, in_axes=(None, None, 0, 0, 0))
def _descended(learning_rate, steps, target, first, second):
    """Both layers after gradient descent on ``|U V - M|^2 / 2``, the loss of whitened inputs."""

    def step(_, layers):
        first, second = layers
        error = target - first @ second
        return first + learning_rate * error @ second.T, second + learning_rate * first.T @ error

    return jax.lax.fori_loop(0, steps, step, (first, second))


def _richness(first: np.ndarray, second: np.ndarray) -> float:
    """D_LR of a network on inputs that are white and centred."""
    inputs = len(first)
    drawn = np.random.default_rng(0).normal(size=(4 * inputs, inputs))
    x = np.sqrt(len(drawn)) * np.linalg.qr(drawn - drawn.mean(axis=0))[0]
    return float(features.richness(x @ first, head=features.Head(jnp.asarray(second))).value)


def _frame(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Orthonormal columns in random directions."""
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]
