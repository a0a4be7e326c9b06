"""RMT-SVD: what tells the arms apart, what they cost, and what the page says of it all."""

from dataclasses import replace
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.config import load_yaml
from experiments.papers import rmt_svd
from experiments.papers.rmt_svd import cnn, evidence, fashion, loop, pictures, ranks, resnet
from experiments.papers.rmt_svd.counts import parameters_of
from experiments.papers.rmt_svd.protocols import PRESETS, PUBLISHED
from experiments.papers.rmt_svd.training import Member, make_task
from experiments.runs import Run
from experiments.training.train import train
from spectral_jax import plots, prune
from spectral_jax.compress import compress
from spectral_jax.plots import bulks
from spectral_jax.prune import surgery

pytestmark = pytest.mark.usefixtures("quick_compilation")

TASK = {
    "dataset": "digits", "train_limit": 320, "validation": 200, "batch_size": 32, "hidden": (24,),
}  # fmt: skip
LAYER = "layers/0/kernel"


@pytest.fixture(scope="module")
def task(quick_compilation):
    return make_task(**TASK)


@pytest.fixture(scope="module")
def drawn(task):
    return task.start([Member(0, 0.05), Member(1, 0.05, relu=True, l2=0.01)])


@pytest.fixture(scope="module")
def trained(task, drawn):
    return task.train(drawn, 2)


def cut(name, state, like=None):
    return loop.cut_at(loop.ARMS[name], state, (LAYER,), like)


# One program, many members


def test_a_member_is_the_network_that_its_numbers_say(task, drawn):
    x = jax.random.uniform(jax.random.key(0), (5, 8, 8))
    for member, relu in ((0, False), (1, True)):
        params, state = jax.tree.map(itemgetter(member), (drawn.params, drawn.model_state))
        logits, _ = task.net.apply(params, state, x)
        assert (float(logits.min()) >= 0) == relu
    np.testing.assert_allclose(optax.tree.get(drawn.opt_state, "l2"), [0, 0.01])


def test_penalties_pull_on_every_parameter(task):
    """On a loss that is flat the update is the penalties' alone."""
    params = {"w": jnp.array([2.0, -3.0, 0.0])}
    state = task.program.optimizer.init(params)
    state = optax.tree.set(state, learning_rate=0.1, l1=0.5, l2=0.25)
    flat = jax.tree.map(jnp.zeros_like, params)
    updates, _ = task.program.optimizer.update(flat, state, params)
    np.testing.assert_allclose(updates["w"], [-0.1, 0.125, 0.0], rtol=1e-6)


def test_what_is_zero_stays_zero_and_the_given_state_can_be_used_again(task, drawn):
    kernel = drawn.params["layers"]["0"]["kernel"].at[:, 3:9].set(0)
    state = drawn._replace(params=loop.replaced(drawn.params, {LAYER: kernel}))
    ended = task.train(state, 1)
    after = loop.leaf(ended.params, LAYER)
    assert np.all(np.asarray(after[:, 3:9]) == 0)
    assert np.any(np.asarray(after != loop.leaf(state.params, LAYER)))


def test_a_restart_forgets_the_momentum_and_keeps_the_numbers(task, trained):
    fresh = task.restart(trained)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(optax.tree.get(fresh, "trace")))
    np.testing.assert_allclose(optax.tree.get(fresh.opt_state, "learning_rate"), 0.05)


def test_a_dead_class_is_counted(task, drawn):
    bias = drawn.params["layers"]["1"]["bias"].at[:, 4].set(-1e3)
    state = drawn._replace(params=loop.replaced(drawn.params, {"layers/1/bias": bias}))
    before, after = task.assess(drawn), task.assess(state)
    assert set(after) == {
        "train accuracy", "validation accuracy", "test accuracy", "dead classes"
    }  # fmt: skip
    assert np.all(after["dead classes"] >= np.maximum(before["dead classes"], 1))


# The arms


