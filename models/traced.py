"""The layout of any NNX model, read off one forward pass."""

from flax import nnx
from jaxtyping import PyTree

from spectral_jax import weights
from spectral_jax.weights import Block


def layout_of(model: nnx.Module, x: PyTree, *, fold_norms: bool = True) -> tuple[Block, ...]:
    """`spectral_jax.weights.layout_of` for a module, as it computes ``model(x)`` in evaluation.

    The paths are those of ``nnx.state(model, nnx.Param)``; the model is left as it is.
    Raises ``ValueError`` as that does.
    """
    graphdef, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)  # type: ignore[misc]

    def evaluated(params, statistics, x):
        merged = nnx.merge(graphdef, params, statistics, rest)
        merged.eval()
        return merged(x)

    return weights.layout_of(evaluated, params, x, batch_stats=statistics, fold_norms=fold_norms)
