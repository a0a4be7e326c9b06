"""The pruning and operator studies: what is compared differs in nothing but the arm."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from experiments.papers.farms import PAPER, claims
from experiments.papers.farms.figures import sections
from experiments.papers.farms.studies import operators, pruning
from experiments.papers.paper import FRESH, Outcome
from experiments.report.results import merge
from experiments.report.verdicts import judge_all
from spectral_jax.plots.pruning import pruning_curves

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
STUDIES = {"pruning": pruning, "operators": operators}
OPTIONS = {study.name: study.options for study in PAPER.studies}
TUNED = {**OPTIONS["operators"]["smoke"], "rates": (2.5e-3, 5e-3), "tuning_seeds": 1}


class Shelf:
    """What the studies need of a run, kept in memory."""

    def __init__(self):
        self.arrays, self.state = {}, None

    def save_array(self, name, **arrays):
        self.arrays[name] = arrays

    def load_array(self, name):
        return self.arrays.get(name)

    def log(self, message):
        pass

    def save_checkpoint(self, step, state):
        self.state = step, state

    def restore_checkpoint(self, like):
        return self.state


@pytest.fixture(scope="module")
def made(quick_compilation):
    """The studies of the smoke preset, the operators at two rates: runs and results."""
    runs = {name: Shelf() for name in STUDIES}
    options = {"pruning": OPTIONS["pruning"]["smoke"], "operators": TUNED}
    found = {name: study.measure(runs[name], **options[name]) for name, study in STUDIES.items()}
    return runs, found


@cache
def transformer():
    """The smoke preset's bench and an untrained net, whose blocks all differ."""
    left_out = ("seeds", "rate", "steps", "sparsities", "epsilons", "pruners")
    options = {k: v for k, v in OPTIONS["pruning"]["smoke"].items() if k not in left_out}
    bench = pruning.bench_of(**options)
    return bench, bench.trainer.task.net.init(jax.random.key(3))[0]


SIZES = ("points", "width", "modes", "depth", "hidden", "examples", "batch")


@cache
def operator():
    options = {name: OPTIONS["operators"]["smoke"][name] for name in SIZES}
    trainer = operators.trainer_of(jax.random.key(0), operators.THIN, **options)
    return trainer, trainer.task.net.init(jax.random.key(3))[0]


# The studies, whole


def test_every_seed_has_every_number_and_our_own_references_hold(made):
    _, found = made
    results = merge(found.values())
    for row in results.rows:
        assert np.isfinite(list(row.metrics.values())).all()
    judged = {one.id: one for one in judge_all(claims.CLAIMS, results, preset="small")}
    for id in ("pruning-debiasing-cancels", "operator-solver"):
        assert judged[id].verdict == "NUMBER MATCH"
    assert not any(one.missed for one in judged.values())
    assert judged["pruning-magnitude-farms-blocks-uniform"].estimate.n == 2
    assert judged["operator-full-farms-hill"].estimate.n == 2
    outcome = Outcome(PAPER, "smoke", results, {name: {name: None} for name in STUDIES})
    assert [(section.stem, list(section.figures)) for section in sections(outcome)] == [
        ("pruning", ["blocks", "layers"]),
        ("operators", ["paired"]),
    ]


def test_an_operator_is_told_on_fresh_seeds_at_the_rate_that_validation_prefers(made):
    results = made[1]["operators"]
    for share, arm in operators.CELLS:
        name = f"{share}/{arm}"
        assert results.seeds(arm=name, protocol="operators") == (FRESH, FRESH + 1)
        errors = {
            rate: results.values("validation/error", arm=f"{name}@{rate:g}",
                                 protocol="operators/tuning")[0]
            for rate in TUNED["rates"]
        }  # fmt: skip
        used = results.values("learning_rate", arm=name, protocol="operators")
        np.testing.assert_allclose(used, min(errors, key=lambda rate: errors[rate]))


