"""A pruned network in factors: the same function, fewer parameters, and what is said of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.timing import latency
from experiments.training.blocks import Trial
from experiments.training.task import OBJECTIVES, Data, Task
from experiments.training.trainer import Trainer
from models import network
from models.factored import factored
from spectral_jax.prune import surgery
from spectral_jax.prune.factoring import carry_moments, factorize, kept_ranks, recombine_all
from spectral_jax.prune.policies import Policy
from spectral_jax.prune.report import (
    dead_classes,
    parameter_count,
    pruning_report,
    report_rows,
)
from spectral_jax.prune.spectra import LayerReport, PruneStatus, prune_spectra

pytestmark = pytest.mark.usefixtures("quick_compilation")


def spiked(m, n, rank, seed=0):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in (m, n))
    signal = 0.4 * (math.sqrt(m) + math.sqrt(n)) * u @ v.T
    return jnp.asarray(signal + 0.1 * rng.standard_normal((m, n)), jnp.float32)


PARAMS = {
    "conv": {"kernel": spiked(36, 24, 2).reshape(3, 3, 4, 24), "bias": jnp.zeros(24)},
    "layers": {
        "0": {"kernel": spiked(48, 40, 3), "bias": jnp.zeros(40)},
        "1": {"kernel": spiked(48, 40, 1, seed=1), "bias": jnp.zeros(40)},
    },
    "norm": {"scale": jnp.ones(40)},
}
KERNELS = ["conv/kernel", "layers/0/kernel", "layers/1/kernel"]


def reported(rank, *, status=PruneStatus.PRUNED, ks=0.05):
    edge = math.nan if status is PruneStatus.NO_FIT else 1.6
    return LayerReport(*map(np.asarray, (0.1, edge, 3, ks, rank, status)))


def matrix(params, name):
    for part in name.split("/"):
        params = params[part]
    return np.asarray(params).reshape(-1, params.shape[-1])


@pytest.fixture(scope="module")
def truncated():
    return jax.jit(lambda params: prune_spectra(params, Policy()))(PARAMS)


# A smaller network


def test_factoring_gives_the_truncated_network_with_fewer_parameters(truncated):
    smaller = factorize(truncated.params, kept_ranks(truncated.report))
    whole = recombine_all(smaller)
    for name in KERNELS:
        np.testing.assert_allclose(matrix(whole, name), matrix(truncated.params, name), atol=1e-5)
    rows = report_rows(truncated.report, PARAMS, smaller)
    saved = sum(row["parameters_before"] - row["parameters_after"] for row in rows)
    assert parameter_count(PARAMS) - saved == parameter_count(smaller)
    assert [row["outcome"] for row in rows] == ["split"] * 3
    assert rows[1]["flops_after"] == 2 * 3 * (48 + 40)


@pytest.mark.parametrize("rank, reason", [(25, "25 x (48 + 40)"), (0, "rank 0 would cut")])
def test_a_layer_that_two_factors_would_not_serve_stays_and_says_why(rank, reason):
    kernel, report = {"kernel": jnp.ones((48, 40))}, {"kernel": reported(rank)}
    smaller = factorize(kernel, kept_ranks(report))
    (row,) = report_rows(report, kernel, smaller)
    assert smaller["kernel"] is kernel["kernel"]
    assert row["outcome"] == "masked" and reason in row["reason"]
    assert row["parameters_after"] == 48 * 40


@pytest.mark.parametrize(
    "status, reason",
    [
        (PruneStatus.GATE_CLOSED, "gate is closed: ks 0.500"),
        (PruneStatus.NO_FIT, "no fit"),
        (PruneStatus.NO_NOISE, "cut before"),
    ],
)
def test_a_layer_that_was_kept_says_why(status, reason):
    kernel, report = {"kernel": jnp.ones((48, 40))}, {"kernel": reported(40, status=status, ks=0.5)}
    assert kept_ranks(report) == {}
    (row,) = report_rows(report, kernel, kernel)
    assert row["outcome"] == "kept" and reason in row["reason"]


def test_factors_are_layers_that_can_be_pruned_and_split_again():
    once = factorize(PARAMS, {"layers/0/kernel": 20})
    report = jax.eval_shape(lambda p: prune_spectra(p, {"layers/0/*": Policy()}).report, once)
    assert list(report) == ["layers/0/kernel/u", "layers/0/kernel/v"]
    twice = factorize(once, {"layers/0/kernel/u": 4, "layers/0/kernel/v": 4})
    assert jax.tree.map(jnp.shape, twice["layers"]["0"]["kernel"], is_leaf=jnp.isscalar) == {
        "u": {"u": (48, 4), "v": (4, 20)},
        "v": {"u": (20, 4), "v": (4, 40)},
    }
    links = jax.eval_shape(lambda p: prune_spectra(p, {"layers/0/*": Policy()}).report, twice)
    assert list(links) == [f"layers/0/kernel/{a}/{b}" for a in "uv" for b in "uv"]
    rows = report_rows(dict.fromkeys(report, reported(4)), once, twice)
    assert [row["parameters_after"] for row in rows] == [4 * 68, 4 * 60]


def test_a_rank_for_no_kernel_is_refused():
    with pytest.raises(ValueError, match="no kernel 'layers/9/kernel'"):
        factorize(PARAMS, {"layers/9/kernel": 2})
    narrow = {"kernel": jnp.ones((9, 8), jnp.float8_e4m3fn), "kernel_scale": jnp.ones(())}
    with pytest.raises(ValueError, match="'kernel' is float8_e4m3fn, too narrow for factors"):
        factorize(narrow, {"kernel": 2})


def test_seeds_share_ranks_and_are_split_side_by_side(truncated):
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), truncated.params)
    ranks = kept_ranks(truncated.report)
    whole = jax.jit(jax.vmap(lambda p: recombine_all(factorize(p, ranks))))(stacked)
    np.testing.assert_allclose(
        whole["layers"]["0"]["kernel"], stacked["layers"]["0"]["kernel"], atol=1e-5
    )


def test_layers_of_a_stack_have_a_row_each():
    stack = {
        "fc": {
            "kernel": jnp.stack([spiked(48, 40, 3), spiked(48, 40, 1)]),
            "bias": jnp.zeros((2, 40)),
        }
    }
    pruned, report = prune_spectra(stack, Policy())
    rows = report_rows(report, stack, pruned)
    assert [row["layer"] for row in rows] == ["fc/kernel:0", "fc/kernel:1"]
    assert {(row["m"], row["n"], row["outcome"], row["parameters_after"]) for row in rows} == {
        (48, 40, "masked", 1920)
    }


# The optimiser's state


def test_momentum_goes_to_the_factors_as_the_gradient_does():
    """One step of SGD on the factors with the carried momentum is the chain rule's."""
    whole = {"kernel": PARAMS["layers"]["0"]["kernel"], "bias": jnp.zeros(40)}
    parts = factorize(whole, {"kernel": 5})
    target = jnp.asarray(np.random.default_rng(0).standard_normal((48, 40)), jnp.float32)

    def loss(params):
        return jnp.sum(surgery.recombine(params["kernel"]) * target) + jnp.sum(params["bias"])

    optimizer = optax.trace(0.9)
    _, state = optimizer.update(jax.grad(loss)(whole), optimizer.init(whole))
    _, expected = optimizer.update(jax.grad(loss)(parts), optimizer.init(parts))
    carried = carry_moments(state, whole, parts)
    for a, b in zip(*map(jax.tree.leaves, (carried, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_second_moments_stay_positive_and_counts_stay_counts():
    whole = {"kernel": spiked(30, 20, 2), "conv": spiked(36, 24, 2).reshape(3, 3, 4, 24)}
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))

    @jax.jit
    def run(whole):
        parts = factorize(whole, {"kernel": 4, "conv": 4})
        _, state = optimizer.update(whole, optimizer.init(whole), whole)
        return state, parts, carry_moments(state, whole, parts)

    state, parts, carried = run(whole)
    fresh = jax.eval_shape(optimizer.init, parts)
    assert jax.tree.structure(carried) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, carried) == jax.tree.map(jnp.shape, fresh)
    moments = carried[1][0]
    assert int(moments.count) == 1
    assert all((np.asarray(x) >= 0).all() for x in jax.tree.leaves(moments.nu))
    nu = np.asarray(state[1][0].nu["kernel"])
    expected = nu @ np.asarray(parts["kernel"]["v"]).T ** 2
    np.testing.assert_allclose(moments.nu["kernel"]["u"], expected, rtol=1e-4)


