"""Parameters to named matrices and to the blocks of a network graph.

The one place that knows what a dense or a convolution kernel is. Leaves are named by their pytree
path, ``"layers/0/kernel"``, or as their checkpoint names them. ``plan`` works on names and shapes
alone and loads without jax; ``matrices`` reads a pytree, ``map_by_shape`` applies a function to all
of them with equal shapes in one batch; ``layout`` and ``graph_weights`` take the
kernels of this library's own models, dense ``[in, out]`` and convolution
``[height, width, in, out]``. A layer without a kernel (pooling, activation) does not appear.

>>> import jax.numpy as jnp
>>> params = {"layers": {"0": {"kernel": jnp.ones((4, 6))}, "1": {"kernel": jnp.ones((6, 3))}}}
>>> blocks = layout(params)
>>> [weight.shape for weight in graph_weights(params, blocks)]
[(4, 6), (6, 3)]
>>> edges(blocks)
((0, 1), (1, 2))

Layers that are stacked along an axis come one by one, ``"layers/fc/kernel:3"``; so do networks that
are stacked over seeds, which ``jax.vmap`` reads with the names of one.
"""

from typing import TYPE_CHECKING

from spectral_jax._lazy import lazy
from spectral_jax.weights._names import Framework
from spectral_jax.weights._plan import Plan, Skipped, coded, plan, refuse_codes
from spectral_jax.weights._read import At, Conv, entry, with_entry
from spectral_jax.weights._rules import Kind, View

if TYPE_CHECKING:
    from spectral_jax.weights._by_shape import map_by_shape
    from spectral_jax.weights._graph import (
        BATCH_NORM_EPSILON,
        Block,
        edges,
        graph_weights,
        layout,
    )
    from spectral_jax.weights._layout import layout_of
    from spectral_jax.weights._matrices import (
        Place,
        WeightMatrix,
        leaf_name,
        matrices,
        named_leaves,
        places,
        require_arrays,
        skipped,
        tied_leaves,
    )

__all__ = [
    "At",
    "BATCH_NORM_EPSILON",
    "Block",
    "Conv",
    "Framework",
    "Kind",
    "Place",
    "Plan",
    "Skipped",
    "View",
    "WeightMatrix",
    "coded",
    "edges",
    "entry",
    "graph_weights",
    "layout",
    "layout_of",
    "leaf_name",
    "map_by_shape",
    "matrices",
    "named_leaves",
    "places",
    "plan",
    "refuse_codes",
    "require_arrays",
    "skipped",
    "tied_leaves",
    "with_entry",
]

# These need jax, which takes longer to import than a plan takes to make.
_NEEDS_JAX = {
    "WeightMatrix": "_matrices",
    "map_by_shape": "_by_shape",
    "matrices": "_matrices",
    "leaf_name": "_matrices",
    "named_leaves": "_matrices",
    "Place": "_matrices",
    "places": "_matrices",
    "require_arrays": "_matrices",
    "skipped": "_matrices",
    "tied_leaves": "_matrices",
    "BATCH_NORM_EPSILON": "_graph",
    "Block": "_graph",
    "edges": "_graph",
    "graph_weights": "_graph",
    "layout": "_graph",
    "layout_of": "_layout",
}

__getattr__, __dir__ = lazy(__name__, _NEEDS_JAX)