def test_factors_padded_with_zeros_train_as_the_ranks_that_they_are(task, trained):
    """Alone in its program a member of rank 3 has factors of rank 3; beside a larger one, not."""
    wide = {LAYER: np.array([3, 11])}
    kernel = jax.vmap(surgery.truncate)(loop.leaf(trained.params, LAYER), jnp.asarray(wide[LAYER]))
    params = loop.replaced(trained.params, {LAYER: kernel})
    both, costs = loop.in_factors(trained, params, wide)
    assert loop.leaf(both.params, LAYER)["u"].shape == (2, 64, 12)
    np.testing.assert_array_equal(costs[LAYER], [3 * 88, 11 * 88])
    first = jax.tree.map(lambda leaf: leaf[:1], (trained, params))
    alone, _ = loop.in_factors(*first, {LAYER: np.array([3])})
    assert loop.leaf(alone.params, LAYER)["u"].shape == (1, 64, 3)
    ended = [prune.recombine_all(jax.tree.map(lambda leaf: leaf[0], task.train(s, 1).params))
             for s in (both, alone)]  # fmt: skip
    np.testing.assert_allclose(*(loop.leaf(end, LAYER) for end in ended), atol=2e-4)


def test_a_split_keeps_what_is_above_the_edge_and_a_share_below(trained):
    report = loop.fits(trained.params, (LAYER,))[LAYER]
    spikes = np.asarray(report.spikes)
    numbers = cut("edge", trained).numbers
    np.testing.assert_array_equal(numbers[f"rank/{LAYER}"], np.maximum(spikes, 1))
    kept = cut("split", trained).numbers[f"rank/{LAYER}"]
    np.testing.assert_array_equal(kept, spikes + np.floor(0.45 * (24 - spikes)))


def test_arms_of_equal_parameters_have_equal_parameters(trained):
    edge = cut("edge", trained).numbers
    for other in ("edge-fixed", "edge-magnitude", "edge-scratch"):
        made = cut(other, trained, edge)
        np.testing.assert_array_equal(made.numbers["parameters"], edge["parameters"])
    entries = loop.leaf(cut("edge-magnitude", trained, edge).state.params, LAYER)
    nonzero = np.count_nonzero(np.asarray(entries), axis=(1, 2))
    np.testing.assert_array_equal(nonzero, edge[f"parameters/{LAYER}"])
    assert "parameters, a bias each" not in cut("edge-magnitude", trained, edge).numbers
    factors = cut("edge", trained).numbers
    np.testing.assert_array_equal(
        factors["parameters, a bias each"] - factors["parameters"], factors[f"rank/{LAYER}"]
    )


def test_one_rank_for_all_layers_has_no_fewer_parameters():
    two = make_task(**{**TASK, "hidden": (24, 40)}).start([Member(0, 0.05), Member(1, 0.05)])
    layers = (LAYER, "layers/1/kernel")
    like = {
        f"rank/{layer}": np.array([rank, 2 * rank])
        for layer, rank in zip(layers, (2, 5), strict=True)
    }
    costs = np.array([2 * 88 + 5 * 64, 4 * 88 + 10 * 64])
    like |= {f"parameters/{layer}": costs // 2 for layer in layers}
    made = loop.cut_at(loop.ARMS["edge-fixed"], two, layers, like).numbers
    ranks_of = [made[f"rank/{layer}"] for layer in layers]
    np.testing.assert_array_equal(ranks_of[0], ranks_of[1])
    spent = sum(made[f"parameters/{layer}"] for layer in layers)
    assert np.all(spent >= costs) and np.all(spent < costs + 88 + 64)


def test_where_factors_would_not_save_the_kernel_stays_whole(trained):
    numbers = loop.cut_at(
        loop.Arm("all", prune.Policy(keep_below=1.0)), trained, (LAYER,), None
    ).numbers
    np.testing.assert_array_equal(numbers["parameters"], parameters_of((64, 24, 10)))


def test_rates_are_tried_on_the_same_members(drawn):
    copies = loop.at_rates(drawn, (0.1, 0.2))
    np.testing.assert_allclose(
        optax.tree.get(copies.opt_state, "learning_rate"), [0.1, 0.1, 0.2, 0.2]
    )
    np.testing.assert_array_equal(
        jax.random.key_data(copies.key[:2]), jax.random.key_data(copies.key[2:])
    )


# The other studies


def test_a_study_that_was_not_run_says_what_it_would_cost():
    for study in (fashion, cnn, resnet):
        assert study.run("smoke", root="nowhere") is None
        judged = study.claims(None, "a command")
        assert judged and {claim.verdict for claim in judged} == {"NOT RUN"}
        assert all("small" in claim.note for claim in judged)


class Shelf:
    """What a study needs of a run, kept in memory."""

    def __init__(self):
        self.arrays, self.summary = {}, {}

    def save_array(self, name, **arrays):
        self.arrays[name] = arrays

    def load_array(self, name):
        return self.arrays.get(name)

    def restore_checkpoint(self, like):
        return None

    def save_checkpoint(self, step, state):
        pass


def test_repeated_pruning_touches_the_arms_that_are_pruned(tmp_path):
    run = Shelf()
    options = {**TASK, "hidden": (24,), "epochs": 2, "every": 1, "keep": 1, "rate": 0.05}
    run.summary = fashion.measure(run, **options, seeds=2)
    spikes = run.arrays["arms"]["spikes"]
    assert spikes.shape == (len(fashion.LOGITS), len(fashion.ARMS), 2)
    judged = {claim.id: claim for claim in fashion.claims(run, "a command")}
    assert judged["fashion-mp-relu"].verdict in ("TREND", "MISMATCH")
    section = fashion.section(run, tmp_path)
    assert len(section.tables[0].rows) == 10 and (tmp_path / "fashion-dead-classes.svg").exists()
    params = {
        "layers": {"0": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(64, 24)))}}
    }
    prune = fashion._pruning((LAYER,), 2)
    for flag in (True, False):
        after = prune(params, jnp.array(flag), jnp.array(1))["layers"]["0"]["kernel"]
        rank = np.linalg.matrix_rank(np.asarray(after), tol=1e-3)
        assert (rank == 12) == flag


