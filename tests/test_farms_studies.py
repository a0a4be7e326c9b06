"""The pruning and operator studies: what is compared differs in nothing but the arm."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.claims import VERDICTS
from experiments.papers.farms import operators, pruning
from experiments.papers.farms.fitting import from_arrays, to_arrays
from experiments.report import Section
from spectral_jax.plots.pruning import pruning_curves

pytestmark = pytest.mark.usefixtures("quick_compilation")
STUDIES = {"pruning": pruning, "operators": operators}


class Shelf:
    """What the studies need of a run, kept in memory."""

    def __init__(self):
        self.arrays = {}

    def save_array(self, name, **arrays):
        self.arrays[name] = arrays

    def load_array(self, name):
        return self.arrays.get(name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quick_compilation):
    root = tmp_path_factory.mktemp("runs")
    return {name: study.run("smoke", root=root) for name, study in STUDIES.items()}


@cache
def transformer():
    """The smoke preset's programs and an untrained net, whose blocks all differ."""
    programs = pruning.programs(**without_seeds(pruning))
    return programs, programs.net.init(jax.random.key(3))[0]


@cache
def operator():
    programs = operators.programs(**without_seeds(operators))
    return programs, programs.init(jax.random.key(3))


def without_seeds(study):
    return {key: value for key, value in study.PRESETS["smoke"].items() if key != "seeds"}


# The studies, whole


@pytest.mark.parametrize("name", STUDIES)
def test_a_preset_gives_one_number_per_seed(runs, name):
    run, study = runs[name], STUDIES[name]
    assert run.complete
    numbers = run.summary["errors"] if name == "operators" else run.summary
    for values in numbers.values():
        assert len(values) == study.PRESETS["smoke"]["seeds"] and np.isfinite(values).all()


@pytest.mark.parametrize("name", STUDIES)
def test_every_claim_has_a_verdict_and_our_own_references_hold(runs, name):
    judged = STUDIES[name].claims(runs[name], "a command")
    assert len({claim.id for claim in judged}) == len(judged)
    assert all(claim.verdict in VERDICTS and claim.command == "a command" for claim in judged)
    ours = [claim for claim in judged if claim.origin == "our reference"]
    assert ours and all(claim.verdict == "MATCH" for claim in ours)


@pytest.mark.parametrize("name", STUDIES)
def test_the_section_has_every_arm_and_its_figures_are_files(runs, name, tmp_path):
    section = STUDIES[name].section(runs[name], tmp_path)
    assert isinstance(section, Section)
    assert len(list(tmp_path.glob("*.svg"))) == len(section.figures) > 0
    text = " ".join(str(value) for row in section.tables[0].rows for value in row.values())
    assert all(arm in text for arm in STUDIES[name].ARMS.values())


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_larger_presets_are_made_of_the_same_options_and_whole_chunks(preset):
    for study in STUDIES.values():
        options = study.PRESETS[preset]
        assert set(options) == set(study.PRESETS["smoke"])
        assert options["steps"] % study.CHUNK == 0
    assert operators.PRESETS[preset]["pretraining_steps"] % operators.CHUNK == 0
    options = pruning.PRESETS[preset]
    for sparsity, epsilon in zip(options["sparsities"], options["epsilons"], strict=True):
        assert sparsity * (1 + epsilon) < 1  # no block is ever removed whole


def test_a_seed_that_is_done_is_not_done_again(runs, monkeypatch):
    shelf = Shelf()
    for seed in range(2):
        for part in ("errors", "losses"):
            shelf.save_array(f"{part}-{seed}", **{"full/adam/1/test": 0.5})
    monkeypatch.setattr(operators._Programs, "errors", None)
    monkeypatch.setattr(pruning._Programs, "losses", None)
    for study in STUDIES.values():
        assert study.measure(shelf, **study.PRESETS["smoke"])


# Pruning


def test_block_after_block_is_the_network():
    programs, params = transformer()
    tokens = programs.validation[:2, :-1]
    hidden = pruning.embedded(params, tokens)
    blocks = pruning.stacked(params)
    for number in range(programs.options["depth"]):
        block = {name: leaf[number] for name, leaf in blocks.items()}
        inputs, hidden = programs.block_pass(block, hidden)
        assert {name: x.shape[1] for name, x in inputs.items()} == {
            name: block[name].shape[0] for name in pruning.KERNELS
        }
    scale, bias = params["norm"]["scale"], params["norm"]["bias"]
    centred = hidden - hidden.mean(-1, keepdims=True)
    hidden = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    logits = hidden @ params["token_embedding"]["embedding"].T
    np.testing.assert_allclose(programs.net.apply(params, {}, tokens)[0], logits, atol=1e-5)