def test_all_arms_rates_and_shares_are_one_program(made):
    """And another, of one trial, for the pretraining."""
    trainer, _ = operator()
    assert (
        trainer.program
        == operators.trainer_of(
            jax.random.key(1),
            operators.THICK,
            **{n: OPTIONS["operators"]["smoke"][n] for n in SIZES},
        ).program
    )


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_larger_presets_are_made_of_the_same_options(preset):
    for name in STUDIES:
        assert set(OPTIONS[name][preset]) == set(OPTIONS[name]["smoke"])
    options = OPTIONS["pruning"][preset]
    for sparsity, epsilon in zip(options["sparsities"], options["epsilons"], strict=True):
        assert sparsity * (1 + epsilon) < 1  # no block is ever removed whole


def test_a_seed_that_is_done_is_not_done_again(made, monkeypatch):
    runs, found = made
    monkeypatch.setattr(operators, "trainer_of", None)
    monkeypatch.setattr(pruning, "alphas_of", None)
    again = operators.measure(runs["operators"], **TUNED)
    assert again.to_json() == found["operators"].to_json()
    again = pruning.measure(runs["pruning"], **OPTIONS["pruning"]["smoke"])
    assert again.to_json() == found["pruning"].to_json()


# Pruning


def test_block_after_block_is_the_network():
    bench, params = transformer()
    tokens = bench.calibration[:2]
    hidden = pruning.embedded(params, tokens)
    blocks = pruning.stacked(params)
    for number in range(2):
        block = {name: leaf[number] for name, leaf in blocks.items()}
        inputs, hidden = pruning.block_pass(bench.block, block, hidden)
        assert {name: x.shape[1] for name, x in inputs.items()} == {
            name: block[name].shape[0] for name in pruning.KERNELS
        }
    scale, bias = params["norm"]["scale"], params["norm"]["bias"]
    centred = hidden - hidden.mean(-1, keepdims=True)
    hidden = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    logits = hidden @ params["token_embedding"]["embedding"].T
    np.testing.assert_allclose(
        bench.trainer.task.net.apply(params, {}, tokens)[0], logits, atol=1e-5
    )


@pytest.mark.parametrize("pruner", ["magnitude", "sparsegpt"])
def test_every_kernel_loses_its_share_and_nothing_else_changes(pruner):
    bench, params = transformer()
    blocks = pruning.stacked(params)
    shares = {name: np.array([0.25, 0.75]) for name in pruning.KERNELS}
    pruned = flat(pruning.pruned_by(bench, params, blocks, shares, pruner))
    for name, leaf in flat(params).items():
        lost = (pruned[name] == 0).mean()
        if name.split("/", 2)[-1] in pruning.KERNELS:
            assert lost == pytest.approx(0.25 if name.startswith("blocks/0") else 0.75, abs=0.01)
        else:
            np.testing.assert_array_equal(pruned[name], leaf)


def test_every_allocation_removes_the_same_number_of_weights():
    bench, params = transformer()
    blocks = pruning.stacked(params)
    alphas = pruning.alphas_of(bench, blocks, jax.random.key(0))
    sizes = {name: blocks[name][0].size for name in pruning.KERNELS}
    ratios = pruning.allocations(alphas, blocks, 0.7, 0.3)
    assert list(ratios) == list(pruning.ARMS)
    for arm, shares in ratios.items():
        removed = sum(sizes[name] * share.sum() for name, share in shares.items())
        assert removed / sum(2 * size for size in sizes.values()) == pytest.approx(0.7, abs=1e-5)
        stack = np.stack(list(shares.values()))
        if arm.endswith("blocks"):
            np.testing.assert_array_equal(stack, np.broadcast_to(stack[0], stack.shape))
        if arm != "uniform":
            assert stack.max() / stack.min() == pytest.approx(1.3 / 0.7, rel=1e-5)


def test_between_blocks_shapes_say_nothing_and_between_layers_they_do():
    bench, params = transformer()
    blocks = pruning.stacked(params)
    alphas = pruning.alphas_of(bench, blocks, jax.random.key(0))
    sizes = {name: blocks[name][0].size for name in pruning.KERNELS}
    options = {"sizes": sizes, "sparsity": 0.7, "epsilon": 0.3}
    shapes = pruning.allocate(alphas["shape_only"], **options, by="blocks")
    np.testing.assert_allclose(np.stack(list(shapes.values())), 0.7, rtol=1e-6)
    shapes = pruning.allocate(alphas["shape_only"], **options, by="layers")
    assert shapes["mlp/up/kernel"][0] > shapes["attention/query/kernel"][0]
    moved = pruning.certainty(bench, blocks, alphas)["debiasing_in_blocks"]
    assert moved[0] < 1e-5