def test_convolutions_are_split_where_their_gate_is_open():
    task = make_task("digits", train_limit=320, batch_size=32, model="lenet", seed_axis="stepwise")
    state = task.start([Member(0, 0.01), Member(1, 0.01)])
    split, numbers = cnn.cut_at(state, cnn.ARMS["MP edge"])
    kernels = loop.leaf(split.params, "convs/1/kernel")
    rank = numbers["rank/convs/1/kernel"]
    assert kernels["u"].shape[1:4] == (5, 5, 6) and kernels["v"].shape[1:3] == (1, 1)
    assert np.all(np.asarray(kernels["u"])[0, ..., rank[0] :] == 0)
    counted = [np.count_nonzero(leaf[0]) for leaf in jax.tree.leaves(split.params)]
    assert sum(counted) == numbers["parameters"][0]
    shut = prune.Policy(gate=0.0)
    kept, numbers = cnn.cut_at(state, (shut, shut))
    assert not any(map(prune.is_factored, kept.params["convs"].values()))
    assert set(numbers["parameters"]) == {
        sum(leaf[0].size for leaf in jax.tree.leaves(state.params))
    }


def test_factors_of_a_compressed_network_are_multiplied_out():
    rng = np.random.default_rng(0)
    params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 8, 16)), jnp.float32),
                       "bias": jnp.zeros(16)}}  # fmt: skip
    cut = compress(params, rank="4", framework="flax")
    whole = resnet.multiplied_out(params, cut.tensors)["conv"]["kernel"]
    expected = surgery.truncate(params["conv"]["kernel"].reshape(72, 16), 4)
    np.testing.assert_allclose(whole.reshape(72, 16), expected, atol=1e-5)


# Counting


@pytest.mark.parametrize("name", [name for name, net in PUBLISHED.items() if net.chain])
def test_published_parameters_come_out_of_the_shapes(name):
    net = PUBLISHED[name]
    assert parameters_of(net.widths, net.chain, bias_every_factor=True) == net.parameters


def test_biases_on_last_factors_only():
    net = PUBLISHED["ex4.7"]
    assert parameters_of(net.widths, net.chain) == 17_713_034


# The page


@pytest.fixture(scope="module")
def page(tmp_path_factory, quick_compilation):
    """A reproduction at the smallest size, and the folder of its report."""
    root = tmp_path_factory.mktemp("runs")
    tiny = {**loop.OPTIONS["smoke"], **TASK, "before": 1, "after": 1, "seeds": 2}
    patch = pytest.MonkeyPatch()
    patch.setitem(loop.OPTIONS, "smoke", tiny)
    patch.setattr(rmt_svd, "STUDIES", ())
    settings = ["train.epochs=2", "train.seeds=2", "model.hidden=[24]", "data.train_limit=320"]
    code = rmt_svd.reproduce("smoke", root=root, overrides=settings)
    patch.undo()
    return root, code, root / "reports" / "rmt_svd-smoke"