@pytest.mark.parametrize("pruner", ["magnitude", "sparsegpt"])
def test_every_kernel_loses_its_share_and_nothing_else_changes(pruner):
    programs, params = transformer()
    blocks = pruning.stacked(params)
    shares = {name: np.array([0.25, 0.75]) for name in pruning.KERNELS}
    pruned = to_arrays(programs.pruned(params, blocks, shares, pruner))
    for name, leaf in to_arrays(params).items():
        lost = (pruned[name] == 0).mean()
        if name.split("/", 2)[-1] in pruning.KERNELS:
            assert lost == pytest.approx(0.25 if name.startswith("blocks/0") else 0.75, abs=0.01)
        else:
            np.testing.assert_array_equal(pruned[name], leaf)


def test_every_allocation_removes_the_same_number_of_weights():
    programs, params = transformer()
    blocks = pruning.stacked(params)
    alphas = programs.alphas(blocks, jax.random.key(0))
    sizes = {name: blocks[name][0].size for name in pruning.KERNELS}
    ratios = programs.allocations(alphas, blocks, 0.7, 0.3)
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
    programs, params = transformer()
    blocks = pruning.stacked(params)
    alphas = programs.alphas(blocks, jax.random.key(0))
    sizes = {name: blocks[name][0].size for name in pruning.KERNELS}
    options = {"sizes": sizes, "sparsity": 0.7, "epsilon": 0.3}
    shapes = pruning.allocate(alphas["shape_only"], **options, by="blocks")
    np.testing.assert_allclose(np.stack(list(shapes.values())), 0.7, rtol=1e-6)
    shapes = pruning.allocate(alphas["shape_only"], **options, by="layers")
    assert shapes["mlp/up/kernel"][0] > shapes["attention/query/kernel"][0]
    assert programs._debiasing_in_blocks(alphas, blocks) < 1e-5


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


def test_the_arm_without_steering_is_adam_and_the_others_scale_its_layers():
    programs, params = operator()
    grads = jax.tree.map(jnp.sign, params)
    reference = optax.chain(optax.add_decayed_weights(operators.WEIGHT_DECAY), optax.adam(1e-3))
    expected, _ = reference.update(grads, reference.init(params), params)

    @jax.jit
    def update(arm):
        control = {"arm": arm, "rate": 1e-3, "s": 0.25, "steps": 100}
        optimizer = programs._optimizer(control)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    for number, arm in enumerate(operators.ARMS):
        found, scales = to_arrays(update(number)), {}
        for name, leaf in to_arrays(expected).items():
            ratio = found[name] / leaf
            np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-3)
            scales[name] = ratio.flat[0]
        steered = {name for name, scale in scales.items() if abs(scale - 1) > 1e-3}
        kernels = {"pointwise/0", "pointwise/1", "project"} if arm != "adam" else set()
        assert steered <= {f"{layer}/{leaf}" for layer in kernels for leaf in ("kernel", "bias")}
        assert bool(steered) == (arm != "adam")
        assert all(10**-0.126 < scale < 10**0.126 for scale in scales.values())


def test_a_tenth_of_the_data_is_all_that_is_seen():
    programs, params = operator()
    train, *_ = programs.solutions(jax.random.key(0), operators.THIN)
    hidden = tuple(part.at[4:].set(jnp.nan) for part in train)
    after = programs.fit(params, hidden, 4, jax.random.key(1), rate=1e-3)
    assert all(np.isfinite(leaf).all() for leaf in to_arrays(after).values())


def test_training_and_test_fields_differ_and_are_solutions():
    programs, _ = operator()
    train, validation, test = programs.solutions(jax.random.key(0), operators.THIN)
    assert len(train[0]) == 2 * len(test[0]) == 2 * len(validation[0])
    everything = np.concatenate([part[0][..., 0] for part in (train, validation, test)])
    assert len(np.unique(everything.round(4), axis=0)) == len(everything)
    for initial, final in (train, test):
        np.testing.assert_allclose(initial.mean(1), final.mean(1), atol=1e-5)


def test_trees_survive_as_arrays():
    tree = {"a": {"0": jnp.ones((2, 3)), "b": jnp.zeros(2)}, "c": jnp.arange(3)}
    arrays = to_arrays(tree)
    assert list(arrays) == ["a/0", "a/b", "c"]
    jax.tree.map(np.testing.assert_array_equal, from_arrays(arrays), tree)
