"""The blocks of a network graph, read off the parameters of a Flax network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby, pairwise, permutations
from math import prod
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from spectral_jax._choices import check_choice
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.weights._matrices import named_leaves, places, require_arrays, skipped
from spectral_jax.weights._plan import refuse_codes
from spectral_jax.weights._read import entry, magnitude
from spectral_jax.weights._skips import BIAS_OR_MASK

# The default epsilon of batch-norm in PyTorch and Flax. A norm with another one is folded with a
# small error, since the value is not among the parameters.
BATCH_NORM_EPSILON = 1e-5

Norm = Literal["l1", "l2"]


class Block(NamedTuple):
    """One bundle of edges between two groups of nodes. Static and hashable.

    path: pytree path of the kernel; None for an identity skip.
    source, target: node groups, 0 being the network's inputs.
    norm: path of the batch-norm whose scale is folded into the target side.
    positions: how many spatial positions a flattened dense kernel reads per source channel; its
        rows are ordered position-major, ``[positions * channels, n]``.
    axes: how many axes of the kernel are window, inputs and outputs, in this order, where it is no
        dense ``(0, 1, 1)`` nor 2-D convolution ``(2, 1, 1)``; queries ``[in, heads, size]`` have
        ``(0, 1, 2)``.
    """

    path: str | None
    source: int
    target: int
    norm: str | None = None
    positions: int = 1
    axes: tuple[int, int, int] | None = None


def layout(params: PyTree) -> tuple[Block, ...]:
    """Chain the dense kernels in natural order: the layout of a plain feed-forward network.

    Names that only count (``layers/0``, ``fc1``), or widths that fit in no other way, leave no
    doubt. Else the order is a guess, with a `UserWarning`; `layout_of` reads it off a forward pass.

    Raises:
        ValueError: two neighbouring widths disagree, a kernel is quantised (its codes are no
            weights), or there is a convolution (its pooling, skips and norms are not in the
            parameters: see `layout_of`).
    """
    require_arrays(params)
    leaves = named_leaves(params)
    refuse_codes(leaves, "pass the weights that they stand for, or a layout without this layer")
    kernels = _kernels(leaves)
    if not kernels:
        raise ValueError("params: no leaf with two or more axes; pass the parameters of a network")
    for path, kernel in kernels.items():
        if _kind(path, kernel) == "conv":
            raise ValueError(
                f"params: {path!r} is a convolution, which a chain of dense layers cannot "
                "describe; pass the layout() of the model, or layout_of a forward pass"
            )
    for (left, before), (right, after) in pairwise(kernels.items()):
        if before.shape[1] != after.shape[0]:
            raise ValueError(
                f"params: {left!r} has {before.shape[1]} outputs but {right!r} has "
                f"{after.shape[0]} inputs; pass a layout that says how they connect"
            )
    if _fits_otherwise(kernels):
        warnings.warn(
            f"the order of {', '.join(map(repr, kernels))} is that of their names, and others fit "
            "their widths; weights.layout_of(function, params, x) reads it off a forward pass",
            stacklevel=2,
        )
    return tuple(Block(path, i, i + 1) for i, path in enumerate(kernels))


def _fits_otherwise(kernels: Mapping[str, Array]) -> bool:
    """Whether kernels that are not numbered by their names would also chain up in another order.

    A chain is a trail through a graph whose nodes are widths and whose edges are kernels. Another
    trail uses the same edges if this one ends where it began (then it may begin elsewhere), if
    it passes one width three times (the two loops between can be swapped), or two widths in turns,
    ``a .. b .. a .. b`` (the pieces between can be swapped).
    """
    widths: list[int] = []
    for _, run in groupby(kernels, _uncounted):
        shapes = [kernels[name].shape for name in run]
        widths += [shapes[0][0], shapes[-1][1]] if not widths else [shapes[-1][1]]
    visits: dict[int, list[int]] = {}
    for place, width in enumerate(widths):
        visits.setdefault(width, []).append(place)
    twice = [places for places in visits.values() if len(places) == 2]
    return len(widths) > 2 and (
        widths[0] == widths[-1]
        or any(len(places) > 2 for places in visits.values())
        or any(a < c < b < d for (a, b), (c, d) in permutations(twice, 2))
    )


def _uncounted(name: str) -> str:
    """The name with numbers and single letters blanked: equal for layers that are numbered."""
    return re.sub(r"(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])|\d+", "#", name)


def edges(layout: Sequence[Block]) -> tuple[tuple[int, int], ...]:
    """The ``(source, target)`` node groups of each block, as ``graphs`` takes them.

    >>> edges((Block("fc/kernel", 0, 1), Block(None, 0, 1)))
    ((0, 1), (0, 1))
    """
    return tuple((block.source, block.target) for block in layout)


def graph_weights(
    params: PyTree,
    layout: Sequence[Block],
    *,
    conv_norm: Norm = "l1",
    batch_stats: PyTree | None = None,
) -> tuple[Float[Array, "..."], ...]:
    """Weight the edges of the network graph: nodes are units, or channels of a feature map.

    Per block, ``[n_source, n_target]``:

    * dense: the kernel itself, signed;
    * convolution, or dense after a flatten: the L1 or L2 norm of the weights that join the two
      channels, over kernel positions; its gradient at an all-zero kernel is 0;
    * with a batch-norm: the above times ``|gamma| / sqrt(var + 1e-5)`` of each target channel;
    * identity skip: ones ``[n]``, or ``eye(n_source, n_target)`` where the skip pads channels.

    Biases, activations and pooling are no edges.

    Args:
      layout: of the model, or from `layout` or `layout_of`.
      conv_norm: ``"l1"`` or ``"l2"``, the norm over kernel positions.
      batch_stats: running variances, at the same paths as the norms in `params`.

    Holds under jit, vmap and grad (with respect to `params`). Channel graph and batch-norm
    folding: arXiv 2103.03386, whose composition through the flatten is replaced by a norm.

    Raises:
        ValueError: a path is missing, shapes disagree with the layout, or `batch_stats` is missing.
    """
    check_choice(("l1", "l2"), conv_norm=conv_norm)
    require_arrays(params)
    leaves, stats = named_leaves(params), named_leaves(batch_stats)
    if any(block.path is not None and ":" in block.path for block in layout):
        leaves |= _kernels(leaves)
    weights = [_kernel_weights(block, leaves, stats, conv_norm) for block in layout]
    kernels = [weight for weight in weights if weight is not None]
    if not kernels:
        raise ValueError("layout: no block has a kernel; pass the layout() of the model")
    widths, dtype = _group_widths(layout, weights), jnp.result_type(*kernels)
    return tuple(
        _identity(block, widths, dtype) if weight is None else weight
        for block, weight in zip(layout, weights, strict=True)
    )


def _kernels(leaves: Mapping[str, Array]) -> dict[str, Array]:
    """The kernels by name, those of a stack one by one."""
    found = {name: entry(leaves[place.leaf], place.at) for name, place in places(leaves).items()}
    for name, shape, reason in skipped(leaves):
        if len(shape) > 1 and jnp.iscomplexobj(leaves[name]):
            _check_real(name, leaves[name])
        if len(shape) > 2 and reason != BIAS_OR_MASK:
            _kind(name, leaves[name])
    return found


def _check_real(name: str, kernel: Array) -> None:
    if not jnp.issubdtype(kernel.dtype, jnp.floating) or kernel.dtype.itemsize < 2:
        raise ValueError(
            f"params: {name!r} has dtype {kernel.dtype}, and edges are weighted by real numbers of "
            "16 bits or more; leave it out of the tree and the layout"
        )


def _kernel_weights(
    block: Block,
    leaves: Mapping[str, Array],
    stats: Mapping[str, Array],
    norm: Norm,
) -> Array | None:
    if block.path is None:
        return None
    stored = _lookup(leaves, block.path, "params")
    _check_real(block.path, stored)
    kernel = _folded(block, stored)
    if block.positions > 1:
        kernel = _unflatten(block, kernel)
    weight = kernel if kernel.ndim == 2 else _channel_norm(kernel, norm)
    return weight if block.norm is None else weight * _norm_scale(block.norm, leaves, stats)


def _norm_scale(path: str, leaves: Mapping[str, Array], stats: Mapping[str, Array]) -> Array:
    if not stats:
        raise ValueError(f"batch_stats is needed to fold {path!r}: pass the state of the model")
    scale = _lookup(leaves, f"{path}/scale", "params")
    if scale.ndim != 1:
        raise ValueError(
            f"params: the scale of {path!r} has shape {scale.shape}, a stack of norms, which "
            "is not folded; use a layout without it (layout_of: fold_norms=False)"
        )
    variance = _lookup(stats, f"{path}/var", "batch_stats")
    return magnitude(scale) / jnp.sqrt(variance + BATCH_NORM_EPSILON)


def _kind(name: str, kernel: Array) -> Literal["dense", "conv"]:
    if kernel.ndim == 2:
        return "dense"
    if kernel.ndim == 4:
        return "conv"
    raise ValueError(
        f"params: {name!r} has shape {kernel.shape}, which is neither a dense (2 axes) nor a "
        "convolution kernel (4 axes); pass what stands in its place as a view of your own"
    )


def _folded(block: Block, kernel: Array) -> Array:
    """The kernel with one axis of inputs and one of outputs, behind those of its window."""
    if block.axes is None:
        _kind(str(block.path), kernel)
        return kernel
    window, inputs, outputs = block.axes
    if window + inputs + outputs != kernel.ndim:
        raise ValueError(
            f"layout: {block.path!r} has shape {kernel.shape}, not the {sum(block.axes)} axes of "
            f"axes={block.axes}; correct one of them"
        )
    shape, split = kernel.shape, window + inputs
    return kernel.reshape(*shape[:window], prod(shape[window:split]), prod(shape[split:]))


def _unflatten(block: Block, kernel: Array) -> Array:
    rows, columns = kernel.shape
    if rows % block.positions:
        raise ValueError(
            f"layout: {block.path!r} has {rows} rows, not a multiple of "
            f"positions={block.positions}; set positions to the flattened height * width"
        )
    return kernel.reshape(block.positions, rows // block.positions, columns)


def _channel_norm(kernel: Array, norm: Norm = "l1") -> Array:
    window = tuple(range(kernel.ndim - 2))
    kernel = working(kernel, "kernel")
    if norm == "l1":
        return jnp.sum(magnitude(kernel), axis=window)
    unit = unit_of(kernel)  # or squares of weights of 1e-20 would be 0
    squares = jnp.sum(jnp.square(kernel / unit), axis=window)
    # JAX differentiates both branches of `where`, and the slope of the root at 0 is infinite; times
    # the 0 of the branch not taken that is NaN. So the root of 0 is not taken at all.
    return unit * jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _identity(block: Block, widths: Mapping[int, int], dtype: jnp.dtype) -> Array:
    for group in (block.source, block.target):
        if group not in widths:
            raise ValueError(
                f"layout: the skip {block.source} -> {block.target} touches group {group}, "
                "which no kernel reaches; add the block that feeds it"
            )
    source, target = widths[block.source], widths[block.target]
    if source == target:
        return jnp.ones(source, dtype)
    return jnp.eye(source, target, dtype=dtype)


def _group_widths(layout: Sequence[Block], weights: Sequence[Array | None]) -> dict[int, int]:
    widths: dict[int, tuple[int, str]] = {}
    for block, weight in zip(layout, weights, strict=True):
        if weight is None:
            continue
        for group, width in zip((block.source, block.target), weight.shape, strict=True):
            known, first = widths.setdefault(group, (width, str(block.path)))
            if known != width:
                raise ValueError(
                    f"layout: group {group} has {known} nodes in {first!r} but {width} in "
                    f"{block.path!r}; correct source, target or positions of one of them"
                )
    return {group: width for group, (width, _) in widths.items()}


def _lookup(leaves: Mapping[str, Array], path: str, argument: str) -> Array:
    if path in leaves:
        return leaves[path]
    close = get_close_matches(path, leaves, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "pass the tree that the layout describes"
    raise ValueError(f"{argument}: no leaf at {path!r}; {hint}")
