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
from experiments.papers import farms
from experiments.papers.farms import bias, evidence, llama, protocols
from experiments.training.blocks import Trial
from experiments.training.measures.tails import tail_exponents
from experiments.training.optimisers import (
    balance_state,
    hyper_of,
    optimizer_of,
    refuse_what_cannot_balance,
    structure_of,
)
from experiments.training.task import OBJECTIVES, Data, Task
from experiments.training.train import train
from experiments.training.trainer import Trainer
from spectral_jax import checkpoints, plots, tails
from spectral_jax.optim import ASSIGNMENTS, METRICS
from spectral_jax.plots import farms as figures

pytestmark = pytest.mark.usefixtures("quick_compilation")

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


@pytest.mark.parametrize("metric", ["none", "shuffled"])
def test_stepwise_is_the_same_training(metric):
    x = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    shared = {"shift": jnp.zeros(()), "scale": jnp.ones(())}
    data = {"train": Data({"x": jnp.asarray(x), "y": jnp.arange(40)}, shared)}
    task = Task("toy", NET, OBJECTIVES["cross_entropy"], data, "", batch_size=10)
    config = configured(metric, momentum=0.9)
    trainer = Trainer(task, optimizer_of(structure_of(config), NET, task.steps_per_epoch))
    start = trainer.start([Trial(seed, hyper_of(config)) for seed in range(2)])
    ends = [replace(trainer, axis=axis).train(start, epochs=1) for axis in ("map", "stepwise")]
    for ours, theirs in zip(jax.tree.leaves(ends[1]), jax.tree.leaves(ends[0]), strict=True):
        if not jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)


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
    arms = protocols.PRESETS["smoke"]["digits"]
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
    assert [path.name for path in arrays] == ["parameters.npz"]


def test_the_test_set_can_be_limited(digits_runs):
    for run in digits_runs["digits"].values():
        hits = np.array(run.summary["test/accuracy"]) * 50
        np.testing.assert_allclose(hits, np.round(hits), atol=1e-4)


# The protocols


@pytest.mark.parametrize("preset", farms.PRESETS)
def test_every_arm_of_every_preset_can_be_built(preset):
    shapes = {"digits": (8, 8), "cifar16": (16, 16, 3), "cifar10": (32, 32, 3)}
    built = {}
    for arms in farms.PRESETS[preset].values():
        assert len({config.name for config in arms.values()}) == len(arms)
        for config in arms.values():
            key = (config.data.name, config.model)
            if key not in built:
                model = {k: v for k, v in vars(config.model).items() if k != "name"}
                known = models.options(config.model.name)
                model = {k: v for k, v in model.items() if k in known}
                built[key] = models.network(
                    config.model.name,
                    input_shape=shapes[config.data.name],
                    classes=10,
                    **model,
                )
        config = next(c for c in arms.values() if c.balance.metric == "farms")
        net = built[(config.data.name, config.model)]
        refuse_what_cannot_balance(config, net)


def test_every_method_is_tuned_over_as_many_settings():
    for preset in ("small", "paper"):
        for arms in farms.PRESETS[preset].values():
            counts = {}
            for arm in arms:
                method = arm.partition("@")[0]
                counts[method] = counts.get(method, 0) + 1
            assert set(counts) == set(protocols.METHODS)
            assert len(set(counts.values())) == 1


def test_finals_take_the_best_setting_to_new_seeds():
    base = ExperimentConfig("farms", train=TrainConfig(seeds=1))
    tuning = protocols.tuning_arms(
        base, prefix="t", rates=(0.1,), spreads=(0.5, 0.9), uniform_rates=(0.1, 0.2)
    )
    validation = dict.fromkeys(tuning, 50.0) | {"farms@0.1-0.9": 60.0, "uniform@0.2": 51.0}
    chosen = protocols.finals(tuning, validation, prefix="p", seeds=5)
    assert set(chosen) == set(protocols.METHODS)
    assert (chosen["farms"].balance.low, chosen["farms"].balance.high) == (0.1, 1.9)
    assert chosen["uniform"].optimizer.learning_rate == 0.2
    assert chosen["tempbalance"].balance.low == 0.5
    for config in chosen.values():
        assert (config.train.seeds, config.train.seed) == (5, protocols.FINAL_SEED)
    with pytest.raises(ValueError, match="uniform_rates has 1"):
        protocols.tuning_arms(base, prefix="t", rates=(1, 2), spreads=(0.5,), uniform_rates=(1,))


# The studies without training


@pytest.fixture(scope="module")
def bias_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("bias")
    options = {
        "shapes": [(64, 64), (64, 256), (512, 512)],
        "draws": 4,
        "window": 32,
        "samples": 3,
        "ablation": {
            "shape": (32, 64),
            "windows": (8, 16),
            "ratios": (1.0,),
            "draws": 3,
            "placements": 3,
        },
        "layers": {},
        "networks": [],
    }
    return bias.study("farms/bias", bias.measure, options=options, root=root)


