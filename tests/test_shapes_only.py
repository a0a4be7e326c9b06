"""Trees of shapes in the place of arrays are refused by name, by everything that reads numbers."""

import jax
import jax.numpy as jnp
import pytest

from spectral_jax import optim, prune, tails, weights
from spectral_jax._door.source import Arrays
from spectral_jax.analysis import analyze_layers
from spectral_jax.compress import compress

PARAMS = {
    "a": {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32), "bias": jnp.ones(8)},
    "b": {"kernel": jnp.ones((8, 4))},
}
BLOCKS = [weights.Block("b/kernel", 0, 1)]
READERS = {
    "analyze": lambda params: analyze_layers(Arrays(params)),
    "compress": compress,
    "layer_metrics": tails.layer_metrics,
    "matrices": weights.matrices,
    "layout": weights.layout,
    "graph_weights": lambda params: weights.graph_weights(params, BLOCKS),
    "prune_spectra": lambda params: prune.prune_spectra(params, prune.Policy()),
    "prune_weights": lambda params: prune.prune_weights(params, {"a/kernel": 0.5}),
    "factorize": lambda params: prune.factorize(params, {"a/kernel": 2}),
    "recombine_all": prune.recombine_all,
    "penalty on matrices": lambda params: optim.spectral_penalty("spectral_norm", 0.1).init(params),
    "penalty on a graph": lambda params: optim.fiedler_decay(0.1).init(params),
    "balance": lambda params: optim.temp_balance(refresh_every=1).init(params),
    "watch": lambda params: optim.watch(jnp.sum, every=1).init(params),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_shape_without_numbers_is_named(reader):
    message = r"params: 'a/kernel' is a ShapeDtypeStruct, a shape without numbers: pass arrays"
    with pytest.raises(ValueError, match=message) as told:
        READERS[reader](PARAMS)
    assert "view=" not in str(told.value)


def test_a_batch_of_matrices_names_it_as_well():
    with pytest.raises(ValueError, match="matrices: 'w' is a ShapeDtypeStruct"):
        weights.map_by_shape({"w": PARAMS["a"]["kernel"]}, jnp.sum)


@pytest.mark.parametrize(
    "reader", ["matrices", "graph_weights", "prune_spectra", "prune_weights", "factorize"]
)
def test_shapes_are_enough_where_they_are_traced(reader):
    def read(params):
        found = READERS[reader](params)
        return {n: w.matrix for n, w in found.items()} if reader == "matrices" else found

    given = {"a": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}, "b": PARAMS["b"]}
    assert jax.tree.leaves(jax.eval_shape(read, given))


def test_a_plan_goes_by_shapes():
    views = weights.plan(weights.named_leaves(PARAMS)).views
    assert [view.name for view in views] == ["a/kernel", "b/kernel"]
