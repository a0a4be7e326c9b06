"""What the tracing of a network says of an array: weights, units of a group, or what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn, TypeAlias

WAY_OUT = "write its Blocks by hand (spectral_jax.weights.Block), or trace the part before it"


class Weight(NamedTuple):
    """Made of parameters alone.

    leaves: names of all parameters that went into it.
    statistics: names of all running statistics that did.
    kernel: the parameter whose entries it still holds one by one, as a transposed kernel does; None
      once they are mixed.
    axes: for every axis of the value, the axes of that parameter which it runs over.
    """

    leaves: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()
    kernel: str | None = None
    axes: tuple[tuple[int, ...], ...] = ()


class Units(NamedTuple):
    """Activations with the units of a group on ``axes``.

    node: the node of the graph, that is, the group.
    positions: how many entries a unit has on those axes, position-major: ``h * w`` after a feature
      map ``[h, w, channels]`` was flattened.
    inputs: these are the network's inputs. Every axis but the first may hold their units, until a
      kernel reads one.
    norm: the batch-norm that they have gone through since their kernel.
    padded: zeros come after the units of the group.
    lost: the operation after which entries no longer belong to single units of the group.
    """

    node: int
    axes: tuple[int, ...]
    positions: int = 1
    inputs: bool = False
    norm: str | None = None
    padded: bool = False
    lost: str = ""


class Summary(NamedTuple):
    """Activations without units; or tokens, whose table turns them into units."""

    tokens: int | None = None


Value: TypeAlias = Weight | Units | Summary


def without_units(values: Sequence[Value]) -> Value:
    summaries = [value for value in values if isinstance(value, Summary)]
    if summaries:
        return next((each for each in summaries if each.tokens is not None), summaries[0])
    weights = [value for value in values if isinstance(value, Weight)]
    return Weight(
        frozenset().union(*(each.leaves for each in weights)),
        frozenset().union(*(each.statistics for each in weights)),
    )


def refuse(reader: str, operation: str) -> NoReturn:
    raise ValueError(
        f"{reader!r} reads activations whose units {operation!r} has taken apart; {WAY_OUT}"
    )
