"""How many images does richness take? Plain and corrected, on the networks of protocol ``p1``.

The plain number of few images is too high for a rich network and too low for a lazy one, whose
features have more directions than there are images. Each is compared with the corrected one of all
images.

Results: arms of protocol ``estimates`` are those of ``p1``, with ``plain/<n>`` and
``corrected/<n>``, the differences, means over subsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.papers.feature_map.measured import last_of, look
from experiments.papers.feature_map.trained import columns
from experiments.papers.networks import Bench, opened
from experiments.papers.paper import trained
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import features


def measure(
    run: Run, *, runs: Mapping[str, str], examples: int, counts: Sequence[int], subsets: int
) -> Results:
    """Every arm and seed, for subsets of the first so many training images."""
    found = []
    for arm, peer in trained(run, runs).items():
        bench = opened(peer)
        rows = [of_seed(bench, seed, examples, counts, subsets) for seed in bench.seeds]
        found.append(of_arrays("estimates", arm, columns(rows), first_seed=bench.seeds.start))
    return merge(found)


def of_seed(
    bench: Bench, seed: int, examples: int, counts: Sequence[int], subsets: int
) -> dict[str, float]:
    """The errors of both estimators, by the number of images."""
    looked = look(bench.net, bench.end(seed), bench.known(seed), rows=examples)
    x = last_of(looked)[looked.weights > 0]  # the others fill up
    whole = features.of(x, fourth=True)
    best = float(features.richness(whole, head=looked.head, corrected=True).value)
    numbers = {"richness": best}
    for count in counts:
        key = jax.random.key(np.uint32(seed))
        values = estimated(x, looked.head, key, count=count, subsets=subsets)
        for name, value in values.items():
            numbers[f"{name}/{count}"] = float(value) - best
    return numbers


@partial(jax.jit, static_argnames=("count", "subsets"))
def estimated(
    x: Float[Array, "n p"], head: features.Head, key: Key[Array, ""], *, count: int, subsets: int
) -> dict[str, Array]:
    """The mean of either estimator over random subsets of the rows."""

    def one(key: Key[Array, ""]) -> dict[str, Array]:
        rows = x[jax.random.choice(key, len(x), (count,), replace=False)]
        m = features.of(rows, fourth=True)
        return {
            name: features.richness(m, head=head, corrected=name == "corrected").value
            for name in ("plain", "corrected")
        }

    values = jax.lax.map(one, jax.random.split(key, subsets))
    return jax.tree.map(jnp.mean, values)
