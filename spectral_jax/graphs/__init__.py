"""Networks as weighted graphs: Laplacians, Fiedler pairs, differentiable connectivity."""

from spectral_jax.graphs.components import largest_component
from spectral_jax.graphs.fiedler import (
    Component,
    FiedlerResult,
    LayerQuotient,
    fiedler,
    fiedler_pairs,
    fiedler_value,
    layer_quotient,
)
from spectral_jax.graphs.laplacian import (
    Edges,
    chain,
    degrees,
    laplacian,
    rayleigh_quotient,
    split,
    widths,
)

__all__ = [
    "Component",
    "Edges",
    "FiedlerResult",
    "LayerQuotient",
    "chain",
    "degrees",
    "fiedler",
    "fiedler_pairs",
    "fiedler_value",
    "laplacian",
    "largest_component",
    "layer_quotient",
    "rayleigh_quotient",
    "split",
    "widths",
]