# Models that run it


@pytest.mark.parametrize(
    "name, shape, options, ranks",
    [
        ("mlp", (8, 8), {"hidden": (40,), "dropout": 0.5}, {"layers/0/kernel": 6}),
        ("lenet", (28, 28, 1), {}, {"convs/1/kernel": 6, "dense/0/kernel": 6}),
    ],
)
def test_a_factored_model_computes_what_the_recombined_one_does(name, shape, options, ranks):
    plain, net = (
        make(name, input_shape=shape, classes=10, **options) for make in (network, factored)
    )
    params, state = net.init(jax.random.key(0))
    x, key = jax.random.normal(jax.random.key(1), (2, *shape)), jax.random.key(2)

    @jax.jit
    def both(params):
        once = factorize(params, ranks)
        twice = factorize(once, {f"{next(iter(ranks))}/u": 3})
        found, _ = net.apply(twice, state, x, train=True, key=key)
        expected, _ = plain.apply(recombine_all(twice), state, x, train=True, key=key)
        return found, expected

    np.testing.assert_allclose(*both(params), atol=1e-5)


def test_a_factored_model_trains_by_its_factors():
    net = factored("mlp", input_shape=(6,), classes=4, hidden=(12,))
    params, state = net.init(jax.random.key(0))
    smaller = factorize(params, {"layers/0/kernel": 2})
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, state, jnp.ones((2, 6)))[0] ** 2)))
    grads = slopes(smaller)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, smaller)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_training_goes_on_where_the_split_was_made():
    """The house's training program, three seeds, momentum carried: one chunk, a split, another."""
    net = factored("mlp", input_shape=(6,), classes=4, hidden=(16,))
    x, shared = (
        jax.random.normal(jax.random.key(0), (32, 6)),
        {"shift": jnp.zeros(()), "scale": 1.0},
    )
    data = {"train": Data({"x": x, "y": jnp.argmax(x[:, :4], axis=1)}, shared)}
    task = Task("toy", net, OBJECTIVES["cross_entropy"], data, "", batch_size=8)
    trainer = Trainer(task, lambda hyper: optax.sgd(0.05, momentum=0.9), axis="vmap")
    losses = []
    note = lambda _, metrics: losses.append(metrics["train/loss"])  # noqa: E731
    state = trainer.train(trainer.start(list(map(Trial, range(3)))), epochs=1, on_chunk=note)

    @jax.jit
    @jax.vmap
    def rebuilt(state):
        smaller = factorize(state.params, {"layers/0/kernel": 4})
        moments = carry_moments(state.opt_state, state.params, smaller)
        return state._replace(params=smaller, opt_state=moments)

    state = trainer.train(rebuilt(state), epochs=1, on_chunk=note)
    assert state.params["layers"]["0"]["kernel"]["u"].shape == (3, 6, 4)
    assert (losses[1] < losses[0]).all()


