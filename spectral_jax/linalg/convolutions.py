"""Convolutions that are as fast inside a compiled loop as outside of one, on a CPU.

XLA's CPU backend has one fast convolution, by Eigen, of images ``[n, height, width, channels]`` by
kernels ``[height, width, in, out]``. Any other order of axes runs in a plain loop, 4 to 40 times as
long. The derivatives of a convolution are convolutions in other orders. XLA turns them into the
fast one by transposing what goes in and comes out, but only in the main body of a program, not in
the bodies of its loops and branches (https://github.com/jax-ml/jax/issues/12868). So a step of
training is fast on its own, and crawls in `jax.lax.scan`. Here the transposes are made before XLA
sees the program. A convolution in groups, as `jax.vmap` over kernels makes it, takes two to five
times as long as one for each group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

CONVOLUTION = jax.lax.conv_general_dilated_p
# Groups are taken apart if there are so few of them, and each has so many channels: one channel by
# itself is slow, and many operations compile long.
GROUPS_MOST, CHANNELS_LEAST = 32, 3


def fast_in_loops(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with its convolutions in the order of axes that a CPU is fast at.

    For the body of a loop or a branch, or a function that has such in it; after ``jax.grad`` and
    ``jax.vmap``, which make convolutions in other orders: ``scan(fast_in_loops(step), ...)``. Does
    nothing where JAX's backend is no CPU, and nothing to a function without convolutions. Numbers
    change by rounding alone.

    Args:
      function: of arrays or pytrees of them, as is its result. What is no array goes by keyword,
        and is static.

    Works under ``jit``, ``vmap`` and ``grad``. Inside of ``jax.shard_map`` a function has to be
    wrapped itself.

    >>> def slope(kernel, image):
    ...     return jax.grad(lambda k: jax.lax.conv(image, k, (1, 1), "SAME").sum())(kernel)
    >>> kernel, image = jnp.ones((1, 1, 2, 2)), jnp.ones((1, 1, 3, 3))
    >>> float(fast_in_loops(slope)(kernel, image).sum()), float(slope(kernel, image).sum())
    (25.0, 25.0)
    """

    @wraps(function)
    def in_order(*args: Any, **options: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*args, **options)
        traced = jax.make_jaxpr(partial(function, **options), return_shape=True)
        program, shapes = traced(*args)
        results = _evaluated(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return in_order


def _evaluated(program: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """What the program makes of the arguments: its operations one by one, convolutions in order."""
    if not _has_slow_ones(program):
        return core.jaxpr_as_fun(program)(*args)
    known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    known |= dict(zip(program.jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for operation in program.eqns:
        with operation.ctx.manager:
            results = _applied(operation, [read(atom) for atom in operation.invars])
        known |= dict(zip(operation.outvars, results, strict=True))
    return [read(atom) for atom in program.jaxpr.outvars]


def _applied(operation: core.JaxprEqn, args: list[Any]) -> list[Any]:
    primitive, params = operation.primitive, operation.params
    if _is_slow(operation):
        return [_in_order(*args, **params)]
    if primitive.name != "shard_map":  # its body knows axes that are not known outside of it
        params = {name: _with_inner_programs(value) for name, value in params.items()}
    results = primitive.bind(*args, **primitive.get_bind_params(params))
    return results if primitive.multiple_results else [results]


def _with_inner_programs(value: Any) -> Any:
    """A parameter of an operation, with the bodies of loops, branches and calls rewritten."""
    if isinstance(value, tuple):
        inner = [_with_inner_programs(each) for each in value]
        return tuple(inner) if any(a is not b for a, b in zip(inner, value, strict=True)) else value
    if not isinstance(value, core.ClosedJaxpr | core.Jaxpr) or not _has_slow_ones(value):
        return value
    if isinstance(value, core.ClosedJaxpr):
        return jax.make_jaxpr(lambda *args: _evaluated(value, args))(*value.in_avals)
    if value.constvars:
        return value
    inner = _with_inner_programs(core.ClosedJaxpr(value, ()))  # as `jax.checkpoint` has it
    return value if inner.consts else inner.jaxpr


def _has_slow_ones(program: Any) -> bool:
    return any(
        _is_slow(operation) or any(map(_has_slow_ones, core.jaxprs_in_params(operation.params)))
        for operation in program.eqns
    )


def _is_slow(operation: core.JaxprEqn) -> bool:
    """Whether it is a convolution in an order that only XLA's plain loop has, or in groups."""
    if operation.primitive is not CONVOLUTION or operation.params["batch_group_count"] != 1:
        return False
    order, groups = (operation.params[k] for k in ("dimension_numbers", "feature_group_count"))
    kernel: Any = operation.invars[1].aval
    channels = kernel.shape[order.rhs_spec[1]]
    return order != _fast_order(len(order.lhs_spec)) or _apart(groups, channels)


def _apart(groups: int, channels: int) -> bool:
    return 1 < groups <= GROUPS_MOST and channels >= CHANNELS_LEAST


def _fast_order(axes: int) -> jax.lax.ConvDimensionNumbers:
    """Images and results with channels last; kernels with inputs and outputs last."""
    inner = range(1, axes - 1)
    images, kernel = (0, axes - 1, *inner), (axes - 1, axes - 2, *range(axes - 2))
    return jax.lax.ConvDimensionNumbers(images, kernel, images)


def _in_order(
    images: Array,
    kernel: Array,
    *,
    dimension_numbers: Any,
    feature_group_count: int,
    **params: Any,
) -> Array:
    """The convolution of transposed arrays, of each group by itself, transposed back."""
    given, fast = dimension_numbers, _fast_order(images.ndim)
    images = images.transpose(_moves(given.lhs_spec, fast.lhs_spec))
    kernel = kernel.transpose(_moves(given.rhs_spec, fast.rhs_spec))
    apart = _apart(feature_group_count, kernel.shape[-2])
    number = feature_group_count if apart else 1
    params |= dict(dimension_numbers=fast, feature_group_count=feature_group_count // number)
    results = [
        CONVOLUTION.bind(some_images, some_kernels, **params)
        for some_images, some_kernels in zip(
            jnp.split(images, number, axis=-1), jnp.split(kernel, number, axis=-1), strict=True
        )
    ]
    return jnp.concatenate(results, axis=-1).transpose(_moves(fast.out_spec, given.out_spec))


def _moves(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """The permutation that takes axes at the places ``before`` to the places ``after``."""
    return [old for _, old in sorted(zip(after, before, strict=True))]
