"""FARMS: what steers each arm, how settings are chosen, and what the report says of it all."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from experiments.config import (
    BalanceConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from experiments.errors import UserError
from experiments.papers.farms import PAPER, claims, protocols
from experiments.papers.farms.figures import sections
from experiments.papers.farms.studies import bias, llama, llama_weights
from experiments.papers.paper import FRESH, Outcome
from experiments.report.claims import check
from experiments.report.results import Results, merge, of_run
from experiments.report.verdicts import judge_all
from experiments.training.measures.tails import tail_exponents
from experiments.training.optimisers import (
    balance_state,
    hyper_of,
    optimizer_of,
    refuse_what_cannot_balance,
    structure_of,
)
from experiments.training.train import train
from spectral_jax import checkpoints, plots, tails
from spectral_jax.optim import ASSIGNMENTS, METRICS
from spectral_jax.plots import farms as figures

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

WIDTHS = (24, 12, 12, 40)
NET = models.network("mlp", input_shape=(24,), classes=40, hidden=(12, 12))
RATE = 0.1
KERNELS = [f"layers/{i}/kernel" for i in range(3)]


def configured(metric="none", *, balance=None, **optimizer):
    return ExperimentConfig(
        "toy",
        optimizer=OptimizerConfig("sgd", RATE, **{"momentum": 0.0, **optimizer}),
        balance=BalanceConfig(metric, window=8, samples=3, min_eigenvalues=8, **(balance or {})),
        train=TrainConfig(epochs=4),
    )


def optimizer(config, *, steps_per_epoch=5):
    return optimizer_of(structure_of(config), NET, steps_per_epoch)(hyper_of(config))


def initial(*seeds):
    params, _ = jax.vmap(NET.init)(jax.vmap(jax.random.key)(jnp.array(seeds)))
    return params


def steps_of(config, params, count=1):
    """The updates of ``count`` steps along a gradient of ones, and the last state."""
    tx = optimizer(config)

    @jax.jit
    def run(params):
        ones = jax.tree.map(jnp.ones_like, params)

        def step(state, _):
            updates, state = tx.update(ones, state, params)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(params), None, count)
        return updates, state

    return run(params)


def single(seed=0):
    return jax.tree.map(lambda leaf: leaf[0], initial(seed))


# What steers


@pytest.mark.parametrize("metric", ["hill", "farms", "debiased", "shape_only", "random_windows"])
def test_each_layer_moves_by_the_map_of_its_exponent(metric):
    params = single()
    updates, state = steps_of(configured(metric), params)
    kept = balance_state(state)
    alphas = jnp.stack([kept.alphas[name] for name in KERNELS])
    assert np.isfinite(alphas).all()
    if metric in METRICS:
        options = {"window": 8, "samples": 3} if metric == "farms" else {}
        measure = METRICS[metric](**options)
        expected = [measure(layer["kernel"]) for layer in params["layers"].values()]
        np.testing.assert_allclose(alphas, jnp.stack(expected), rtol=1e-4)
    scales = ASSIGNMENTS["linear"](alphas, low=0.5, high=1.5)
    for layer, scale in zip(updates["layers"].values(), scales, strict=True):
        for leaf in layer.values():
            np.testing.assert_allclose(leaf, -RATE * scale, rtol=1e-5)


def test_shapes_alone_rank_the_layers_by_their_aspect_ratio():
    _, state = steps_of(configured("shape_only"), single())
    alphas = [float(balance_state(state).alphas[name]) for name in KERNELS]
    nulls = [tails.null_alpha(shape).mean for shape in pairwise(WIDTHS)]
    np.testing.assert_allclose(alphas, nulls, rtol=1e-6)


def test_shuffled_deals_the_same_exponents_otherwise_for_every_seed():
    tx = optimizer(configured("shuffled"))
    plain = optimizer(configured("farms"))

    def alphas(transformation, params):
        state = transformation.init(params)
        _, state = transformation.update(params, state, params)
        return jnp.stack([balance_state(state).alphas[name] for name in KERNELS])

    many = initial(*range(8))
    ours = jax.jit(jax.vmap(partial(alphas, tx)))(many)
    true = jax.jit(jax.vmap(partial(alphas, plain)))(many)
    np.testing.assert_allclose(np.sort(ours), np.sort(true), rtol=1e-5)
    order = np.argsort(ours) - np.argsort(true)
    assert len({tuple(row) for row in order.tolist()}) > 1


def test_random_windows_move_when_the_weights_do():
    config = configured("random_windows", balance={"refresh_every": 1})
    first, second = (
        balance_state(steps_of(config, params)[1]).alphas[KERNELS[0]]
        for params in (single(), jax.tree.map(lambda leaf: leaf * 1.5, single()))
    )
    # The exponent has no scale: what differs is where the windows fell.
    assert abs(first - second) > 1e-4


def test_a_balance_measures_once_an_epoch():
    config = configured("farms", balance={"refresh_every": 2})
    tx = optimizer(config, steps_per_epoch=3)
    params = single()
    state, seen = tx.init(params), []
    update = jax.jit(lambda state, params: tx.update(params, state, params)[1])
    for step in range(7):
        state = update(state, jax.tree.map(lambda leaf, s=step: leaf + 0.1 * s, params))
        seen.append(float(balance_state(state).alphas[KERNELS[0]]))
    assert len(set(seen[:6])) == 1 and seen[6] != seen[0]


def test_no_layer_to_balance_is_one_line():
    config = configured("farms")
    config = replace(config, balance=replace(config.balance, min_eigenvalues=50))
    with pytest.raises(UserError, match="balance: .*min_eigenvalues=50"):
        refuse_what_cannot_balance(config, NET)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", np.ones(20)),
        ("cosine", (1 + np.cos(np.pi * np.arange(20) / 20)) / 2),
        ("cosine_by_epoch", (1 + np.cos(np.pi * (np.arange(20) // 5) / 4)) / 2),
    ],
)
def test_schedules_fall_to_zero_over_the_whole_training(schedule, rates):
    updates, _ = steps_of(configured(schedule=schedule), single(), count=20)
    moved = updates["layers"]["0"]["bias"][:, 0]
    np.testing.assert_allclose(moved, -RATE * rates, rtol=1e-4, atol=1e-7)


def test_weight_decay_is_added_to_the_gradient_of_every_parameter():
    params = single()
    updates, _ = steps_of(configured(weight_decay=0.5), params)
    jax.tree.map(
        lambda update, weight: np.testing.assert_allclose(
            update[0], -RATE * (1 + 0.5 * weight), rtol=1e-5
        ),
        updates,
        params,
    )


def test_a_proximal_step_wants_a_constant_rate():
    config = configured(schedule="cosine")
    penalty = replace(config.penalty, name="l1", strength=0.1, mode="proximal")
    with pytest.raises(UserError, match="optimizer.schedule=constant"):
        optimizer(replace(config, penalty=penalty))


# The trainer


def test_recorded_exponents_are_those_of_each_kernel():
    params = initial(0, 1)
    found = tail_exponents(params, (8, 3, 1.0), 8)
    assert sorted(found) == sorted(
        f"spectra/{kind}/{name}" for kind in ("hill", "farms") for name in KERNELS
    )
    kernel = params["layers"]["1"]["kernel"][1]
    np.testing.assert_allclose(
        found[f"spectra/hill/{KERNELS[1]}"][1], METRICS["hill"]()(kernel), rtol=1e-4
    )


@pytest.fixture(scope="module")
def digits_runs(tmp_path_factory):
    """Two arms of the smoke preset, one epoch of few digits."""
    root = tmp_path_factory.mktemp("runs")
    arms = protocols.PROTOCOLS["smoke"]["digits"].arms
    runs = {}
    for name in ("uniform", "farms"):
        arm = arms[name]
        arm = replace(
            arm,
            data=replace(arm.data, train_limit=64, test_limit=50),
            model=ModelConfig(hidden=(32,)),
            train=replace(arm.train, epochs=1, seeds=2),
        )
        runs[name] = train(arm, root=root, argv=["test"])
    return {"digits": runs}


def test_a_run_records_exponents_and_scales_and_no_empty_files(digits_runs):
    history = digits_runs["digits"]["farms"].history()
    recorded = {name for name in history if name.startswith("spectra/")}
    layer = "layers/0/kernel"
    assert recorded == {f"spectra/{kind}/{layer}" for kind in ("hill", "farms", "scale")}
    assert history[f"spectra/hill/{layer}"][1].shape == (2, 2)
    arrays = (digits_runs["digits"]["farms"].path / "arrays").iterdir()
    assert {path.name for path in arrays} == {"parameters.npz", "test_items.npz"}


def test_the_test_set_can_be_limited(digits_runs):
    for run in digits_runs["digits"].values():
        hits = np.array(run.summary["test/accuracy"]) * 50
        np.testing.assert_allclose(hits, np.round(hits), atol=1e-4)
        items = run.array("test_items")["test/accuracy"]
        assert items.shape == (2, 50)
        np.testing.assert_allclose(items.mean(axis=1), run.summary["test/accuracy"], rtol=1e-6)


# The protocols


@pytest.mark.parametrize("preset", PAPER.protocols)
def test_every_arm_of_every_preset_can_be_built(preset):
    shapes = {"digits": (8, 8), "cifar16": (16, 16, 3), "cifar10": (32, 32, 3)}
    for arms in PAPER.arms(preset).values():
        assert len({config.name for config in arms.values()}) == len(arms)
        config = next(c for c in arms.values() if c.balance.metric == "farms")
        known = models.options(config.model.name)
        options = {name: value for name, value in vars(config.model).items() if name in known}
        net = models.network(
            config.model.name, input_shape=shapes[config.data.name], classes=10, **options
        )
        refuse_what_cannot_balance(config, net)


def test_every_method_is_tuned_over_as_many_settings():
    for preset in ("small", "paper"):
        for protocol in PAPER.protocols[preset].values():
            methods = [arm.partition("@")[0] for arm in protocol.arms]
            assert set(methods) == set(protocols.METHODS) == protocol.results
            assert len({methods.count(method) for method in methods}) == 1


def test_a_setting_is_a_rate_and_a_range_and_its_final_runs_have_fresh_seeds():
    arm = PAPER.final_arm("small", "mlp", "farms@0.02-0.9")
    assert (arm.balance.low, arm.balance.high, arm.optimizer.learning_rate) == (0.1, 1.9, 0.02)
    assert (arm.train.seeds, arm.train.seed) == (protocols.SEEDS, FRESH)
    with pytest.raises(ValueError, match="uniform_rates has 1"):
        protocols.tuned(arm, rates=(1, 2), spreads=(0.5,), uniform_rates=(1,), seeds=5)


# The studies without training


class Shelf:
    """What a study needs of a run, kept in memory."""

    def __init__(self):
        self.arrays = {}

    def save_array(self, name, **arrays):
        self.arrays[name] = {key: np.asarray(array) for key, array in arrays.items()}

    def load_array(self, name):
        return self.arrays.get(name)

    def array(self, name):
        return self.arrays[name]


@pytest.fixture(scope="module")
def noise():
    """The study of noise at the smallest size: its run and its results."""
    run = Shelf()
    ablation = {"shape": (32, 64), "windows": (8, 16), "ratios": (1.0,), "draws": 3,
                "placements": 3}  # fmt: skip
    results = bias.measure(
        run, shapes=[(64, 64), (64, 256), (512, 512)], draws=4, window=32, samples=3,
        ablation=ablation,
    )  # fmt: skip
    return run, results


def test_farms_loses_the_bias_that_the_closed_form_predicts(noise):
    def mean(shape, kind):
        return noise[1].values(kind, arm=f"noise/{bias.name(shape)}", protocol="bias").mean()

    for shape in ((64, 64), (64, 256), (512, 512)):
        null = tails.null_alpha(shape)
        assert abs(mean(shape, "plain") - null.mean) < 4 * null.deviation / 2
    assert mean((64, 256), "plain") - mean((64, 64), "plain") > 1.2
    assert abs(mean((64, 256), "farms") - mean((64, 64), "farms")) < 0.08
    bias_of = noise[1].values("plain", arm="longest minus square", protocol="bias").mean()
    assert bias_of == pytest.approx(mean((64, 256), "plain") - mean((64, 64), "plain"))


def test_window_shapes_have_the_bias_of_their_own_ratio():
    alphas = bias.window_grid((64, 128), (16,), (0.5, 1.0), 4, 4)
    assert alphas.shape == (2, 1, 4, 4)
    half, square = alphas.mean(axis=(1, 2, 3))
    assert abs(half - tails.marchenko_pastur_alpha(0.5)) < 0.15
    assert abs(square - tails.marchenko_pastur_alpha(1)) < 0.15


def test_exponents_of_padded_spectra_are_those_of_each():
    rng = np.random.default_rng(0)
    spectra = [rng.uniform(1, 9, (2, n)).astype(np.float32) for n in (10, 17)]
    expected = [tails.hill_alpha(values) for values in spectra]
    np.testing.assert_allclose(bias.exponents(spectra), expected, rtol=1e-5)


def test_llama_exponents_are_read_from_a_checkpoint(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    blocks = range(len(llama.SHIPPED))
    names = [f"model.layers.{b}.mlp.{kind}_proj.weight" for b in blocks for kind in "ab"]
    tensors = {name: rng.standard_normal((24, 16), np.float32) for name in names}
    tensors["model.embed_tokens.weight"] = tensors[names[0]]
    (tmp_path / "llama-7b").mkdir()
    (tmp_path / "llama-7b" / "config.json").write_text("{}")
    checkpoints.save_safetensors(tmp_path / "llama-7b" / "model.safetensors", tensors)
    monkeypatch.setenv("SPECTRAL_JAX_DATA", str(tmp_path))
    run = Shelf()
    results = llama_weights.measure(run, samples=2)
    found = results.values("correlation", arm="llama-7b", protocol="llama_weights")
    stored = [run.load_array(f"block-{block}") for block in blocks]
    means = [np.nanmean(block["farms"]) for block in stored]
    np.testing.assert_allclose(found, np.corrcoef(means, llama.SHIPPED)[0, 1], rtol=1e-6)
    assert stored[1]["names"].tolist() == names[2:4]
    plain = tails.power_law_fit(
        jnp.linalg.svd(tensors[names[2]], compute_uv=False) ** 2,
        xmin="peak",
        paper_compat="peak_log10",
    )
    np.testing.assert_allclose(stored[1]["plain"][0], plain.alpha, rtol=1e-3)


# The report


def test_claims_name_arms_that_there_are_and_say_what_is_not_run():
    check(claims.CLAIMS, PAPER.known())
    judged = {one.id: one for one in judge_all(claims.CLAIMS, Results(), preset="small")}
    assert "GPU hours" in judged["alphadecay-60m"].note
    assert judged["cifar100-tables"].verdict == "UNDERSPECIFIED"
    assert "weights" in judged["llama-7b-exponents"].note
    assert judged["digits-farms-over-uniform"].claim.family == "control"


def test_verdicts_and_sections_come_of_the_results(digits_runs, noise):
    run, results = noise
    shipped = llama.measure(run)
    found = [of_run(arm, "digits", name) for name, arm in digits_runs["digits"].items()]
    outcome = Outcome(PAPER, "smoke", merge([results, shipped, *found]), dict(digits_runs))
    outcome.runs |= {"bias": {"bias": run}, "llama": {"llama": run}}
    judged = {one.id: one for one in judge_all(claims.CLAIMS, outcome.results, preset="smoke")}
    for which in ("least", "greatest"):
        assert judged[f"llama-7b-shipped-{which}"].verdict == "NUMBER MATCH"
    assert judged["noise-256x2048"].verdict == "NOT RUN"
    assert judged["noise-64x64"].estimate.n == 4
    ours = [one for id, one in judged.items() if id.startswith(("noise-", "conv-"))]
    assert not any(one.verdict == "NOT REPRODUCED" for one in ours)
    assert judged["conv-128x64x3x3-blocks"].verdict == "REPRODUCED"
    assert judged["digits-farms-over-uniform"].verdict == "ESTIMATE"
    assert "2 seeds x 50 test items" in judged["digits-farms-over-uniform"].ours
    assert judged["digits-farms-over-shape-only"].verdict == "NOT RUN"
    made = sections(outcome)
    assert [section.heading for section in made] == [
        "Learning rates: digits", "Shape bias and windows", "Sparsity of LLaMA's blocks",
    ]  # fmt: skip
    names = {f"{section.stem}-{name}" for section in made for name in section.figures}
    assert names == {
        "digits-paired", "digits-accuracy", "digits-tails", "bias-shape-bias", "bias-windows",
    }  # fmt: skip
    assert claims.learned(outcome, list(judged.values()))


# The figures


def test_figures_refuse_what_does_not_fit():
    law = np.array([1.0, 2.0]), np.array([2.1, 2.7])
    with pytest.raises(ValueError, match="1 rows for 2 aspect ratios"):
        figures.shape_bias(np.array([1.0, 2.0]), {"plain": np.ones((1, 3))}, law=law)


def test_rank_agreement_names_every_metric_on_both_axes():
    figure = figures.rank_agreement(["plain", "FARMS"], np.array([[1.0, -0.5], [-0.5, 1.0]]))
    svg_again = plots.to_svg(figures.rank_agreement(["plain", "FARMS"], np.eye(2)))
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["plain", "FARMS"]
    assert svg_again == plots.to_svg(figures.rank_agreement(["plain", "FARMS"], np.eye(2)))
