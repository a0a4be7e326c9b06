"""What studies tell of a network's last layer: what the trainer's own measure tells of it.

numbers, spectra = of_last(net, params, data, rows=2000)
numbers["richness"], numbers["effective_dimension"], spectra["eigenvalues"]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.training.measures.features import learned
from experiments.training.program import TrainState
from experiments.training.representations import Seen, seen
from experiments.training.task import Data
from models import Network

Tree = Any
Numbers = dict[str, float]
Arrays = dict[str, np.ndarray]


def of_last(net: Network, params: Tree, data: Data, *, rows: int) -> tuple[Numbers, Arrays]:
    """The numbers of the measure on the first so many images, and ``accuracy``; the spectra."""
    looked = look(net, params, data, rows=rows)
    numbers, spectra = learned(looked)
    right = jnp.argmax(looked.outputs, axis=1) == looked.labels
    accuracy = jnp.average(right, weights=looked.weights)
    told = {**numbers, "accuracy": accuracy}
    return jax.tree.map(float, told), jax.tree.map(np.asarray, spectra)


def look(net: Network, params: Tree, data: Data, *, rows: int) -> Seen:
    """The last layer alone, of a network without a state."""
    nothing: Any = None  # of an optimiser, a key, a step
    trial = TrainState(params, nothing, {}, {}, nothing, nothing)
    found = seen(net, trial, data, rows=rows)
    name, last = list(found.layers.items())[-1]
    return found._replace(layers={name: last})


def last_of(seen: Seen) -> Float[Array, "n p"]:
    """The features that the head is given."""
    return list(seen.layers.values())[-1]


def balancing(y: Int[Array, " n"], classes: int) -> Float[Array, " n"]:
    """Weights that make every class that is there count alike, 1 on average."""
    counts = jnp.bincount(y, length=classes)
    return len(y) / (jnp.sum(counts > 0) * counts[y])
