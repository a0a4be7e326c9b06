"""Operations that apply a kernel to units, and so make units of another group.

Products of matrices, convolutions, and the look-up of tokens in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from spectral_jax.weights._flow_values import (
    WAY_OUT,
    Summary,
    Units,
    Value,
    Weight,
    refuse,
    without_units,
)
from spectral_jax.weights._nodes import Graph, Kernel


def gathered(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    operand, indices = values
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    before = equation.invars[0].aval.shape
    # A gather of whole rows by tokens is an embedding: its table is a kernel.
    gone = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    kept = [axis for axis in range(len(before)) if axis not in gone]
    place = dict(zip(kept, numbers.offset_dims, strict=True))
    whole = {axis for axis in kept if sizes[axis] == before[axis]}
    if isinstance(operand, Weight) and isinstance(indices, Summary) and indices.tokens is not None:
        kernel = _kernel(operand, [0], kept, "gather")
        return Units(graph.kernel(kernel, (indices.tokens, None, False), 1), numbers.offset_dims)
    if not isinstance(operand, Units):
        return without_units(values)
    if not {*operand.axes} <= whole:
        return operand._replace(axes=(), lost="gather")
    return operand._replace(axes=tuple(place[axis] for axis in operand.axes))


def contracted(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    """Products: of activations with a kernel, of queries with keys, of attention with values."""
    contracted, batch = equation.params["dimension_numbers"]
    sides = [
        _Side(value, variable.aval.shape, tuple(of_side), tuple(of_batch))
        for value, variable, of_side, of_batch in zip(
            values, equation.invars, contracted, batch, strict=True
        )
    ]
    lhs, rhs = sides
    kinds = tuple(type(side.value) for side in sides)
    if Units not in kinds:
        summary, weight = (lhs, rhs) if kinds[0] is Summary else (rhs, lhs)
        if kinds.count(Summary) == 1 and weight.value.leaves:
            return _applied(graph, summary, weight, first=summary is lhs)
        return without_units(values)
    if Weight in kinds:
        units, weight = (lhs, rhs) if kinds[1] is Weight else (rhs, lhs)
        if weight.value.leaves or units.touched:
            return _applied(graph, units, weight, first=units is lhs)
        return _carried(units, weight, first=units is lhs)
    if kinds == (Units, Units):
        if lhs.touched and rhs.touched:
            return Summary()
        raise ValueError(f"a product of activations that keeps the units of both; {WAY_OUT}")
    units, summary = (lhs, rhs) if kinds[0] is Units else (rhs, lhs)
    return Summary() if units.touched else _carried(units, summary, first=units is lhs)


class _Side(NamedTuple):
    """One operand of a product."""

    value: Any
    shape: tuple[int, ...]
    contracted: tuple[int, ...]
    batch: tuple[int, ...]

    @property
    def free(self) -> list[int]:
        bound = {*self.contracted, *self.batch}
        return [axis for axis in range(len(self.shape)) if axis not in bound]

    @property
    def touched(self) -> bool:
        """Whether units are summed over."""
        return any(axis in self.contracted for axis in self.value.axes)


def _carried(units: _Side, other: _Side, *, first: bool) -> Value:
    """Sums over positions alone: the axes of the units move to where the product has them."""
    start = len(units.batch) + (0 if first else len(other.free))
    place = {axis: i for i, axis in enumerate(units.batch)}
    place |= {axis: start + i for i, axis in enumerate(units.free)}
    return units.value._replace(
        axes=tuple(place[axis] for axis in units.value.axes if axis in place)
    )


def _applied(graph: Graph, units: _Side, weight: _Side, *, first: bool) -> Value:
    """A dense kernel: a new group, on the axes that the kernel brings along."""
    # The axes that are summed over must be those of the units; axes of one entry do not matter.
    read = {axis for axis in units.contracted if units.shape[axis] > 1} or {*units.contracted}
    pairs = dict(zip(units.contracted, weight.contracted, strict=True))
    source = units.value
    if isinstance(source, Summary):
        source = Units(-1 if source.tokens is None else source.tokens, tuple(read))
    held = [axis for axis in source.axes if axis in read or not source.inputs]
    order = [pairs[axis] for axis in held if axis in pairs]
    order += [pairs[axis] for axis in units.contracted if axis not in held]
    kernel = _kernel(weight.value, order, weight.free, "dot_general")
    if source.node < 0 or source.lost or source.padded:
        refuse(kernel.path, source.lost or ("pad" if source.padded else "a sum over them"))
    if read != {*held} or units.batch:
        raise ValueError(
            f"{kernel.path!r} sums over other axes than those of the units it reads; {WAY_OUT}"
        )
    node = graph.kernel(kernel, (source.node, source.norm, False), source.positions)
    start = len(units.free) if first else 0
    return Units(node, tuple(start + i for i in range(len(weight.free))))


def _kernel(
    weight: Weight, inputs: Sequence[int], outputs: Sequence[int], operation: str
) -> Kernel:
    """The leaf that a weight is, if it is one, ``[inputs, outputs]``."""
    if weight.kernel is None or not weight.leaves:
        made = f"made of {', '.join(sorted(weight.leaves))}" if weight.leaves else "a constant"
        raise ValueError(
            f"a matrix that {operation!r} applies to activations is no leaf of params but {made}; "
            f"{WAY_OUT}"
        )
    into = [leaf_axis for axis in inputs for leaf_axis in weight.axes[axis]]
    out = [leaf_axis for axis in outputs for leaf_axis in weight.axes[axis]]
    if [*into, *out] != list(range(len(into) + len(out))):
        raise ValueError(f"{weight.kernel!r} is not read [inputs, outputs]; {WAY_OUT}")
    return Kernel(weight.kernel, 0, len(into), len(out))


def convolved(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    units, weight = values
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    if isinstance(units, Weight):
        return without_units(values)
    if not isinstance(weight, Weight):
        raise ValueError(f"a convolution of activations with activations; {WAY_OUT}")
    # JAX names the axes of a kernel in the order outputs, inputs, window.
    outputs, inputs, *window = numbers.rhs_spec
    axes = weight.axes or ((),) * (2 + len(window))
    kernel = _kernel(weight._replace(axes=axes), [*window, inputs], [outputs], "conv")
    if groups * equation.params["batch_group_count"] != 1:
        raise ValueError(
            f"{kernel.path!r} is a convolution in {groups} groups, which is not read; {WAY_OUT}"
        )
    if isinstance(units, Summary):
        refuse(kernel.path, "a sum over them" if units.tokens is None else "an integer dtype")
    feature = numbers.lhs_spec[1]
    held = (feature,) if units.inputs and feature in units.axes else units.axes
    if held != (feature,) or units.lost or units.padded or units.positions != 1:
        refuse(kernel.path, units.lost or ("pad" if units.padded else "conv_general_dilated"))
    kernel = kernel._replace(window=len(window), inputs=1)
    node = graph.kernel(kernel, (units.node, units.norm, False), 1)
    return Units(node, (numbers.out_spec[1],))
