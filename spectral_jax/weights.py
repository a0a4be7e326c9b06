"""Parameters to named matrices and to the blocks of a network graph.

The one place that knows what a dense or a convolution kernel is. Leaves are named by their pytree
path, ``"layers/0/kernel"``; dense kernels are ``[in, out]``, convolution kernels
``[height, width, in, out]``. A layer without a kernel of its own (pooling, activation) does not
appear.

>>> import jax.numpy as jnp
>>> params = {"layers": {"0": {"kernel": jnp.ones((4, 6))}, "1": {"kernel": jnp.ones((6, 3))}}}
>>> blocks = layout(params)
>>> [weight.shape for weight in graph_weights(params, blocks)]
[(4, 6), (6, 3)]
>>> edges(blocks)
((0, 1), (1, 2))

Parameters stacked over seeds go through ``jax.vmap``: every function here reads one network.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

__all__ = [
    "BATCH_NORM_EPSILON",
    "Block",
    "WeightMatrix",
    "edges",
    "graph_weights",
    "layout",
    "matrices",
]

# The epsilon of torch and Flax batch-norm; folding is exact only with the network's own value.
BATCH_NORM_EPSILON = 1e-5

Norm = Literal["l1", "l2"]


class WeightMatrix(NamedTuple):
    """A kernel read as a matrix, or as a stack of them (one per kernel position)."""

    name: str
    matrix: Float[Array, "*positions m n"]
    kind: Literal["dense", "conv"]


class Block(NamedTuple):
    """One bundle of edges between two groups of nodes. Static and hashable.

    path: pytree path of the kernel; None for an identity skip.
    source, target: node groups, 0 being the network's inputs.
    norm: path of the batch-norm whose scale is folded into the target side.
    positions: how many spatial positions a flattened dense kernel reads per source channel; its
        rows are ordered position-major, ``[positions * channels, n]``.
    """

    path: str | None
    source: int
    target: int
    norm: str | None = None
    positions: int = 1


def matrices(
    params: PyTree, *, conv: Literal["positions", "flattened", "channels"] = "positions"
) -> dict[str, WeightMatrix]:
    """Name every dense and convolution kernel, in the natural order of the pytree paths.

    A convolution kernel K ``[h, w, i, o]`` becomes ``[h * w, i, o]`` (``"positions"``),
    ``[h * w * i, o]`` (``"flattened"``) or ``sum_hw |K|``, ``[i, o]`` (``"channels"``).
    Leaves with fewer than two axes (biases, norms) are left out.

    Holds inside jit, vmap and grad (the names are not arrays: return the matrices only).

    Raises:
        ValueError: there is no kernel; a leaf has 3 or more than 4 axes; `conv` is unknown.
    """
    views = {"positions": _positions, "flattened": _flattened, "channels": _channel_norm}
    if conv not in views:
        raise ValueError(f"conv={conv!r} is unknown: use one of {', '.join(map(repr, views))}")
    found = {}
    for name, leaf in _leaves(params).items():
        if leaf.ndim < 2:
            continue
        kind = _kind(name, leaf)
        found[name] = WeightMatrix(name, leaf if kind == "dense" else views[conv](leaf), kind)
    if not found:
        raise ValueError("params: no leaf with two or more axes; pass the parameters of a network")
    return found


def layout(params: PyTree) -> tuple[Block, ...]:
    """Chain the dense kernels in natural order: the layout of a plain feed-forward network.

    Raises:
        ValueError: two neighbouring widths disagree, or there is a convolution (its pooling,
            skips and norms are not in the parameters: pass the model's own layout).
    """
    kernels = list(matrices(params).values())
    for kernel in kernels:
        if kernel.kind == "conv":
            raise ValueError(
                f"params: {kernel.name!r} is a convolution, which a chain of dense layers cannot "
                "describe; pass the layout() of the model"
            )
    for left, right in zip(kernels, kernels[1:], strict=False):
        if left.matrix.shape[1] != right.matrix.shape[0]:
            raise ValueError(
                f"params: {left.name!r} has {left.matrix.shape[1]} outputs but {right.name!r} "
                f"has {right.matrix.shape[0]} inputs; pass a layout that says how they connect"
            )
    return tuple(Block(kernel.name, i, i + 1) for i, kernel in enumerate(kernels))


def edges(layout: Sequence[Block]) -> tuple[tuple[int, int], ...]:
    """Return the (source, target) node groups of each block."""
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

    Biases, activations and pooling are no edges. `batch_stats` holds the running variances, at the
    same paths as the norms in `params`.

    Holds under jit, vmap and grad (with respect to `params`). Channel graph and batch-norm
    folding: arXiv 2103.03386, whose composition through the flatten is replaced by a norm.

    Raises:
        ValueError: a path is missing, shapes disagree with the layout, or `batch_stats` is missing.
    """
    if conv_norm not in ("l1", "l2"):
        raise ValueError(f"conv_norm={conv_norm!r} is unknown: use 'l1' or 'l2'")
    leaves, stats = _leaves(params), _leaves(batch_stats)
    weights = [_kernel_weights(block, leaves, stats, conv_norm) for block in layout]
    kernels = [weight for weight in weights if weight is not None]
    if not kernels:
        raise ValueError("layout: no block has a kernel; pass the layout() of the model")
    widths, dtype = _group_widths(layout, weights), jnp.result_type(*kernels)
    return tuple(
        _identity(block, widths, dtype) if weight is None else weight
        for block, weight in zip(layout, weights, strict=True)
    )


def _kernel_weights(
    block: Block,
    leaves: Mapping[str, Array],
    stats: Mapping[str, Array],
    norm: Norm,
) -> Array | None:
    if block.path is None:
        return None
    kernel = _lookup(leaves, block.path, "params")
    if _kind(block.path, kernel) == "conv":
        weight = _channel_norm(kernel, norm)
    elif block.positions == 1:
        weight = kernel
    else:
        weight = _channel_norm(_unflatten(block, kernel), norm)
    return weight if block.norm is None else weight * _norm_scale(block.norm, leaves, stats)


def _norm_scale(path: str, leaves: Mapping[str, Array], stats: Mapping[str, Array]) -> Array:
    if not stats:
        raise ValueError(f"batch_stats is needed to fold {path!r}: pass the state of the model")
    scale = _lookup(leaves, f"{path}/scale", "params")
    variance = _lookup(stats, f"{path}/var", "batch_stats")
    return _absolute(scale) / jnp.sqrt(variance + BATCH_NORM_EPSILON)


def _kind(name: str, kernel: Array) -> Literal["dense", "conv"]:
    if kernel.ndim == 2:
        return "dense"
    if kernel.ndim == 4:
        return "conv"
    raise ValueError(
        f"params: {name!r} has shape {kernel.shape}, which is neither a dense (2 axes) nor a "
        "convolution kernel (4 axes); for stacked networks use jax.vmap"
    )


def _unflatten(block: Block, kernel: Array) -> Array:
    rows, columns = kernel.shape
    if rows % block.positions:
        raise ValueError(
            f"layout: {block.path!r} has {rows} rows, not a multiple of "
            f"positions={block.positions}; set positions to the flattened height * width"
        )
    return kernel.reshape(block.positions, 1, rows // block.positions, columns)


def _channel_norm(kernel: Array, norm: Norm = "l1") -> Array:
    if norm == "l1":
        return jnp.sum(_absolute(kernel), axis=(0, 1))
    squares = jnp.sum(jnp.square(kernel), axis=(0, 1))
    # Both branches of `where` are differentiated: keep the root away from 0, where it has no slope.
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _absolute(x: Array) -> Array:
    # jnp.abs has slope +1 at 0; this has the subgradient 0, which leaves pruned weights at rest.
    return x * jnp.sign(x)


def _positions(kernel: Array) -> Array:
    return kernel.reshape(-1, *kernel.shape[2:])


def _flattened(kernel: Array) -> Array:
    return kernel.reshape(-1, kernel.shape[3])


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


def _leaves(tree: PyTree) -> dict[str, Any]:
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}
    return dict(sorted(named.items(), key=lambda item: _natural(item[0])))


def _natural(path: str) -> Any:
    """Sort key that puts ``"layers/2"`` before ``"layers/10"``."""
    return [
        [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)]
        for key in path.split("/")
    ]


def _lookup(leaves: Mapping[str, Array], path: str, argument: str) -> Array:
    if path in leaves:
        return leaves[path]
    close = get_close_matches(path, leaves, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "pass the tree that the layout describes"
    raise ValueError(f"{argument}: no leaf at {path!r}; {hint}")
