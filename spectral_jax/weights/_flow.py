"""Where the units of a network go: what each operation of a forward pass makes of them.

This is an abstract interpretation: the program that JAX traces (a jaxpr) is run once, on
descriptions of arrays instead of arrays. A description says that a value is made of parameters
alone (`Weight`), that it holds units of a group on some axes (`Units`), or that it is what is left
of activations once their units are summed up (`Summary`), as the variance in a layer norm or the
weights of attention. For each operation a rule takes the descriptions of its operands to that of
its result; kernels and sums are noted in a `Graph` on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from spectral_jax.weights._flow_moves import (
    broadcast,
    cut_out,
    padded,
    reduced,
    reshaped,
    squeezed,
    transposed,
)
from spectral_jax.weights._flow_products import contracted, convolved, gathered
from spectral_jax.weights._flow_values import (
    WAY_OUT,
    Units,
    Value,
    Weight,
    refuse,
    without_units,
)
from spectral_jax.weights._nodes import Graph

Rule: TypeAlias = Callable[[Graph, Any, Sequence[Value]], Value]


def result(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    """The values of an operation's results.

    Raises ``ValueError`` for an operation on units that has no rule.
    """
    name = equation.primitive.name
    outputs = len(equation.outvars)
    if name == "optimization_barrier":
        return list(values)
    if name in _RULES:
        return [_RULES[name](graph, equation, values)] * outputs
    if not any(isinstance(value, Units) for value in values):
        return [without_units(values)] * outputs
    if name in _POINTWISE:
        return [_pointwise(graph, equation, values)] * outputs
    raise ValueError(f"the operation {name!r} is not understood on activations; {WAY_OUT}")


_POINTWISE = frozenset(
    """
    abs add add_any and atan2 cbrt ceil clamp convert_element_type copy copy_p cos cosh div
    eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p
    logistic lt max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt
    select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()
)
_ONE_OF = frozenset("neg convert_element_type copy copy_p stop_gradient reduce_precision".split())


def _pointwise(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    """Unit by unit: one group for all operands, or a sum of several."""
    name = equation.primitive.name
    units = [value for value in values if isinstance(value, Units)]
    if not units:
        weight = values[0]
        kept = name in _ONE_OF and isinstance(weight, Weight)
        return weight if kept else without_units(values)
    after = equation.outvars[0].aval.shape
    whole = [
        value
        for value, variable in zip(values, equation.invars, strict=True)
        if isinstance(value, Units) and _keeps(value, variable.aval.shape, after)
    ]
    if not whole:
        return units[0]._replace(lost=units[0].lost or name)
    # Operands that are broadcast along the units scale all of them alike, and add no edges.
    units, first = whole, whole[0]
    # Operands that hold the units on different axes, or one before and one after a norm, make
    # something that is no longer one value per unit.
    norms = {each.norm for each in units if each.node == first.node}
    if len({each.axes for each in units if not each.inputs}) > 1 or len(norms) > 1:
        return first._replace(lost=name)
    if name in ("mul", "div"):
        for value in values:
            first = _through_norm(graph, first, value)
    # Of one group: an activation or a residual of the group with itself. Of several: a sum.
    others = [each for each in units[1:] if each.node != first.node]
    lost = next((each.lost for each in units if each.lost), "")
    if not others:
        return first._replace(lost=lost, padded=any(each.padded for each in units))
    aligned = [each for each in (first, *others) if not each.inputs] or [first]
    return Units(
        graph.sum([_taken(graph, each, name) for each in (first, *others)]), aligned[0].axes
    )


def _keeps(units: Units, before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a unit of the operand is one of the result: it is not spread over several."""
    return units.inputs or all(before[axis] == after[axis] for axis in units.axes)


def _through_norm(graph: Graph, units: Units, factor: Value) -> Units:
    """Note the batch-norm of a factor: one that is made of a running variance."""
    if not isinstance(factor, Weight) or not graph.fold_norms:
        return units
    norms = {name.rpartition("/")[0] for name in factor.statistics if name.endswith("/var")}
    if not norms:
        return units
    if len(norms | {units.norm} - {None}) > 1:
        raise ValueError(f"{min(norms)!r} is a second batch-norm on the same units; {WAY_OUT}")
    return units._replace(norm=min(norms))


def _taken(graph: Graph, units: Units, by: str) -> tuple[int, str | None, bool]:
    if units.lost or units.positions != 1:
        refuse(by, units.lost or "reshape")
    return units.node, units.norm, units.padded


def _along(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    """Operations along some axes, which have to be positions."""
    name, params = equation.primitive.name, equation.params
    if name.startswith("reduce_window"):
        along = {axis for axis, n in enumerate(params["window_dimensions"]) if n > 1}
    else:
        given = params.get("axis", params.get("dimension", params.get("dimensions")))
        along = {given} if isinstance(given, int) else {*given}
    units = [value for value in values if isinstance(value, Units)]
    cut = next((each for each in units if not each.inputs and along & {*each.axes}), None)
    if cut is not None:
        return cut._replace(lost=cut.lost or name)
    combined = _pointwise(graph, equation, values)
    if not isinstance(combined, Units) or not combined.inputs:
        return combined
    return combined._replace(axes=tuple(axis for axis in combined.axes if axis not in along))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
        reduced,
    ),
    **dict.fromkeys(("argmax", "argmin"), reduced),
    **dict.fromkeys(("slice", "dynamic_slice", "split"), cut_out),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _along),
    **dict.fromkeys(("concatenate", "cumsum", "cumprod", "cummax", "rev"), _along),
    "reshape": reshaped,
    "squeeze": squeezed,
    "transpose": transposed,
    "broadcast_in_dim": broadcast,
    "pad": padded,
    "gather": gathered,
    "dot_general": contracted,
    "conv_general_dilated": convolved,
    **dict.fromkeys(_ONE_OF, _pointwise),
}
