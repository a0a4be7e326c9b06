"""Neural collapse: whether classes are points, evenly spaced, and what the head reads."""

from functools import partial
from typing import Any

import jax

from experiments.config import ExperimentConfig
from experiments.training.representations import Numbers, Seen, measured, refuse_without_parts
from models import Network
from spectral_jax import features

# Of layers before the last: their means need not be evenly spaced yet, and no head reads them.
OF_ALL_LAYERS = ("nc1", "nc1_quotient", "nc1_cdnv")
OF_THE_LAST = ("nc2", "nc2_equinorm", "nc2_equiangular", "gnc2", "nc3", "nc3_difference", "nc4")


def measure(config: ExperimentConfig, network: Network):
    """``collapse/nc1`` and the other numbers of `collapsed`."""
    refuse_without_parts("collapse", network)
    return partial(measured, "collapse", collapsed, network)


def collapsed(seen: Seen) -> tuple[Numbers, Numbers]:
    """NC1 to NC4 of the penultimate features, and NC1 of the layers before: ``nc1/layers/1``."""
    *before, (_, last) = seen.layers.items()
    options = {"labels": seen.labels, "weights": seen.weights, "classes": seen.outputs.shape[1]}
    numbers = _of_layer(last, head=seen.head, names=(*OF_ALL_LAYERS, *OF_THE_LAST), **options)
    for name, rows in before:
        found = _of_layer(rows, names=OF_ALL_LAYERS, **options)
        numbers |= {f"{metric}/{name}": value for metric, value in found.items()}
    return numbers, {}


@partial(jax.jit, static_argnames=("names", "classes"))
def _of_layer(rows: jax.Array, *, names: tuple[str, ...], **options: Any) -> Numbers:
    found = features.neural_collapse(rows, **options)
    return {name: getattr(found, name) for name in names}