def test_the_program_of_a_factored_model_has_only_the_thin_products():
    net = factored("mlp", input_shape=(100,), classes=10, hidden=(200,))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    smaller = jax.eval_shape(lambda p: factorize(p, {"layers/0/kernel": 5}), shapes[0])
    x = jax.ShapeDtypeStruct((8, 100), jnp.float32)
    compiled = jax.jit(lambda p, s, x: net.apply(p, s, x)[0]).lower(smaller, shapes[1], x).compile()
    flops = 2 * 8 * (5 * 300 + 200 * 10)
    assert compiled.cost_analysis()["flops"] == pytest.approx(flops, rel=0.1)


def test_a_whole_network_goes_through_unchanged_and_other_leaves_are_refused():
    net = factored("mlp", input_shape=(6,), classes=4, hidden=(12,))
    params, state = net.init(jax.random.key(0))
    x = jnp.ones((2, 6))
    plain = network("mlp", input_shape=(6,), classes=4, hidden=(12,))
    expected, _ = plain.apply(params, state, x)
    np.testing.assert_array_equal(net.apply(params, state, x)[0], expected)
    assert net.layout == plain.layout
    params["layers"]["0"]["bias"] = {"u": jnp.ones((6, 2)), "v": jnp.ones((2, 12))}
    with pytest.raises(ValueError, match="layers/0/bias"):
        net.apply(params, state, x)


# Counting


