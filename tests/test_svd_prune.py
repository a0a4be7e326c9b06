"""Pruning finds the planted spikes, touches what its policy names, and can be taken back."""

import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectral_jax.optim.temp_balance import temp_balance
from spectral_jax.prune import surgery
from spectral_jax.prune.factoring import attempt, kept_ranks
from spectral_jax.prune.policies import Policy, every_epochs, linear_keep, on_plateau
from spectral_jax.prune.spectra import PruneStatus, prune_spectra, svd_prune

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


class Edges(NamedTuple):
    variance: jax.Array
    edge: jax.Array
    spikes: jax.Array
    ks: jax.Array


def edge_at(value, *, ks=0.05, noise=0.1):
    """A fit that finds the edge at a given singular value whatever it sees."""

    def fit(eigenvalues, shape):
        edge = jnp.full((), value**2 / max(shape))
        spikes = jnp.sum(eigenvalues > edge)
        return Edges(jnp.full((), noise**2), edge, spikes, jnp.full((), ks))

    return fit


@jax.jit
def truncate(w, rank):
    return surgery.truncate(w, rank)


TRUNCATE = Policy()


@cache
def program(policy, **options):
    return jax.jit(partial(prune_spectra, policies=policy, **options))


def prune(params, policy=TRUNCATE, **options):
    return program(policy, **options)(params)


def matrix(params, name):
    for part in name.split("/"):
        params = params[part]
    return np.asarray(params).reshape(-1, params.shape[-1])


def singular_values(w):
    return np.linalg.svd(w, compute_uv=False)


@pytest.fixture(scope="module")
def truncated():
    return prune(PARAMS)


# Which layers, and how


def test_planted_spikes_are_found_and_all_else_is_cut(truncated):
    ranks = {name: int(row.rank) for name, row in truncated.report.items()}
    assert ranks == {"conv/kernel": 2, "layers/0/kernel": 3, "layers/1/kernel": 1}
    for name, rank in ranks.items():
        expected = truncate(matrix(PARAMS, name), rank)
        np.testing.assert_allclose(matrix(truncated.params, name), expected, atol=1e-5)
        assert float(truncated.report[name].sigma) == pytest.approx(0.1, rel=0.06)
    np.testing.assert_array_equal(truncated.params["norm"]["scale"], 1)


def test_a_glob_names_the_layers_and_the_first_match_wins():
    policies = {"layers/0/*": Policy(edit="halve"), "layers/*": Policy()}
    pruned, report = jax.jit(partial(prune_spectra, policies=policies))(PARAMS)
    assert list(report) == KERNELS[1:]
    np.testing.assert_array_equal(pruned["conv"]["kernel"], PARAMS["conv"]["kernel"])
    assert int(report["layers/0/kernel"].rank) == 40 and int(report["layers/1/kernel"].rank) == 1


def test_a_glob_that_names_no_layer_is_refused():
    with pytest.raises(ValueError, match=r"'layer/\*' names no layer; the layers are conv/"):
        prune_spectra(PARAMS, {"layer/*": Policy()})
    with pytest.raises(ValueError, match="'norm/scale' names no layer"):
        prune_spectra(PARAMS, {"norm/scale": Policy()})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gate": 1.5}, "gate=1.5"),
        ({"gate": -0.1}, "gate=-0.1"),
        ({"gate": math.nan}, "gate=nan"),
        ({"keep_below": 45}, "keep_below=45"),
        ({"edit": "trunkate"}, "edit='trunkate'"),
        ({"keep_below": "half"}, "keep_below='half': choose a number"),
        ({"min_rank": -1}, "min_rank=-1"),
        ({"keep_offset": 0.5}, "keep_offset=0.5 is not an integer"),
        ({"threshold": -1}, "threshold=-1"),
    ],
)
def test_a_policy_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Policy(**options)


