"""Posteriors that are trained on the bound in the eigenvectors' basis: M2 and M4 of the source.

What training moves are the mean, the standard deviation along each eigenvector, and one for all
other directions; the weights are drawn anew for every batch. ``M2`` has the prior of the formulas
in `analytic`, isotropic at a point of the grid, and their eigenvectors. ``M4`` has the eigenvectors
and eigenvalues ``F`` that held-out examples give at the first weights: along them its prior has the
precision ``1 / variance + a F``. The source's posteriors start elsewhere and train for longer.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.networks import Model
from experiments.papers.sloppy.studies.causal import optimizer_of
from experiments.papers.sloppy.studies.pac_bayes import BOUND
from experiments.training.program import TrainState
from experiments.training.task import Data, Task
from experiments.training.trainer import Trainer
from models import Network
from spectral_jax import capacity

Tree = Any
METHODS = ("M2", "M4")


class Start(NamedTuple):
    """A prior, the basis in which it and the posterior are diagonal, and where training begins."""

    prior: capacity.Prior
    vectors: jax.Array
    posterior: capacity.Gaussian

    @property
    def basis(self) -> capacity.Basis:
        return capacity.vector_basis(self.vectors)


def isotropic_start(
    first: Tree, variance: float, vectors: jax.Array, posterior: capacity.Gaussian
) -> Start:
    """M2: the formula's prior and basis, from the formula's posterior on."""
    return Start(capacity.data_free_prior(first, math.sqrt(variance)), vectors, posterior)


def held_out_start(
    first: Tree,
    last: Tree,
    variance: float,
    vectors: jax.Array,
    values: jax.Array,
    *,
    weight: float,
    seen: np.ndarray,
) -> Start:
    """M4: curvature of the rows ``seen``, at the first weights, makes the prior narrow.

    values: of the loss in bits, the source's stand-in for the error.
    weight: the ``a`` of the prior.
    """
    along = (1 / variance + weight * values) ** -0.5
    scales = (along, jnp.asarray(math.sqrt(variance), along.dtype))
    prior = capacity.learnt_prior(first, scales, seen=seen)
    return Start(prior, vectors, capacity.Gaussian(last, prior.gaussian.log_scale))


def trained(
    model: Model,
    start: Start,
    examples: tuple[jax.Array, jax.Array],
    seed: int,
    *,
    epochs: int,
    learning_rate: float,
    batch: int,
) -> capacity.Gaussian:
    """The posterior after so many epochs on the quadratic bound of the cross-entropy in bits."""
    x, y = examples
    plain = {"shift": jnp.zeros(()), "scale": jnp.ones(())}
    data = {"train": Data({"x": x, "y": y}, plain)}
    task = Task("numerical", drawn_once(model), BOUND, data, "", batch)
    trainer = Trainer(task, optimizer_of(epochs * task.steps_per_epoch))
    hyper = {"n": jnp.full(1, len(y), jnp.float32), "learning_rate": jnp.full(1, learning_rate)}
    state = TrainState(
        _one(start.posterior), None, _one((start.prior.gaussian, start.vectors)), hyper,
        jax.random.key(np.uint32(seed))[None], jnp.zeros(1, jnp.int32),
    )  # fmt: skip
    state = trainer.train(trainer.restart(state), epochs=epochs)
    return jax.tree.map(lambda leaf: leaf[0], state.params)


def certified(
    start: Start, posterior: capacity.Gaussian, risks: np.ndarray, *, n: int, **options: Any
) -> capacity.Certificate:
    """The certificate over the first ``n`` rows, of which the prior saw none."""
    return capacity.certify(
        posterior, start.prior, risks, examples=np.arange(n), basis=start.basis, **options
    )


@cache
def drawn_once(model: Model) -> Network:
    """A network whose weights are drawn for each batch: parameters are the posterior.

    The state is the prior and the vectors of their common basis.
    """

    def init(key):
        raise NotImplementedError("training begins from a posterior")

    def apply(params, state, x, *, train=False, key=None):
        prior, vectors = state
        basis = capacity.vector_basis(vectors)
        weights = params.mean if key is None else capacity.draw(key, params, basis=basis)
        kl = capacity.gaussian_kl(params, prior, basis=basis)
        return {"logits": model(weights, x), "kl": jnp.full(len(x), kl)}, state

    return Network(init, apply, lambda: ())


def _one(tree: Tree) -> Tree:
    """The tree with an axis of one trial."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