def chain(*widths):
    """A kernel of factors of the given widths, as shapes."""
    first = jax.ShapeDtypeStruct(widths[:2], jnp.float32)
    return first if len(widths) == 2 else {"u": first, "v": chain(*widths[1:])}


def net_of(*layers):
    return [
        {"kernel": chain(*widths), "bias": jax.ShapeDtypeStruct(widths[-1:], jnp.float32)}
        for widths in layers
    ]


PUBLISHED = {
    "4.3": (
        net_of(
            (784, 367, 176, 89, 54, 35, 3000),
            (3000, 143, 293, 627, 1366, 629, 294, 139, 3000),
            (3000, 71, 124, 241, 500),
            (500, 10),
        ),
        3_881_124,
    ),
    "4.5": (
        net_of(
            (784, 354, 164, 1500),
            (1500, 144, 309, 677, 309, 144, 1500),
            (1500, 107, 228, 500),
            (500, 51, 107, 227, 107, 53, 500),
            (500, 10),
        ),
        1_943_563,
    ),
    "4.7": (
        net_of((784, 361, 3000), (3000, 1359, 3000), (3000, 1359, 3000), (3000, 10)),
        17_716_113,
    ),
}


@pytest.mark.parametrize("example", PUBLISHED)
def test_the_published_networks_have_the_published_numbers_of_parameters(example):
    net, published = PUBLISHED[example]
    assert parameter_count(net, bias_every_factor=True) == published


def test_a_first_factor_has_no_bias_unless_the_paper_counts_one():
    net, _ = PUBLISHED["4.7"]
    assert parameter_count(net) == 17_713_034
    dense = net_of((784, 3000), (3000, 3000), (3000, 500), (500, 10))
    assert parameter_count(dense, bias_every_factor=True) == parameter_count(dense) == 12_863_510


def test_a_class_is_dead_whose_logit_is_never_the_only_largest():
    logits = jax.nn.relu(jnp.array([[-1.0, 3.0, 2.0], [-2.0, -1.0, -3.0], [-1.0, 1.0, 4.0]]))
    np.testing.assert_array_equal(dead_classes(logits), [True, False, False])


def test_the_report_of_a_pruning_has_the_network_before_and_after():
    """A kernel of rank 2 whose third class never wins, split: nothing changes but the cost."""
    rng = np.random.default_rng(0)
    u, x = rng.standard_normal((12, 2)), jnp.asarray(rng.standard_normal((64, 12)), jnp.float32)
    kernel = jnp.asarray(u @ [[1.0, 0.0, 0.5, -1.0], [0.0, 1.0, 0.5, -1.0]], jnp.float32)

    def predict(params, x):
        w = params["kernel"]
        return (x @ w["u"]) @ w["v"] if isinstance(w, dict) else x @ w

    before = {"kernel": kernel}
    after = factorize(before, {"kernel": 2})
    labels = jnp.argmax(predict(before, x), axis=1).at[:16].set(2)
    options = dict(predict=predict, x=x, labels=labels)
    layers, network = pruning_report(
        {"kernel": reported(2)}, before, after, **options, latency=(0.2, 0.1)
    )
    assert layers == report_rows({"kernel": reported(2)}, before, after)
    assert network == {
        "parameters_before": 48,
        "parameters_after": 32,
        "flops_before": 2 * 48,
        "flops_after": 2 * 32,
        "latency_before": 0.2,
        "latency_after": 0.1,
        "accuracy_before": 0.75,
        "accuracy_after": 0.75,
        "dead_classes_before": [2],
        "dead_classes_after": [2],
    }
    broken = {"kernel": kernel.at[0, 1].set(jnp.nan)}
    _, network = pruning_report({}, before, broken, **options)
    assert network["accuracy_after"] == 0 and len(network["dead_classes_after"]) == 4
    assert math.isnan(network["latency_before"])
    with pytest.raises(ValueError, match=r"logits \(64, 4\) for labels \(63,\)"):
        pruning_report({}, before, after, predict=predict, x=x, labels=labels[:-1])


def test_latency_is_that_of_either_network_compiled_once():
    traced = []

    def predict(params, x):
        traced.append(params.shape)
        return x @ params

    times = latency(predict, jnp.ones((3, 2)), jnp.ones((3, 5)), jnp.ones((4, 3)), repeats=2)
    assert traced == [(3, 2), (3, 5)] and min(times) > 0