@pytest.mark.parametrize(
    "policy, expected",
    [
        (Policy(keep_below=0.45), lambda w, edge: surgery.truncate(w, 3 + int(0.45 * 37))),
        (Policy(keep_below=0.45, keep_offset=1), lambda w, edge: surgery.truncate(w, 4 + 16)),
        (Policy(edit="halve"), surgery.halve),
        (Policy(edit="shrink"), lambda w, edge: surgery.shrink(w, 0.1)),
        (Policy(edit="sparsify", threshold=0.1), lambda w, edge: surgery.sparsify(w, edge, 0.1)),
        (
            Policy(edit="sparsify_vectors", threshold=0.3),
            lambda w, edge: surgery.sparsify_vectors(w, edge, 0.3),
        ),
    ],
)
def test_each_edit_is_the_function_of_its_name(policy, expected):
    w = PARAMS["layers"]["0"]["kernel"]
    pruned, report = prune({"kernel": w}, policy, fit=edge_at(1.6))
    np.testing.assert_allclose(pruned["kernel"], expected(w, 1.6), atol=1e-5)
    left = np.sum(singular_values(pruned["kernel"]) > 1e-3)
    assert int(report["kernel"].rank) == left


def test_a_random_subset_needs_a_key_and_follows_it():
    policy, kernel = Policy(edit="random", keep_below=0.5), {"kernel": spiked(48, 40, 3)}
    with pytest.raises(ValueError, match="key"):
        prune_spectra(kernel, policy)
    draw = jax.jit(lambda key: prune_spectra(kernel, policy, key=key).params)
    drawn = [draw(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0]["kernel"], drawn[1]["kernel"])
    assert np.abs(drawn[0]["kernel"] - drawn[2]["kernel"]).max() > 0.01
    s = singular_values(drawn[0]["kernel"])
    assert np.sum(s > 1e-3) == 3 + int(0.5 * 37)
    np.testing.assert_allclose(s[:3], singular_values(kernel["kernel"])[:3], rtol=1e-4)


def test_the_share_kept_may_follow_the_epoch_inside_a_program():
    policy = Policy(keep_below=linear_keep(10))
    run = jax.jit(lambda epoch: prune_spectra(PARAMS, policy, epoch=epoch).report)
    ranks = [int(run(jnp.float32(epoch))["layers/0/kernel"].rank) for epoch in (0, 5, 10, 20)]
    assert ranks == [40, 3 + 18, 3, 3]


# Layers that are left alone


def test_a_closed_gate_leaves_the_layer_as_it_was():
    pruned, report = prune(PARAMS, Policy(gate=0.1), fit=edge_at(1.6, ks=0.11))
    for name in KERNELS:
        np.testing.assert_array_equal(matrix(pruned, name), matrix(PARAMS, name))
        assert int(report[name].status) == PruneStatus.GATE_CLOSED
    assert kept_ranks(report) == {}
    _, report = prune(PARAMS, Policy(gate=0.11 + 1e-6), fit=edge_at(1.6, ks=0.11))
    assert kept_ranks(report)


@pytest.mark.parametrize(
    "kernel",
    [
        jnp.full((30, 20), jnp.nan),
        jnp.zeros((30, 20)).at[0, 0].set(jnp.inf),
        jnp.zeros((30, 20)),
        jnp.ones((30, 1)),
    ],
    ids=["nan", "inf", "zero", "tiny"],
)
def test_a_layer_without_a_fit_stays_and_does_not_touch_its_batch(kernel):
    beside = spiked(*kernel.shape, 1)
    pruned, report = prune({"a": {"kernel": kernel}, "b": {"kernel": beside}}, Policy())
    np.testing.assert_array_equal(pruned["a"]["kernel"], kernel)
    assert int(report["a/kernel"].status) == PruneStatus.NO_FIT
    assert np.isfinite(pruned["b"]["kernel"]).all()


