"""Layers that are stacked along an axis are as many matrices, each what it would be by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectral_jax import optim, prune, tails
from spectral_jax.analysis import analyze
from spectral_jax.compress import compress
from spectral_jax.weights import graph_weights, layout, matrices, plan

pytestmark = pytest.mark.usefixtures("quick_compilation")


def shaped(*lines):
    """``"fc/kernel 8 4"`` -> ``{"fc/kernel": (8, 4)}``."""
    words = [line.split() for line in lines]
    return {name: tuple(map(int, sizes)) for name, *sizes in words}


def layers(shapes, count):
    """Parameters of several layers of those shapes."""
    draw = np.random.default_rng(0).normal
    return [{name: draw(size=shape) for name, shape in shapes.items()} for _ in range(count)]


def stacked(networks, axis=0):
    return {name: np.stack([n[name] for n in networks], axis) for name in networks[0]}


def readings(params, **options):
    found = plan({name: leaf.shape for name, leaf in params.items()}, **options)
    return {
        v.name: (v.kind, v.read(*(params[source] for source in v.sources))) for v in found.views
    }


def assert_each_read_alone(params, networks, **options):
    """``name:i`` is what ``name`` is in network ``i``, and there is nothing else."""
    found = readings(params, **options)
    expected = {
        f"{name}:{index}": reading
        for index, network in enumerate(networks)
        for name, reading in readings(network).items()
    }
    assert found.keys() == expected.keys()
    for name, (kind, matrix) in expected.items():
        assert found[name][0] == kind
        np.testing.assert_array_equal(found[name][1], matrix)


ATTENTION = [
    *(f"{name}/kernel 8 2 4" for name in ("query", "key", "value")),
    *(f"{name}/bias 2 4" for name in ("query", "key", "value")),
    *("out/kernel 2 4 8", "out/bias 8"),
]
BLOCK_WITHOUT_BIASES = [
    *("ln/scale 8", "query/kernel 8 2 4", "out/kernel 2 4 8"),
    *("up/kernel 8 32", "down/kernel 32 8"),
]
NETWORKS = {
    "dense": ["fc/kernel 8 5", "fc/bias 5"],
    "square": ["fc/kernel 8 8", "fc/bias 8"],
    "torch": ["fc.weight 5 8", "fc.bias 5"],
    "haiku": ["fc/w 8 5", "fc/b 5"],
    "attention": ATTENTION,
    "no biases": BLOCK_WITHOUT_BIASES,
    "convolution": ["conv/kernel 3 3 4 8", "conv/bias 8"],
    "convolution, 1-D": ["conv/kernel 3 4 8", "conv/bias 8"],
    "convolution, torch": ["conv.weight 8 4 3 3", "conv.bias 8"],
    "convolution and batch norm": ["conv/kernel 3 3 4 8", "bn/scale 8", "bn/bias 8", "bn/mean 8"],
    "embedding": ["embed/embedding 11 8", "fc/kernel 8 5", "fc/bias 5"],
    "recurrent": ["r.weight_ih_l0 20 3", "r.weight_hh_l0 20 5", "r.bias_ih_l0 20"],
    "low rank": ["q/lora_a 6 2", "q/lora_b 2 7", "ln/scale 6"],
    "fused": ["attn/qkv/kernel 8 24", "attn/qkv/bias 24"],
    "unknown names": ["w1 8 5", "b1 5", "w2 5 8", "b2 8"],
    "gates": ["gate_up_proj 8 10", "gate_up_proj_bias 10", "down_proj 5 8", "down_proj_bias 8"],
}


@pytest.mark.parametrize("lines", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("count", [1, 6])
def test_a_stack_is_its_layers(lines, count):
    networks = layers(shaped(*lines), count)
    assert_each_read_alone(stacked(networks), networks)


@pytest.mark.parametrize("name", ["dense", "square", "attention", "no biases", "convolution"])
def test_the_axis_may_be_the_second(name):
    networks = layers(shaped(*NETWORKS[name]), 6)
    assert_each_read_alone(stacked(networks, axis=1), networks)


def test_a_stack_within_a_network_leaves_the_rest_as_it_is():
    networks = layers(shaped(*BLOCK_WITHOUT_BIASES), 3)
    blocks = {f"blocks/{name}": leaf for name, leaf in stacked(networks).items()}
    rest = {
        "stem/kernel": np.ones((3, 3, 3, 8)),
        "head/kernel": np.ones((8, 3)),
        "step": np.ones(()),
    }
    found = readings(blocks | rest)
    assert found["stem/kernel"][1].shape == (9, 3, 8) and found["head/kernel"][1].shape == (8, 3)
    assert found["blocks/up/kernel:2"][1].shape == (8, 32)


@pytest.mark.parametrize("lines", [["fc/kernel 8 8", "fc/bias 8"], ["fc/kernel 8 8", "ln/scale 8"]])
def test_seeds_of_a_stack_are_numbered_seed_by_seed(lines):
    networks = [layers(shaped(*lines), 2) for _ in range(3)]
    params = stacked([stacked(network) for network in networks])
    found = readings(params)
    assert list(found) == [f"fc/kernel:{i}:{j}" for i in range(3) for j in range(2)]
    np.testing.assert_array_equal(found["fc/kernel:2:1"][1], params["fc/kernel"][2, 1])


def test_the_experts_of_a_torch_network_are_matrices_each():
    block = "model.layers.7.mlp"
    experts = [f"{block}.experts.gate_up_proj 4 32 48", f"{block}.experts.gate_up_proj_bias 4 48"]
    router = [f"{block}.router.weight 4 32", f"{block}.router.bias 4"]
    found = {view.name: view.shape for view in plan(shaped(*experts, *router)).views}
    assert found.pop(f"{block}.router.weight") == (32, 4)
    assert found == {f"{block}.experts.gate_up_proj:{i}": (32, 48) for i in range(4)}


def test_experts_without_biases_go_by_their_name_with_a_note():
    experts = "mlp.experts.gate_up_proj 4 32 48", "mlp.experts.down_proj 4 24 32"
    found = plan(shaped(*experts, "mlp.router.weight 4 32"))
    assert len(found.views) == 9 and found.skipped == ()
    assert all("expert by its name" in view.note for view in found.views[:8])


def test_a_layer_whose_inputs_are_as_many_as_there_are_is_told_by_the_others():
    networks = layers(shaped("a/kernel 6 5", "a/bias 5", "b/kernel 5 4", "b/bias 4"), 6)
    assert_each_read_alone(stacked(networks), networks)


# Evidence that is less than a bias: a note says on what it rests.


def test_a_sibling_without_a_bias_is_stacked_as_its_neighbour_is():
    shapes = shaped("l/up/kernel 6 8 8", "l/up/bias 6 8", "l/q_proj/kernel 6 8 8", "l/table 100 4")
    views = {view.name: view for view in plan(shapes).views}
    assert views["l/q_proj/kernel:5"].shape == (8, 8)
    assert "'l/up/kernel' is" in views["l/q_proj/kernel:5"].note
    assert views["l/up/kernel:5"].note == "" and views["l/table"].shape == (100, 4)


@pytest.mark.parametrize(
    "query, out", [("6 8 2 4", "6 2 4 8"), ("8 6 2 4", "2 6 4 8"), ("6 8 8", "6 8 8")]
)
def test_projections_that_fit_each_other_but_for_one_axis_are_a_stack(query, out):
    found = plan(shaped(f"a/query/kernel {query}", f"a/out/kernel {out}", "fc/kernel 8 2"))
    assert [view.name for view in found.views][:6] == [f"a/query/kernel:{i}" for i in range(6)]
    assert all("fit" in view.note for view in found.views[:12])


DOUBTS = {
    "heads or layers": ("a/q_proj/kernel 6 8 8", "heads"),
    "a window or layers": ("conv/kernel 6 3 4 8", "window of 6 x 3"),
    "volumes or layers": ("conv/kernel 6 3 3 4 8", "window of 6 x 3 x 3"),
    "heads, torch": ("a.o_proj.weight 64 4 16", "window of 16"),
    "experts, torch": ("experts.input.weight 8 32 64", "window of 64"),
}


@pytest.mark.parametrize("line, word", DOUBTS.values(), ids=DOUBTS)
def test_what_nothing_proves_is_read_with_a_note_that_says_how_to_tell(line, word):
    (view,) = plan(shaped(line)).views
    assert word in view.note and "'stacked'" in view.note


@pytest.mark.parametrize(
    "line", ["fc/kernel 6 8 5", "a/query/kernel 6 8 2 4", "r.weight_hh_l0 6 20 5"]
)
def test_what_no_layer_can_be_is_left_out_with_the_way_to_tell(line):
    found = plan(shaped("fc2/kernel 8 2", line))
    assert len(found.views) == 1 and "'stacked'" in found.skipped[-1].reason


@pytest.mark.parametrize("axis, told", [(0, "stacked"), (1, "stacked:1")])
def test_a_kind_tells_a_stack(axis, told):
    networks = layers(shaped("fc/kernel 8 5", "conv/kernel 3 3 4 8"), 6)
    assert_each_read_alone(stacked(networks, axis), networks, kinds={"*": told})


def test_a_stack_of_fewer_axes_is_refused():
    with pytest.raises(ValueError, match="'stacked:2' for 'fc/kernel' of shape .*'stacked:1'"):
        plan(shaped("fc/kernel 8 5"), kinds={"fc/*": "stacked:2"})


# What only looks like a stack.

NO_STACKS = {
    "dense": (["fc/kernel 64 64", "fc/bias 64"], "dense", (64, 64)),
    "convolution, 1-D": (["conv/kernel 3 64 64", "conv/bias 64"], "conv", (3, 64, 64)),
    "convolution of torch": (["a.weight 64 64 3", "a.bias 64"], "conv", (3, 64, 64)),
    "convolution and norm": (["conv/kernel 3 8 8", "bn/scale 8"], "conv", (3, 8, 8)),
    "heads": (["query/kernel 4 4 2", "query/bias 4 2"], "attention", (4, 8)),
    "a norm of two axes": (
        ["conv/kernel 4 4 2 8", "ln/scale 4 4", "fc/kernel 8 4", "fc/bias 4"],
        "conv",
        (16, 2, 8),
    ),
    "norms of heads": (["query/kernel 8 2 4", "q_norm/scale 2 4"], "attention", (8, 8)),
    "GRU of Keras": (
        ["gru/kernel 3 15", "gru/recurrent_kernel 5 15", "gru/bias 2 15"],
        "recurrent",
        (3, 5),
    ),
}


@pytest.mark.parametrize("lines, kind, shape", NO_STACKS.values(), ids=NO_STACKS)
def test_a_layer_is_no_stack(lines, kind, shape):
    view = plan(shaped(*lines)).views[0]
    assert (view.kind, view.shape, view.at) == (kind, shape, ())


# All who use a plan.


def scanned(width=64, count=3):
    """Transformer layers as ``nnx.vmap`` stacks them, each with a scale of its own."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs):
        return nnx.Linear(width, width, rngs=rngs)

    state = nnx.to_pure_dict(nnx.state(make(nnx.Rngs(0)), nnx.Param))
    return jax.tree.map(
        lambda x: x * jnp.arange(1, count + 1).reshape(-1, *[1] * (x.ndim - 1)), state
    )


