"""Addition modulo a prime, learned by a small transformer: is its D_LR small afterwards?

Tokens ``a b =``, of which the network tells ``(a + b) mod p`` at the last position; a share of all
pairs is trained on, with decoupled weight decay. What is measured at log-spaced steps, and how an
onset is defined, is that of `grokking`. Batches are drawn anew; an epoch is as many as show each
pair once. With half of all pairs it generalises while it fits them: nothing is grokked by that
definition, and no quantity has an onset.

D_LR does not fall. What generalises adds up a few waves, two directions each, and all others of the
97 logits are small; but they are there, and D_LR asks the features for every one of them alike.
That of the directions which the outputs do use, ``richness/resolved``, falls.

Results: arm ``transformer`` of protocol ``modular``.
"""

from __future__ import annotations

from functools import cache, partial

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments.papers.feature_map.studies.grokking import Tree, course, summary
from experiments.papers.feature_map.trained import checkpoints, columns
from experiments.report.results import Results, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.task import OBJECTIVES, Data, Hyper, Task
from experiments.training.trainer import Trainer
from models import Network, network
from spectral_jax import features


def measure(
    run: Run,
    *,
    prime: int,
    share: float,
    width: int,
    seeds: int,
    epochs: int,
    times: int,
    batch: int,
    learning_rate: float,
    decay: float,
) -> Results:
    """Every seed; one that is done is not trained again.

    share: of all pairs, how many are trained on.
    """
    net = _transformer(prime, width)
    hyper = {"learning_rate": learning_rate, "decay": decay}
    rows = []
    for seed in range(seeds):
        stored = run.load_array(f"transformer-{seed}")
        if stored is None:
            task = Task(
                "modular", net, OBJECTIVES["cross_entropy"], pairs(seed, prime, share), sha256="",
                batch_size=batch, prepare=_as_it_is, order="replacement",
            )  # fmt: skip
            trainer = Trainer(task, optimizer)
            state = trainer.start([Trial(seed, hyper)])
            watched = checkpoints(trainer, state, epochs=epochs, count=times)
            stored = course(trainer, watched, partial(_last, net, prime))
            run.save_array(f"transformer-{seed}", **stored)
        rows.append(summary(stored))
        run.log(f"modular: seed {seed} is done")
    return of_arrays("modular", "transformer", columns(rows))


def pairs(seed: int, prime: int, share: float) -> dict[str, Data]:
    """All pairs and their sums, split in two by the seed."""
    first, second = np.divmod(np.random.default_rng(seed).permutation(prime**2), prime)
    x = jnp.asarray(np.stack([first, second, np.full(prime**2, prime)], axis=1), jnp.int32)
    y = jnp.asarray((first + second) % prime, jnp.int32)
    cut = round(share * prime**2)
    parts = {"train": slice(cut), "unseen": slice(cut, None)}
    return {split: Data({"x": x[part], "y": y[part]}) for split, part in parts.items()}


def optimizer(hyper: Hyper) -> optax.GradientTransformation:
    """AdamW as is usual for this task."""
    return optax.adamw(hyper["learning_rate"], b2=0.98, weight_decay=hyper["decay"])


@cache
def _transformer(prime: int, width: int) -> Network:
    """One block; tokens are the numbers and the sign. It gives the logits of the sum."""
    whole = network(
        "gpt", input_shape=(3,), classes=prime + 1, width=width, depth=1, heads=4, tied=False
    )

    def apply(params, state, x, **options):
        logits, state = whole.apply(params, state, x, **options)
        return logits[:, -1, :prime], state

    return whole._replace(apply=apply)


def _last(net: Network, prime: int, params: Tree, x: Array) -> tuple[Array, features.Head]:
    """What the head is given at the last position, and the head of the sum."""
    point = net.representations[-1]
    found = net.features(params, {}, x, points=(point,), pool=None)[point]
    return found[:, -1], features.Head(params["head"]["kernel"][:, :prime])


def _as_it_is(examples: Tree, shared: Tree) -> Tree:
    return examples
