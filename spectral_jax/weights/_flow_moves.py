"""Operations that move, merge or cut axes: where the units of a group are afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from spectral_jax.weights._flow_values import Summary, Units, Value, Weight, without_units
from spectral_jax.weights._nodes import Graph


def reduced(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    (value,) = values
    if not isinstance(value, Units):
        return without_units(values)
    axes = set(equation.params["axes"])
    left = tuple(axis for axis in value.axes if axis not in axes)
    if not left or (len(left) < len(value.axes) and not value.inputs):
        return Summary()
    # Axes behind those that were summed over move forward.
    moved = tuple(axis - sum(other < axis for other in axes) for axis in left)
    return value._replace(axes=moved)


def squeezed(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    gone = set(equation.params["dimensions"])
    count = len(equation.invars[0].aval.shape)
    return _rearranged(values[0], [axis for axis in range(count) if axis not in gone])


def transposed(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    return _rearranged(values[0], equation.params["permutation"])


def _rearranged(value: Value, order: Sequence[int]) -> Value:
    """The value with its axes in that order; those that are left out have one entry."""
    if isinstance(value, Weight):
        return value._replace(axes=tuple(value.axes[axis] for axis in order) if value.axes else ())
    if isinstance(value, Summary):
        return value
    order = list(order)
    return value._replace(axes=tuple(order.index(axis) for axis in value.axes if axis in order))


def broadcast(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    value, places = values[0], equation.params["broadcast_dimensions"]
    before, after = equation.invars[0].aval.shape, equation.params["shape"]
    widened = {place for n, place in zip(before, places, strict=True) if n != after[place]}
    if isinstance(value, Weight):
        of_place = dict(zip(places, value.axes, strict=False))
        axes = tuple(of_place.get(axis, ()) for axis in range(len(after)))
        return value._replace(kernel=None if widened else value.kernel, axes=axes)
    if isinstance(value, Summary):
        return value
    axes = tuple(places[axis] for axis in value.axes)
    return value._replace(
        axes=axes, lost=value.lost or "broadcast_in_dim" * bool(widened & {*axes})
    )


def reshaped(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    value, before = values[0], equation.invars[0].aval.shape
    after = equation.outvars[0].aval.shape
    if isinstance(value, Summary):
        return value
    blocks = _blocks(before, after)
    if isinstance(value, Weight):
        return _reshaped_weight(value, blocks, after)
    axes: list[int] = []
    for ours, theirs in blocks:
        if value.inputs:
            axes += theirs if 0 not in ours and {*ours} <= {*value.axes} else []
            continue
        held = [axis for axis in ours if axis in value.axes]
        if not held:
            continue
        others = prod(before[axis] for axis in ours if axis not in held)
        wide = [axis for axis in theirs if after[axis] > 1] or theirs[-1:]
        if others == 1:
            axes += wide
        elif (
            held == [a for a in ours if before[a] > 1][-len(held) :] and len(wide) == 1 and ours[0]
        ):
            # Flattened position by position: the units of one position lie side by side.
            axes, value = axes + wide, value._replace(positions=value.positions * others)
        else:
            return value._replace(axes=(), lost="reshape")
    return value._replace(axes=tuple(axes))


def _reshaped_weight(value: Weight, blocks: Any, after: tuple[int, ...]) -> Weight:
    axes: list[tuple[int, ...]] = [()] * len(after)
    kernel = value.kernel
    for ours, theirs in blocks if value.axes else ():
        wide = [axis for axis in theirs if after[axis] > 1] or theirs[:1]
        held = tuple(leaf_axis for axis in ours for leaf_axis in value.axes[axis])
        if len(wide) == 1:
            axes[wide[0]] = held
        elif len(ours) == len(theirs):
            for axis, other in zip(ours, theirs, strict=True):
                axes[other] = value.axes[axis]
        else:
            kernel = None
    return value._replace(kernel=kernel, axes=tuple(axes))


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which axes a reshape turns into which: the smallest groups with equal numbers of entries.

    ``(2, 3, 4) -> (6, 4)`` is ``[0, 1] -> [0]`` and ``[2] -> [1]``.
    """
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ours, theirs = [i][: len(before) - i], [j][: len(after) - j]
        i, j = i + 1, j + 1
        while True:
            a, b = prod(before[k] for k in ours), prod(after[k] for k in theirs)
            if a < b and i < len(before):
                ours, i = [*ours, i], i + 1
            elif b < a and j < len(after):
                theirs, j = [*theirs, j], j + 1
            else:
                break
        blocks.append((ours, theirs))
    return blocks


def cut_out(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    """A part of some axes: of positions, or of units, which are then lost."""
    value, name = values[0], equation.primitive.name
    before = equation.invars[0].aval.shape
    if name == "split":
        cut = {equation.params["axis"]}
    else:
        after = equation.outvars[0].aval.shape
        cut = {axis for axis, (n, m) in enumerate(zip(before, after, strict=True)) if n != m}
    if not isinstance(value, Units):
        return without_units(values[:1])
    if value.inputs:
        return value._replace(axes=tuple(axis for axis in value.axes if axis not in cut))
    return value._replace(lost=value.lost or name * bool(cut & {*value.axes}))


def padded(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    value, config = values[0], equation.params["padding_config"]
    if not isinstance(value, Units):
        return without_units(values[:1])
    held = [config[axis] for axis in value.axes if any(config[axis])]
    if value.inputs or not held:
        return value
    low, high, inside = held[-1]
    # Zeros behind the units, as a skip adds that widens; anywhere else the units would move.
    behind = len(value.axes) == 1 and low == inside == 0 < high
    return value._replace(padded=True) if behind else value._replace(lost="pad")