def test_the_layers_of_flax_are_named_by_their_number():
    params = scanned()
    found = matrices(params)
    assert list(found) == ["kernel:0", "kernel:1", "kernel:2"]
    np.testing.assert_array_equal(found["kernel:2"].matrix, params["kernel"][2])
    assert tails.layer_metrics(params)["name"] == list(found)


def test_an_analysis_has_a_row_per_layer():
    params = scanned()
    table = analyze(params)
    largest = [
        np.linalg.norm(kernel, 2) ** 2 for kernel in np.asarray(params["kernel"], np.float64)
    ]
    np.testing.assert_allclose(table["spectral_norm"], largest, rtol=1e-6)


def test_every_layer_of_a_stack_learns_at_its_own_rate():
    params = scanned() | {"other": {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}}
    balance = optim.temp_balance("linear", metric=jnp.max, refresh_every=1, low=0.5, high=1.5)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, state = balance.update(ones, balance.init(params), params)
    for index in range(3):
        for leaf in ("kernel", "bias"):
            np.testing.assert_array_equal(updates[leaf][index], state.scales[f"kernel:{index}"])
    assert len(set(map(float, state.scales.values()))) == 4


def test_every_layer_of_a_stack_is_pruned_by_itself():
    params, policy = scanned(), prune.Policy(keep_below=0.0)
    pruned, report = jax.jit(lambda p: prune.prune_spectra(p, policy))(params)
    assert list(report) == ["kernel:0", "kernel:1", "kernel:2"]
    for index in range(3):
        alone, _ = prune.prune_spectra({"kernel": params["kernel"][index]}, policy)
        np.testing.assert_allclose(pruned["kernel"][index], alone["kernel"], rtol=1e-4, atol=1e-5)
    only = prune.prune_spectra(params, {"kernel:1": policy}).params
    np.testing.assert_array_equal(only["kernel"][0], params["kernel"][0])
    np.testing.assert_array_equal(only["bias"], params["bias"])