def test_shuffling_keeps_the_exponents():
    alphas = {name: np.arange(3.0) + 3 * i for i, name in enumerate(pruning.KERNELS)}
    shuffled = pruning.shuffled(alphas, jax.random.key(0))
    everything = np.sort(np.concatenate(list(alphas.values())))
    for values in shuffled.values():
        np.testing.assert_array_equal(np.sort(np.concatenate(list(values.values()))), everything)
    blocks = np.stack(list(shuffled["shuffled/blocks"].values()))
    np.testing.assert_array_equal(blocks - blocks[0], np.arange(0, 18, 3)[:, None] * np.ones(3))


def test_the_figure_wants_its_reference():
    losses = {"magnitude": {"uniform": np.zeros((2, 3))}}
    with pytest.raises(ValueError, match="no arm 'farms'"):
        pruning_curves((0.5, 0.8), losses, dense=np.zeros(3), reference="farms")
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 1 sparsities"):
        pruning_curves((0.5,), losses, dense=np.zeros(3), reference="uniform")


# Operators


def flat(params):
    return flatten_dict(params, sep="/")


def test_the_arm_without_steering_is_adam_and_the_others_scale_its_layers():
    trainer, params = operator()
    grads = jax.tree.map(jnp.sign, params)
    reference = optax.chain(optax.add_decayed_weights(operators.WEIGHT_DECAY), optax.adam(1e-3))
    expected, _ = reference.update(grads, reference.init(params), params)

    @jax.jit
    def update(arm):
        numbers = {"learning_rate": 1e-3, "s": 0.25, "steps": 100.0}
        hyper = {"arm": arm, **{name: jnp.array(value) for name, value in numbers.items()}}
        optimizer = trainer.optimizer(hyper)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    for number, arm in enumerate(operators.ARMS):
        found, scales = flat(update(jnp.array(float(number)))), {}
        for name, leaf in flat(expected).items():
            ratio = found[name] / leaf
            np.testing.assert_allclose(ratio, ratio.ravel()[0], rtol=1e-3)
            scales[name] = ratio.ravel()[0]
        steered = {name for name, scale in scales.items() if abs(scale - 1) > 1e-3}
        kernels = {"pointwise/0", "pointwise/1", "project"} if arm != "adam" else set()
        assert steered <= {f"{layer}/{leaf}" for layer in kernels for leaf in ("kernel", "bias")}
        assert bool(steered) == (arm != "adam")
        assert all(10**-0.126 < scale < 10**0.126 for scale in scales.values())


def test_a_tenth_of_the_data_is_all_that_is_seen():
    trainer, _ = operator()
    train = trainer.task.data["train"]
    hidden = jax.tree.map(lambda part: part.at[4:].set(jnp.nan), train)
    data = {**trainer.task.data, "train": hidden}
    blind = replace(trainer, task=replace(trainer.task, data=data))
    cells = [(share, "adam") for share in operators.SHARES]
    trials = [operators._trial(0, cell, 1e-3, 20, {"examples": 40}) for cell in cells]
    full, tenth = jax.device_get(
        blind.train(blind.start(trials), steps=20).params["lift"]["kernel"]
    )
    assert np.isfinite(tenth).all() and not np.isfinite(full).all()


def test_training_and_test_fields_differ_and_are_solutions():
    trainer, _ = operator()
    data = {split: part.examples for split, part in trainer.task.data.items()}
    assert {split: len(part["x"]) for split, part in data.items()} == {
        "train": 40, "validation": 20, "test": 20,
    }  # fmt: skip
    everything = np.concatenate([part["x"][..., 0] for part in data.values()])
    assert len(np.unique(everything.round(4), axis=0)) == len(everything)
    for part in data.values():
        np.testing.assert_allclose(part["x"].mean(1), part["y"].mean(1), atol=1e-5)