def test_a_reproduction_writes_verdicts_figures_and_tables(page):
    _, code, folder = page
    assert code == 0
    text = (folder / "report.html").read_text()
    for heading in ("How many singular values it takes", "Splitting while training"):
        assert heading in text
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert {"figure5-ranks", "figure5-spectrum", "loop-parameters", "loop-dead-classes"} <= names
    rows = (folder / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + len(loop.CELLS) * len(loop.SMOKE_ARMS)


def test_every_arm_is_judged_at_the_rate_that_validation_prefers(page):
    root, _, _ = page
    run = Run(next((root / "rmt_svd" / "loop").glob("*Z-*")))
    stored, found = run.load_array("split"), evidence.results(run)
    for place, cell in enumerate(loop.CELLS):
        rate = int(np.argmax(stored["validation accuracy"][:, place].mean(-1)))
        assert found[cell]["split"].rate == loop.RATES[rate]
        np.testing.assert_array_equal(
            found[cell]["split"].accuracy, stored["test accuracy"][rate, place]
        )
    assert evidence.difference(run, "linear", "split", "gd") is None
    assert {row["dead classes"] for row in pictures.rows(run, "linear")} != {""}
    judged = {claim.id: claim for claim in evidence.claims(run, "a command")}
    assert judged["parameters-ex4.3"].verdict == "MATCH"
    assert judged["parameters-ex4.3"].published == "3881124 ± 0"
    assert "hours" in judged["accuracy-ex4.6"].note


def test_a_finished_arm_is_not_trained_again(page, monkeypatch):
    root, _, _ = page
    run = Run(next((root / "rmt_svd" / "loop").glob("*Z-*")))
    monkeypatch.setattr(loop, "cut_at", lambda *given: pytest.fail("an arm was trained again"))
    tiny = {**TASK, "before": 1, "after": 1, "seeds": 2, "arms": loop.SMOKE_ARMS}
    assert loop.measure(run, **tiny, rate=loop.RATE, rates=loop.RATES) == run.summary


def test_cut_at_every_rank_is_the_whole_network_in_the_end(page):
    root, _, _ = page
    run = Run(next((root / "rmt_svd" / "ranks").glob("*Z-*")))
    stored = run.load_array("linear")
    accuracy = dict(zip(ranks.RANKS, stored["accuracy"], strict=True))
    np.testing.assert_allclose(accuracy[25], stored["full"], atol=0.3)
    assert stored["accuracy"].shape == (len(ranks.RANKS), 2)


def test_trainers_count_spikes_and_keep_the_singular_values(page):
    root, _, _ = page
    run = Run(next((root / "rmt_svd" / "figure5" / "linear").glob("*Z-*")))
    history = run.history()
    values = run.load_array(f"vectors-{run.summary['steps']:08d}")[LAYER]
    edge = history[f"spectra/edge/{LAYER}"][1][-1]
    spikes = history[f"spectra/spikes/{LAYER}"][1][-1]
    np.testing.assert_array_equal((values > edge[:, None]).sum(axis=1), spikes)


def test_a_relu_on_the_logits_is_an_option_of_the_paper(page):
    root, _, _ = page
    linear = Run(next((root / "rmt_svd" / "figure5" / "linear").glob("*Z-*")))
    config = PRESETS["small"]["figure5"]["relu-logits"]
    assert config.paper_compat == ("relu_logits",)
    config = replace(load_yaml(linear.path / "config.yaml"), paper_compat=config.paper_compat)
    relu = train(config, root=root, argv=[])
    assert relu.summary["test/loss"] != linear.summary["test/loss"]


# The figures


def test_figures_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="panels is empty"):
        bulks.bulk_evolution([])
    with pytest.raises(ValueError, match="1 rows for 2 ranks"):
        bulks.accuracy_by_rank(np.array([1, 2]), np.ones((1, 3)), marks={}, full=np.ones(3))


def test_the_law_is_drawn_over_the_bulk():
    rng = np.random.default_rng(0)
    values = np.linalg.svd(rng.standard_normal((60, 90)), compute_uv=False)
    panel = bulks.Bulk("noise", values, (60, 90), sigma=1.0, edge=18.0)
    figure = bulks.bulk_evolution([panel])
    law = next(line for line in figure.axes[0].lines if "fitted" in str(line.get_label()))
    s, density = law.get_data()
    assert np.trapezoid(density, s) == pytest.approx(1, abs=0.01)
    assert plots.to_svg(bulks.bulk_evolution([panel])) == plots.to_svg(figure)
