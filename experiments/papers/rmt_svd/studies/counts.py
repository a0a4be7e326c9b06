"""Parameters of the published networks, counted from shapes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from experiments.papers.rmt_svd.protocols import PUBLISHED
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import prune


def measure(run: Run) -> Results:
    """Per published network, as far as its shapes are told: dense, and after the splits."""
    counts = {"ex4.1": {"first layer": parameters_of((784, 1000), (784, 20, 1000)) - 1000}}
    for name, net in PUBLISHED.items():
        counts[name] = {"dense": parameters_of(net.widths)}
        if net.chain:
            split = parameters_of(net.widths, net.chain, bias_every_factor=True)
            counts[name]["parameters"] = split
    return merge(
        of_arrays("counts", name, {metric: [value] for metric, value in found.items()})
        for name, found in counts.items()
    )


def parameters_of(
    widths: Sequence[int], chain: Sequence[int] = (), *, bias_every_factor: bool = False
) -> int:
    """Entries of a dense network of these widths, whose layers a ``chain`` of widths factors.

    The chain runs through the widths in their order; what stands between two of them are the inner
    ranks of that layer's factors.

    >>> parameters_of((784, 1000, 10)), parameters_of((784, 1000, 10), (784, 20, 1000, 10))
    (795010, 46690)
    """
    layers = [
        {"kernel": _factors(inner), "bias": _entries(inner[-1])}
        for inner in _by_layer(widths, chain or widths)
    ]
    return prune.parameter_count(layers, bias_every_factor=bias_every_factor)


def _by_layer(widths: Sequence[int], chain: Sequence[int]) -> list[list[int]]:
    """The stretch of the chain that belongs to each layer, both ends included."""
    left, found = list(chain), []
    for _, end in pairwise(widths):
        stop = left.index(end, 1)
        found.append(left[: stop + 1])
        left = left[stop:]
    return found


def _factors(widths: Sequence[int]) -> Any:
    """A kernel in as many factors as there are steps between the widths."""
    if len(widths) == 2:
        return _entries(*widths)
    return {"u": _factors(widths[:-1]), "v": _entries(*widths[-2:])}


def _entries(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
