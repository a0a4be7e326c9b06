"""From a stored tensor to its matrix: pure functions that NumPy and jax arrays go through alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

Conv = Literal["positions", "flattened", "channels"]
At: TypeAlias = tuple[tuple[int, int], ...]
"""A layer of a stack: ``(axis, index)`` for every axis that counts layers, outermost first."""


def columns(
    x: Any,
    *,
    fold: tuple[int, int] | None = None,
    transpose: bool = False,
    start: int = 0,
    stop: int | None = None,
) -> Any:
    """Fold to two axes, put the inputs first, keep the outputs from ``start`` to ``stop``."""
    x = x if fold is None else x.reshape(fold)
    x = x.T if transpose else x
    return x if (start, stop) == (0, None) else x[:, start:stop]


def entry(x: Any, at: At) -> Any:
    """One layer of a stack ``x``; ``at`` names the axes that count layers and the index on each.

    >>> import numpy as np
    >>> entry(np.arange(6).reshape(3, 2), ((0, 1),)).tolist()
    [2, 3]
    """
    return x[_index(x, at)]


def with_entry(x: Any, at: At, value: Any) -> Any:
    """The stack ``x`` (a jax array) with the layer ``at`` replaced: the inverse of `entry`.

    The value itself where ``at`` is empty, that is, where ``x`` is no stack.
    """
    return x.at[_index(x, at)].set(value) if at else value


def _index(x: Any, at: At) -> tuple[Any, ...]:
    index: list[Any] = [slice(None)] * x.ndim
    for axis, i in at:
        index[axis] = i
    return tuple(index)


def of_entry(*xs: Any, read: Callable[..., Any], at: Sequence[At]) -> Any:
    """Read one layer of stacks as ``read`` reads tensors of one layer."""
    return read(*(entry(x, of_x) for x, of_x in zip(xs, at, strict=True)))


def stack(x: Any, *, transpose: bool = False) -> Any:
    """One matrix per entry of the leading axes, ``[*leading, m, n] -> [leading, m, n]``."""
    x = x.reshape(-1, *x.shape[-2:])
    return x.swapaxes(-2, -1) if transpose else x


def convolution(x: Any, *, axes: Sequence[int], conv: Conv, groups: int = 1) -> Any:
    """Read a kernel that ``axes`` brings to ``[*spatial, i, o]`` by group, ``o`` group-major.

    ``[groups * positions, i, o / groups]`` or, without the axis where there is one group,
    ``[groups, positions * i, o / groups]`` (flattened), ``[groups, i, o / groups]`` (channels).
    """
    x = x.transpose(axes)
    inputs, outputs = x.shape[-2:]
    x = x.reshape(-1, inputs, groups, outputs // groups).transpose(2, 0, 1, 3)
    if conv == "positions":
        return x.reshape(-1, *x.shape[2:])
    x = magnitude(x).sum(axis=1) if conv == "channels" else x.reshape(groups, -1, x.shape[-1])
    return x if groups > 1 else x[0]


def depthwise(x: Any, *, axes: Sequence[int], conv: Conv) -> Any:
    """One column per filter, ``[positions, filters]``; ``channels``: ``[c, 1, filters / c]``.

    ``axes`` brings the kernel to ``[*spatial, c, multiplier]`` or ``[*spatial, 1, filters]``; the
    number of channels of the latter is taken for that of its filters.
    """
    x = x.transpose(axes)
    channels, multiplier = x.shape[-2:]
    if conv != "channels":
        return x.reshape(-1, channels * multiplier)
    x = magnitude(x).reshape(-1, channels, multiplier).sum(axis=0)
    return x.reshape(multiplier, 1, 1) if channels == 1 else x.reshape(channels, 1, multiplier)


def product(a: Any, b: Any, *, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    """Multiply the two factors of a low-rank matrix, ``[m, k] [k, n] -> [m, n]``.

    Those of a convolution, ``[k, in, h, w]`` and ``[out, k, 1, 1]``, have their last axes folded.
    In float32 at least: rounded to bfloat16, a product has a higher rank than its factors.
    """
    a, b = (_wide(x).reshape(x.shape[0], -1) for x in (a, b))
    a, b = (a.T if transpose_a else a), (b.T if transpose_b else b)
    space = a.__array_namespace__()
    options = {"precision": "highest"} if space.__name__.startswith("jax") else {}
    return space.matmul(a, b, **options)


def hadamard(a: Any, b: Any, c: Any, d: Any) -> Any:
    """The update of LoHa, ``(a b) * (c d)`` as ``[out, in]``, inputs first."""
    return (product(a, b) * product(c, d)).T


def kronecker(*factors: Any, split: int) -> Any:
    """The update of LoKr: two matrices ``[out, in]``, the first of ``split`` factors, inputs first.

    Of a convolution, the last one has the window behind its inputs, and so has the update.
    """
    first, second = (
        product(*each) if len(each) == 2 else _wide(each[0]).reshape(each[0].shape[0], -1)
        for each in (factors[:split], factors[split:])
    )
    return (
        (first[:, None, :, None] * second[None, :, None, :])
        .reshape(first.shape[0] * second.shape[0], -1)
        .T
    )


def rescaled(
    *arrays: Any,
    read: Callable[..., Any],
    layouts: Sequence[tuple[int, tuple[int, ...], tuple[int, ...]]],
) -> Any:
    """``read`` of weights that are stored as codes and scales.

    ``layouts`` says, for each scale in order, which array it belongs to, its shape with as many
    axes as that array, and how many entries of each axis share a scale. The scales come last.
    """
    count = len(arrays) - len(layouts)
    stored, scales = list(arrays[:count]), arrays[count:]
    for (at, grid, blocks), scale in zip(layouts, scales, strict=True):
        scale = scale.astype("float32").reshape(grid)
        for axis, (size, block) in enumerate(zip(stored[at].shape, blocks, strict=True)):
            if grid[axis] not in (1, size):
                scale = scale.repeat(block, axis)[(slice(None),) * axis + (slice(size),)]
        stored[at] = stored[at].astype("float32") * scale
    return read(*stored)


def _wide(x: Any) -> Any:
    return x.astype("float32") if x.dtype.itemsize < 4 else x


def magnitude(x: Any) -> Any:
    """``|x|``, with the derivative 0 at 0."""
    # The derivative of abs at 0 is 1 in JAX, and a penalty would pull at pruned weights; that of
    # x sign(x) is 0 there.
    return x * x.__array_namespace__().sign(x)
