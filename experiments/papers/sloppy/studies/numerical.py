"""Posteriors that are trained on the bound: M1 to M4 of the source.

What training moves are the mean, the standard deviation along each coordinate, and in a basis one
for all other directions; the weights are drawn anew for every batch.

``M1`` is Dziugaite and Roy's: coordinates are the weights, and the prior's one scale is trained
too, on a grid of its own. ``M2`` has the prior of the formulas in `analytic`, isotropic at a point
of the grid, and their eigenvectors; so does ``M3``, but it looks for the eigenvectors again at each
epoch's weights, and hands its scales on by rank. ``M4`` has the eigenvectors and eigenvalues ``F``
that held-out examples give at the first weights: along them its prior has the precision
``1 / variance + a F``, so that it is narrow where the loss is curved. The released code
(``bayes_proj_prior.py``) has it the other way round, with the *variance* ``(F + epsilon) / a``.
The source has other bases (KFRA) for M2 to M4, too, starts them elsewhere, trains the prior's scale
in all, and for longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.networks import Model
from experiments.papers.sloppy.studies import dziugaite_roy
from experiments.papers.sloppy.studies.causal import optimizer_of
from experiments.papers.sloppy.studies.pac_bayes import BOUND
from experiments.training.blocks import Trial
from experiments.training.task import Data, Task
from experiments.training.trainer import Trainer
from models import Network
from spectral_jax import capacity

Tree = Any
METHODS = ("M1", "M2", "M3", "M4")


class Laws(NamedTuple):
    """A prior, the basis in which it and the posterior are diagonal, and that posterior.

    Without ``vectors`` they are diagonal in the weights.
    """

    prior: capacity.Prior
    vectors: jax.Array | None
    posterior: capacity.Gaussian

    @property
    def basis(self) -> capacity.Basis | None:
        return None if self.vectors is None else capacity.vector_basis(self.vectors)


def diagonal_start(first: Tree, last: Tree) -> Laws:
    """M1: diagonal in the weights, where the source starts it."""
    learnt = dziugaite_roy.Learnt.around(last, "M1")
    scale = math.exp(dziugaite_roy.FIRST_LOG_SCALE)
    return Laws(capacity.data_free_prior(first, scale), None, learnt.posterior)


def isotropic_start(
    first: Tree, variance: float, vectors: jax.Array, posterior: capacity.Gaussian
) -> Laws:
    """M2 and M3: the formula's prior and basis, from the formula's posterior on."""
    return Laws(capacity.data_free_prior(first, math.sqrt(variance)), vectors, posterior)


def held_out_start(
    first: Tree,
    last: Tree,
    variance: float,
    vectors: jax.Array,
    values: jax.Array,
    *,
    weight: float,
    seen: np.ndarray,
) -> Laws:
    """M4: curvature of the rows ``seen``, at the first weights, makes the prior narrow.

    values: of the loss in bits, the source's stand-in for the error.
    weight: the ``a`` of the prior.
    """
    along = (1 / variance + weight * values) ** -0.5
    scales = (along, jnp.asarray(math.sqrt(variance), along.dtype))
    prior = capacity.learnt_prior(first, scales, seen=seen)
    return Laws(prior, vectors, capacity.Gaussian(last, prior.gaussian.log_scale))


def trained(
    model: Model,
    start: Laws,
    examples: tuple[jax.Array, jax.Array],
    seed: int,
    *,
    epochs: int,
    learning_rate: float,
    batch: int,
    renewed: Callable[[Tree], jax.Array] | None = None,
) -> Laws:
    """The laws after so many epochs on the quadratic bound of the cross-entropy in bits.

    renewed: eigenvectors at the weights of its argument, for every epoch but the first (M3).
    """
    x, y = examples
    plain = {"shift": jnp.zeros(()), "scale": jnp.ones(())}
    data = {"train": Data({"x": x, "y": y}, plain)}
    net, params, fixed = _to_train(model, start)
    task = Task("numerical", net, BOUND, data, "", batch)
    optimizer = optimizer_of(epochs * task.steps_per_epoch)
    diagonal = start.vectors is None
    trainer = Trainer(task, dziugaite_roy.on_grid(optimizer) if diagonal else optimizer)
    trial = Trial(seed, {"n": len(y), "learning_rate": learning_rate})
    state = dziugaite_roy.started(trainer, params, fixed, trial)
    for epoch in range(epochs):
        if epoch and renewed is not None:
            vectors = renewed(jax.tree.map(lambda leaf: leaf[0], state.params.mean))
            state = state._replace(model_state=dziugaite_roy.one((start.prior.gaussian, vectors)))
        state = trainer.train(state, epochs=1)
    return _ended(start, *jax.tree.map(lambda leaf: leaf[0], (state.params, state.model_state)))


def _to_train(model: Model, start: Laws) -> tuple[Network, Tree, Tree]:
    """The network with weights drawn for each batch; what moves in it, and what does not."""
    prior = start.prior.gaussian
    if start.vectors is None:
        moving = dziugaite_roy.Learnt(start.posterior, prior.log_scale)
        return dziugaite_roy.drawn_once(model), moving, prior.mean
    return drawn_once(model), start.posterior, (prior, start.vectors)


def _ended(start: Laws, params: Tree, fixed: Tree) -> Laws:
    if start.vectors is None:
        # Its scale is learnt: `certified` rounds it to a grid.
        prior = capacity.Prior(params.prior(fixed), start.prior.seen)
        return start._replace(prior=prior, posterior=params.posterior)
    return start._replace(posterior=params, vectors=fixed[1])


def certified(laws: Laws, risks: np.ndarray, *, n: int, **options: Any) -> capacity.Certificate:
    """The certificate over the first ``n`` rows, of which the prior saw none."""
    return capacity.certify(
        laws.posterior, laws.prior, risks, examples=np.arange(n), basis=laws.basis, **options
    )


@cache
def drawn_once(model: Model) -> Network:
    """The network with weights drawn for each batch: parameters are the posterior.

    The state is the prior and the vectors of their common basis.
    """

    def apply(params, state, x, *, train=False, key=None):
        prior, vectors = state
        basis = capacity.vector_basis(vectors)
        weights = params.mean if key is None else capacity.draw(key, params, basis=basis)
        kl = capacity.gaussian_kl(params, prior, basis=basis)
        return {"logits": model(weights, x), "kl": jnp.full(len(x), kl)}, state

    return Network(dziugaite_roy.from_posterior, apply, lambda: ())