def test_what_a_cut_at_the_edge_has_left_is_not_cut_again(truncated):
    again, report = prune(truncated.params, Policy())
    for name in KERNELS:
        np.testing.assert_array_equal(matrix(again, name), matrix(truncated.params, name))
        assert int(report[name].status) == PruneStatus.NO_NOISE


def test_a_cut_that_keeps_noise_passes_the_gate_again_and_keeps_the_same():
    policy, kernel = Policy(keep_below=0.45, gate=0.1), {"kernel": spiked(48, 40, 3)}
    once, first = prune(kernel, policy)
    twice, second = prune(once, policy)
    assert int(first["kernel"].rank) == int(second["kernel"].rank) == 3 + int(0.45 * 37)
    assert int(second["kernel"].status) == PruneStatus.PRUNED
    np.testing.assert_allclose(twice["kernel"], once["kernel"], atol=1e-5)


def test_a_layer_of_noise_keeps_its_least_rank():
    kernel = {"kernel": 0.1 * jax.random.normal(jax.random.key(0), (60, 40))}
    for edit in ("truncate", "shrink"):
        policy = Policy(edit=edit, min_rank=2)
        pruned, report = prune(kernel, policy, fit=edge_at(5.0, noise=1.0))
        assert int(report["kernel"].rank) == np.linalg.matrix_rank(pruned["kernel"], tol=1e-3) == 2
    pruned, report = prune(kernel, Policy(min_rank=0), fit=edge_at(5.0))
    np.testing.assert_array_equal(pruned["kernel"], 0)
    assert int(report["kernel"].rank) == 0


# In the compiled step


@pytest.fixture(scope="module")
def training():
    """Three steps of momentum with an event after the second; and the same without the event."""
    grads = jax.tree.map(lambda x: 1e-3 * jnp.ones_like(x), PARAMS)
    chained = optax.chain(
        optax.sgd(0.1, momentum=0.9), svd_prune(Policy(), steps_per_epoch=2, every=1)
    )

    def run(optimizer):
        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        trace = [(PARAMS, optimizer.init(PARAMS))]
        for _ in range(3):
            trace.append(step(*trace[-1]))
        return trace

    return run(chained), run(optax.sgd(0.1, momentum=0.9))


def test_only_the_steps_that_end_a_period_prune(training):
    pruned, plain = training
    for name in KERNELS:
        np.testing.assert_array_equal(matrix(pruned[1][0], name), matrix(plain[1][0], name))
    after = prune(plain[2][0], Policy()).params
    for name in KERNELS:
        np.testing.assert_allclose(matrix(pruned[2][0], name), matrix(after, name), atol=1e-5)


def test_momentum_is_carried_and_the_report_kept(training):
    pruned, plain = training
    momentum = pruned[3][1][0], plain[3][1]
    for a, b in zip(*map(jax.tree.leaves, momentum), strict=True):
        np.testing.assert_array_equal(a, b)
    reports = [trace[1][1].report["layers/0/kernel"] for trace in pruned]
    assert np.isnan(reports[0].sigma) and np.isnan(reports[1].sigma)
    assert int(reports[2].rank) == int(reports[3].rank) == 3


def test_seeds_are_pruned_side_by_side():
    stacked = {"kernel": jnp.stack([spiked(48, 40, 3), spiked(48, 40, 1, seed=1)])}
    transform = svd_prune(Policy(), steps_per_epoch=1, every=1)
    state = jax.vmap(transform.init)(stacked)
    nothing = jax.tree.map(jnp.zeros_like, stacked)
    update = jax.jit(jax.vmap(transform.update))
    updates, state = update(nothing, state, stacked)
    np.testing.assert_array_equal(state.report["kernel"].rank, [3, 1])
    for seed in range(2):
        expected = truncate(stacked["kernel"][seed], (3, 1)[seed])
        found = (stacked["kernel"] + updates["kernel"])[seed]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_between_events_no_spectrum_is_computed_under_vmap_either():
    ran = []

    def fit(eigenvalues, shape):
        jax.debug.callback(lambda _: ran.append(1), eigenvalues)
        return edge_at(2.0)(eigenvalues, shape)

    transform = svd_prune(Policy(), steps_per_epoch=2, every=1, fit=fit)
    stacked = {"kernel": jnp.stack([spiked(12, 10, 1), spiked(12, 10, 1, seed=1)])}

    def four_steps(params):
        step = lambda state, _: (transform.update(params, state, params)[1], None)  # noqa: E731
        return jax.lax.scan(step, transform.init(params), length=4)[0]

    jax.block_until_ready(jax.jit(jax.vmap(four_steps))(stacked))
    jax.effects_barrier()
    assert len(ran) == 2 * 2, "two seeds, at the ends of two epochs"


