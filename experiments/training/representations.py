"""What flows inside networks while they train, for inputs that stay the same.

Networks are looked at one after the other, from Python: XLA's CPU backend may wait for ever for
decompositions of several matrices at once.
"""

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.errors import UserError
from experiments.training.program import EVALUATION_BATCH, TrainState
from experiments.training.task import Data, normalise
from models import Network
from spectral_jax.features import Head

# The first of each set: four for every feature of a layer of 500 units.
PROBE_EXAMPLES = 2000
Numbers = dict[str, Array]


class Seen(NamedTuple):
    """What one network makes of some inputs.

    layers: features of each layer by its name, that of the part which reads them, from the first
      hidden layer to the penultimate features; images are averaged over positions.
    weights: 0 where a row is not to be read: sets of different size have one shape, and program.
    """

    layers: dict[str, Float[Array, "n _"]]
    outputs: Float[Array, "n c"]
    labels: Int[Array, " n"]
    weights: Float[Array, " n"]
    head: Head


def measured(
    name: str,
    of: Callable[[Seen], tuple[Numbers, Numbers]],
    network: Network,
    state: TrainState,
    data: Mapping[str, Data],
) -> tuple[Numbers, Numbers]:
    """The numbers and arrays that are found ``of`` each trial's network, below the ``name``.

    Those of unseen inputs are below ``<name>/unseen``; they are the validation set if there is one,
    else the test set. Of a network that has diverged all are NaN, counts and flags included.
    """
    unseen = data.get("validation", data.get("test"))
    sets = {name: data["train"]} | ({} if unseen is None else {f"{name}/unseen": unseen})
    rows = min(PROBE_EXAMPLES, max(split.size for split in sets.values()))
    trials = [
        jax.tree.map(itemgetter(index), state._replace(opt_state=None))
        for index in range(len(state.step))
    ]
    numbers: Numbers = {}
    arrays: Numbers = {}
    for place, split in sets.items():
        found = [_known(of, seen(network, trial, split, rows=rows)) for trial in trials]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
        for kept, new in zip((numbers, arrays), stacked, strict=True):
            kept |= {f"{place}/{metric}": value for metric, value in new.items()}
    return numbers, arrays


def _known(of: Callable[[Seen], tuple[Numbers, Numbers]], seen: Seen) -> tuple[Numbers, Numbers]:
    """What is found, or NaN: no unit of a network that has diverged is alive because none is 0."""
    finite = jnp.isfinite(seen.outputs).all()
    return jax.tree.map(lambda value: jnp.where(finite, value, jnp.nan), of(seen))


def seen(network: Network, trial: TrainState, data: Data, *, rows: int) -> Seen:
    """What the network of one trial makes of the first examples of a set, filled up to ``rows``."""
    parts = -(-rows // EVALUATION_BATCH)
    places = jnp.arange(parts * -(-rows // parts)).reshape(parts, -1)
    batches = [_forward(trial, data, place, network=network) for place in places]
    found = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:rows], *batches)
    layers = {point.partition(":")[0]: found[point] for point in network.representations}
    weights = (jnp.arange(rows) < data.size).astype(jnp.float32)
    return Seen(layers, found[""], found["labels"], weights, network.head(trial.params))


@partial(jax.jit, static_argnames="network")
def _forward(trial: TrainState, data: Data, rows: Array, *, network: Network) -> dict[str, Array]:
    raw = data.rows(jnp.minimum(rows, data.size - 1), trial.hyper)
    batch = normalise(raw, data.shared)
    points = (*network.representations, "")
    found = network.features(trial.params, trial.model_state, batch["x"], points=points)
    return {**found, "labels": batch["y"]}


def refuse_without_parts(name: str, network: Network) -> None:
    """`UserError` (2) for a network inside which nothing can be looked at."""
    if not network.representations:
        raise UserError(f"train.measures: {name!r} needs a network of several layers: leave it out")
