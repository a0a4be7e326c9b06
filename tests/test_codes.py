"""Quantised weights in trees that are trained, pruned or read as graphs: codes are no weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax.optim import alpha_decay, fiedler_decay, spectral_penalty, temp_balance
from spectral_jax.prune import Policy, prune_spectra, prune_weights, svd_prune
from spectral_jax.weights import coded, graph_weights, layout, named_leaves
from tests.test_svd_prune import spiked

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEERING = {
    "matrices": lambda: spectral_penalty("spectral_norm", 0.1),
    "magnitudes": lambda: spectral_penalty("l1", 0.1),
    "graph": lambda: fiedler_decay(0.1),
    "proximal": lambda: spectral_penalty("l2", 0.1, mode="proximal", learning_rate=0.1),
    "view": lambda: spectral_penalty("l1", 0.1, view=lambda p: [p["fc"]["kernel"]]),
    "balance": lambda: temp_balance(refresh_every=1, metric="hill", min_eigenvalues=2),
    "decay": lambda: alpha_decay(0.1, refresh_every=1, metric="hill", min_eigenvalues=2),
}


def network(dtype=None):
    """Two layers; the first one in codes with a scale for each output, where a dtype is given."""
    kernel = spiked(40, 30, 2)
    scale = jnp.abs(kernel).max(axis=0)
    codes = {"kernel": (kernel / scale * 100).astype(dtype or kernel.dtype), "kernel_scale": scale}
    first = {"kernel": kernel} if dtype is None else codes
    return {"codes": first, "fc": {"kernel": spiked(30, 40, 2)}}


@pytest.mark.parametrize("transformation", STEERING)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float4_e2m1fn"])
def test_what_steers_training_refuses_codes_that_look_trainable(transformation, dtype):
    with pytest.raises(ValueError, match=f"'codes/kernel' holds the {dtype} codes .*masked"):
        STEERING[transformation]().init(network(dtype))


@pytest.mark.parametrize("transformation", ["matrices", "magnitudes", "balance", "decay"])
def test_codes_may_be_masked_and_the_rest_is_steered_as_if_alone(transformation):
    params = network("float8_e4m3fn")
    mask = {"codes": False, "fc": True}
    found = _first_update(optax.masked(STEERING[transformation](), mask), params)
    alone = {"fc": params["fc"]}
    expected = _first_update(STEERING[transformation](), alone)
    np.testing.assert_array_equal(found["fc"]["kernel"], expected["fc"]["kernel"])


def test_float8_without_a_scale_is_weights_in_few_bits():
    narrow = {"fc": {"kernel": spiked(40, 30, 2).astype(jnp.float8_e5m2)}}
    wide = jax.tree.map(lambda x: x.astype("float32"), narrow)
    values = [_first_state(spectral_penalty("spectral_norm", 0.1), p).value for p in (narrow, wide)]
    assert values[0] == values[1] > 0


@pytest.mark.parametrize("transformation", ["matrices", "balance"])
def test_integer_codes_are_left_alone_with_their_scales(transformation):
    """A table of scales has two axes, and is no layer."""
    params = {"fc": {"kernel": spiked(30, 40, 2)}}
    codes = {"w": jnp.ones((64, 32), jnp.int8), "w_scale": jnp.ones((4, 32))}
    both = _first_state(STEERING[transformation](), params | {"codes": codes})
    alone = _first_state(STEERING[transformation](), params)
    jax.tree.map(np.testing.assert_array_equal, _seen(both), _seen(alone))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_a_chain_of_layers_does_not_pass_over_one_in_codes(dtype):
    square = {"kernel": spiked(30, 30, 2)}
    codes = {"kernel": jnp.ones((30, 30), dtype), "kernel_scale": jnp.ones(30)}
    with pytest.raises(ValueError, match=f"'1/kernel' holds the {dtype} codes"):
        layout({"0": square, "1": codes, "2": square})


def test_a_graph_without_codes_is_read_beside_them():
    params = network("float8_e4m3fn")
    (block,) = layout({"fc": params["fc"]})
    (weight,) = graph_weights(params, [block])
    np.testing.assert_array_equal(weight, params["fc"]["kernel"])


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_pruning_spectra_leaves_codes_alone_and_does_not_report_them(dtype):
    params = network(dtype)
    tx = svd_prune(Policy(), steps_per_epoch=1, every=1)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    pruned, report = prune_spectra(params, Policy())
    assert list(state.report) == list(report) == ["fc/kernel"]
    np.testing.assert_array_equal(pruned["codes"]["kernel"], params["codes"]["kernel"])
    assert not np.any(updates["codes"]["kernel"].astype("float32"))
    moved = params["fc"]["kernel"] + updates["fc"]["kernel"]
    np.testing.assert_allclose(moved, pruned["fc"]["kernel"], atol=1e-5)


def test_a_policy_for_nothing_but_codes_says_that_they_are_no_layers():
    codes = {"codes": network("float8_e4m3fn")["codes"]}
    with pytest.raises(ValueError, match="no layer; .*codes of quantised weights are none"):
        prune_spectra(codes, Policy())


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_one_scale_changes_no_order_of_codes(method):
    kernel = spiked(40, 30, 2).astype(jnp.float8_e4m3fn)
    codes = {"kernel": kernel, "kernel_scale": jnp.asarray(0.01)}
    inputs = {"kernel": jax.random.normal(jax.random.key(0), (50, 40))}
    found = prune_weights(codes, {"kernel": 0.5}, method=method, inputs=inputs)["kernel"]
    weights = {"kernel": kernel.astype("float32") * 0.01}
    expected = prune_weights(weights, {"kernel": 0.5}, method=method, inputs=inputs)["kernel"]
    assert found.dtype == kernel.dtype
    np.testing.assert_array_equal(found.astype("float32") != 0, expected != 0)


@pytest.mark.parametrize("dtype, shape", [("float8_e4m3fn", (30,)), ("int8", ())])
def test_codes_in_another_order_than_their_weights_are_not_pruned_by_size(dtype, shape):
    codes = {"kernel": jnp.ones((40, 30), dtype), "kernel_scale": jnp.ones(shape)}
    params = {"codes": codes, "fc": {"kernel": spiked(30, 40, 2)}}
    with pytest.raises(ValueError, match=f"'codes/kernel' holds the {dtype} codes .*then quantise"):
        prune_weights(params, {"codes/kernel": 0.5})
    pruned = prune_weights(params, {"fc/kernel": 0.5})
    assert jnp.mean(pruned["fc"]["kernel"] == 0) == 0.5


def test_codes_are_told_with_what_scales_them():
    found = coded(named_leaves(network("float8_e4m3fn") | {"q": {"weight": np.ones((2, 3), "i1")}}))
    assert found == {"codes/kernel": ("codes/kernel_scale",), "q/weight": ()}


def _first_update(transformation, params):
    updates = jax.tree.map(jnp.ones_like, params)
    return transformation.update(updates, transformation.init(params), params)[0]


def _first_state(transformation, params):
    updates = jax.tree.map(jnp.ones_like, params)
    return transformation.update(updates, transformation.init(params), params)[1]


def _seen(state):
    return getattr(state, "alphas", None) or (state.value, state.penalty)
