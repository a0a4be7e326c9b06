"""Strengths that move, and parameters of any dtype: what every transformation makes of them."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax.optim import (
    METRICS,
    Penalty,
    alpha_decay,
    alpha_pruning,
    fiedler_decay,
    spectral_penalty,
    temp_balance,
)
from spectral_jax.prune import (
    Policy,
    factorize,
    halve,
    prune_spectra,
    prune_weights,
    recombine,
    reconstruction_error,
    shrink,
    sparsegpt,
    split,
    svd_prune,
    truncate,
)
from tests.test_optim import first_update, nothing

pytestmark = pytest.mark.usefixtures("quick_compilation")
RAMP = lambda step: 0.5 * step  # noqa: E731


def network(dtype="float32"):
    rng = np.random.default_rng(0)
    return {
        str(layer): {
            "kernel": jnp.asarray(rng.normal(size=shape), dtype),
            "bias": jnp.ones(shape[1], dtype),
        }
        for layer, shape in enumerate([(12, 10), (10, 8)])
    }


def pulls(transformation, steps=4):
    """The size of what each of several updates adds, in units of the first of strength 1."""
    params = network()
    step, state, found = jax.jit(transformation.update), transformation.init(params), []
    for _ in range(steps):
        updates, state = step(nothing(params), state, params)
        found.append(float(jnp.linalg.norm(updates["0"]["kernel"])))
    return np.asarray(found)


SPECTRAL_NORMS = Penalty(lambda w, _: sum(jnp.linalg.norm(block, 2) for block in w))
MADE = {
    "spectral_penalty": (partial(spectral_penalty, "l1"), "strength"),
    "spectral_penalty, on matrices": (partial(spectral_penalty, SPECTRAL_NORMS), "strength"),
    "fiedler_decay": (fiedler_decay, "delta"),
}


@cache
def unit_pull(made):
    return pulls(MADE[made][0](1.0))[0]


@pytest.mark.parametrize("made", MADE)
def test_a_strength_may_be_a_schedule_of_the_updates_done(made):
    pulled = pulls(MADE[made][0](RAMP))
    np.testing.assert_allclose(pulled / unit_pull(made), [0, 0.5, 1.0, 1.5], rtol=1e-5)


@pytest.mark.parametrize("made", MADE)
def test_optax_injects_a_scheduled_strength(made):
    make, name = MADE[made]
    pulled = pulls(optax.inject_hyperparams(make)(**{name: RAMP}))
    np.testing.assert_allclose(pulled / unit_pull(made), [0, 0.5, 1.0, 1.5], rtol=1e-5)


def test_an_injected_strength_can_be_set_between_updates():
    params = network()
    tx = optax.inject_hyperparams(spectral_penalty)("l1", 1.0)
    state, step = tx.init(params), jax.jit(tx.update)
    for strength in (2.0, 5.0):
        state.hyperparams["strength"] = jnp.asarray(strength)
        updates, state = step(nothing(params), state, params)
        np.testing.assert_allclose(np.abs(updates["0"]["kernel"]), strength)
        assert state.inner_state.strength == strength


def test_what_is_no_number_survives_the_injection():
    """Optax would take a view for a schedule, and trace the integers."""
    params = network()
    view = lambda p: (p["1"]["kernel"],)  # noqa: E731
    tx = optax.inject_hyperparams(spectral_penalty)("fiedler", RAMP, view=view, k=2, tol=1e-3)
    updates, state = first_update(tx, params)
    assert set(state.hyperparams) == {"strength"}
    assert state.inner_state.penalty.values.shape == (2,)
    assert not updates["0"]["kernel"].any()


def test_a_sweep_over_strengths_compiles_once():
    params, strengths = network(), jnp.array([0.0, 0.5, 2.0])

    @jax.jit
    @jax.vmap
    def one_step(strength):
        tx = fiedler_decay(strength)
        return tx.update(nothing(params), tx.init(params), params)[0]["0"]["kernel"]

    swept, again = one_step(strengths), one_step(2 * strengths)
    assert one_step._cache_size() == 1
    np.testing.assert_allclose(again, 2 * swept, rtol=1e-6)
    alone, _ = first_update(fiedler_decay(0.5), params)
    np.testing.assert_allclose(swept[1], alone["0"]["kernel"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -1.0, jnp.asarray(-1.0)])
@pytest.mark.parametrize("made", MADE)
def test_a_strength_that_is_none_is_refused_by_name(made, strength):
    make, name = MADE[made]
    with pytest.raises(ValueError, match=f"{name}=.*choose a finite number >= 0, or a schedule"):
        make(strength)


# Each mode and each type once: neither knows of the other.
@pytest.mark.parametrize("mode, dtype", [("penalty", "bfloat16"), ("proximal", "float16")])
@pytest.mark.parametrize("made", MADE)
def test_half_precision_is_computed_in_float32_and_handed_back(made, mode, dtype):
    make, _ = MADE[made]
    prox = {"prox": lambda w, size, _: [x / (1 + size) for x in w]}
    if "matrices" in made:
        make = partial(spectral_penalty, SPECTRAL_NORMS._replace(**prox))
    penalty = make(0.7, mode=mode, learning_rate=0.1)
    params = network(dtype)
    updates, state = first_update(penalty, params)
    exact, _ = first_update(penalty, jax.tree.map(lambda p: p.astype("float32"), params))
    jax.tree.map(lambda u, e: np.testing.assert_array_equal(u, e.astype(u.dtype)), updates, exact)
    assert {str(u.dtype) for u in jax.tree.leaves(updates)} == {dtype}
    assert state.strength.dtype == "float32"


def mixed():
    """Half-precision kernels, float32 biases, a step count, a table of tokens, a None."""
    params = network("bfloat16")
    params["1"]["bias"] = params["1"]["bias"].astype("float32")
    return (
        params
        | {"steps": jnp.zeros((), jnp.int32), "tokens": jnp.ones((3, 4), jnp.int32)}
        | {"absent": None}
    )


@pytest.mark.parametrize("made", MADE)
def test_mixed_trees_keep_their_dtypes_in_a_scan(made):
    make, _ = MADE[made]
    params, penalty = mixed(), make(0.7)

    def step(carry, _):
        updates, state = penalty.update(nothing(params), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    (after, _), _ = jax.lax.scan(step, (params, penalty.init(params)), length=3)
    assert jax.tree.map(lambda p: p.dtype, after) == jax.tree.map(lambda p: p.dtype, params)
    for name in ("steps", "tokens"):
        np.testing.assert_array_equal(after[name], params[name])
    assert (after["0"]["kernel"] != params["0"]["kernel"]).any()


# What steers, prunes and decays


def corner(matrix):
    return jnp.ravel(matrix)[0]


STEERED = dict(metric=corner, refresh_every=1, min_eigenvalues=2)


def kernels(dtype="float32"):
    """Two kernels whose corners, 2 and 4, are taken for alphas: a map has both its ends."""
    params = network(dtype)
    for layer, alpha in (("0", 2), ("1", 4)):
        params[layer]["kernel"] = params[layer]["kernel"].at[0, 0].set(alpha)
    return params


def test_a_scheduled_weight_decay_moves_with_and_without_optax():
    params = kernels()
    make = partial(alpha_decay, assignment="linear", **STEERED)
    for tx in (make(RAMP), optax.inject_hyperparams(make)(weight_decay=RAMP)):
        state, step, found = tx.init(params), jax.jit(tx.update), []
        for _ in range(3):
            updates, state = step(nothing(params), state, params)
            found.append(float(updates["1"]["kernel"][0, 0] / 4))
        np.testing.assert_allclose(found, [0, 0.5 * 1.5, 1.0 * 1.5], rtol=1e-6)


def test_the_levels_of_a_balance_may_be_schedules():
    params, rise = kernels(), lambda step: 1.0 + step
    make = partial(temp_balance, "linear", **STEERED)
    for tx in (make(high=rise), optax.inject_hyperparams(make)(high=rise)):
        state, step, found = tx.init(params), jax.jit(tx.update), []
        for _ in range(3):
            updates, state = step(params, state, params)
            found.append(float(updates["1"]["kernel"][0, 0] / 4))
        np.testing.assert_allclose(found, [1, 2, 3])


def test_by_default_near_equal_alphas_get_near_equal_rates():
    """A min-max map would make a half and one and a half of any difference."""
    params = kernels()
    params["1"]["kernel"] = params["1"]["kernel"].at[0, 0].set(2.001)
    updates, _ = first_update(temp_balance(**STEERED), params, params)
    for name, layer in params.items():
        np.testing.assert_allclose(updates[name]["kernel"], layer["kernel"], rtol=2e-2)
    default, _ = first_update(alpha_decay(1.0, **STEERED), params)
    np.testing.assert_allclose(default["1"]["kernel"], params["1"]["kernel"], rtol=2e-2)


TRANSFORMED = {
    "temp_balance": lambda: temp_balance("linear", **STEERED),
    "alpha_decay": lambda: alpha_decay(0.1, "linear", **STEERED),
    "svd_prune": lambda: svd_prune(Policy(keep_below=0.5), steps_per_epoch=1, every=1),
}


@pytest.mark.parametrize("made", TRANSFORMED)
def test_the_others_too_compute_in_float32_and_keep_dtypes_in_a_scan(made):
    params, tx = mixed(), TRANSFORMED[made]()
    gradient = jax.tree.map(lambda p: (p / 8).astype(p.dtype), params)
    once, _ = first_update(tx, params, gradient)
    wide = lambda tree: jax.tree.map(lambda x: x.astype("float32"), tree["0"])  # noqa: E731
    exact, _ = first_update(
        tx,
        {"0": wide(params), "1": wide({"0": params["1"]})},
        {"0": wide(gradient), "1": wide({"0": gradient["1"]})},
    )
    for name in ("0", "1"):
        jax.tree.map(
            lambda u, e: np.testing.assert_array_equal(u, e.astype(u.dtype)),
            once[name],
            exact[name],
        )

    def step(carry, _):
        updates, state = tx.update(gradient, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=2)
    assert jax.tree.map(lambda p: p.dtype, after) == jax.tree.map(lambda p: p.dtype, params)
    np.testing.assert_array_equal(after["tokens"], params["tokens"])


@pytest.mark.parametrize("name", ["low", "high"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_levels_that_are_none_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*choose a finite number >= 0"):
        temp_balance("linear", **STEERED, **{name: value})
    with pytest.raises(ValueError, match="weight_decay=.*choose a finite number >= 0"):
        alpha_decay(value, **STEERED)


# At any scale


SCALES = [1e-30, 1e-12, 1e12, 1e30]


@pytest.mark.parametrize("name", ["hill", "farms", "debiased"])
def test_exponents_have_no_scale(name):
    matrix, metric = network()["0"]["kernel"], jax.jit(METRICS[name]())
    expected = float(metric(matrix))
    for scale in SCALES:
        assert float(metric(scale * matrix)) == pytest.approx(expected, rel=1e-4)


def test_pruning_and_surgery_follow_the_scale_of_the_matrix():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(60, 40)), "float32")
    edits = {
        "truncate": lambda w, s: truncate(w, 5),
        "split": lambda w, s: recombine(split(w, 5)),
        "halve": lambda w, s: halve(w, 9 * s),
        "shrink": lambda w, s: shrink(w, 0.5 * s),
        "prune_spectra": lambda w, s: prune_spectra({"kernel": w}, Policy()).params["kernel"],
    }
    for name, edit in edits.items():
        edit, size = jax.jit(edit), np.abs(w).max()
        expected = np.asarray(edit(w, 1.0))
        assert np.abs(expected - w).max() > 0.1, name
        for scale in SCALES:
            found = np.asarray(edit(w * scale, scale)) / scale
            np.testing.assert_allclose(found, expected, atol=1e-5 * size, err_msg=name)


def test_sparsities_are_numbers_whatever_the_size_of_the_alphas():
    sizes = jnp.array([1.0, 2.0, 3.0])
    expected = alpha_pruning(jnp.array([1.0, 2.0, 3.0]), sizes, 0.5).ratios
    for scale in (1e-30, 1e30, 1.1e38):
        alphas = scale * jnp.array([1.0, 2.0, 3.0])
        for found in (
            alpha_pruning(alphas, sizes, 0.5).ratios,
            alpha_pruning(alphas, scale * sizes, 0.5).ratios,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_complex_matrices_are_refused_by_name():
    w = jnp.ones((8, 6), jnp.complex64)
    inputs = jnp.ones((4, 8))
    for call in (
        lambda: truncate(w, 2),
        lambda: halve(w, 1.0),
        lambda: shrink(w, 1.0),
        lambda: split(w, 2),
        lambda: factorize({"fc": {"kernel": w}}, {"fc/kernel": 2}),
        lambda: sparsegpt(w, inputs, 0.5),
        lambda: reconstruction_error(w, w, inputs),
    ):
        with pytest.raises(ValueError, match="complex dtype complex64: pass real matrices"):
            call()


@pytest.mark.parametrize("rank", [True, 2.0, 0.5, -1])
def test_a_rank_that_is_no_count_is_refused_by_name(rank):
    for edit in (truncate, split):
        with pytest.raises(ValueError, match=f"rank={rank}: "):
            edit(jnp.ones((8, 6)), rank)


def test_the_numbers_of_a_pruning_policy_may_be_swept():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(40, 30)), "float32")

    @jax.jit
    @jax.vmap
    def ranks(keep_below):
        policy = Policy(keep_below=keep_below, gate=jnp.ones(()))
        return prune_spectra({"kernel": w}, policy).report["kernel"].rank

    assert ranks(jnp.array([0.0, 0.5, 1.0])).tolist() == [1, 15, 30]
    assert Policy(keep_below=0.5) == Policy(keep_below=0.5) != Policy(keep_below=0.4)


@pytest.mark.parametrize("sparsity", [float("nan"), 1.5, -0.1])
def test_a_sparsity_that_is_no_share_is_refused_by_name(sparsity):
    params, inputs = network(), {"0/kernel": jnp.ones((4, 12))}
    for method in ("magnitude", "wanda", "sparsegpt"):
        with pytest.raises(ValueError, match=f"sparsity={sparsity} is a share"):
            prune_weights(params, {"0/kernel": sparsity}, method=method, inputs=inputs)


@pytest.mark.parametrize("made", [*MADE, *TRANSFORMED])
def test_an_empty_network_is_refused_by_name(made):
    tx = MADE[made][0](0.5) if made in MADE else TRANSFORMED[made]()
    with pytest.raises(ValueError, match="no leaf with two or more axes|names no layer"):
        tx.init({})


ALL = {"fiedler_decay": lambda: fiedler_decay(0.5), **TRANSFORMED}


@pytest.mark.parametrize("made", ALL)
def test_masked_leaves_are_let_be_and_the_others_are_as_if_alone(made):
    params, gradient = kernels(), jax.tree.map(jnp.ones_like, kernels())
    only_kernels = {name: {"kernel": layer["kernel"]} for name, layer in params.items()}
    alone, _ = first_update(ALL[made](), only_kernels, jax.tree.map(jnp.ones_like, only_kernels))
    mask = {name: {"kernel": True, "bias": False} for name in params}
    labels = jax.tree.map(lambda ours: "ours" if ours else "rest", mask)
    for tx in (
        optax.masked(ALL[made](), mask),
        optax.partition({"ours": ALL[made](), "rest": optax.identity()}, labels),
    ):
        updates, _ = first_update(tx, params, gradient)
        for name in params:
            np.testing.assert_allclose(updates[name]["kernel"], alone[name]["kernel"], atol=1e-5)
            np.testing.assert_array_equal(updates[name]["bias"], gradient[name]["bias"])


@pytest.mark.parametrize("made", ALL)
def test_accumulated_gradients_make_the_steps_of_their_mean(made):
    params, gradient = kernels(), jax.tree.map(jnp.ones_like, kernels())

    def trained(tx, steps):
        def step(carry, _):
            updates, state = tx.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[0][0])(params)

    chain = lambda: optax.chain(ALL[made](), optax.sgd(0.1))  # noqa: E731
    chex.assert_trees_all_close(
        trained(optax.MultiSteps(chain(), 2), 4), trained(chain(), 2), atol=1e-5
    )
