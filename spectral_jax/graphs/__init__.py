"""Networks as weighted graphs: Laplacians, Fiedler pairs, differentiable connectivity.

Every function takes the blocks of a graph (``weights.graph_weights`` reads them off parameters) and
weighs an edge by ``|w|``. All of them mean the combinatorial Laplacian ``D - A``, as the papers do,
unless told ``normalised=True``.
"""

from spectral_jax.graphs.components import largest_component
from spectral_jax.graphs.fiedler import (
    FiedlerResult,
    PairResiduals,
    fiedler,
    fiedler_pairs,
    fiedler_value,
    pair_residuals,
)
from spectral_jax.graphs.laplacian import (
    Edges,
    by_group,
    chain,
    degrees,
    laplacian,
    rayleigh_quotient,
    widths,
)
from spectral_jax.graphs.quotient import LayerQuotient, layer_quotient
from spectral_jax.graphs.solving import Component

__all__ = [
    "Component",
    "Edges",
    "FiedlerResult",
    "LayerQuotient",
    "PairResiduals",
    "by_group",
    "chain",
    "degrees",
    "fiedler",
    "fiedler_pairs",
    "fiedler_value",
    "laplacian",
    "largest_component",
    "layer_quotient",
    "pair_residuals",
    "rayleigh_quotient",
    "widths",
]
