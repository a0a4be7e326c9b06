"""The layout of a network from one forward pass: by what it computes, not by names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import PyTree

from spectral_jax.weights._flow import result
from spectral_jax.weights._flow_values import Summary, Units, Value, Weight
from spectral_jax.weights._graph import Block, graph_weights
from spectral_jax.weights._matrices import leaf_name
from spectral_jax.weights._nodes import Graph, Kernel

# Under which name operations that run a program keep it: jit, remat, custom_jvp, custom_vjp.
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def layout_of(
    function: Callable[..., Any],
    params: PyTree,
    x: PyTree,
    *,
    batch_stats: PyTree | None = None,
    fold_norms: bool = True,
) -> tuple[Block, ...]:
    """Trace one forward pass to the blocks of the network's graph, in the order of their use.

    The function is traced, as ``jax.jit`` would, and not run. Group 0 is the input: its features
    where dense kernels read it, its channels where convolutions do, the rows of a table where it is
    tokens. A kernel makes a group of its outputs; activations and norms keep it. In a sum (or a
    product, as with a gate) a term that is used nowhere else is one group with the result, and any
    other joins it by an identity skip. Queries and keys end in groups of their own, since attention
    mixes positions and not units.

    Args:
      function: ``(params, x) -> outputs``, or ``(params, batch_stats, x) -> outputs`` where there
        are statistics: the network as it is evaluated, without dropout.
      x: a batch of inputs, of which shapes and dtypes count; tokens are integers.
      batch_stats: running statistics, as `graph_weights` takes them.
      fold_norms: name the batch-norm behind a kernel in its block.

    Raises ``ValueError``, naming it, for an operation that edges between units do not describe (a
    grouped convolution, a concatenation of units, a kernel used twice), and for a batch-norm that
    scales what a kernel reads.

    >>> def network(params, x):
    ...     hidden = jax.nn.relu(x @ params["first"])
    ...     return (hidden + jax.nn.relu(hidden @ params["between"])) @ params["also"]
    >>> sizes = {"also": (4, 2), "between": (4, 4), "first": (3, 4)}
    >>> params = {name: jnp.ones(shape) for name, shape in sizes.items()}
    >>> for block in layout_of(network, params, jnp.ones((1, 3))):
    ...     print(block.path, block.source, block.target)
    first 0 1
    between 1 2
    None 1 2
    also 2 3
    """
    arguments = (params, x) if batch_stats is None else (params, batch_stats, x)
    closed = jax.make_jaxpr(function)(*arguments)
    graph = Graph(fold_norms=fold_norms)
    found = [*_weights(params), *_statistics(batch_stats), *_inputs(x, graph)]
    for value in _read(graph, closed.jaxpr, found):
        if isinstance(value, Units):
            graph.take((value.node, value.norm, False), None)
    blocks = _blocks(graph)
    _check(blocks, params, batch_stats)
    return blocks


def _weights(params: PyTree) -> list[Value]:
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return [
        Weight(frozenset([name]), frozenset(), name, tuple((i,) for i in range(jnp.ndim(leaf))))
        for name, leaf in ((leaf_name(path), leaf) for path, leaf in flat)
    ]


def _statistics(batch_stats: PyTree) -> list[Value]:
    flat, _ = jax.tree_util.tree_flatten_with_path(batch_stats)
    return [Weight(frozenset(), frozenset([leaf_name(path)])) for path, _ in flat]


def _inputs(x: PyTree, graph: Graph) -> list[Value]:
    found: list[Value] = []
    for leaf in jax.tree.leaves(x):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.floating):
            axes = tuple(range(1, jnp.ndim(leaf)))
            found.append(Units(graph.node(), axes, inputs=True))
        else:
            found.append(Summary(graph.node() if jnp.issubdtype(dtype, jnp.integer) else None))
    return found


def _read(graph: Graph, jaxpr: Any, arguments: Sequence[Value]) -> list[Value]:
    """The values of a program's results, given those of its arguments.

    A constant is a `Weight` that is made of no leaf.
    """
    values = dict(zip(jaxpr.invars, arguments, strict=True))

    def value(variable: Any) -> Value:
        return Weight() if isinstance(variable, Literal) else values.get(variable, Weight())

    for equation in jaxpr.eqns:
        given = [value(variable) for variable in equation.invars]
        inner = _inner(equation)
        if equation.primitive.name == "scan":
            outputs = _scanned(graph, equation, given)
        elif inner is not None:
            outputs = _read(graph, inner, given)
        else:
            outputs = result(graph, equation, given)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _inner(equation: Any) -> Any:
    """The program that an operation runs on its own operands, if that is what it does."""
    for key in _INNER:
        program = equation.params.get(key)
        program = getattr(program, "jaxpr", program)
        if program is not None and len(program.invars) == len(equation.invars):
            return program
    return None


def _scanned(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    """The results of a ``scan``, whose body is read once for every step.

    So a stack of layers that is scanned over makes the same graph as the layers written out.
    """
    params = equation.params
    body = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])
    # How many operands are constants, carried and scanned over is read off shapes: the former two
    # have the same shape outside and within a step, what is scanned has one axis less within.
    carried = sum(map(_of_one_shape, equation.outvars, body.outvars))
    constants = sum(map(_of_one_shape, equation.invars, body.invars)) - carried
    fixed, carry = list(values[:constants]), list(values[constants : constants + carried])
    steps = range(params["length"])
    made: list[list[Value]] = []
    for i in reversed(steps) if params["reverse"] else steps:
        entries = [_entry(value, i) for value in values[constants + carried :]]
        results = _read(graph, body, [*fixed, *carry, *entries])
        carry = results[:carried]
        made.append(results[carried:])
    return [*carry, *(_stacked(each) for each in zip(*made, strict=True))]


def _of_one_shape(outside: Any, inside: Any) -> bool:
    return outside.aval.shape == inside.aval.shape


def _entry(value: Value, index: int) -> Value:
    """What a step of a scan sees of a value."""
    if isinstance(value, Weight) and value.axes:
        held, *axes = value.axes
        if value.kernel is None or len(held) != 1:
            return value._replace(kernel=None, axes=tuple(axes))
        left = tuple(tuple(axis - (axis > held[0]) for axis in each) for each in axes)
        return value._replace(kernel=f"{value.kernel}:{index}", axes=left)
    if isinstance(value, Units):
        lost = value.lost or "scan" * (0 in value.axes and not value.inputs)
        return value._replace(axes=tuple(axis - 1 for axis in value.axes if axis), lost=lost)
    return value


def _stacked(values: Sequence[Value]) -> Value:
    """What the steps of a scan leave, along a new first axis."""
    first = values[-1]
    if isinstance(first, Units):
        nodes = {each.node for each in values if isinstance(each, Units)}
        axes = tuple(axis + 1 for axis in first.axes)
        return first._replace(axes=axes, lost=first.lost or "scan" * (len(nodes) > 1))
    return Weight(first.leaves, first.statistics) if isinstance(first, Weight) else first


def _blocks(graph: Graph) -> tuple[Block, ...]:
    group, norms = graph.groups(), graph.norms()
    blocks = []
    for kernel, source, target, positions in graph.edges:
        ends = group[source], group[target]
        if kernel is not None:
            axes = _axes(kernel)
            blocks.append(Block(kernel.path, *ends, norms.get(target), positions, axes))
        elif ends[0] != ends[1]:
            blocks.append(Block(None, *ends))
    return tuple(blocks)


def _axes(kernel: Kernel) -> tuple[int, int, int] | None:
    """``Block.axes`` of a kernel: None for plain dense and 2-D convolution kernels."""
    axes = kernel.window, kernel.inputs, kernel.outputs
    return None if axes in ((0, 1, 1), (2, 1, 1)) else axes


def _check(blocks: Sequence[Block], params: PyTree, batch_stats: PyTree | None) -> None:
    paths = Counter(block.path for block in blocks if block.path is not None)
    twice = [path for path, times in paths.items() if times > 1]
    if twice:
        raise ValueError(
            f"{twice[0]!r} is used {paths[twice[0]]} times in a pass, which blocks do not describe"
        )
    if not paths:
        raise ValueError("function: no kernel of params is applied to x; pass it the parameters")
    weights = partial(graph_weights, layout=blocks)
    jax.eval_shape(lambda params, stats: weights(params, batch_stats=stats), params, batch_stats)