def test_farms_loses_the_bias_that_the_closed_form_predicts(bias_run):
    stored = bias_run.load_array("shapes")
    plain, farms_alpha = stored["plain"].mean(axis=1), stored["farms"].mean(axis=1)
    for shape, alpha in zip(stored["shapes"].tolist(), plain, strict=True):
        null = tails.null_alpha(tuple(shape))
        assert abs(alpha - null.mean) < 4 * null.deviation / 2
    assert plain[1] - plain[0] > 1.2
    assert abs(farms_alpha[1] - farms_alpha[0]) < 0.08


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


def test_the_studies_claims_and_section_are_whole(bias_run, tmp_path):
    judged = {claim.id: claim for claim in bias.claims(bias_run, "command")}
    assert judged["noise-64x64"].verdict == "MATCH"
    assert judged["noise-256x2048"].verdict == "NOT RUN"
    assert judged["conv-128x64x3x3-blocks"].verdict == "MATCH"
    section = bias.section(bias_run, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"shape-bias.png", "windows.png"}
    assert len(section.tables[0].rows) == 3


def test_the_shipped_llama_exponents_give_the_shipped_sparsities(tmp_path):
    run = llama.run("smoke", root=tmp_path)
    judged = {claim.id: claim for claim in llama.claims(run, "command")}
    assert judged["llama-7b-shipped-least"].verdict == "MATCH"
    assert judged["llama-7b-shipped-greatest"].verdict == "MATCH"
    for name in ("llama-7b-exponents", "llama-7b-sparsegpt"):
        assert judged[name].verdict == "NOT RUN" and "weights" in judged[name].note
    assert len(llama.section(run, tmp_path).tables[0].rows) == 12


def test_llama_exponents_are_read_from_a_checkpoint(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    names = [f"model.layers.{block}.mlp.{kind}_proj.weight" for block in (0, 1) for kind in "ab"]
    tensors = {name: rng.standard_normal((48, 32), np.float32) for name in names}
    tensors["model.embed_tokens.weight"] = tensors[names[0]]
    (tmp_path / "llama-7b").mkdir()
    checkpoints.save_safetensors(tmp_path / "llama-7b" / "model.safetensors", tensors)
    monkeypatch.setenv("SPECTRAL_JAX_DATA", str(tmp_path))
    run = llama.run("paper", root=tmp_path)
    assert run.summary["models"] == ["llama-7b"]
    stored = run.load_array("llama-7b-1")
    assert stored["names"].tolist() == names[2:]
    plain = tails.power_law_fit(
        jnp.linalg.svd(tensors[names[2]], compute_uv=False) ** 2,
        xmin="peak",
        paper_compat="peak_log10",
    )
    np.testing.assert_allclose(stored["plain"][0], plain.alpha, rtol=1e-3)


# The report


def test_claims_pair_the_arms_and_say_what_was_not_trained(digits_runs):
    judged = {claim.id: claim for claim in evidence.claims(digits_runs, command="command")}
    assert judged["digits-farms-over-uniform"].verdict in ("TREND", "MISMATCH")
    assert judged["digits-farms-over-shuffled"].verdict == "NOT RUN"
    assert "GPU hours" in judged["alphadecay-60m"].note
    assert judged["cifar100-tables"].verdict == "UNDERSPECIFIED"


@pytest.mark.parametrize("missed", [False, True])
def test_the_page_is_written_and_a_missed_reference_exits_with_3(
    missed, digits_runs, bias_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bias, "run", lambda preset, *, root: bias_run)
    monkeypatch.setattr(farms, "STUDIES", ("bias",))
    monkeypatch.setattr(
        "experiments.papers.farms.training.train_all", lambda *given, **named: (digits_runs, {})
    )
    if missed:
        monkeypatch.setitem(bias.NOISE, (64, 64), (3.0, 0.05))
    assert farms.reproduce("smoke", root=tmp_path) == (3 if missed else judged_code(bias_run))
    folder = tmp_path / "reports" / "farms-smoke"
    page = (folder / "report.html").read_text()
    assert "Shape bias and windows" in page and "Learning rates: digits" in page
    names = {path.name for path in (folder / "figures").glob("*.svg")}
    assert {"shape-bias.svg", "digits-paired.svg", "digits-tails.svg"} <= names
    assert "TempBalance" in capsys.readouterr().out


def judged_code(run):
    ours = [claim for claim in bias.claims(run, "") if claim.origin == "our reference"]
    return 3 if any(claim.verdict == "MISMATCH" for claim in ours) else 0


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
