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
from math import prod
from typing import Any, NamedTuple, NoReturn, TypeAlias

from spectral_jax.weights._nodes import Graph, Kernel

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
        return [_without_units(values)] * outputs
    if name in _POINTWISE:
        return [_pointwise(graph, equation, values)] * outputs
    raise ValueError(f"the operation {name!r} is not understood on activations; {WAY_OUT}")


def _without_units(values: Sequence[Value]) -> Value:
    summaries = [value for value in values if isinstance(value, Summary)]
    if summaries:
        return next((each for each in summaries if each.tokens is not None), summaries[0])
    weights = [value for value in values if isinstance(value, Weight)]
    return Weight(
        frozenset().union(*(each.leaves for each in weights)),
        frozenset().union(*(each.statistics for each in weights)),
    )


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
        return weight if kept else _without_units(values)
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
        _refuse(by, units.lost or "reshape")
    return units.node, units.norm, units.padded


def _refuse(reader: str, operation: str) -> NoReturn:
    raise ValueError(
        f"{reader!r} reads activations whose units {operation!r} has taken apart; {WAY_OUT}"
    )


def _reduced(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    (value,) = values
    if not isinstance(value, Units):
        return _without_units(values)
    axes = set(equation.params["axes"])
    left = tuple(axis for axis in value.axes if axis not in axes)
    if not left or (len(left) < len(value.axes) and not value.inputs):
        return Summary()
    # Axes behind those that were summed over move forward.
    moved = tuple(axis - sum(other < axis for other in axes) for axis in left)
    return value._replace(axes=moved)


def _squeezed(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    gone = set(equation.params["dimensions"])
    count = len(equation.invars[0].aval.shape)
    return _rearranged(values[0], [axis for axis in range(count) if axis not in gone])


def _transposed(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    return _rearranged(values[0], equation.params["permutation"])


def _rearranged(value: Value, order: Sequence[int]) -> Value:
    """The value with its axes in that order; those that are left out have one entry."""
    if isinstance(value, Weight):
        return value._replace(axes=tuple(value.axes[axis] for axis in order) if value.axes else ())
    if isinstance(value, Summary):
        return value
    order = list(order)
    return value._replace(axes=tuple(order.index(axis) for axis in value.axes if axis in order))


def _broadcast(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
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


def _reshaped(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
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


def _cut(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    """A part of some axes: of positions, or of units, which are then lost."""
    value, name = values[0], equation.primitive.name
    before = equation.invars[0].aval.shape
    if name == "split":
        cut = {equation.params["axis"]}
    else:
        after = equation.outvars[0].aval.shape
        cut = {axis for axis, (n, m) in enumerate(zip(before, after, strict=True)) if n != m}
    if not isinstance(value, Units):
        return _without_units(values[:1])
    if value.inputs:
        return value._replace(axes=tuple(axis for axis in value.axes if axis not in cut))
    return value._replace(lost=value.lost or name * bool(cut & {*value.axes}))


def _padded(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    value, config = values[0], equation.params["padding_config"]
    if not isinstance(value, Units):
        return _without_units(values[:1])
    held = [config[axis] for axis in value.axes if any(config[axis])]
    if value.inputs or not held:
        return value
    low, high, inside = held[-1]
    # Zeros behind the units, as a skip adds that widens; anywhere else the units would move.
    behind = len(value.axes) == 1 and low == inside == 0 < high
    return value._replace(padded=True) if behind else value._replace(lost="pad")


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


def _gathered(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
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
        return _without_units(values)
    if not {*operand.axes} <= whole:
        return operand._replace(axes=(), lost="gather")
    return operand._replace(axes=tuple(place[axis] for axis in operand.axes))


def _contracted(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
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
        return _without_units(values)
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
        _refuse(kernel.path, source.lost or ("pad" if source.padded else "a sum over them"))
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


def _convolved(graph: Graph, equation: Any, values: Sequence[Value]) -> Value:
    units, weight = values
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    if isinstance(units, Weight):
        return _without_units(values)
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
        _refuse(kernel.path, "a sum over them" if units.tokens is None else "an integer dtype")
    feature = numbers.lhs_spec[1]
    held = (feature,) if units.inputs and feature in units.axes else units.axes
    if held != (feature,) or units.lost or units.padded or units.positions != 1:
        _refuse(kernel.path, units.lost or ("pad" if units.padded else "conv_general_dilated"))
    kernel = kernel._replace(window=len(window), inputs=1)
    node = graph.kernel(kernel, (units.node, units.norm, False), 1)
    return Units(node, (numbers.out_spec[1],))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
        _reduced,
    ),
    **dict.fromkeys(("argmax", "argmin"), _reduced),
    **dict.fromkeys(("slice", "dynamic_slice", "split"), _cut),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _along),
    **dict.fromkeys(("concatenate", "cumsum", "cumprod", "cummax", "rev"), _along),
    "reshape": _reshaped,
    "squeeze": _squeezed,
    "transpose": _transposed,
    "broadcast_in_dim": _broadcast,
    "pad": _padded,
    "gather": _gathered,
    "dot_general": _contracted,
    "conv_general_dilated": _convolved,
    **dict.fromkeys(_ONE_OF, _pointwise),
}