def test_a_stack_goes_through_the_compiled_step_of_svd_prune():
    params = scanned()
    tx = optax.chain(optax.sgd(0.0), prune.svd_prune(prune.Policy(), steps_per_epoch=1, every=1))
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["kernel"].shape == params["kernel"].shape
    assert list(state[-1].report) == ["kernel:0", "kernel:1", "kernel:2"]


def test_weights_are_removed_layer_by_layer():
    params = scanned()
    by_layer = prune.prune_weights(params, {"kernel:0": 0.5, "kernel:2": 0.25})["kernel"]
    assert [int((layer == 0).sum()) for layer in by_layer] == [2048, 0, 1024]
    whole = prune.prune_weights(params, {"kernel": 0.5})[
        "kernel"
    ]  # the layers are of different scales
    assert [int((layer == 0).sum()) for layer in whole] == [2048] * 3


def test_a_stack_of_numpy_loses_the_same_weights():
    params = scanned()
    found = prune.prune_weights(jax.tree.map(np.asarray, params), {"kernel:1": 0.5})
    expected = prune.prune_weights(params, {"kernel:1": 0.5})
    np.testing.assert_array_equal(found["kernel"], expected["kernel"])


@pytest.mark.parametrize("name", ["kernel", "kernel:1"])
def test_a_stack_is_not_factored_as_a_convolution(name):
    with pytest.raises(ValueError, match=f"ranks: '{name}' is a stack"):
        prune.factorize(scanned(), {name: 2})


def test_compress_copies_a_stack_and_says_so():
    params = scanned()
    done = compress(params, rank="energy=0.5")
    np.testing.assert_array_equal(done.tensors["kernel"], params["kernel"])
    assert "stack of" in done.rows[0]["reason"]


def test_a_graph_goes_through_the_layers_of_a_stack():
    params = scanned()
    blocks = layout(params)
    assert [block.path for block in blocks] == ["kernel:0", "kernel:1", "kernel:2"]
    for index, weight in enumerate(graph_weights(params, blocks)):
        np.testing.assert_array_equal(weight, params["kernel"][index])


def test_a_convolution_that_shares_no_weights_is_a_matrix_at_every_position():
    found = plan({"ConvLocal_0/kernel": (5, 6, 18, 4), "ConvLocal_0/bias": (5, 6, 4)}).views
    assert {(view.kind, view.shape) for view in found} == {("dense", (18, 4))}
    assert len(found) == 30 and found[7].name == "ConvLocal_0/kernel:1:1"