def test_the_transformation_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="every=0"):
        svd_prune(Policy(), steps_per_epoch=1, every=0)
    transform = svd_prune(Policy(), steps_per_epoch=1, every=1)
    with pytest.raises(ValueError, match="params are pruned"):
        transform.update(PARAMS, transform.init(PARAMS))


# When, and whether it stands


def test_triggers_fire_by_epoch_or_when_the_validation_error_stalls():
    assert [e for e in range(7) if every_epochs(3)(e, [])] == [3, 6]
    assert [e for e in range(7) if every_epochs(3, at_start=True)(e, [])] == [0, 3, 6]
    stalled = on_plateau(2, least_gain=0.01)
    errors = [0.5, 0.4, 0.395, 0.396, 0.3]
    assert [stalled(n, errors[:n]) for n in range(6)] == [False] * 4 + [True, False]
    for make in (every_epochs, on_plateau):
        with pytest.raises(ValueError, match="at least 1"):
            make(0)
    with pytest.raises(ValueError, match="epochs=0"):
        linear_keep(0)


@pytest.mark.parametrize(
    "after, accepted", [(0.95, True), (0.8, True), (0.79, False), (math.nan, False)]
)
def test_a_change_that_costs_more_than_allowed_is_taken_back(after, accepted):
    result = attempt("old", lambda _: "new", {"old": 0.9, "new": after}.get, max_drop=0.1)
    assert result.accepted == accepted
    assert result.state == ("new" if accepted else "old")
    with pytest.raises(ValueError, match="max_drop=-1"):
        attempt("old", str, len, max_drop=-1)


def test_nnx_optimizer_runs_it_beside_the_layer_wise_learning_rates():
    layers = [nnx.Linear(40, 60, rngs=nnx.Rngs(0)), nnx.Linear(60, 10, rngs=nnx.Rngs(1))]
    model = nnx.Sequential(*layers)
    balance = temp_balance("linear", metric=jnp.max, refresh_every=1, min_eigenvalues=1)
    prune = svd_prune({"layers/0/*": Policy()}, steps_per_epoch=2, every=1)
    chain = optax.chain(optax.sgd(0.1), balance, prune)
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss = nnx.grad(lambda model: jnp.square(model(jnp.ones((3, 40)))).mean())
        optimizer.update(model, loss(model))

    for _ in range(2):
        step(model, optimizer)
    assert list(optimizer.opt_state[-1].report) == ["layers/0/kernel"]
    kept = int(optimizer.opt_state[-1].report["layers/0/kernel"].rank[...])
    assert kept < 40
    assert jnp.linalg.matrix_rank(model.layers[0].kernel[...], rtol=1e-4) == kept


def test_codes_with_a_scale_are_not_pruned_as_if_they_were_the_weights():
    codes = {"kernel": spiked(40, 30, 2).astype(jnp.float8_e4m3fn), "kernel_scale": jnp.ones(30)}
    params = {"codes": codes, "fc": {"kernel": spiked(40, 30, 2)}}
    pruned, report = prune_spectra(params, Policy())
    assert list(report) == ["fc/kernel"]
    np.testing.assert_array_equal(pruned["codes"]["kernel"], codes["kernel"])
